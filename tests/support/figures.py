"""Made-up figures and data for the tests; no server."""

from __future__ import annotations

import dataclasses

from builders.core.recipe import Recipe
from builders.data.find import JudgedQueries, Product
from builders.evaluate.metrics import Interval
from perf.analyzer import Step
from perf.endpoints import Endpoint
from perf.machine import Machine
from perf.served_quality import FIRST_STAGE, Check, Difference, RankerQuality, ServedQuality
from perf.sweep import PerfReport, Point

TITLE = "Brush <b>& handle</b> <script>alert(1)</script>"
TEST_QUERY = "tissa long bottle cleaning brush"  # by its hash a test query


def judged_queries() -> JudgedQueries:
    """One test query with three candidates, one of a title that must be escaped."""
    products = {name: Product(name, title) for name, title in {"a": TITLE, "b": "Bottle", "c": "Cup"}.items()}
    return JudgedQueries({"q1": TEST_QUERY}, products, {"q1": {"a": 3, "b": 0, "c": 2}})


def asked(queries: dict[str, str]) -> JudgedQueries:
    """Queries without judgements."""
    return JudgedQueries(queries, {}, {})


def served_quality(*, generated: bool = False, passed: bool = True) -> ServedQuality:
    """A first stage and two variants."""
    rows = [
        RankerQuality(FIRST_STAGE, "all", {"q1": 0.61}, {"q1": ["b", "a", "c"]}),
        RankerQuality("small_fp32_onnx", "test", {"q1": 0.7125}, {"q1": ["a", "c", "b"]}),
        RankerQuality("small_int8_onnx", "test", {"q1": 0.7001}, {"q1": ["a", "b", "c"]}),
    ]
    interval = Interval(0.1025, 0.0412, 0.1633, 0.168, 0.95, 49)
    return ServedQuality(
        inputs="0",
        limit=None,
        generated=generated,
        published="small_int8_onnx",
        rankers=rows,
        differences=[
            Difference("small_fp32_onnx", FIRST_STAGE, interval),
            Difference("small_int8_onnx", FIRST_STAGE, interval),
        ],
        checks=[Check("small: scores equal torch's", passed, "largest difference 3e-07")],
    )


def perf_report() -> PerfReport:
    """Two endpoints at two concurrencies."""
    machine = Machine("a CPU", 2, 7.8, "Linux", 0.1, {"Triton": "2.51.0"})
    steps = (Step("small_preprocess", 0.1, 1.2), Step("small_int8_onnx", 0.2, 55.0), Step("postprocess", 0.1, 0.3))
    points = [
        Point("rank", 1, 50, 61.5, 70.2, 88.8, 16.2, 664.0, None, None, steps, 0),
        Point("rank_small_int8_onnx", 1, 50, 61.4, 70.1, 88.7, 16.3, 668.0, "rank_x", (2.01, 1.9, 2.2), steps, 1),
        Point("rank", 2, 50, 120.0, 140.0, 150.0, 16.9, 690.0, None, None, steps, 0),
        Point("rank_small_int8_onnx", 2, 50, 121.0, 141.0, 151.0, 16.8, 689.0, "rank_x", (2.0, 1.8, 2.1), steps, 0),
    ]
    points = [dataclasses.replace(point, candidates=41.2) for point in points]
    served = {"rank": "small_int8_onnx"}
    return PerfReport(machine, served, points, ["rank_x at concurrency 4: Request timeout expired"], "digest", "load")


def small_recipe(*, trained: bool = True) -> Recipe:
    """A reference variant and an INT8 one."""
    variants = [{"name": "fp32_onnx"}, {"name": "int8_onnx", "steps": [{"step": "int8"}]}]
    return Recipe.model_validate(
        {
            "ranker": "small" if trained else "plain",
            "module": "none.py:None",
            "trained_on_judgements": trained,
            "variants": variants if trained else variants[:1],
        }
    )


def small_endpoints() -> list[Endpoint]:
    """Two of a trained ranker, one of an untrained."""
    recipes = [small_recipe(), small_recipe(trained=False)]
    return [Endpoint(recipe, variant) for recipe in recipes for variant in recipe.variants]
