"""A repository of endpoints that answer at once, and a load for them; also what the killed run of a test runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from builders.core.contract import ITEM_IDS, QUERY, RANKED_IDS, SCORES, Contract
from builders.core.files import sha256
from builders.core.locks import LOCK
from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries
from builders.publish import model_config, pbtxt
from builders.publish.manifest import (
    CONFIG,
    MANIFEST,
    Generation,
    Manifest,
    PublishedVersion,
    write_manifest,
)
from builders.publish.repository import NO_BYTECODE
from perf import foreign_load
from perf.inputs import requests_json, write_requests
from perf.machine import this_machine
from perf.pareto import Load, load_of, measure_missing
from tests.support.repositories import python_model, write_model

ENDPOINTS = ("rank_small_fp32_onnx", "rank_small_int8_onnx", "rank_small_bf16_openvino")
INTERFACE = Contract("small", (QUERY, ITEM_IDS), (RANKED_IDS, SCORES))
_IDS = f"tensor('{ITEM_IDS.name}')"
CODE = python_model({RANKED_IDS.name: _IDS, SCORES.name: f"np.zeros(len({_IDS}), np.float32)"})


def write_endpoint(repository: Path, endpoint: str, code: str = CODE, model: str = "") -> None:
    """An ensemble of one model, which is called as the endpoint without ``rank_`` unless named."""
    step = model_config.python_config(dataclasses.replace(INTERFACE, name=model or endpoint.removeprefix("rank_")))
    ensemble = model_config.ensemble_config(dataclasses.replace(INTERFACE, name=endpoint), [(step, 1)])
    write_model(repository, step.name, pbtxt.render(step), code)
    write_model(repository, endpoint, pbtxt.render(ensemble))


def seal(repository: Path) -> None:
    """A manifest that names what lies there, as publishing writes one."""
    for code in repository.glob("*/*/model.py"):
        (code.parent / NO_BYTECODE).touch()
    files = {
        path.relative_to(repository).as_posix(): [sha256(path)]
        for path in sorted(repository.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, LOCK)
    }
    endpoints = {
        path.parent.name: [
            Generation(number=1, variant=step.model_name, steps={step.model_name: step.model_version}, since="some day")
        ]
        for path in repository.glob(f"*/{CONFIG}")
        for step in pbtxt.read(path).ensemble_scheduling.step
    }
    models = {
        model: {version: PublishedVersion(built_from={}, since="some day")}
        for generations in endpoints.values()
        for model, version in generations[0].steps.items()
    }
    write_manifest(repository, Manifest(models=models, endpoints=endpoints, files=files))


def small_load(folder: Path, names: Sequence[str] = ENDPOINTS, rounds: int = 1) -> Load:
    """Of two requests, in windows that hold some on a busy machine, too; the endpoints are written before."""
    seal(folder / "models")
    write_requests(
        requests_json(JudgedQueries({"q1": "red", "q2": "鞋"}, {}, {}), {"q1": ["a", "b"], "q2": ["c", "d"]}),
        folder / "requests.json",
    )
    workspace = Workspace(build=folder / "build", repository=folder / "models", item_store=folder / "store")
    return load_of(names, workspace, folder / "requests.json", rounds, 1000, this_machine(), folder / "measurements")


if __name__ == "__main__":
    foreign_load.RUNS = 1  # tests run beside each other
    measure_missing(small_load(Path(sys.argv[1])))
