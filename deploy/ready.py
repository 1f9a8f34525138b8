"""The containers' health check: exits with 0 if the server here, and every model that it loaded, takes requests.

Usage: ready.py [HTTP_PORT]
"""

from __future__ import annotations

import http.client  # unlike urllib, reads no proxy variables
import sys

DEFAULT_HTTP_PORT = 8000
TIMEOUT_S = 2.0


def is_ready(port: int) -> bool:
    """Whether GET /v2/health/ready on this machine is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if is_ready(int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_HTTP_PORT) else 1)
