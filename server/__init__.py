"""The pip-only Triton: starts the tritonserver that PyPI carries on a model repository.

    from server import TritonServer

    with TritonServer("model_repository", load=["rank"], grpc_port=0, http_port=0, metrics_port=0) as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

From a shell: `python -m server --help`. Standard library only, so that it runs from the builders' environment as well
as from the server's. Knows nothing of rankers or of what the models compute.
"""

from server.environment import ServerEnvironment, find_environment
from server.errors import EnvironmentUnfit, ModelsNotReady, RepositoryError, ServerError, ServerNotReady
from server.tls import ServerTls
from server.triton import TritonServer

__all__ = [
    "EnvironmentUnfit",
    "ModelsNotReady",
    "RepositoryError",
    "ServerEnvironment",
    "ServerError",
    "ServerNotReady",
    "ServerTls",
    "TritonServer",
    "find_environment",
]
