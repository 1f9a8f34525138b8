"""Triton's HTTP health and repository endpoints, as the launcher reads them.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

import http.client
import json

SECONDS_PER_CALL = 5.0


def is_live(host: str, port: int) -> bool:
    """Whether the server answers HTTP. Triton opens its endpoints when every start-up model is loaded or refused."""
    return _status(host, port, "GET", "/v2/health/live") == 200


def is_ready(host: str, port: int, model: str) -> bool:
    """Whether a model takes requests."""
    return _status(host, port, "GET", f"/v2/models/{model}/ready") == 200


def reasons_not_ready(host: str, port: int) -> dict[str, str]:
    """Return model name => Triton's reason, for every model that was to be loaded and is not ready."""
    status, body = _call(host, port, "POST", "/v2/repository/index")
    if status != 200:
        return {}
    return {
        entry["name"]: entry.get("reason", "")
        for entry in json.loads(body)
        if entry.get("state") == "UNAVAILABLE" and entry.get("reason") != "unloaded"
    }


def _status(host: str, port: int, method: str, path: str) -> int | None:
    try:
        return _call(host, port, method, path)[0]
    except OSError:
        return None


def _call(host: str, port: int, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS_PER_CALL)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
