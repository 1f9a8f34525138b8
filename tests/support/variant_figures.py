"""Made-up figures of variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from builders.evaluate.choose import ParetoReport, VariantFigures


def variant_row(variant: str, **changes: Any) -> VariantFigures:
    """A variant that passed its gate; quality 0.6, p99 20 ms, 0.01 USD, 2 MB, 1,000 candidates/s unless changed."""
    quality = changes.get("quality", 0.6)
    compared = {
        "difference_low": quality - 0.6 - 0.01,
        "difference_high": quality - 0.6 + 0.01,
        "confidence": 0.95,
        "fidelity_ndcg": 0.995,
        "fidelity_top_10_overlap": 0.97,
        "fidelity_lists": 2000,
        "kendall_tau": 0.9,
        "top_10_overlap": 0.96,
    }
    row = {
        "model": f"small_{variant}",
        "ranker": "small",
        "variant": variant,
        "endpoint": "rank",
        "is_reference": False,
        "experimental": False,
        "steps": ('{ step = "int8", method = "minmax" }',),
        "metric": "ndcg",
        "quality": quality,
        "queries": 49,
        "quality_ratio": quality / 0.6,
        "gate_passed": True,
        "gate": "passed",
        "requests": 300,
        "p50_ms": 10.0,
        "p99_ms": 20.0,
        "candidates_per_s": 1000.0,
        "ratio": 2.0,
        "ratio_low": 1.9,
        "ratio_high": 2.1,
        "size_bytes": 2_000_000,
        "memory_rss_bytes": 400_000_000,
        "memory_pss_bytes": 300_000_000,
        "build_s": 12.5,
        "cost_per_million": 0.01,
        "currency": "USD",
    }
    return VariantFigures(**{**row, **({} if changes.get("is_reference") else compared), **changes})


def reference_row(**changes: Any) -> VariantFigures:
    """What the others are compared with."""
    settings = {"steps": (), "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "size_bytes": 8_000_000}
    return variant_row("fp32_onnx", **{"is_reference": True, "cost_per_million": 0.02, **settings, **changes})


def pareto_report(*rows: VariantFigures, **changes: Any) -> ParetoReport:
    """Of the ranker "small"."""
    report = {
        "ranker": "small",
        "recipe": Path("recipes/small.toml"),
        "written": "2026-01-02 03:04 UTC",
        "generated": False,
        "machine": {
            "cpu": "a CPU",
            "cores": 2,
            "memory_gib": 7.8,
            "system": "Linux",
            "load_average": 0.1,
            "versions": {"Triton": "2.51.0"},
        },
        "price_per_hour": 0.1,
        "currency": "USD",
        "rounds": 3,
        "window_ms": 2000,
        "concurrency": 2,
        "candidates": 40.6,
        "rows": rows,
    }
    return ParetoReport(**{**report, **changes})
