"""A small `rank` model for a real Triton: answers, fails or waits as the query says. It reads ids, or texts."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from builders.core.contract import ANSWER, ITEM_IDS, ITEM_TEXTS, QUERY, RANKED_IDS, SCORES, TOP_K

# Words of the query say what the model does:
#   hold NAME   writes NAME.held into the folder of gates, then waits until NAME.open is there
#   fail CODE   answers with that Triton error;  crash raises;  nan scores NaN;  timeout scores the request's own
#   empty, short, rising, twice, stranger   breaks the list so
# Otherwise the score of an id, or of a text, is its number, or its length where it is none; 'unknown' has no score.
MODEL_PY = f"""
import json, os, time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.gates = json.loads(args["model_config"])["parameters"]["gates"]["string_value"]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        word, _, rest = pb.get_input_tensor_by_name(request, "{QUERY.name}").as_numpy()[0].decode().partition(" ")
        if word == "fail":
            return pb.InferenceResponse(error=pb.TritonError("as asked", getattr(pb.TritonError, rest)))
        if word == "crash":
            raise RuntimeError("as asked")
        if word == "hold":
            self.hold(os.path.join(self.gates, rest))
        ids = pb.get_input_tensor_by_name(request, "{ITEM_IDS.name}").as_numpy()
        texts = pb.get_input_tensor_by_name(request, "{ITEM_TEXTS.name}")
        read = ids if texts is None else texts.as_numpy()
        scores = np.array([self.score(word, item, request) for item in read], dtype=np.float32)
        top_k = pb.get_input_tensor_by_name(request, "{TOP_K.name}")
        count = int(top_k.as_numpy()[0]) if top_k is not None else 0
        order = np.argsort(-scores, kind="stable")[:count or len(ids)]
        if word in ("empty", "short", "rising", "twice"):
            order = dict(empty=order[:0], short=order[:-1], rising=order[::-1], twice=order[[0] * len(order)])[word]
        if word == "stranger":
            ids = np.array([b"0"] * len(ids), dtype=object)
        ranked, scores = pb.Tensor("{RANKED_IDS.name}", ids[order]), pb.Tensor("{SCORES.name}", scores[order])
        return pb.InferenceResponse([ranked, scores])

    def hold(self, gate):
        open(gate + ".held", "w").close()
        end_s = time.monotonic() + 60  # a test that fails to open its gate shall fail, not hang
        while not os.path.exists(gate + ".open") and time.monotonic() < end_s:
            time.sleep(0.005)

    def number_in(self, text):
        try:
            return float(text)
        except ValueError:
            return len(text)

    def score(self, word, item, request):
        if word == "nan":
            return np.nan
        if word == "timeout":
            return request.timeout()
        return np.finfo(np.float32).min if item == b"unknown" else self.number_in(item)
"""

CONFIG_PBTXT = """
backend: "python"
max_batch_size: 0
input [ { name: "%(query)s" data_type: TYPE_STRING dims: [ 1 ] },
        { name: "%(item_ids)s" data_type: TYPE_STRING dims: [ -1 ] },
        { name: "%(top_k)s" data_type: %(top_k_type)s dims: [ 1 ] optional: %(top_k_optional)s } ]
output [ { name: "%(ranked_ids)s" data_type: TYPE_STRING dims: [ -1 ] },
         { name: "%(scores)s" data_type: TYPE_FP32 dims: [ -1 ] } ]
parameters { key: "gates" value { string_value: "%(gates)s" } }
%(more)s
"""

# `more` of `write_model`: it takes texts, too.
TAKES_TEXTS = f"""input [ {{ name: "{ITEM_TEXTS.name}" data_type: TYPE_STRING dims: [ -1 ] optional: true }} ]
"""

# Without a default timeout Triton ignores the request's own.
QUEUE_OF_TWO = """dynamic_batching { default_queue_policy {
    default_timeout_microseconds: 60000000 allow_timeout_override: true max_queue_size: 2 } }"""


@dataclass
class Gates:
    """Holds requests inside the model, and lets them go."""

    folder: Path
    names: list[str] = field(default_factory=list)

    def query(self) -> str:
        """A query that the model holds until `open`."""
        self.names.append(uuid.uuid4().hex)
        return f"hold {self.names[-1]}"

    def is_held(self, query: str) -> bool:
        return (self.folder / f"{query.removeprefix('hold ')}.held").exists()

    def open(self) -> None:
        for name in self.names:
            (self.folder / f"{name}.open").touch()


def write_model(repository: Path, name: str, gates: Path, more: str = "", **changes: str) -> None:
    """Write a model whose interface is the contract's, but for the `changes`."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL_PY)
    agreed = {"query": QUERY, "item_ids": ITEM_IDS, "top_k": TOP_K, "ranked_ids": RANKED_IDS, "scores": SCORES}
    names = {key: tensor.name for key, tensor in agreed.items()}
    as_agreed = {"top_k_type": "TYPE_INT32", "top_k_optional": "true", **names}
    config = CONFIG_PBTXT % {**as_agreed, **changes, "gates": gates, "more": more}
    (repository / name / "config.pbtxt").write_text(config)


def says_of_lists(answer: str) -> str:
    """``more`` of :func:`write_model`: what the model's configuration says its lists may look like, JSON."""
    return f'parameters {{ key: "{ANSWER}" value {{ string_value: {json.dumps(answer)} }} }}'
