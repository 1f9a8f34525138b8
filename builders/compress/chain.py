"""A variant's chain of steps => its scorer files. Every product is kept by what it was made from, and made once.

Networks after each step, and graphs between two steps, lie in ``build/rankers/<ranker>/steps/`` under a fingerprint of
everything before them: a trial that took an hour to tune is tuned once. Knows nothing of quality or of Triton.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.metadata
import inspect
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from builders.compress import low_rank, openvino_ir, prune
from builders.compress import quantize_graph as quantize
from builders.compress.fp16 import converter, fp16_from_onnx
from builders.compress.lists import tensors_of
from builders.compress.quantize_graph import LayerCost, NothingToQuantize
from builders.core.contract import MAX_CANDIDATES, MAX_ROWS_PER_RUN, USUAL_CANDIDATES
from builders.core.files import fingerprint, sha256, write_atomically
from builders.core.recipe import Recipe, Variant
from builders.core.steps import (
    Bf16,
    Distill,
    DynamicInt8,
    Fp16,
    GraphStep,
    HashRows,
    Int8,
    Int8Embeddings,
    Int8Network,
    LowRank,
    NetworkStep,
    PruneChannels,
    PruneHeads,
    PruneLayers,
    PruneMagnitude,
    PruneRows,
    ShareLayers,
    Sparse24,
)
from builders.core.versions import check_onnx_versions
from builders.core.workspace import PROJECT, Workspace
from builders.data.beir import JudgedQueries
from builders.data.unlabeled import unlabeled_lists
from builders.export.onnx import OPSET, check_onnx, onnx_from_ranker
from builders.export.sessions import ONNX, OPENVINO, files_of
from builders.rankers.base import Graph, Ranker, Sample
from builders.rankers.load import load_teacher

LIBRARIES = (
    "torch", "transformers", "peft", "onnx", "onnxscript", "onnxruntime", "numpy", "tokenizers",
    "nvidia-modelopt", "nncf", "openvino",
)  # fmt: skip
IMPORTANCE_SEED, CALIBRATION_SEED = 101, 102
"""Of the lists that pruning measures and calibration reads: other lists than the gate's and distillation's."""
LIST_CANDIDATES = 12

Say = Callable[[str], None]
LoadRanker = Callable[[str], Ranker]
"""A recipe's name or path => its ranker: how a chain finds its teachers."""


@dataclasses.dataclass(frozen=True)
class BuildContext:
    """What every step needs.

    Attributes:
        ranker: as trained, the chain's start.
        data: judged queries, whose corpus and training queries steps may read.
        folder: ``build/rankers/<ranker>``.
        load_ranker: for teachers.
    """

    recipe: Recipe
    ranker: Ranker
    data: JudgedQueries
    folder: Path
    load_ranker: LoadRanker
    say: Say

    @functools.cached_property
    def digest_of_data(self) -> str:
        """Changes with the corpus and the judgements."""
        products = [dataclasses.asdict(product) for product in self.data.products.values()]
        return fingerprint([json.dumps(products, default=str), json.dumps(self.data.judgements)])

    @property
    def steps_folder(self) -> Path:
        """Of products between two steps."""
        return self.folder / "steps"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A graph's file, and how it came about.

    Attributes:
        seconds: that making it took, from the trained network on, whenever that was.
        layers: what quantizing each costs, the most costly first, where that was measured to keep some in FP32.
    """

    model: str
    path: Path
    seconds: float
    layers: tuple[LayerCost, ...] = ()


def variant_files(context: BuildContext, variant: Variant) -> dict[str, Artifact]:
    """Graph name => file, made where it is not there.

    Raises:
        PruningError, DistillationError, QuantizationError: a step cannot do what is asked of it.
        ParityError: an exported graph does not compute what the network does.
        ContractError: a graph's tensors are not the contract's.
    """
    return {graph.name: _made_graph(context, variant, graph) for graph in context.ranker.graphs}


def compressed(context: BuildContext, steps: Sequence[NetworkStep]) -> tuple[Ranker, str, float]:
    """(the ranker after these steps, fingerprint, seconds): networks kept before are taken as they are."""
    if not steps:
        return context.ranker, _key_of_start(context.ranker), 0.0
    *before, step = steps
    key = _key_after(context, steps)
    target = context.steps_folder / f"{key}.pt"
    if _is_current(target, key):
        network = torch.load(target, weights_only=False)  # written by this very function
        return context.ranker.with_network(network), key, _marked(target)["seconds"]
    ranker, _, seconds = compressed(context, before)
    start_s = time.monotonic()
    context.say(f"{context.recipe.ranker}: {_text(step)}")
    changed = ranker.with_network(copy.deepcopy(ranker.network))
    network = _NETWORK_STEPS[type(step)](context, changed, step).eval()
    seconds += time.monotonic() - start_s
    if not isinstance(step, Int8Network):  # its classes are made at run time and cannot be pickled
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".new")
        torch.save(network, unfinished)
        unfinished.replace(target)
        _mark(target, key, seconds)
    return context.ranker.with_network(network), key, seconds


def libraries() -> dict[str, str]:
    """Name => version of what a build depends on, for the manifest."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def parity_samples(ranker: Ranker, judged: JudgedQueries) -> list[dict[str, Sample]]:
    """Real requests: one candidate, a usual request, and the largest at the longest texts: MAX_CANDIDATES, or the
    MAX_ROWS_PER_RUN rows that a scorer which joins requests ever runs at once."""
    query_id, grades = next(iter(judged.judgements.items()))
    request = judged.request(query_id)
    candidates = [judged.products[item_id] for item_id in grades]
    largest = MAX_ROWS_PER_RUN if ranker.graphs[-1].batches else MAX_CANDIDATES
    longest = sorted(judged.products.values(), key=lambda product: len(product.title))[-largest:]
    return [
        ranker.sample(request, candidates[:1]),
        ranker.sample(request, candidates[:USUAL_CANDIDATES]),
        ranker.sample(judged.request(max(judged.queries, key=lambda each: len(judged.queries[each]))), longest),
    ]


def calibration_samples(context: BuildContext, ranker: Ranker, graph: Graph, count: int) -> list[Sample]:
    """Real candidates of training queries, the test queries stay unseen; unjudged lists where there are none."""
    train = context.data.subset("train")
    if train.queries:
        chosen = list(train.queries)[:count]
        lists = [(train.request(one), [train.products[item] for item in train.judgements[one]]) for one in chosen]
    else:
        made = unlabeled_lists(context.data, count, USUAL_CANDIDATES, CALIBRATION_SEED)
        lists = [(one.request, list(one.products)) for one in made]
    return [ranker.sample(request, products)[graph.name] for request, products in lists]


def code_of(thing: object) -> str:
    """Changes with the files that define its class and, of a network, those of its parts: an edited one is exported
    anew. What is installed as a package is not looked at: its version is a fact of the environment."""
    parts = [thing, *(thing.modules() if isinstance(thing, nn.Module) else ())]
    files = {Path(inspect.getfile(type(part))) for part in parts}
    return fingerprint(sha256(path) for path in sorted(files) if "site-packages" not in path.parts)


# ---------------------------------------------------------------- one graph
def _made_graph(context: BuildContext, variant: Variant, graph: Graph) -> Artifact:
    """Export, then the graph steps one after the other, then the runtime's own form. A graph without weights (a cosine)
    is the reference's."""
    reference = context.recipe.variants[0]
    if graph.keep_fp32 and not variant.network_steps:
        return exported(context, (), graph, f"{graph.name}_{reference.name}")
    model = f"{graph.name}_{variant.name}"
    last = [] if graph.keep_fp32 else [step for step in variant.graph_steps if not isinstance(step, Bf16)]
    if not last and variant.runtime != "openvino":
        return exported(context, variant.network_steps, graph, model)
    source = f"{graph.name}_{reference.name}"
    if variant.network_steps:
        source = f"steps/{graph.name}_{_key_after(context, variant.network_steps)}"
    made = exported(context, variant.network_steps, graph, source)
    for place, step in enumerate(last):
        final = place == len(last) - 1 and variant.runtime != "openvino"
        if not (variant.runtime == "openvino" and isinstance(step, Int8)):
            made = _transformed(context, variant, graph, step, made, model if final else "")
    return _as_ir(context, variant, graph, made, model) if variant.runtime == "openvino" else made


def exported(context: BuildContext, steps: Sequence[NetworkStep], graph: Graph, model: str) -> Artifact:
    quantized = bool(steps) and isinstance(steps[-1], Int8Network)
    target = context.folder / f"{model}{ONNX}"
    key = fingerprint([_key_after(context, steps), graph.name, graph.contract.to_json()])
    if not _is_current(target, key):
        ranker, _, seconds = compressed(context, steps)
        start_s = time.monotonic()
        mine = next(each for each in ranker.graphs if each.name == graph.name)
        context.say(f"{model}: exporting to ONNX")
        samples = [sample[graph.name] for sample in parity_samples(ranker, context.data)]
        _mark_of(target).unlink(missing_ok=True)  # it must not stand for the file that comes now
        if quantized:
            from builders.compress.quantize_network import onnx_from_quantized

            onnx_from_quantized(mine, samples[1], target)
        else:
            onnx_from_ranker(mine, _two_rows(samples[1]) if graph.batches else samples[1], target)
            reports = check_onnx(mine, target, samples)
            worst = max(difference for report in reports for difference in report.max_abs_difference.values())
            context.say(f"{model}: parity with torch over {len(samples)} shapes, largest difference {worst:.1e}")
        check_onnx_versions(target)
        _mark(target, key, seconds + time.monotonic() - start_s)
    return _made(model, target)


def _transformed(
    context: BuildContext, variant: Variant, graph: Graph, step: GraphStep, source: Artifact, model: str
) -> Artifact:
    """One graph step. model: the file's name; "" for a product between two steps."""
    by = [converter()] if isinstance(step, Fp16) else []
    key = fingerprint([sha256(source.path), step.model_dump_json(), str(libraries()), *by])
    target = context.folder / f"{model}{ONNX}" if model else context.steps_folder / f"{key}{ONNX}"
    if not _is_current(target, key):
        start_s = time.monotonic()
        _mark_of(target).unlink(missing_ok=True)
        context.say(f"{model or graph.name}: {_text(step)}")
        ranker, _, _ = compressed(context, variant.network_steps)
        try:
            layers = _run_graph_step(context, ranker, graph, step, source.path, target)
        except NothingToQuantize as error:
            if sum(not each.keep_fp32 for each in ranker.graphs) == 1:
                raise
            context.say(f"{error}; left as it is")
            layers = ()
            write_atomically(target, source.path.read_bytes())
        check_onnx_versions(target)
        _mark(target, key, source.seconds + time.monotonic() - start_s, (*source.layers, *layers))
    return _made(model or source.model, target)


def _run_graph_step(
    context: BuildContext, ranker: Ranker, graph: Graph, step: GraphStep, source: Path, target: Path
) -> tuple[LayerCost, ...]:
    target.parent.mkdir(parents=True, exist_ok=True)
    layers: tuple[LayerCost, ...] = ()
    if isinstance(step, Int8):
        samples = calibration_samples(context, ranker, graph, step.calibration_queries)
        named, layers = quantize.sensitive_named(source, samples, step, graph.name)
        quantize.int8_from_onnx(source, target, samples, named)
    elif isinstance(step, DynamicInt8):
        quantize.dynamic_int8_from_onnx(source, target)
    elif isinstance(step, Int8Embeddings):
        quantize.int8_embeddings_from_onnx(source, target, calibration_samples(context, ranker, graph, 8), step)
    elif isinstance(step, Fp16):
        fp16_from_onnx(source, target, calibration_samples(context, ranker, graph, 8), step.keep_fp32)
    else:
        raise TypeError(f"{type(step).__name__} is no step of a graph")
    return layers


def _as_ir(context: BuildContext, variant: Variant, graph: Graph, source: Artifact, model: str) -> Artifact:
    int8 = next((step for step in variant.graph_steps if isinstance(step, Int8)), None)
    half = any(isinstance(step, Bf16) for step in variant.graph_steps)
    target = context.folder / f"{model}{OPENVINO}"
    key = fingerprint([sha256(source.path), int8.model_dump_json() if int8 else "", str(half), str(libraries())])
    if not _is_current(target, key):
        start_s = time.monotonic()
        _mark_of(target).unlink(missing_ok=True)
        layers: tuple[LayerCost, ...] = ()
        if int8 is None:
            context.say(f"{model}: converting to OpenVINO's IR")
            openvino_ir.ir_from_onnx(source.path, target, half_weights=half)
        else:
            context.say(f"{model}: quantizing with NNCF")
            ranker, _, _ = compressed(context, variant.network_steps)
            samples = calibration_samples(context, ranker, graph, int8.calibration_queries)
            has_attention = any("attention" in name.lower() for name, _ in ranker.network.named_modules())
            named, layers = quantize.sensitive_named(source.path, samples, int8, graph.name)
            openvino_ir.int8_ir_from_onnx(source.path, target, samples, named, transformer=has_attention)
        _mark(target, key, source.seconds + time.monotonic() - start_s, (*source.layers, *layers))
    return _made(model, target)


def _two_rows(sample: Sample) -> Sample:
    """The exporter takes a dimension of 1 for a constant."""
    return {name: np.concatenate([array, array])[: max(2, len(array))] for name, array in sample.items()}


# ---------------------------------------------------------------- one step of the network
def _prune_layers(context: BuildContext, ranker: Ranker, step: PruneLayers) -> nn.Module:
    return prune.keep_layers(ranker.network, step.keep)


def _prune_heads(context: BuildContext, ranker: Ranker, step: PruneHeads) -> nn.Module:
    return prune.prune_heads(ranker, _measured(context, ranker, step.lists), step.amount)


def _prune_channels(context: BuildContext, ranker: Ranker, step: PruneChannels) -> nn.Module:
    return prune.prune_channels(ranker, _measured(context, ranker, step.lists), step.amount)


def _prune_rows(context: BuildContext, ranker: Ranker, step: PruneRows) -> nn.Module:
    return prune.keep_rows(ranker, _measured(context, ranker, step.lists), step.amount, step.min_rows)


def _prune_magnitude(context: BuildContext, ranker: Ranker, step: PruneMagnitude) -> nn.Module:
    return prune.zero_smallest(ranker.network, step.amount)


def _sparse_2_4(context: BuildContext, ranker: Ranker, step: Sparse24) -> nn.Module:
    return prune.zero_two_of_four(ranker, _measured(context, ranker, step.lists), step.method)


def _share_layers(context: BuildContext, ranker: Ranker, step: ShareLayers) -> nn.Module:
    return low_rank.share_layers(ranker.network, step.groups)


def _low_rank(context: BuildContext, ranker: Ranker, step: LowRank) -> nn.Module:
    return low_rank.factorize(ranker.network, step.rank, step.min_rows)


def _hash_rows(context: BuildContext, ranker: Ranker, step: HashRows) -> nn.Module:
    return low_rank.hash_rows(ranker.network, step.rows, step.min_rows)


def _distill(context: BuildContext, ranker: Ranker, step: Distill) -> nn.Module:
    from builders.compress.distill import distill

    teachers = [
        (context.load_ranker(one.recipe) if one.recipe else context.ranker, one.weight) for one in step.teachers
    ]
    return distill(ranker, teachers, context.data, step, context.say)


def _int8_network(context: BuildContext, ranker: Ranker, step: Int8Network) -> nn.Module:
    from builders.compress.quantize_network import quantized_network

    return quantized_network(ranker, context.data, step, context.say)


_NETWORK_STEPS: Mapping[type[NetworkStep], Callable[[BuildContext, Ranker, Any], nn.Module]] = {
    PruneLayers: _prune_layers,
    PruneHeads: _prune_heads,
    PruneChannels: _prune_channels,
    PruneRows: _prune_rows,
    PruneMagnitude: _prune_magnitude,
    Sparse24: _sparse_2_4,
    ShareLayers: _share_layers,
    LowRank: _low_rank,
    HashRows: _hash_rows,
    Distill: _distill,
    Int8Network: _int8_network,
}


def _measured(context: BuildContext, ranker: Ranker, lists: int) -> list[dict[str, Sample]]:
    return tensors_of(ranker, unlabeled_lists(context.data, lists, LIST_CANDIDATES, IMPORTANCE_SEED))


# ---------------------------------------------------------------- what was made from what
@functools.lru_cache(maxsize=16)
def _key_of_start(ranker: Ranker) -> str:
    """Of the ranker as it was loaded: hashes its checkpoint, which takes a while, once."""
    code = [code_of(graph.module) for graph in ranker.graphs]
    return fingerprint([*map(sha256, ranker.checkpoint_files), *code, str(OPSET), str(libraries())])


def _key_after(context: BuildContext, steps: Sequence[NetworkStep]) -> str:
    """With what steps read besides the network: the data, and their teachers."""
    texts = [step.model_dump_json() for step in steps]
    names = [one.recipe for step in steps if isinstance(step, Distill) for one in step.teachers if one.recipe]
    teachers = [_key_of_start(context.load_ranker(name)) for name in names]
    return fingerprint([_key_of_start(context.ranker), *texts, *teachers, *([context.digest_of_data] if steps else [])])


def _text(step: NetworkStep | GraphStep) -> str:
    fields = step.model_dump(exclude={"step"}, exclude_defaults=True)
    said = ", ".join(f"{name} {value}" for name, value in fields.items())
    return f"{step.step}{f' ({said})' if said else ''}"  # type: ignore[union-attr]


def _is_current(target: Path, key: str) -> bool:
    mark = _mark_of(target)
    whole = all(path.is_file() for path in (*files_of(target).values(), mark))
    return whole and bool(_marked(target)["made_from"] == key)


def _mark(target: Path, key: str, seconds: float, layers: Sequence[LayerCost] = ()) -> None:
    """Written last: without it the target counts as not made."""
    told = {"made_from": key, "seconds": round(seconds, 2), "layers": [dataclasses.asdict(layer) for layer in layers]}
    write_atomically(_mark_of(target), json.dumps(told) + "\n")


def _marked(target: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(_mark_of(target).read_text())
    return told


def _made(model: str, target: Path) -> Artifact:
    told = _marked(target)
    return Artifact(model, target, told["seconds"], tuple(LayerCost(**layer) for layer in told.get("layers", [])))


def _mark_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.made")


def chain_of(
    recipe: Recipe, ranker: Ranker, judged: JudgedQueries, say: Say = print, workspace: Workspace = PROJECT
) -> BuildContext:
    """What the steps of the recipe's variants need."""
    return BuildContext(recipe, ranker, judged, workspace.ranker_folder(recipe.ranker), load_teacher, say)


def planned_files(context: BuildContext, variant: Variant, plans: Mapping[str, Path]) -> dict[str, Artifact] | None:
    """As :func:`variant_files`, with the plan in each ONNX file's place; None where one was not built."""
    if not plans:
        return None
    made = variant_files(context, variant)
    own = [one.model for one in made.values() if one.model.endswith(variant.name)]
    if any(model not in plans for model in own):
        return None
    return {name: dataclasses.replace(one, path=plans.get(one.model, one.path)) for name, one in made.items()}
