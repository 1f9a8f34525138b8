"""A repository of endpoints that answer at once, and a load for them; also what the killed run of a test runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries
from perf.inputs import requests_json, write_requests
from perf.machine import this_machine
from perf.pareto import Load, load_of, measure_missing
from tests.support.repositories import python_model, write_model

ENDPOINTS = ("rank_small_fp32_onnx", "rank_small_int8_onnx", "rank_small_bf16_openvino")
TENSORS = """
max_batch_size: 0
input [ { name: "query" data_type: TYPE_STRING dims: [ 1 ] },
        { name: "item_ids" data_type: TYPE_STRING dims: [ -1 ] } ]
output [ { name: "ranked_ids" data_type: TYPE_STRING dims: [ -1 ] },
         { name: "scores" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
ENSEMBLE = """
platform: "ensemble"
ensemble_scheduling {{ step [ {{ model_name: "{model}" model_version: 1
  input_map {{ key: "query" value: "query" }} input_map {{ key: "item_ids" value: "item_ids" }}
  output_map {{ key: "ranked_ids" value: "ranked_ids" }} output_map {{ key: "scores" value: "scores" }} }} ] }}
"""
CODE = python_model({"ranked_ids": "tensor('item_ids')", "scores": "np.zeros(len(tensor('item_ids')), np.float32)"})


def write_endpoint(repository: Path, endpoint: str, code: str = CODE) -> None:
    """An ensemble of one model."""
    model = endpoint.removeprefix("rank_")
    write_model(repository, model, 'backend: "python"\n' + TENSORS, code)
    write_model(repository, endpoint, TENSORS + ENSEMBLE.format(model=model))


def small_load(folder: Path, names: Sequence[str] = ENDPOINTS, rounds: int = 1) -> Load:
    """Of two requests, in windows that hold some on a busy machine, too; the endpoints are written before."""
    write_requests(
        requests_json(JudgedQueries({"q1": "red", "q2": "鞋"}, {}, {}), {"q1": ["a", "b"], "q2": ["c", "d"]}),
        folder / "requests.json",
    )
    workspace = Workspace(build=folder / "build", repository=folder / "models", item_store=folder / "store")
    return load_of(names, workspace, folder / "requests.json", rounds, 1000, this_machine(), folder / "measurements")


if __name__ == "__main__":
    measure_missing(small_load(Path(sys.argv[1])))
