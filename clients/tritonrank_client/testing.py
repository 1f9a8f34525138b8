"""For the tests of a service that ranks: a server that is a function, answers that were recorded, a pytest fixture.

    def test_my_page(rank_client):                      the fixture: lists in reverse first-stage order
        assert my_page(rank_client)

    RecordingTransport(GrpcTransport("ranker:8001"), "answers.jsonl")   once, beside a real server
    RecordedTransport("answers.jsonl")                                  ever after, without one

The fixture is there where the package is installed with pytest (its plugin `tritonrank`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._contract import ENDPOINTS, RANK, ModelSpec
from ._errors import InvalidRequest, Unavailable
from ._mock import AsyncMockTransport, MockTransport
from ._sync._transport import GrpcTransport
from ._wire import InferRequest, Transport

__all__ = [
    "AsyncMockTransport",
    "GrpcTransport",
    "MockTransport",
    "RecordedTransport",
    "RecordingTransport",
    "reverse_first_stage_order",
]


def reverse_first_stage_order(request: InferRequest) -> dict[str, np.ndarray]:
    """A handler of a MockTransport: the last candidate first, scores N to 1."""
    ids = request.inputs["item_ids"][::-1]
    count = int(request.inputs["top_k"][0]) if "top_k" in request.inputs else 0
    return {"ranked_ids": ids[: count or None], "scores": np.arange(len(ids), 0, -1, dtype=np.float32)[: count or None]}


class RecordingTransport:
    """Asks `transport`, and appends each answer to a file as a JSON line. Errors are not recorded."""

    def __init__(self, transport: Transport, path: str | os.PathLike[str]):
        self._transport, self._path = transport, Path(path)
        self._lock = threading.Lock()

    def infer(self, request: InferRequest) -> Mapping[str, np.ndarray]:
        """See Transport."""
        outputs = self._transport.infer(request)
        line = {"key": _key(request), "outputs": {name: _shown(array) for name, array in outputs.items()}}
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return outputs

    def served_model(self, model: str, timeout_s: float) -> ModelSpec:
        """See Transport."""
        return self._transport.served_model(model, timeout_s)

    def is_ready(self, model: str, timeout_s: float) -> bool:
        """See Transport."""
        return self._transport.is_ready(model, timeout_s)

    def close(self) -> None:
        """See Transport."""
        self._transport.close()


class RecordedTransport:
    """Answers from a file of RecordingTransport: what was asked before, whatever its deadline and request id.

    Raises: InvalidRequest for a file that is none.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        try:
            lines = [json.loads(text) for text in self._path.read_text(encoding="utf-8").splitlines()]
            self._answers = {line["key"]: {n: _array(a) for n, a in line["outputs"].items()} for line in lines}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(
                f"{self._path}: no answers recorded by RecordingTransport ({error})", "path"
            ) from error

    def infer(self, request: InferRequest) -> Mapping[str, np.ndarray]:
        """See Transport. Raises: Unavailable for what was not recorded."""
        if (key := _key(request)) not in self._answers:
            raise Unavailable(
                f"{self._path}: no answer of '{request.model}' to this request was recorded, of {len(self._answers)} "
                "that were; record it with RecordingTransport"
            )
        return {name: array.copy() for name, array in self._answers[key].items()}

    def served_model(self, model: str, timeout_s: float) -> ModelSpec:
        """See Transport."""
        return ENDPOINTS.get(model.partition("_")[0], RANK)

    def is_ready(self, model: str, timeout_s: float) -> bool:
        """See Transport."""
        return True

    def close(self) -> None:
        """See Transport."""


def _key(request: InferRequest) -> str:
    """Of the model and what it is asked."""
    digest = hashlib.sha256(request.model.encode())
    for name, array in sorted(request.inputs.items()):
        digest.update(json.dumps([name, _shown(array)]).encode())
    return digest.hexdigest()


def _shown(array: np.ndarray) -> dict[str, Any]:
    if array.dtype == np.object_:
        return {"dtype": "BYTES", "values": [base64.b64encode(each).decode() for each in array.tolist()]}
    return {"dtype": str(array.dtype), "values": array.tolist()}


def _array(shown: Mapping[str, Any]) -> np.ndarray:
    if shown["dtype"] == "BYTES":
        return np.array([base64.b64decode(each) for each in shown["values"]], dtype=np.object_)
    return np.array(shown["values"], dtype=shown["dtype"])
