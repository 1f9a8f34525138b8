"""A chain's products are made once, only what follows a change is made anew, and what was not finished counts for
nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import onnx
import pytest
import torch

from builders.compress import apply
from builders.compress import chain as variants
from builders.compress import context as build_context
from builders.compress import quantize_graph as quantize
from builders.compress.chain import Artifact, compressed, network_inputs, variant_files
from builders.compress.context import BuildContext
from builders.compress.quantize_graph import QuantizationError
from builders.core import keeper
from builders.core.keys import key_of
from builders.core.recipe import Recipe, Variant
from builders.core.runtimes import open_session
from builders.core.steps import (
    Distill,
    DynamicInt8,
    Fp16,
    GraphStep,
    Int8,
    Int8Embeddings,
    NetworkStep,
    PruneChannels,
    PruneMagnitude,
    Step,
)
from builders.export.parity import ParityError
from builders.rankers.feature_ranker import FeatureRanker
from tests.support.small_rankers import HIDDEN, REQUEST, Taken, catalogue, priced_ranker, some_products

REFERENCE = Variant(name="fp32_onnx")
ZEROED = PruneMagnitude(step="prune_magnitude", amount=0.5)
HALVED = PruneChannels(step="prune_channels", amount=0.5, lists=4)
TUNED = Distill(step="distill", lists=4, candidates=4, freeze=())


def variant(name: str, *steps: Step) -> Variant:
    return Variant(name=name, steps=steps)


class Folder:
    """A recipe's folder, and what was said while making things in it."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.path = folder

    def chain(self, *made: Variant, seed: int = 0) -> BuildContext:
        every = (REFERENCE, *(each for each in made if each != REFERENCE))
        recipe = Recipe(ranker="priced", module="tests/support/small_rankers.py:Priced", variants=every)
        ranker = priced_ranker(seed)
        return BuildContext(recipe, ranker, catalogue(), self.path, lambda _: priced_ranker(9), self.said.append)

    def made(self, wanted: Variant) -> Artifact:
        """The one graph; ``said`` is of this call alone."""
        self.said.clear()
        return variant_files(self.chain(wanted), wanted)["priced"]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "priced")


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps and exports that ran, in order."""
    ran: list[str] = []
    steps = dict(apply.NETWORK_STEPS)

    def counted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def run(*given: object, **named: object) -> object:
            ran.append(name)
            return function(*given, **named)

        return run

    monkeypatch.setattr(
        variants, "NETWORK_STEPS", {kind: counted(kind.__name__, function) for kind, function in steps.items()}
    )
    monkeypatch.setattr(variants, "onnx_from_ranker", counted("export", variants.onnx_from_ranker))
    monkeypatch.setattr(quantize, "dynamic_int8_from_onnx", counted("DynamicInt8", quantize.dynamic_int8_from_onnx))
    monkeypatch.setattr(quantize, "int8_from_onnx", counted("Int8", quantize.int8_from_onnx))
    return ran


def steps_of(context: BuildContext, steps: Sequence[NetworkStep]) -> tuple[str, float]:
    """(fingerprint, seconds)."""
    return key_of(network_inputs(context, steps)), compressed(context, steps).seconds


def times_of_products(folder: Path) -> dict[Path, int]:
    """When each file was written, but for the marks: their time is that of their last use."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix != ".made"}


# ---------------------------------------------------------------- once
def test_what_is_made_is_not_made_again(folder: Folder, count: list[str]) -> None:
    wanted = variant("small_int8_onnx", HALVED, DynamicInt8(step="dynamic_int8"))
    first = folder.made(wanted)
    assert count == ["PruneChannels", "export", "DynamicInt8"]
    assert len(folder.said) >= 3
    written = times_of_products(folder.path)
    second = folder.made(wanted)
    assert count == ["PruneChannels", "export", "DynamicInt8"]
    assert folder.said == []
    assert second == first
    assert times_of_products(folder.path) == written


def test_the_file_is_the_chains_product(folder: Folder) -> None:
    made = folder.made(variant("small_onnx", HALVED))
    assert (made.model, made.path) == ("priced_small_onnx", folder.path / "priced_small_onnx.onnx")
    weights = [tuple(tensor.dims) for tensor in onnx.load(made.path).graph.initializer if len(tensor.dims) == 2]
    assert (HIDDEN // 2, 8) in weights or (8, HIDDEN // 2) in weights
    assert not any(HIDDEN in dims for dims in weights)
    sample = priced_ranker().sample(REQUEST, some_products())["priced"]
    assert open_session(made.path, threads=1).run(sample)["score"].shape == (12, 1)


def test_the_reference_is_exported_as_it_is(folder: Folder, count: list[str]) -> None:
    made = folder.made(REFERENCE)
    assert made.model == "priced_fp32_onnx"
    assert count == ["export"]
    assert not (folder.path / "steps").exists()


def test_the_trained_ranker_is_not_changed_by_its_chain(folder: Folder) -> None:
    context = folder.chain(variant("small_onnx", HALVED))
    before = {name: tensor.clone() for name, tensor in context.ranker.network.state_dict().items()}
    variant_files(context, context.recipe.variants[1])
    after = context.ranker.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_variants_share_the_steps_and_the_export_that_they_have_in_common(folder: Folder, count: list[str]) -> None:
    folder.made(variant("small_onnx", HALVED))
    folder.made(variant("small_zero_onnx", HALVED, ZEROED))
    assert count == ["PruneChannels", "export", "PruneMagnitude", "export"]
    folder.made(variant("dynamic_onnx", DynamicInt8(step="dynamic_int8")))
    folder.made(REFERENCE)
    assert count[4:] == ["export", "DynamicInt8"]


# ---------------------------------------------------------------- what follows a change
def test_a_changed_step_remakes_only_what_follows_it(folder: Folder, count: list[str]) -> None:
    folder.made(variant("v_onnx", HALVED, ZEROED, DynamicInt8(step="dynamic_int8")))
    count.clear()
    folder.made(
        variant("v_onnx", HALVED, PruneMagnitude(step="prune_magnitude", amount=0.6), DynamicInt8(step="dynamic_int8"))
    )
    assert count == ["PruneMagnitude", "export", "DynamicInt8"]


def test_a_changed_graph_step_leaves_the_network_and_its_export(folder: Folder, count: list[str]) -> None:
    folder.made(variant("v_onnx", HALVED, Int8(calibration_queries=2)))
    count.clear()
    folder.made(variant("v_onnx", HALVED, Int8(calibration_queries=3)))
    assert count == ["Int8"]


def test_a_step_put_back_as_it_was_finds_its_network(folder: Folder, count: list[str]) -> None:
    folder.made(variant("v_onnx", HALVED))
    folder.made(variant("v_onnx", ZEROED))
    count.clear()
    folder.made(variant("v_onnx", HALVED))
    assert count == ["export"]


def test_other_data_makes_the_steps_anew_and_not_the_reference(folder: Folder) -> None:
    context = folder.chain()
    fewer = dataclasses.replace(
        context.data, products=dict(list(context.data.products.items())[:30]), judgements={}, queries={}
    )
    other = dataclasses.replace(context, data=fewer)
    assert steps_of(context, [HALVED])[0] != steps_of(other, [HALVED])[0]
    assert steps_of(context, [])[0] == steps_of(other, [])[0]


def test_other_code_of_the_network_makes_everything_anew(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = steps_of(folder.chain(), [HALVED])[0], steps_of(folder.chain(), [])[0]
    monkeypatch.setattr(build_context, "code_of", lambda *_: ["edited"])
    after = steps_of(folder.chain(), [HALVED])[0], steps_of(folder.chain(), [])[0]
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_other_code_of_the_export_makes_the_graph_anew_and_not_its_network(
    folder: Folder, count: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.made(variant("small_onnx", HALVED))
    (tmp_path / "onnx.py").write_text("another exporter")
    monkeypatch.setattr(variants, "_EXPORT_CODE", [tmp_path / "onnx.py"])
    folder.made(variant("small_onnx", HALVED))
    assert count == ["PruneChannels", "export", "export"]


def test_a_distilled_network_is_the_same_when_it_is_made_anew(tmp_path: Path) -> None:
    networks = [compressed(Folder(tmp_path / name).chain(), [TUNED]).ranker.network for name in ("a", "b")]
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    kept = compressed(Folder(tmp_path / "a").chain(), [TUNED]).ranker.network.state_dict()
    assert all(torch.equal(first[name], kept[name]) for name in first)


# ---------------------------------------------------------------- layers kept in FP32
@pytest.mark.parametrize("name", ["mixed_onnx", "mixed_openvino"])
def test_what_each_layer_costs_is_kept_with_the_graph_that_leaves_the_worst_in_fp32(folder: Folder, name: str) -> None:
    wanted = variant(name, Int8(calibration_queries=2, keep_most_sensitive=1))
    made = folder.made(wanted)
    assert [layer.kept_fp32 for layer in made.layers] == [True] + [False] * (len(made.layers) - 1)
    assert len(made.layers) > 1
    assert [layer.cost for layer in made.layers] == sorted((layer.cost for layer in made.layers), reverse=True)
    assert {layer.graph for layer in made.layers} == {"priced"}
    assert folder.made(wanted) == made
    assert folder.said == []


def test_layers_are_told_of_a_later_steps_product_too(folder: Folder) -> None:
    mixed = Int8(calibration_queries=2, keep_most_sensitive=1)
    alone = folder.made(variant("mixed_onnx", mixed))
    assert folder.made(variant("mixed_fp16_onnx", mixed, Fp16(step="fp16"))).layers == alone.layers != ()


# ---------------------------------------------------------------- unfinished
def stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_network_whose_saving_was_stopped_is_made_anew(
    folder: Folder, count: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_: object, path: Path) -> None:
        path.write_bytes(b"half a network")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", half)
        folder.made(variant("v_onnx", HALVED))
    assert not list(folder.path.rglob("*.made"))
    folder.made(variant("v_onnx", HALVED))
    assert count == ["PruneChannels", "PruneChannels", "export"]


def test_a_file_without_its_mark_is_made_anew(
    folder: Folder, count: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keeper, "_write_mark", stopped)
        folder.made(REFERENCE)
    assert (folder.path / "priced_fp32_onnx.onnx").is_file()
    folder.made(REFERENCE)
    assert count == ["export", "export"]


def test_a_graph_that_fails_parity_counts_as_not_made(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(*_: object) -> None:
        raise ParityError("differs")

    with monkeypatch.context() as patch:
        patch.setattr(variants, "check_onnx", differs)
        for _ in range(2):
            with pytest.raises(ParityError):
                folder.made(REFERENCE)
    assert folder.made(REFERENCE).path.is_file()


def test_a_stopped_change_is_not_taken_for_what_was_there_before(
    folder: Folder, count: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder.made(variant("v_onnx", HALVED)).path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(variants, "check_onnx", stopped)
        folder.made(variant("v_onnx", ZEROED))  # its graph is written, its parity is not known
    count.clear()
    assert folder.made(variant("v_onnx", HALVED)).path.read_bytes() == before
    assert count == []
    assert folder.made(variant("v_onnx", ZEROED)).path.read_bytes() != before
    assert count == ["export"]


def test_a_product_that_was_deleted_is_made_anew(folder: Folder, count: list[str]) -> None:
    folder.made(REFERENCE).path.unlink()
    folder.made(REFERENCE)
    assert count == ["export", "export"]


# ---------------------------------------------------------------- two graphs
def test_a_graph_without_a_table_is_left_as_it_is_beside_one_that_has_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    embedded = variant("int8_embeddings_onnx", Int8Embeddings(step="int8_embeddings"))
    recipe = Recipe(ranker="taken", module="tests/support/small_rankers.py:Taken", variants=(REFERENCE, embedded))
    said: list[str] = []
    context = BuildContext(
        recipe, FeatureRanker("taken", Taken()), catalogue(), tmp_path, lambda _: priced_ranker(), said.append
    )
    reference, made = variant_files(context, REFERENCE), variant_files(context, embedded)
    changed = {name: one.path.read_bytes() != reference[name].path.read_bytes() for name, one in made.items()}
    assert changed == {"taken_request": True, "taken": False}
    assert [line for line in said if "left as it is" in line] == [
        "taken_fp32_onnx.onnx: no embedding table of 256 rows or more; left as it is"
    ]


def test_a_ranker_of_one_graph_has_to_have_something_to_quantize(folder: Folder) -> None:
    with pytest.raises(QuantizationError, match=r"priced_fp32_onnx\.onnx: no embedding table of 1000 rows or more"):
        folder.made(variant("int8_embeddings_onnx", Int8Embeddings(step="int8_embeddings", min_rows=1000)))


# ---------------------------------------------------------------- seconds
class Clock:
    """A second later each time it is asked."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 1.0
        return self.now_s


def test_seconds_are_of_the_whole_chain_and_are_kept(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "time", Clock())
    wanted = variant("v_onnx", HALVED, ZEROED, DynamicInt8(step="dynamic_int8"))
    assert folder.made(wanted).seconds == 4.0  # two steps of the network, export, a step of the graph
    assert folder.made(wanted).seconds == 4.0
    assert steps_of(folder.chain(), [HALVED])[1] == 1.0
    assert folder.made(variant("small_onnx", HALVED)).seconds == 2.0


# ---------------------------------------------------------------- OpenVINO
def test_the_openvino_form_scores_as_the_onnx_form_of_the_same_chain(folder: Folder, count: list[str]) -> None:
    wanted = variant("small_openvino", HALVED)
    made = folder.made(wanted)
    assert made.path == folder.path / "priced_small_openvino.xml"
    assert made.path.with_suffix(".bin").is_file()
    assert count == ["PruneChannels", "export"]
    assert folder.made(wanted) == made
    assert folder.said == []
    sample = priced_ranker().sample(REQUEST, some_products())["priced"]
    wanted_scores = open_session(folder.made(variant("small_onnx", HALVED)).path, threads=1).run(sample)["score"]
    assert open_session(made.path, threads=1).run(sample)["score"] == pytest.approx(wanted_scores, abs=1e-4)


def test_every_graph_step_that_is_no_own_form_of_a_runtime_is_known(folder: Folder) -> None:
    class Unknown(GraphStep):
        step: str = "unknown"

    with pytest.raises(TypeError, match="Unknown has no function in builders/compress/apply"):
        apply.performed(Unknown(), apply.GRAPH_STEPS)


def test_every_step_of_a_recipe_has_a_function_or_is_done_by_its_runtime() -> None:
    kinds = get_args(get_args(Step)[0])
    without = [kind for kind in kinds if kind not in apply.NETWORK_STEPS and kind not in apply.GRAPH_STEPS]
    assert [kind.__name__ for kind in without if kind.changes_graph] == []
