"""A variant's chain of steps => its scorer files: network steps, export, graph steps, the runtime's own form.

Every product is kept by what it was made from (:mod:`builders.core.keeper`). Networks after each step, and graphs
between two steps, lie in ``build/rankers/<ranker>/steps/``: a variant that took an hour to tune is tuned once. Knows
nothing of quality or of Triton.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from builders import export
from builders.compress.apply import GRAPH_STEPS, NETWORK_STEPS, performed
from builders.compress.context import BuildContext, calibration_samples, parity_samples, ranker_inputs
from builders.compress.fp16 import converter
from builders.compress.quantize_graph import LayerCost, NothingToQuantize, sensitive_named
from builders.compress.stored_network import FORM, can_be_stored, load_network, save_network
from builders.core.keeper import Kept, keep
from builders.core.keys import digests, key_of
from builders.core.onnx_files import copy_model
from builders.core.recipe import Variant
from builders.core.runtimes import ONNX, runtime_of
from builders.core.steps import CompressionStep, GraphStep, Int8, NetworkStep
from builders.core.versions import check_onnx_versions, libraries
from builders.export.onnx import check_onnx, onnx_from_ranker
from builders.rankers.base import Graph, Ranker

_EXPORT_CODE = sorted(Path(export.__file__).parent.glob("*.py"))


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

    @property
    def content(self) -> Path | list[Path]:
        """For keys: the file, or all that it consists of where that is more."""
        files = list(runtime_of(self.path).files(self.path).values())
        return files if len(files) > 1 else self.path


@dataclasses.dataclass(frozen=True)
class Compressed:
    """The ranker after some steps, and the seconds that these took."""

    ranker: Ranker
    seconds: float


def variant_files(context: BuildContext, variant: Variant) -> dict[str, Artifact]:
    """Graph name => file, made where it is not there.

    Raises:
        PruningError, DistillationError, QuantizationError: a step cannot do what is asked of it.
        ParityError: an exported graph does not compute what the network does.
        ContractError: a graph's tensors are not the contract's.
        StoredNetworkError: a network that an earlier build kept between two steps is not what it wrote.
    """
    return {graph.name: _graph_file(context, variant, graph) for graph in context.ranker.graphs}


def planned_files(context: BuildContext, variant: Variant, plans: Mapping[str, Path]) -> dict[str, Artifact] | None:
    """As :func:`variant_files`, with the plan in each ONNX file's place; None where one was not built."""
    if not plans:
        return None
    made = variant_files(context, variant)
    own = [one.model for one in made.values() if one.model.endswith(variant.name)]
    if any(model not in plans for model in own):
        return None
    return {name: dataclasses.replace(one, path=plans.get(one.model, one.path)) for name, one in made.items()}


def compressed(context: BuildContext, steps: Sequence[NetworkStep]) -> Compressed:
    """The ranker after these steps: networks kept before are taken as they are."""
    if not steps:
        return Compressed(context.ranker, 0.0)
    *before, step = steps
    if not (step.keepable and can_be_stored(context.ranker.network)):
        return _performed(context, compressed(context, before), step)
    inputs = {**network_inputs(context, steps), **digests({"form": FORM})}

    def make(target: Path, source: Compressed) -> None:
        save_network(_performed(context, source, step).ranker.network, target)

    target = context.steps_folder / f"{key_of(inputs)}.pt"
    kept = keep(target, inputs, make, source=lambda: compressed(context, before))
    network = load_network(kept.path, context.ranker.network)
    return Compressed(context.ranker.with_network(network), kept.seconds)


def exported(context: BuildContext, steps: Sequence[NetworkStep], graph: Graph) -> Artifact:
    """The graph after these steps as ONNX, between two steps of a variant; the reference's own where there are none."""
    model = f"{graph.name}_{context.recipe.variants[0].name}"
    if not steps:
        return _export(context, (), graph, model, context.folder / f"{model}{ONNX.suffix}")
    name = f"{graph.name}_{key_of(network_inputs(context, steps))}"
    return _export(context, steps, graph, f"steps/{name}", context.steps_folder / f"{name}{ONNX.suffix}")


def network_inputs(context: BuildContext, steps: Sequence[NetworkStep]) -> dict[str, str]:
    """What a network after these steps depends on: the trained one, the steps, and what they read besides it."""
    teachers = {name: key_of(ranker_inputs(context.load_ranker(name))) for step in steps for name in step.recipes_read}
    made_by = digests({"steps": list(steps), "teachers": teachers, **_data_read(context, steps)})
    return {**ranker_inputs(context.ranker), **made_by}


# ---------------------------------------------------------------- one graph
def _graph_file(context: BuildContext, variant: Variant, graph: Graph) -> Artifact:
    """Export, then the graph steps one after the other, then the runtime's own form. A graph without weights (a cosine)
    is the reference's."""
    if graph.keep_fp32 and not variant.network_steps:
        return exported(context, (), graph)
    model, runtime = f"{graph.name}_{variant.name}", variant.runtime
    own_form = runtime.converts is not None
    steps = [] if graph.keep_fp32 else [step for step in variant.graph_steps if step.changes_graph]
    in_onnx = [step for step in steps if not step.done_by(runtime)]
    if not in_onnx and not own_form:
        target = context.folder / f"{model}{ONNX.suffix}"
        return _export(context, variant.network_steps, graph, model, target)
    made = exported(context, variant.network_steps, graph)
    for place, step in enumerate(in_onnx):
        final = place == len(in_onnx) - 1 and not own_form
        made = _transformed(context, variant, graph, step, made, model if final else "")
    return _in_own_form(context, variant, graph, made, model) if own_form else made


def _performed(context: BuildContext, source: Compressed, step: NetworkStep) -> Compressed:
    context.say(f"{context.recipe.ranker}: {step}")
    start_s = time.monotonic()
    changed = source.ranker.with_network(copy.deepcopy(source.ranker.network))
    network = performed(step, NETWORK_STEPS)(context, changed, step).eval()
    return Compressed(context.ranker.with_network(network), source.seconds + time.monotonic() - start_s)


def _export(context: BuildContext, steps: Sequence[NetworkStep], graph: Graph, model: str, target: Path) -> Artifact:
    inputs = {
        **network_inputs(context, steps),
        "graph": graph.name,
        "contract": graph.contract.to_json(),
        "export's code": _EXPORT_CODE,
    }

    def make(target: Path, source: Compressed) -> None:
        mine = next(each for each in source.ranker.graphs if each.name == graph.name)
        context.say(f"{model}: exporting to ONNX")
        samples = [sample[graph.name] for sample in parity_samples(source.ranker, context.data, context.say)]
        if any(step.inserts_quantizers for step in steps):
            from builders.compress.quantize_network import onnx_from_quantized

            onnx_from_quantized(mine, samples[1], target)
        else:
            onnx_from_ranker(mine, samples[1], target)
            reports = check_onnx(mine, target, samples)
            worst = max(difference for report in reports for difference in report.max_abs_difference.values())
            context.say(f"{model}: parity with torch over {len(samples)} shapes, largest difference {worst:.1e}")
        check_onnx_versions(target)

    return _artifact(model, keep(target, inputs, make, source=lambda: compressed(context, steps), say=context.say))


def _transformed(
    context: BuildContext, variant: Variant, graph: Graph, step: GraphStep, source: Artifact, model: str
) -> Artifact:
    """One graph step. model: the file's name; "" for a product between two steps."""
    by = converter() if step.precision == "fp16" else ""
    inputs = {**_graph_inputs(context, variant, [step], source), "converter": by}
    folder, name = (context.folder, model) if model else (context.steps_folder, key_of(inputs))
    target = folder / f"{name}{ONNX.suffix}"

    def make(target: Path, source: Artifact) -> Mapping[str, Any]:
        context.say(f"{model or graph.name}: {step}")
        ranker = compressed(context, variant.network_steps).ranker
        try:
            layers = performed(step, GRAPH_STEPS)(context, ranker, graph, step, source.path, target)
        except NothingToQuantize as error:
            if sum(not each.keep_fp32 for each in ranker.graphs) == 1:
                raise
            context.say(f"{error}; left as it is")
            layers = ()
            copy_model(source.path, target)
        check_onnx_versions(target)
        return _told((*source.layers, *layers))

    return _artifact(model or source.model, keep(target, inputs, make, source=lambda: source, say=context.say))


def _in_own_form(context: BuildContext, variant: Variant, graph: Graph, source: Artifact, model: str) -> Artifact:
    """What the runtime loads, made of ONNX, quantized by the runtime's own means where a step asks for it."""
    runtime = variant.runtime
    steps = () if graph.keep_fp32 else variant.graph_steps
    int8 = cast("Int8 | None", next((step for step in steps if step.done_by(runtime)), None))
    inputs = {
        **_graph_inputs(context, variant, [int8] if int8 else [], source),
        "precision": variant.precision,
        "runtime": runtime.name,
    }
    target = context.folder / f"{model}{runtime.suffix}"

    def make(target: Path, source: Artifact) -> Mapping[str, Any]:
        layers: tuple[LayerCost, ...] = ()
        if int8 is None:
            context.say(f"{model}: converting to {runtime.name}'s own form")
            runtime.converts(source.path, target, variant.precision)  # type: ignore[misc]
        else:
            layers = _quantized_by_runtime(context, variant, graph, int8, source.path, target)
        return _told((*source.layers, *layers))

    beside = runtime.files_beside(target).values()
    return _artifact(model, keep(target, inputs, make, source=lambda: source, beside=beside, say=context.say))


def _quantized_by_runtime(
    context: BuildContext, variant: Variant, graph: Graph, step: Int8, source: Path, target: Path
) -> tuple[LayerCost, ...]:
    context.say(f"{target.stem}: quantizing while converting to {variant.runtime.name}'s own form")
    ranker = compressed(context, variant.network_steps).ranker
    samples = calibration_samples(context, ranker, graph, step.calibration_queries)
    has_attention = any("attention" in name.lower() for name, _ in ranker.network.named_modules())
    named, layers = sensitive_named(source, samples, step, graph.name)
    assert variant.runtime.quantizes is not None
    variant.runtime.quantizes(source, target, samples, named.keep_fp32, transformer=has_attention)
    return layers


# ---------------------------------------------------------------- what a product depends on, and what is told of it
def _graph_inputs(
    context: BuildContext, variant: Variant, steps: Sequence[GraphStep], source: Artifact
) -> dict[str, str]:
    """Of a graph after these steps. Where they read the data, samples are made by the ranker, whose code counts too."""
    reads = _data_read(context, steps)
    sampled_by = {"sampled by": network_inputs(context, variant.network_steps)} if reads else {}
    return digests({"source": source.content, "steps": list(steps), "libraries": libraries(), **reads, **sampled_by})


def _data_read(context: BuildContext, steps: Sequence[CompressionStep]) -> dict[str, object]:
    return {"data": context.data.digest} if any(step.reads_data for step in steps) else {}


def _told(layers: Sequence[LayerCost]) -> dict[str, Any]:
    return {"layers": [dataclasses.asdict(layer) for layer in layers]}


def _artifact(model: str, kept: Kept) -> Artifact:
    layers = tuple(LayerCost(**layer) for layer in kept.told.get("layers", []))
    return Artifact(model, kept.path, kept.seconds, layers)
