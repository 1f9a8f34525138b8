"""Triton's HTTP health and repository endpoints, as the launcher reads them.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

import http.client  # unlike urllib, reads no proxy variables
import json
from collections.abc import Mapping

SECONDS_PER_CALL = 5.0


def is_live(host: str, port: int) -> bool:
    """Whether the server answers HTTP. Triton opens its endpoints when every start-up model is loaded or refused."""
    return _status(host, port, "GET", "/v2/health/live") == 200


def is_ready(host: str, port: int, model: str) -> bool:
    """Whether a model takes requests."""
    return _status(host, port, "GET", f"/v2/models/{model}/ready") == 200


def reasons_not_ready(host: str, port: int, headers: Mapping[str, str]) -> dict[str, str]:
    """Return model name => Triton's reason, for every model that was to be loaded and is not ready.

    headers: with the admin key, see server/admin_key.py.
    """
    status, body = call(host, port, "POST", "/v2/repository/index", headers)
    if status != 200:
        return {}
    return {
        entry["name"]: entry.get("reason", "")
        for entry in json.loads(body)
        if entry.get("state") == "UNAVAILABLE" and entry.get("reason") != "unloaded"
    }


def _status(host: str, port: int, method: str, path: str) -> int | None:
    try:
        return call(host, port, method, path)[0]
    except OSError:
        return None


def call(
    host: str,
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float = SECONDS_PER_CALL,
) -> tuple[int, bytes]:
    """Return status and body of Triton's answer. Raises OSError or HTTPException where there is none."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
