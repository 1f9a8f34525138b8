"""What the tensorrt drop-in reads of a configuration: profiles, checks against the plan, refusals. No GPU needed."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest

from tests.support.fake_gpu import import_drop_in

CONFIG: dict[str, Any] = {
    "max_batch_size": 1024,
    "input": [{"name": "tokens", "data_type": "TYPE_INT32", "dims": ["-1"]}],
    "output": [{"name": "score", "data_type": "TYPE_FP32", "dims": ["1"]}],
    "instance_group": [{"name": "scorer_0", "kind": "KIND_GPU", "profile": ["0", "2"]}],
}


@pytest.fixture
def profiles(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    return import_drop_in(monkeypatch, "profiles")


@pytest.fixture
def signature(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    return import_drop_in(monkeypatch, "plan_signature")


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CONFIG), **fields}


def with_io(kind: str, **fields: Any) -> dict[str, Any]:
    return changed(**{kind: [{**CONFIG[kind][0], **fields}]})


# ---------------------------------------------------------------- profiles
def profile(module: types.ModuleType, index: int, rows: tuple[int, int, int], lengths: tuple[int, int, int]) -> Any:
    minimum, optimum, maximum = zip(rows, lengths, strict=True)
    return module.Profile(index, {"tokens": module.Range(minimum, optimum, maximum)})


def test_takes_the_profile_that_is_tuned_for_the_requests_padded_length(profiles: types.ModuleType) -> None:
    found = [profile(profiles, number, (1, 40, 64), (8, 8 * number, 64)) for number in (1, 2, 4)]
    lengths = {8: 1, 16: 2, 24: 2, 32: 4, 64: 4}
    for length, index in lengths.items():
        assert profiles.choose_profile(found, {"tokens": (40, length)}).index == index


def test_takes_no_profile_whose_range_a_shape_leaves(profiles: types.ModuleType) -> None:
    near, wide = profile(profiles, 0, (1, 8, 16), (8, 8, 8)), profile(profiles, 1, (1, 512, 512), (8, 128, 128))
    assert profiles.choose_profile([near, wide], {"tokens": (17, 8)}).index == 1
    with pytest.raises(
        profiles.NoProfile, match=r"takes tokens \[8, 136\].*profile 1: tokens \[1, 8\] to \[512, 128\]"
    ):
        profiles.choose_profile([near, wide], {"tokens": (8, 136)})
    with pytest.raises(profiles.NoProfile):
        profiles.choose_profile([near, wide], {"tokens": (8,)})


def test_a_run_has_as_many_rows_as_the_largest_profile_of_its_length_or_the_cap(profiles: types.ModuleType) -> None:
    found = [profile(profiles, 0, (1, 8, 16), (8, 8, 8)), profile(profiles, 1, (1, 64, 64), (8, 16, 16))]
    assert profiles.most_rows(found, {"tokens": (1000, 8)}, None) == 64
    assert profiles.most_rows(found[:1], {"tokens": (1000, 8)}, None) == 16
    assert profiles.most_rows(found, {"tokens": (1000, 8)}, 40) == 40
    with pytest.raises(profiles.NoProfile):
        profiles.most_rows(found, {"tokens": (1, 24)}, None)


@pytest.mark.parametrize(
    ("instance", "indices"), [("scorer_0", [0, 2]), ("scorer_0_1", [0, 2]), ("other_0", [1]), ("other_10_0", [0])]
)
def test_an_instance_has_the_profiles_of_its_group(
    instance: str, indices: list[int], profiles: types.ModuleType
) -> None:
    groups = [*CONFIG["instance_group"], {"name": "other_0", "profile": ["1", "1"]}, {"name": "other_10"}]
    assert profiles.profile_indices(changed(instance_group=groups), instance, 3) == indices


@pytest.mark.parametrize("name", ["3", "-1", "largest"])
def test_refuses_a_profile_that_the_plan_does_not_have(name: str, profiles: types.ModuleType) -> None:
    groups = [{"name": "scorer_0", "profile": ["0", name]}]
    with pytest.raises(profiles.BadProfile, match=f"has '{name}', the plan has the profiles 0 to 2"):
        profiles.profile_indices(changed(instance_group=groups), "scorer_0", 3)


def test_a_buffer_holds_the_largest_shape_of_any_profile(profiles: types.ModuleType) -> None:
    assert profiles.buffer_bytes([(512, 16), (64, 64), (8, 128)], 4) == 512 * 16 * 4


# ---------------------------------------------------------------- the plan's tensors
def tensors(module: types.ModuleType, **of_input: Any) -> list[Any]:
    tokens = {"name": "tokens", "is_input": True, "type": "INT32", "shape": (-1, -1)}
    return [module.PlanTensor(**{**tokens, **of_input}), module.PlanTensor("score", False, "FLOAT", (-1, 1))]


MISMATCHES = {
    "wrong input type": (
        with_io("input", data_type="TYPE_INT64"),
        "configuration expects datatype TYPE_INT64 for input 'tokens', model provides TYPE_INT32",
    ),
    "wrong output type": (
        with_io("output", data_type="TYPE_FP16"),
        "configuration expects datatype TYPE_FP16 for output 'score', model provides TYPE_FP32",
    ),
    "wrong rank": (
        with_io("input", dims=["-1", "4"]),
        r"tensor 'tokens': the model expects 2 dimensions \(shape \[-1, -1\]\) but the model configuration specifies 3",
    ),
    "wrong output dims": (with_io("output", dims=["2"]), r"tensor 'score': .* shape \[-1, 2\]"),
    "batch dimension missing": (changed(max_batch_size=0), r"specifies 1 dimensions, shape \[-1\]"),
    "unknown input": (
        with_io("input", name="tokns"),
        "unexpected inference input 'tokns', allowed inputs are: tokens; expected configuration for input 'tokens'",
    ),
    "unknown output": (with_io("output", name="scores"), "unexpected inference output 'scores'"),
}


@pytest.mark.parametrize("fault", MISMATCHES)
def test_refuses_a_configuration_that_does_not_fit_the_plan(fault: str, signature: types.ModuleType) -> None:
    config, reason = MISMATCHES[fault]
    with pytest.raises(signature.ConfigurationMismatch, match=reason):
        signature.check_configuration(config, tensors(signature))


def test_accepts_a_configuration_that_fits(signature: types.ModuleType) -> None:
    signature.check_configuration(CONFIG, tensors(signature))
    signature.check_configuration(with_io("output", dims=["1", "1"], reshape={"shape": ["1"]}), tensors(signature))


def test_refuses_what_no_run_could_feed(signature: types.ModuleType) -> None:
    with pytest.raises(
        signature.ConfigurationMismatch, match="input 'tokens' of the plan is BF16, wanted one of FLOAT"
    ):
        signature.check_configuration(CONFIG, tensors(signature, type="BF16"))
    with pytest.raises(signature.ConfigurationMismatch, match="'tokens' of the plan is a shape tensor"):
        signature.check_configuration(CONFIG, tensors(signature, on_host=True))


# ---------------------------------------------------------------- refusals
UNSUPPORTED = {
    "no input": (changed(input=[]), "'input' or 'output' is missing"),
    "inputs that are not of rows": (
        changed(parameters={"row_inputs": {"string_value": "x"}}),
        "parameter row_inputs is set, which this drop-in does not do",
    ),
    "sequences": (changed(sequence_batching={"state": []}), "'sequence_batching' is set"),
    "ragged batch": (with_io("input", allow_ragged_batch=True), "input 'tokens' has allow_ragged_batch"),
    "shape tensor": (with_io("input", is_shape_tensor=True), "'tokens' has is_shape_tensor"),
    "optional input": (with_io("input", optional=True), "'tokens' has optional"),
    "a plan a compute capability": (changed(cc_model_filenames={"9.0": "h100.plan"}), "cc_model_filenames is set"),
    "DLA": (
        changed(instance_group=[{"name": "scorer_0", "secondary_devices": [{"kind": "KIND_NVDLA"}]}]),
        "instance_group has secondary_devices",
    ),
}


@pytest.mark.parametrize("fault", UNSUPPORTED)
def test_refuses_what_it_does_not_do(fault: str, signature: types.ModuleType) -> None:
    config, reason = UNSUPPORTED[fault]
    with pytest.raises(signature.Unsupported, match=reason):
        signature.check_supported(config, "GPU")


def test_supports_what_the_kit_writes(signature: types.ModuleType) -> None:
    signature.check_supported(CONFIG, "GPU")


def test_the_memory_strategy_is_one_of_two(signature: types.ModuleType) -> None:
    def strategy(text: str) -> dict[str, Any]:
        return changed(parameters={"execution_context_allocation_strategy": {"string_value": text}})

    assert signature.allocation_strategy(CONFIG) == "STATIC"
    assert signature.allocation_strategy(strategy("ON_PROFILE_CHANGE")) == "ON_PROFILE_CHANGE"
    with pytest.raises(signature.Unsupported, match="'USER_MANAGED', wanted one of STATIC, ON_PROFILE_CHANGE"):
        signature.allocation_strategy(strategy("USER_MANAGED"))


def test_names_the_settings_that_only_promise_speed(signature: types.ModuleType) -> None:
    optimization = {
        "cuda": {"graphs": True, "busy_wait_events": False},
        "eager_batching": True,
        "priority": "PRIORITY_MAX",
    }
    assert signature.hints_not_followed(CONFIG) == []
    assert signature.hints_not_followed(changed(optimization=optimization)) == [
        *("optimization.cuda.graphs", "optimization.eager_batching", "optimization.priority")
    ]
