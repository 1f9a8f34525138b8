"""A run's ``results.json`` => a page of Markdown beside it: `python -m deploy.airgap.page RESULTS.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from deploy.airgap.run import COLUMNS, cell, shapes

MIB = 2**20
Facts = Mapping[str, Any]


def write_page(results: Path) -> Path:
    """Write the page; returns its path. Raises: ValueError: the run had no GPU, so there is nothing to show."""
    found = json.loads(results.read_text(encoding="utf-8"))
    if "no GPU" in found:
        raise ValueError(f"{results}: no GPU gave these results ({found['no GPU']})")
    page = results.with_suffix(".md")
    page.write_text(render(found, results.name) + "\n", encoding="utf-8")
    return page


def render(found: Facts, source: str) -> str:
    """The page."""
    gpu = found["smoke"]["gpu"]
    parts = [
        f"# {gpu['name']}, TensorRT {found['smoke'].get('tensorrt', 'not loaded')}",
        f"Generated from [{source}]({source}) by `python -m deploy.airgap.page`. "
        "How it was measured: [A GPU machine without a network](../../docs/how-to/gpu-machine-without-network.md).",
        f"Driver {gpu['driver']}, CUDA {gpu['cuda']} of the driver, compute capability {gpu['compute_capability']}; "
        f"Polygraphy {found['smoke'].get('polygraphy', '-')}; torch {found.get('torch', {}).get('torch', '-')}; "
        f"ONNX Runtime {found.get('references', {}).get('onnxruntime', '-')} on the CPU; "
        f"{_libraries(found.get('kit', {}))}.",
        *_section("What did not work", _errors(found)),
        *_section("A matrix product, 5 x 64 by 64 x 32: built, then run by backends/tensorrt", _table(_smoke(found))),
        *_section("Engines", _table(_engines(found))),
        *_section("Scores against ONNX Runtime on the same file", _table(_parity(found))),
        *_section("Latency, p50 in ms, host to host", _latency_text(found)),
        *_section("Enqueue alone, p50 in ms", _table(_enqueue(found))),
        *_section("Served by Triton through backends/tensorrt, 40 candidates", _table(_served(found))),
        *_section("Stages", _table(_stages(found))),
    ]
    return "\n\n".join(parts)


def _libraries(kit: Facts) -> str:
    """How TensorRT's libraries travelled, and which cuBLAS; the first kits could leave kernels out."""
    if "kernels" in kit:
        return f"kernels of TensorRT's libraries: {kit['kernels']}"
    return f"TensorRT's libraries byte for byte, cuBLAS of {kit.get('cublas', '-')}"


def _section(title: str, text: str) -> Iterator[str]:
    if text:
        yield from (f"## {title}", text)


def _table(rows: Sequence[Facts]) -> str:
    return str(pd.DataFrame(rows).fillna("-").to_markdown(index=False, disable_numparse=True)) if rows else ""


def _of(found: Facts, stage: str) -> dict[str, Facts]:
    """What a stage has put down as a group of figures."""
    return {key: value for key, value in found.get(stage, {}).items() if isinstance(value, dict) and key != "gpu"}


def _errors(found: Facts) -> str:
    told = [f"- {stage}, {key.removesuffix(' error')}: `{str(value).splitlines()[0][:200]}`"
            for stage, facts in found.items() if isinstance(facts, dict)
            for key, value in facts.items() if key.endswith(" error")]  # fmt: skip
    return "\n".join(told)


def _smoke(found: Facts) -> list[Facts]:
    return [
        {"precision": precision, "built in, s": manifest["seconds"], "bytes": manifest["bytes"],
         "layers by precision": _counts(manifest["layers"]),
         "largest difference from NumPy": _figure(found["smoke"].get(f"difference {precision}"))}
        for precision, manifest in (
            (key.removeprefix("manifest "), value)
            for key, value in _of(found, "smoke").items() if key.startswith("manifest ")
        )
    ]  # fmt: skip


def _counts(layers: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in layers.items())


def _engines(found: Facts) -> list[Facts]:
    return [
        {"engine": name, "built in, s": f"{facts['build_seconds']:.1f}", "MiB": f"{facts['bytes'] / MIB:.1f}",
         "layers by precision": _counts(facts["layers"])}
        for name, facts in _of(found, "engines").items()
    ]  # fmt: skip


def _parity(found: Facts) -> list[Facts]:
    rows = []
    for name, facts in _of(found, "parity").items():
        own = name.removesuffix("_trt").rsplit("_", 1)[-1]
        polygraphy = found["parity"].get(f"{name} polygraphy")
        rows.append({
            "engine": name,
            "largest difference": _figure(facts.get(f"largest difference from {own} ONNX")),
            "of scores whose deviation is": _figure(facts.get(f"scores' deviation {own}")),
            "same first ten": _figure(facts.get(f"same first ten as {own} ONNX")),
            "NDCG@10": _figure(facts["ndcg"]),
            "of its ONNX file": _figure(facts.get(f"ndcg of {own} ONNX")),
            "of FP32": _figure(facts.get("ndcg of fp32 ONNX")),
            "Polygraphy's runner from the drop-in": _figure(polygraphy),
        })  # fmt: skip
    return rows


def _latency_text(found: Facts) -> str:
    table = _table(_latency(found))
    peak = found.get("torch", {}).get("peak fp16 TFLOP/s")
    told = f"torch multiplies two matrices of 8192 x 8192 in FP16 at {peak:.0f} TFLOP/s. " if peak else ""
    return f"{told}torch's cross-encoder has random weights of the same shape.\n\n{table}" if table else ""


def _latency(found: Facts) -> list[Facts]:
    return [
        {"network": graph, "rows x length": shape,
         **{column: cell(dict(found), graph, shape, column) for column in COLUMNS}}
        for graph, shape in shapes(dict(found))
    ]  # fmt: skip


def _enqueue(found: Facts) -> list[Facts]:
    return [
        {"engine": name.rsplit(" ", 1)[0], "rows x length": name.rsplit(" ", 1)[1], "runs": facts["runs"],
         "enqueue": f"{facts['enqueue_p50_ms']:.3f}", "as a CUDA graph": _figure(facts.get("graph_p50_ms"))}
        for name, facts in _of(found, "latency").items()
    ]  # fmt: skip


def _served(found: Facts) -> list[Facts]:
    rows = []
    for name, facts in _of(found, "serve").items():
        model, _, concurrency = name.partition(" perf_analyzer ")
        rows.append({
            "engine": model, "requests at once": concurrency,
            "requests": facts.get("requests", "not kept"), "p50, ms": f"{facts['p50_ms']:.2f}",
            "p99, ms": f"{facts['p99_ms']:.2f}", "candidates/s": f"{facts['candidates_per_s']:,.0f}",
            "served scores from the plan's": _figure(found["serve"].get(f"{model} served difference")),
        })  # fmt: skip
    return rows


def _stages(found: Facts) -> list[Facts]:
    return [
        {"stage": stage, "process": " ".join(one["command"])[:60], "s": one.get("seconds", "-"), "ended": one["ended"]}
        for stage, ran in found.get("stages", {}).items()
        for one in ran
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    print(write_page(Path(sys.argv[1])))
