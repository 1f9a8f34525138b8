"""Small model repositories of Python models and ensembles, and requests to them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import np_to_triton_dtype

# Each of these answers x float32 [n] with y float32 [n].
VECTOR_CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
"""

_MODEL = """
import json, os, sys, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
{initialize}

    def execute(self, requests):
        return [self.respond(request, requests) for request in requests]

    def respond(self, request, requests):
        def tensor(name, of=request):
            found = pb_utils.get_input_tensor_by_name(of, name)
            return None if found is None else found.as_numpy()

{body}
        return pb_utils.InferenceResponse([{tensors}])
"""


def _block(statements: str) -> str:
    return textwrap.indent(textwrap.dedent(statements), " " * 8)


def python_model(outputs: dict[str, str], body: str = "", initialize: str = "pass") -> str:
    """Return a model.py that runs the statements of `body` and answers with `outputs`: name => expression.

    Both may use `request`, all `requests`, and tensor(name), an array or None.
    """
    tensors = ", ".join(f"pb_utils.Tensor({name!r}, {value})" for name, value in outputs.items())
    return _MODEL.format(tensors=tensors, body=_block(body), initialize=_block(initialize))


ECHO = python_model({"y": "tensor('x')"})


def write_model(repository: Path, name: str, config: str, code: str | None = None, version: str = "1") -> Path:
    """Write a model; return its folder. Without code, its version folder is empty, as an ensemble's is."""
    folder = repository / name / version
    folder.mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(config)
    if code is not None:
        (folder / "model.py").write_text(code)
    return repository / name


def inputs_of(**arrays: np.ndarray) -> list[grpc.InferInput]:
    inputs = []
    for name, array in arrays.items():
        inputs.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def infer(
    client: grpc.InferenceServerClient, model: str, timeout: int | None = None, **arrays: np.ndarray
) -> grpc.InferResult:
    """Send one request; `timeout` in microseconds, the server's."""
    return client.infer(model, inputs_of(**arrays), timeout=timeout)


def infer_together(
    client: grpc.InferenceServerClient, model: str, requests: Sequence[dict[str, np.ndarray]]
) -> list[Future[grpc.InferResult]]:
    """Send requests at the same time; return their finished futures in the order of the requests."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return [pool.submit(infer, client, model, **request) for request in requests]


def texts(*values: str) -> np.ndarray:
    """BYTES [n]."""
    return np.array([value.encode() for value in values], dtype=object)


def vector(*values: float) -> np.ndarray:
    """FP32 [n]."""
    return np.array(values, np.float32)
