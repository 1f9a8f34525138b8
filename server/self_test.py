"""One tensor through the Python-backend stub: what a stub and a numpy that do not fit each other get wrong.

With numpy 2 this Triton's stub starts, serves, and hands over empty tensors. The test costs a server start, so its
outcome is remembered in the environment, for the versions it was run with.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from pathlib import Path

from server.environment import ServerEnvironment
from server.errors import EnvironmentUnfit

MODEL = "self_test"
SENT = [1.0, -2.5, 0.125]  # float32 [3]
OUTCOME_FILE = "tritonrank-self-test.json"
TIMEOUT_S = 30.0

_CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "sent" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "received" data_type: TYPE_FP32 dims: [-1] }]
"""

_MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [echo(request) for request in requests]

def echo(request):
    sent = pb_utils.get_input_tensor_by_name(request, "sent").as_numpy()
    return pb_utils.InferenceResponse([pb_utils.Tensor("received", sent)])
"""


def has_passed(environment: ServerEnvironment) -> bool:
    """Whether the test has passed before with the package versions of today."""
    try:
        return bool(json.loads((environment.root / OUTCOME_FILE).read_text()) == _versions(environment))
    except (OSError, ValueError):
        return False


def remember_pass(environment: ServerEnvironment) -> None:
    """Write that the test has passed; an environment that cannot be written to is tested at each start."""
    with contextlib.suppress(OSError):
        (environment.root / OUTCOME_FILE).write_text(json.dumps(_versions(environment)))


def write_repository(folder: Path) -> None:
    """Write a repository of one Python model that returns the tensor it was sent."""
    version = folder / MODEL / "1"
    version.mkdir(parents=True)
    (folder / MODEL / "config.pbtxt").write_text(_CONFIG)
    (version / "model.py").write_text(_MODEL)


def check_tensor_returns(host: str, http_port: int, environment: ServerEnvironment) -> None:
    """Send one tensor and raise EnvironmentUnfit unless the same comes back."""
    received = _infer(host, http_port)
    if received != SENT:
        raise EnvironmentUnfit(
            f"server environment {environment.root}: a tensor sent through Triton's Python stub came back as "
            f"{received}, wanted {SENT} (installed: {_versions(environment)}); "
            "rebuild the environment with 'make clean setup'."
        )


def _infer(host: str, http_port: int) -> object:
    tensor = {"name": "sent", "datatype": "FP32", "shape": [len(SENT)], "data": SENT}
    connection = http.client.HTTPConnection(host, http_port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [tensor]}))
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return answer["outputs"][0]["data"] if "outputs" in answer else answer


def _versions(environment: ServerEnvironment) -> dict[str, str | None]:
    packages = {name: environment.version_of(name) for name in ("numpy", "nvidia-pytriton")}
    return {"python": environment.python_minor, **packages}
