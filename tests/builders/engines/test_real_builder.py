"""Our calls of TensorRT 11's real builder, which plans on a CPU: parser, typed networks, profiles, cache, refusals.

Loading a plan needs a GPU, and no GPU has run what TensorRT 11 builds here.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.tensorrt_cpu import SetupFailed, run_with_it, tensorrt_on_cpu

pytestmark = pytest.mark.slow
PRECISIONS = ("fp32", "fp16", "int8", "mixed")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/support/build_small_plans.py says; the first run installs TensorRT's builder."""
    try:
        tensorrt_on_cpu()
    except SetupFailed as error:
        pytest.skip(str(error))
    ended = run_with_it("tests.support.build_small_plans", str(tmp_path_factory.mktemp("plans")))
    assert ended.returncode == 0, ended.stderr[-2000:]
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_plan_is_built_from_a_graph_whose_own_types_say(precision: str, found: dict[str, Any]) -> None:
    assert found["tensorrt"].startswith("11.4")
    assert found[precision] > 1000


def test_options_that_are_given_are_taken(found: dict[str, Any]) -> None:
    assert found["optimization level 0"] > 1000


def test_a_timing_cache_is_written_beside_the_plans(found: dict[str, Any]) -> None:
    assert found["timing cache"] > 0


def test_an_operator_that_the_parser_does_not_know_is_named_with_the_parsers_own_words(found: dict[str, Any]) -> None:
    assert re.match(
        r"EngineError: masked_attention: TensorRT 11.4.* cannot read it: .*Unheard", found["unknown operator"]
    )


def test_profiles_that_do_not_fit_the_graph_are_an_error(found: dict[str, Any]) -> None:
    assert found["profile of another shape"].startswith("EngineError: ")


def test_a_whole_build_says_that_there_is_no_gpu_and_writes_nothing(found: dict[str, Any]) -> None:
    if not found["no gpu"]:
        pytest.skip("this machine has a GPU")
    assert found["no gpu"].startswith("GpuMissing: no NVIDIA driver here")
