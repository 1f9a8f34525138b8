"""What is measured there: the project's own ONNX files, real samples and configurations, small enough to be carried.

Needs the builders' environment; graphs that `make export` has made are taken as they are, others are made here. Two
things make it small, the same in every precision, so that parity among them
holds: rows of a table of words that no carried sample reads are zero, and weights have lost the last 8 of their 23 bits
of mantissa. Scores differ from the project's by about 1e-4 through that; compare engines with these ONNX files alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from builders.compress.chain import variant_files
from builders.compress.context import BuildContext, build_context, calibration_samples
from builders.compress.fp16 import fp16_from_onnx
from builders.core.recipe import Recipe, Variant, load_recipes
from builders.core.runtimes import ONNX
from builders.core.steps import Int8, Int8Network
from builders.core.workspace import PROJECT, Workspace
from builders.data.evaluation import evaluation_data, judging_queries
from builders.data.find import find_data
from builders.engines.profiles import Profile, profiles_of
from builders.publish import model_config, pbtxt
from builders.publish.tensorrt_config import tensorrt_config
from builders.rankers.base import Graph, Ranker, Sample
from builders.rankers.load import load_ranker
from deploy.airgap import weights

LENGTHS, ROWS = (32, 64), 512
"""Of a graph that batches: each length costs the build of a profile."""
LISTS, CALIBRATION = 60, 4
FACTS = "workload.json"
LARGE = 2**16
"""Elements from which a tensor is worth trimming."""
WORDS = 20_000
"""Rows from which a table is one of words."""
SPECIAL_TOKENS = 1100
"""Rows at a table's start that are kept in any case: those that stand for no word among them."""


class NothingToCarry(ValueError):
    """A recipe has no ONNX variant in FP32."""


def write_workload(folder: Path, recipes: Sequence[str], workspace: Workspace = PROJECT) -> None:
    """Fill ``folder`` with ``workload.json``, ONNX files without weights, the weights and the samples.

    Raises:
        NothingToCarry: a recipe is not known, or has no ONNX variant in FP32.
    """
    folder.mkdir(parents=True)
    known = load_recipes()
    if missing := [name for name in recipes if name not in known]:
        raise NothingToCarry(f"no recipe named {', '.join(missing)}; wanted some of {', '.join(known)}")
    networks = [_network(known[name], folder, workspace) for name in recipes]
    (folder / FACTS).write_text(json.dumps(networks, indent=1))
    weights.split(sorted(folder.glob("*.onnx")), folder)


def _network(recipe: Recipe, folder: Path, workspace: Workspace) -> dict[str, Any]:
    """One recipe's last graph, its scorer, in each precision that it has."""
    ranker = load_ranker(recipe)
    whole = evaluation_data(recipe.data, find_data().folder)
    data = judging_queries(recipe, whole)
    context = build_context(recipe, ranker, whole, print, workspace)  # as the build has it: what it made is found again
    graph = _resized(ranker.graphs[-1])
    judged = list(data.judgements.items())[:LISTS]
    lists = [ranker.sample(data.request(query), [data.products[item] for item in grades])[graph.name]
             for query, grades in judged]  # fmt: skip
    np.savez_compressed(folder / f"{recipe.ranker}.npz", **_judged_arrays(graph, lists))
    calibration = calibration_samples(context, ranker, graph, CALIBRATION)
    profiles = profiles_of(graph)
    return {
        "recipe": recipe.ranker,
        "graph": graph.name,
        "contract": json.loads(graph.contract.to_json()),
        "batches": graph.batches,
        "max_batch_size": graph.max_batch_size,
        "lengths": list(graph.lengths),
        "profiles": [profile.to_json() for profile in profiles],
        "files": _files(context, graph, folder, tokens_of([*lists, *calibration]), calibration),
        "grades": {query: list(grades.values()) for query, grades in judged},
        "served": _served(graph, profiles) if graph.batches else {},
        "torch": torch_network(ranker, recipe),
    }


def _resized(graph: Graph) -> Graph:
    if not graph.batches:
        return graph
    return dataclasses.replace(graph, lengths=LENGTHS if graph.lengths else (), max_batch_size=ROWS)


def _files(
    context: BuildContext, graph: Graph, folder: Path, tokens: np.ndarray | None, calibration: Sequence[Sample]
) -> dict[str, str]:
    """Precision => file: FP16 first, since it is what matters most where time runs out."""
    name = context.recipe.ranker
    files = {"fp16": f"{name}_fp16.onnx"}
    for precision, variant in _carried(context.recipe):
        made = variant_files(context, variant)[graph.name].path
        files[precision] = f"{name}_{precision}.onnx"
        onnx.save(trimmed(onnx.load(made), tokens), folder / files[precision])
    fp16_from_onnx(folder / files["fp32"], folder / files["fp16"], calibration)
    return files


def _carried(recipe: Recipe) -> Iterator[tuple[str, Variant]]:
    """FP32, and INT8 as TensorRT takes it where the recipe publishes it."""
    published = [one for one in recipe.variants if one.runtime is ONNX and not one.experimental]
    int8 = next((one for one in published if _is_symmetric_int8(one)), None)
    if int8 is not None:
        yield "int8", int8
    fp32 = next((one for one in published if not one.steps), None)
    if fp32 is None:
        raise NothingToCarry(f"recipe {recipe.ranker} has no ONNX variant in FP32, from which FP16 is made")
    yield "fp32", fp32


def _is_symmetric_int8(variant: Variant) -> bool:
    [step, *further] = variant.steps or [None]
    symmetric = isinstance(step, Int8Network) or (isinstance(step, Int8) and step.activations == "int8")
    return symmetric and not further


# ---------------------------------------------------------------- samples
def _judged_arrays(graph: Graph, lists: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Every judged row at the longest length, in the queries' order; of a graph that does not batch, one request a
    query: ``<query number>/<tensor>``."""
    if not graph.batches:
        return {f"{number}/{name}": array for number, one in enumerate(lists) for name, array in one.items()}
    padded = [{name: _to_length(array, graph) for name, array in one.items()} for one in lists]
    joined = {name: np.concatenate([one[name] for one in padded]) for name in padded[0]}
    return {**joined, "rows_of_query": np.array([len(next(iter(one.values()))) for one in padded])}


def _to_length(array: np.ndarray, graph: Graph) -> np.ndarray:
    if not graph.lengths:
        return array
    longest = graph.lengths[-1]
    return np.pad(array[:, :longest], [(0, 0), (0, max(0, longest - array.shape[1]))])


def tokens_of(samples: Sequence[Sample]) -> np.ndarray | None:
    """Token ids that some sample reads, and the special ones; None for a network that reads none."""
    ids = [one["input_ids"].ravel() for one in samples if "input_ids" in one]
    return np.unique(np.concatenate([*ids, np.arange(SPECIAL_TOKENS)])) if ids else None


def trimmed(model: onnx.ModelProto, tokens: np.ndarray | None) -> onnx.ModelProto:
    """Zero the words that no sample reads and the last 8 bits of FP32 weights."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size < LARGE or array.dtype not in (np.float32, np.int8):
            continue
        array = array.copy()
        if tokens is not None and array.ndim == 2 and len(array) > WORDS:
            unused = np.ones(len(array), dtype=bool)
            unused[tokens] = False
            array[unused] = 0
        if array.dtype == np.float32:
            array = ((array.view(np.uint32) + 0x80) & np.uint32(0xFFFFFF00)).view(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


# ---------------------------------------------------------------- how it is served, and made in torch
def _served(graph: Graph, profiles: Sequence[Profile]) -> dict[str, str]:
    """Model name => config.pbtxt, of each precision's scorer and its ensemble."""
    found = {}
    for precision in ("fp16", "int8", "fp32"):
        model = f"{graph.name}_{precision}_trt"
        config = tensorrt_config(graph, model, profiles, cuda_graphs=False)
        found[model] = pbtxt.render(config)
        contract = dataclasses.replace(graph.contract, name=f"rank_{model}")
        found[f"rank_{model}"] = pbtxt.render(model_config.ensemble_config(contract, [(config, 1)]))
    return found


def torch_network(ranker: Ranker, recipe: Recipe) -> dict[str, Any]:
    """How to make the same network where torch and the project's code are: by its checkpoint, or, of a transformer
    whose backbone is not carried, with random weights of the same shape."""
    network: Any = ranker.network
    if recipe.ranker != "cross_encoder":
        return {"kind": "checkpoint", "module": recipe.module, "checkpoint": str(recipe.checkpoint)}
    config: Mapping[str, Any] = network.config.to_dict()
    plain = {name: value for name, value in config.items() if isinstance(value, int | float | str | bool)}
    return {
        "kind": "cross_encoder",
        "config": plain,
        "specials": list(network.specials),
        "separator": network.separator,
    }
