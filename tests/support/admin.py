"""A client that shows the admin key of a server, for tests that load and unload models."""

from __future__ import annotations

import tritonclient.grpc as grpc
from tritonclient._request import Request

from server import TritonServer
from server.admin_key import GRPC_HEADER


class _ShowsKey(grpc.InferenceServerClientPlugin):
    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Request) -> None:
        request.headers[GRPC_HEADER] = self._key


def admin_client(server: TritonServer) -> grpc.InferenceServerClient:
    """A client of the server that may load models."""
    client = grpc.InferenceServerClient(server.grpc_url)
    client.register_plugin(_ShowsKey(server.admin_key))
    return client
