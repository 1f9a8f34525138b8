"""Gated ONNX variants => TensorRT engines: what is built, what is taken from the store, what is skipped and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from builders.core.onnx_files import OnnxFileError, model_sha256
from builders.core.versions import VersionError
from builders.engines.build import (
    BuildOptions,
    EngineError,
    Precision,
    engine_from_onnx,
    skipped_engines,
    tensorrt_version,
)
from builders.engines.gpu import visible_gpu
from builders.engines.profiles import profiles_of
from builders.engines.store import EngineStore, StoredEngine
from builders.export.parity import ParityError
from builders.export.plan_manifest import EngineManifest

if TYPE_CHECKING:
    from builders.rankers.base import Graph

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class WantedEngine:
    """One engine to build.

    Attributes:
        model: name of the served model, ``cross_encoder_fp16_trt``.
        graph: gives the profiles.
        onnx_file: the variant's ONNX, its types those of ``precision``.
        precision: what the engine must turn out to be.
        fallback: ONNX model whose files take its place on another machine.
        check: given the finished plan, raises ParityError where it does not compute what its graph says; such a plan
            is not kept.
    """

    model: str
    graph: Graph
    onnx_file: Path
    precision: Precision
    fallback: str
    check: Callable[[Path], object] | None = None


def build_engines(
    wanted: Sequence[WantedEngine],
    folder: Path,
    say: Say = print,
    *,
    require: bool = False,
    options: BuildOptions | None = None,
) -> dict[str, StoredEngine]:
    """Build what the store does not hold yet.

    Args:
        folder: of the store, ``build/engines``.
        require: whether a machine without TensorRT or GPU is an error, and a graph that this TensorRT does not read.
        options: for all of them; each one's precision is put in.

    Returns:
        Model name => its plan; empty on a machine that cannot build engines.

    Raises:
        TensorRTMissing: ``require`` on a machine that cannot build engines.
        EngineError: engines could not be built, are not of their precision, or compute something else than their
            graphs; the others are built first.
        StoreLocked: another build goes on for too long.
    """
    skipped = skipped_engines(require, [each.model for each in wanted])
    if skipped:
        say(skipped)
        return {}
    store = EngineStore(folder, tensorrt_version(), visible_gpu())
    built: dict[str, StoredEngine] = {}
    faults: list[str] = []
    with store.locked():
        for each in sorted(wanted, key=lambda one: one.precision != "fp32"):  # the others are held against its size
            try:
                built[each.model] = _engine(store, each, options or BuildOptions(), built, wanted)
                say(_line(each.model, built[each.model]))
            except (EngineError, OnnxFileError, ParityError, VersionError) as error:
                say(f"{each.model}: not built, {error}")
                if require or not isinstance(error, VersionError):
                    faults.append(f"{each.model}: {error}")
    if faults:
        raise EngineError(f"{len(faults)} of {len(wanted)} engines not built: " + "; ".join(faults))
    return built


def _engine(
    store: EngineStore,
    wanted: WantedEngine,
    options: BuildOptions,
    built: dict[str, StoredEngine],
    others: Sequence[WantedEngine],
) -> StoredEngine:
    options = dataclasses.replace(options, precision=wanted.precision)
    profiles = profiles_of(wanted.graph)
    fp32 = next((one.model for one in others if one.precision == "fp32" and one.graph.name == wanted.graph.name), "")

    def build(target: Path) -> EngineManifest:
        manifest = engine_from_onnx(
            wanted.onnx_file,
            target,
            profiles,
            options,
            timing_cache=store.timing_cache,
            fallback=wanted.fallback,
            fp32_plan_bytes=built[fp32].manifest.plan_bytes if fp32 in built else None,
            gpu=store.gpu,
        )
        if wanted.check is not None:
            wanted.check(target)
        return manifest

    return store.engine(store.key(model_sha256(wanted.onnx_file), profiles, options, wanted.fallback), build)


def _line(model: str, engine: StoredEngine) -> str:
    facts = engine.manifest
    size = f"{facts.plan_bytes / 2**20:.1f} MiB, {len(facts.profiles)} profiles, {facts.options['precision']}"
    if engine.built:
        return f"{model}: built in {facts.build_seconds:.0f} s for {facts.gpu}, TensorRT {facts.tensorrt}; {size}"
    return f"{model}: as built before for {facts.gpu}, TensorRT {facts.tensorrt}; {size}"
