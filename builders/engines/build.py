"""ONNX => TensorRT plan with its manifest, and the proof that the plan computes in the precision asked for.

The one module that calls ``tensorrt``, 8.5 to 11; the names that it calls are recorded for each release under
``tests/support/tensorrt_interfaces/``. Knows nothing of Triton, of rankers or of where plans are kept.

Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from builders.compress.fp16 import fp32_nodes, tensor_types
from builders.core.errors import MACHINE_LACKS, BuilderError
from builders.core.files import write_atomically
from builders.core.onnx_files import as_file, fits_one_file, load_model, model_sha256, refuse_large
from builders.core.versions import check_versions, opset_of, tensorrt_reader
from builders.engines.edge_graph import onnx_for_tensorrt_8
from builders.engines.gpu import Gpu, GpuMissing, visible_gpu
from builders.engines.profiles import Profile
from builders.export.plan_manifest import EngineManifest, manifest_path, write_manifest

Precision = Literal["fp32", "fp16", "int8", "mixed"]
"""What the graph's own types say; ``mixed`` is INT8 products with FP16 between them."""
STRONGLY_TYPED_FROM = 10
SIZE_DECIDES_FROM = 8 * 2**20
"""Bytes of FP32 weights from which a plan's size shows its precision; below, kernels outweigh weights."""
MAX_SIZE_SHARE = 0.8
"""Of the FP32 plan's bytes. FP16 halves the weights; what stays FP32, kernels and padding add to them."""
_BUILDER_FLAGS: dict[Precision, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("FP16",),
    "int8": ("INT8",),
    "mixed": ("FP16", "INT8"),
}
_SPELLINGS = {"FP16": r"FP16|Half|f16", "INT8": r"Int8|i8", "FP32": r"FP32|Float\b|f32"}
_TYPED_KEYS = ("Format/Datatype", "Format", "DataType", "Type", "TacticName")


class EngineError(BuilderError):
    """A plan cannot be built as asked."""


class TensorRTMissing(EngineError):
    """TensorRT was required and is not there."""

    exit_code = MACHINE_LACKS


class WrongPrecision(EngineError):
    """The plan is not of the precision asked for; TensorRT builds an FP32 one without a word."""


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """What a build may be told, each with what it costs. The defaults are TensorRT's own.

    Attributes:
        precision: of the graph's types; checked before and after the build.
        tf32: FP32 products may round their operands to 10 bits on Ampere and later. Off costs speed of the FP32
            products, on costs accuracy.
        workspace_mib: scratch memory that a layer may ask for; None = all of the GPU's. Less costs the tactics that
            need more.
        tactic_sources: libraries to take kernels from, by ``tensorrt.TacticSource``'s names; () = TensorRT's own alone,
            None = TensorRT's choice. Fewer cost kernels, more cost the libraries' memory.
        optimization_level: 0 to 5; None = 3. Each step up costs a longer build, each step down a slower engine.
        hardware_compatible: the plan runs on any GPU from Ampere on. Costs the kernels made for newer ones.
        version_compatible: the plan runs on later TensorRTs of the same major. Costs a lean runtime in each plan, and
            some kernels.
    """

    precision: Precision = "fp32"
    tf32: bool = True
    workspace_mib: int | None = None
    tactic_sources: tuple[str, ...] | None = None
    optimization_level: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False


# ---------------------------------------------------------------- what there is to build with
def tensorrt_version() -> str:
    """Version of the TensorRT at hand. Raises: TensorRTMissing."""
    return str(_tensorrt().__version__)


def missing_reason() -> str:
    """Why this machine builds no engine; empty where it can."""
    if importlib.util.find_spec("tensorrt") is None:
        return "package 'tensorrt' is not installed here"
    try:
        visible_gpu()
    except GpuMissing as error:
        return str(error)
    return ""


def skipped_engines(require: bool, models: Sequence[str] = ()) -> str:
    """A line that says which engines were not built and why; empty where this machine can build them.

    Raises:
        TensorRTMissing: ``require``, and this machine cannot build engines.
    """
    reason = missing_reason()
    if not reason:
        return ""
    which = f" ({', '.join(models)})" if models else ""
    line = f"TensorRT engines skipped{which}: {reason}; the ONNX variants are built and serve instead"
    if require:
        raise TensorRTMissing(f"{line}. Unset REQUIRE_TENSORRT, or build on a machine that has both")
    return line


# ---------------------------------------------------------------- the build
def engine_from_onnx(
    onnx_file: Path,
    target: Path,
    profiles: Sequence[Profile],
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    fallback: str = "",
    fp32_plan_bytes: int | None = None,
    gpu: Gpu | None = None,
) -> EngineManifest:
    """Build one plan and write it with its manifest, which comes last: without it the plan counts as not built.

    Args:
        onnx_file: its types must be those of ``options.precision``.
        target: the plan, written beside and renamed; the manifest is ``<target>.json``.
        profiles: in the order of Triton's ``instance_group.profile``.
        timing_cache: read where it exists, written anew afterwards; of one GPU, driver and TensorRT.
        fallback: name of the ONNX model that serves where this plan cannot.
        fp32_plan_bytes: size of the same graph's FP32 plan; without it, that of the FP32 weights is taken.
        gpu: the GPU at hand, asked for where not given.

    Raises:
        TensorRTMissing: no TensorRT.
        GpuMissing: no GPU.
        VersionError: the graph has no form that this TensorRT reads.
        WrongPrecision: the graph, or the plan, is not of the precision asked for.
        EngineError: TensorRT refused the graph or an option; the message has its reason.
    """
    trt = _tensorrt()
    gpu = gpu or visible_gpu()
    model = load_model(onnx_file)
    check_graph_types(model, options.precision, onnx_file.name)
    weight_bytes = _fp32_weight_bytes(model)
    model = _as_read_by(trt, model, onnx_file.name)
    started = time.perf_counter()
    plan = _plan(trt, model, profiles, options, timing_cache)
    seconds = time.perf_counter() - started
    layers = _inspected(trt, plan)
    check_plan(options.precision, layers, len(plan), fp32_plan_bytes or weight_bytes, weight_bytes, onnx_file.name)
    manifest = EngineManifest(
        tensorrt=str(trt.__version__),
        cuda=gpu.cuda,
        driver=gpu.driver,
        compute_capability=gpu.compute_capability,
        gpu=gpu.name,
        onnx_sha256=model_sha256(onnx_file),
        profiles=[profile.to_json() for profile in profiles],
        build_seconds=round(seconds, 3),
        plan_bytes=len(plan),
        options=dataclasses.asdict(options),
        fallback=fallback,
        layer_precisions=layers,
    )
    manifest_path(target).unlink(missing_ok=True)
    write_atomically(target, plan)
    write_manifest(target, manifest)
    return manifest


# ---------------------------------------------------------------- precision: before and after
def check_graph_types(model: onnx.ModelProto, precision: Precision, name: str = "graph") -> None:
    """Raises: WrongPrecision when the graph's own types are not those of ``precision``, or its INT8 not TensorRT's."""
    quantizers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    has = {"FP16": TensorProto.FLOAT16 in tensor_types(model).values(), "INT8": bool(quantizers)}
    faults = [
        f"{kind} is {'in' if has[kind] else 'not in'} its types"
        for kind in has
        if has[kind] != (kind in _BUILDER_FLAGS[precision])
    ]
    if quantizers and "INT8" in _BUILDER_FLAGS[precision]:
        faults += sorted(set(_unsupported_zero_points(model, quantizers)))
    if faults:
        raise WrongPrecision(
            f"{name}: wanted a graph in {precision}, but " + "; ".join(faults) + ". TensorRT takes the types from the "
            "graph: give the variant the compression steps that make them"
        )


def check_plan(
    precision: Precision,
    layers: Mapping[str, int],
    plan_bytes: int,
    fp32_bytes: int,
    weight_bytes: int,
    name: str = "plan",
) -> None:
    """Hold a plan against what was asked for.

    Args:
        layers: from :func:`layer_precisions`.
        plan_bytes: of this plan.
        fp32_bytes: of the same graph's FP32 plan, or at least of its FP32 weights.
        weight_bytes: of the FP32 weights; size is no evidence below SIZE_DECIDES_FROM.

    Raises:
        WrongPrecision: no layer in that precision that the inspector can see, or no smaller than FP32.
    """
    missing = [kind for kind in _BUILDER_FLAGS[precision] if not layers.get(kind)]
    if missing and not layers.get("opaque"):
        raise WrongPrecision(
            f"{name}: built for {precision}, but no layer reads or writes {' or '.join(missing)} ({dict(layers)}). The "
            "engine is FP32: look at the graph's types with 'python -m builders bisect'"
        )
    share = plan_bytes / max(fp32_bytes, 1)
    if precision != "fp32" and weight_bytes >= SIZE_DECIDES_FROM and share > MAX_SIZE_SHARE:
        raise WrongPrecision(
            f"{name}: built for {precision}, but its {plan_bytes} bytes are {share:.0%} of FP32's {fp32_bytes}, wanted "
            f"at most {MAX_SIZE_SHARE:.0%}. Weights stayed FP32: look at the graph's types with 'python -m builders "
            "bisect'"
        )


def layer_precisions(engine_information: str) -> dict[str, int]:
    """The engine inspector's JSON => FP32, FP16, INT8, ``opaque`` => how many layers read, write or name it.

    TensorRT 8 to 10 write one string ``Format/Datatype`` a tensor, 11 a ``Format`` and a ``DataType``:
    https://docs.nvidia.com/deeplearning/tensorrt/11.3.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html
    """
    found: Counter[str] = Counter()
    for layer in json.loads(engine_information)["Layers"]:
        if isinstance(layer, str):  # built without detailed verbosity: names only
            found["opaque"] += 1
            continue
        text = " ".join(_typed_texts(layer))
        found.update(kind for kind, spelling in _SPELLINGS.items() if re.search(spelling, text, re.IGNORECASE))
        found["opaque"] += layer.get("LayerType") == "Myelin" or "ForeignNode" in layer.get("Name", "")
    return {kind: count for kind, count in found.items() if count}


# ---------------------------------------------------------------- TensorRT's own calls
def _tensorrt() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise TensorRTMissing(f"TensorRT cannot be imported ({error}); build on a machine that has it") from error


def _as_read_by(trt: Any, model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    reader = tensorrt_reader(trt.__version__)
    if _major(trt) < STRONGLY_TYPED_FROM:
        refuse_large(model, "onnx's conversion to the opset of TensorRT 8")
        model = onnx_for_tensorrt_8(model)
    check_versions(name, opset_of(model), model.ir_version, [reader])
    return model


def _plan(
    trt: Any, model: onnx.ModelProto, profiles: Sequence[Profile], options: BuildOptions, timing_cache: Path | None
) -> bytes:
    """The serialized plan; no more than this can be done where TensorRT has no GPU."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = _builder(trt, logger)
    config = builder.create_builder_config()
    network, parser = _typed_network(trt, logger, builder, config, model, options.precision)
    _set_options(trt, config, options)
    _add_profiles(builder, config, profiles)
    _read_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(
            f"{model.graph.name}: TensorRT {trt.__version__} built nothing; its log above has the layer. Look for it "
            "with 'polygraphy run --trt', or serve the ONNX variant"
        )
    _write_timing_cache(config, timing_cache)
    del parser  # it owns weights that the network points to
    return bytes(plan)


def _builder(trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:  # how its bindings say that there is none: a library or the driver was refused
        raise EngineError(
            f"TensorRT {trt.__version__} starts no builder ({error}); its log above has the reason. Its libraries must "
            "be whole and of one release, and the driver new enough for them"
        ) from error


def _typed_network(
    trt: Any, logger: Any, builder: Any, config: Any, model: onnx.ModelProto, precision: Precision
) -> tuple[Any, Any]:
    """The one place where TensorRT's generations differ: who decides the type of a layer.

    From 11 on the graph alone; on 10 the graph, if the network is created STRONGLY_TYPED; before, builder flags allow a
    precision and each layer that the graph keeps in FP32 has to say so.
    """
    if _major(trt) > STRONGLY_TYPED_FROM:
        return _parsed(trt, logger, builder.create_network(0), model)
    if _major(trt) == STRONGLY_TYPED_FROM:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return _parsed(trt, logger, builder.create_network(flags), model)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    network, parser = _parsed(trt, logger, builder.create_network(flags), model)
    for flag in _BUILDER_FLAGS[precision]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if "FP16" in _BUILDER_FLAGS[precision]:
        config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        for layer in _kept_layers(trt, network, model):
            layer.precision = trt.DataType.FLOAT
    return network, parser


def _parsed(trt: Any, logger: Any, network: Any, model: onnx.ModelProto) -> tuple[Any, Any]:
    parser = trt.OnnxParser(network, logger)
    if not _parse(parser, model):
        faults = "; ".join(str(parser.get_error(place)) for place in range(parser.num_errors))
        raise EngineError(
            f"{model.graph.name}: TensorRT {trt.__version__} cannot read it: {faults}. Serve the ONNX variant, or "
            "export without that operator"
        )
    return network, parser


def _parse(parser: Any, model: onnx.ModelProto) -> bool:
    """From a file where a message cannot hold the weights; the parser reads them whole before it returns."""
    if fits_one_file(model):
        return bool(parser.parse(model.SerializeToString()))
    with as_file(model) as path:
        return bool(parser.parse_from_file(str(path)))


def _kept_layers(trt: Any, network: Any, model: onnx.ModelProto) -> Iterator[Any]:
    """Layers of the nodes that the graph computes in FP32, but for those of shapes and constants."""
    kept = set(fp32_nodes(model))
    for place in range(network.num_layers):
        layer = network.get_layer(place)
        computes = layer.type not in (trt.LayerType.CONSTANT, trt.LayerType.SHAPE) and layer.num_outputs > 0
        if computes and layer.name in kept and layer.get_output(0).dtype == trt.DataType.FLOAT:
            yield layer


def _set_options(trt: Any, config: Any, options: BuildOptions) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector sees precisions
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if options.tactic_sources is not None:
        sources = [_option(trt, trt.TacticSource, name, "tactic source") for name in options.tactic_sources]
        config.set_tactic_sources(sum(1 << int(source) for source in sources))
    if options.optimization_level is not None:
        _option(trt, config, "builder_optimization_level", "option")
        config.builder_optimization_level = options.optimization_level
    if options.hardware_compatible:
        levels = _option(trt, trt, "HardwareCompatibilityLevel", "option")
        config.hardware_compatibility_level = levels.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(_option(trt, trt.BuilderFlag, "VERSION_COMPATIBLE", "option"))


def _option(trt: Any, owner: Any, name: str, kind: str) -> Any:
    if not hasattr(owner, name):
        raise EngineError(f"TensorRT {trt.__version__} has no {kind} '{name}'; leave it out, or build with a later one")
    return getattr(owner, name)


def _add_profiles(builder: Any, config: Any, profiles: Sequence[Profile]) -> None:
    for wanted in profiles:
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in wanted.shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        config.add_optimization_profile(profile)


def _read_timing_cache(config: Any, path: Path | None) -> None:
    if path is not None:
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _write_timing_cache(config: Any, path: Path | None) -> None:
    if path is not None:
        write_atomically(path, bytes(config.get_timing_cache().serialize()))


def _inspected(trt: Any, plan: bytes) -> dict[str, int]:
    """Loads the plan, which needs the GPU."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"TensorRT {trt.__version__} does not load the plan it built; its log above has the reason")
    inspector = engine.create_engine_inspector()
    layers = layer_precisions(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    del inspector  # before the engine that made it: TensorRT calls the other order undefined
    return layers


def _major(trt: Any) -> int:
    return int(trt.__version__.split(".")[0])


# ---------------------------------------------------------------- the graph's own facts
def _fp32_weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes that the weights would take in FP32; index tables and shapes do not count."""
    weighty = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8)
    return 4 * sum(int(np.prod(one.dims)) for one in model.graph.initializer if one.data_type in weighty)


def _unsupported_zero_points(model: onnx.ModelProto, quantizers: Sequence[onnx.NodeProto]) -> Iterator[str]:
    """TensorRT has symmetric INT8 alone: signed, zero at 0."""
    tensors = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    for node in quantizers:
        zero_point = tensors.get(node.input[2]) if len(node.input) > 2 else None
        if zero_point is None:
            if len(node.input) < 3 and node.op_type == "QuantizeLinear":
                yield "its zero points are absent, that is UINT8; wanted INT8 around 0"
        elif zero_point.data_type not in (TensorProto.INT8, TensorProto.INT32):
            yield f"its zero points are {TensorProto.DataType.Name(zero_point.data_type)}; wanted INT8 around 0"
        elif numpy_helper.to_array(zero_point).any():
            yield "some zero points are not 0; wanted a symmetric quantization"


def _typed_texts(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _typed_texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _typed_texts(inner, key)
    elif isinstance(value, str) and key in _TYPED_KEYS:
        yield value
