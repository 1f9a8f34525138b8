"""A year of a repository: recipes published apart and together, promoted, rolled back, tried, retired, pruned."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from builders.core.contract import RANK, Contract, Tensor
from builders.core.workspace import REPOSITORY_ROOT
from builders.publish import model_config, pbtxt
from builders.publish.lifecycle import promote, prune, published_generations, retire, rollback
from builders.publish.manifest import KEPT_GENERATIONS, RepositoryError, read_manifest
from builders.publish.repository import Ensemble, ServedModel, publish_models
from builders.publish.state import version_numbers
from server.verify import check_as_published
from tests.support.tiny_models import CONTRACT, tiny_model

OTHER_TENSORS = dataclasses.replace(CONTRACT, outputs=(*CONTRACT.outputs, Tensor("extra", "FP32", ("ranked",), "")))
RECIPES = {"first": ("fp32", "int8"), "second": ("fp32", "int8")}
VARIANTS = [f"{recipe}_{variant}" for recipe, variants in RECIPES.items() for variant in variants]


def models_of(
    folder: Path,
    recipe: str,
    content: int,
    variants: tuple[str, ...],
    contract: Contract = CONTRACT,
    *,
    shared: int = 0,
) -> tuple[list[ServedModel], list[Ensemble]]:
    """A recipe's pre-processing, scorers and the ``postprocess`` that all recipes share, with an endpoint a variant."""
    built_from = {"recipe": f"recipes/{recipe}.toml", "passed": True, "gate": "passed"}
    pre = tiny_model(folder, content, contract, f"{recipe}_preprocess")
    scorers = [tiny_model(folder, content, CONTRACT, f"{recipe}_{variant}") for variant in variants]
    post = tiny_model(folder, shared, CONTRACT, "postprocess")
    models = [dataclasses.replace(each, built_from=built_from) for each in (pre, *scorers)]
    return [*models, post], [endpoint(f"rank_{each.name}", [pre.name, each.name, post.name]) for each in scorers]


def endpoint(name: str, steps: list[str]) -> Ensemble:
    return Ensemble(name, steps, model_config.endpoint_contract(name, RANK, [CONTRACT] * len(steps)))


def publish(repository: Path, sources: Path, recipe: str, content: int, *, served: str = "", **options: object) -> None:
    """A build of one recipe; ``served``: its variant that ``rank`` shall serve."""
    variants = options.pop("variants", RECIPES[recipe])
    models, ensembles = models_of(sources, recipe, content, variants, **options)  # type: ignore[arg-type]
    if served:
        chosen = next(each for each in ensembles if each.name == f"rank_{recipe}_{served}")
        ensembles.append(dataclasses.replace(chosen, name="rank"))
    publish_models(repository, models, ensembles, {}, lambda _: None)


def assert_whole(repository: Path) -> None:
    """Every endpoint that the manifest names resolves on disk, and the launcher's check passes."""
    manifest = read_manifest(repository)
    for name, generation in manifest.served.items():
        config = pbtxt.read(repository / name / "config.pbtxt")
        pinned = {step.model_name: step.model_version for step in config.ensemble_scheduling.step}
        assert pinned == generation.steps
        for model, version in pinned.items():
            loaded = list(pbtxt.read(repository / model / "config.pbtxt").version_policy.specific.versions)
            assert version in loaded
            assert set(loaded) <= set(version_numbers(repository / model))
    if manifest.endpoints:
        check_as_published(repository, None)


class Year(RuleBasedStateMachine):
    """Anything that a team does to a repository, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tritonrank_year_"))
        self.repository, self.content = self.folder / "models", 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(recipe=strategies.sampled_from(sorted(RECIPES)), served=strategies.sampled_from(["", "fp32", "int8"]))
    def retrain(self, recipe: str, served: str) -> None:
        self.content += 1
        publish(self.repository, self.folder / "sources", recipe, self.content, served=served)

    @rule(recipe=strategies.sampled_from(sorted(RECIPES)))
    def build_again(self, recipe: str) -> None:
        publish(self.repository, self.folder / "sources", recipe, self.content)

    @rule(recipe=strategies.sampled_from(sorted(RECIPES)))
    def upgrade_the_kit(self, recipe: str) -> None:
        """Other code of the step that all recipes share; only one recipe is built anew."""
        self.content += 1
        publish(self.repository, self.folder / "sources", recipe, self.content, shared=self.content)

    @rule(recipe=strategies.sampled_from(sorted(RECIPES)), tensors=strategies.sampled_from([CONTRACT, OTHER_TENSORS]))
    def lose_a_variant(self, recipe: str, tensors: Contract) -> None:
        """One fails its gate, perhaps while the pre-processing gets another tensor."""
        self.content += 1
        try:
            publish(
                self.repository, self.folder / "sources", recipe, self.content, variants=("fp32",), contract=tensors
            )
        except RepositoryError as error:
            assert "has other tensors" in str(error)  # rank serves the lost one

    @rule(variant=strategies.sampled_from(VARIANTS), endpoint=strategies.sampled_from(["rank", "rank_candidate"]))
    def promote(self, variant: str, endpoint: str) -> None:
        there = f"rank_{variant}" in read_manifest(self.repository).served
        try:
            promote(self.repository, endpoint, f"rank_{variant}")
            assert there
        except RepositoryError as error:
            assert not there and "no ensemble" in str(error)

    @precondition(lambda self: "rank" in read_manifest(self.repository).served)
    @rule(data=strategies.data())
    def roll_back(self, data: strategies.DataObject) -> None:
        kept = [each.name for each in read_manifest(self.repository).endpoints["rank"]]
        to = data.draw(strategies.sampled_from([None, *kept]))
        try:
            served = rollback(self.repository, "rank", to)
            assert read_manifest(self.repository).served["rank"].name == served.name != kept[-1]
        except RepositoryError as error:
            assert any(why in str(error) for why in ("served nothing before", "is not kept", "has other tensors"))

    @rule(endpoint=strategies.sampled_from([f"rank_{each}" for each in [*VARIANTS, "candidate"]]))
    def retire(self, endpoint: str) -> None:
        there = endpoint in read_manifest(self.repository).served
        try:
            retire(self.repository, endpoint)
            assert there
        except RepositoryError:
            assert not there

    @precondition(lambda self: self.repository.is_dir())
    @rule(keep=strategies.integers(1, KEPT_GENERATIONS))
    def prune(self, keep: int) -> None:
        prune(self.repository, keep)

    @invariant()
    def everything_published_can_be_served(self) -> None:
        if self.repository.is_dir():
            assert_whole(self.repository)

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        endpoints = read_manifest(self.repository).endpoints
        for name in [*VARIANTS, *(f"{recipe}_preprocess" for recipe in RECIPES), "postprocess"]:
            assert len(version_numbers(self.repository / name)) <= KEPT_GENERATIONS * len(endpoints)


def test_whatever_is_published_in_whatever_order_every_endpoint_can_be_served() -> None:
    run_state_machine_as_test(
        Year, settings=hypothesis.settings(max_examples=12, stateful_step_count=15, deadline=None, derandomize=True)
    )


# ---------------------------------------------------------------- rolling back
@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def built(repository: Path, tmp_path: Path) -> Callable[..., None]:
    """(recipe, content, served="") => that build, published."""
    return lambda recipe, content, **options: publish(repository, tmp_path / "sources", recipe, content, **options)


def served(repository: Path, endpoint: str = "rank") -> tuple[str, dict[str, int]]:
    generation = read_manifest(repository).served[endpoint]
    return generation.name, generation.steps


def test_a_retrained_variant_rolls_back_to_its_own_earlier_version(
    repository: Path, built: Callable[..., None]
) -> None:
    built("first", 1, served="fp32")
    before = served(repository)
    built("first", 2, served="fp32")
    assert served(repository)[0] == "first_fp32@2"
    rollback(repository, "rank")
    assert served(repository) == before
    rollback(repository, "rank")  # and back
    assert served(repository)[0] == "first_fp32@2"
    rollback(repository, "rank", "first_fp32@1")
    assert served(repository) == before
    assert_whole(repository)


def test_another_variants_kept_generation_can_be_named(repository: Path, built: Callable[..., None]) -> None:
    built("first", 1, served="fp32")
    built("first", 2)
    rollback(repository, "rank", "first_int8@1")
    assert served(repository)[1] == {"first_preprocess": 1, "first_int8": 1, "postprocess": 1}
    with pytest.raises(
        RepositoryError, match=r"'first_int8@7' is not kept for 'rank', which serves first_int8@1; kept are"
    ):
        rollback(repository, "rank", "first_int8@7")


def test_ten_generations_keep_three_and_the_last_good_one_serves(repository: Path, built: Callable[..., None]) -> None:
    built("first", 0, served="fp32")
    for content in range(1, 11):
        built("first", content, variants=("int8",))  # fp32 fails its gate from now on
    assert served(repository)[1] == {"first_preprocess": 1, "first_fp32": 1, "postprocess": 1}
    assert version_numbers(repository / "first_int8") == [9, 10, 11]
    assert version_numbers(repository / "first_preprocess") == [1, 9, 10, 11]
    assert_whole(repository)


def test_pruning_keeps_what_is_served(repository: Path, built: Callable[..., None]) -> None:
    for content in (1, 2, 3):
        built("first", content, served="fp32")
    gone, freed = prune(repository, keep=1)
    assert "rank: first_fp32@2" in gone
    assert freed > 0
    assert version_numbers(repository / "first_fp32") == [3]
    assert_whole(repository)
    with pytest.raises(RepositoryError, match="'rank' served nothing before first_fp32@3 that is kept"):
        rollback(repository, "rank")


def test_a_damaged_generation_is_not_rolled_back_to(repository: Path, built: Callable[..., None]) -> None:
    built("first", 1, served="fp32")
    built("first", 2, served="fp32")
    (repository / "first_fp32" / "1" / "model.py").write_text("raise SystemExit")
    with pytest.raises(
        RepositoryError, match=r"first_fp32@1 cannot be served: first_fp32/1/model.py has another content"
    ):
        rollback(repository, "rank")
    built("second", 3)  # another publication does not take the damage for what was published
    with pytest.raises(RepositoryError, match="has another content than was published"):
        rollback(repository, "rank")
    assert served(repository)[0] == "first_fp32@2"


def test_what_failed_its_gate_is_promoted_only_by_force(repository: Path, tmp_path: Path) -> None:
    models, ensembles = models_of(tmp_path / "sources", "first", 1, ("fp32", "int8"))
    failed = [
        dataclasses.replace(each, built_from={**each.built_from, "passed": False, "gate": "NDCG@10 lost 3 %"})
        if each.name == "first_int8"
        else each
        for each in models
    ]
    publish_models(repository, failed, ensembles, {})
    with pytest.raises(
        RepositoryError, match=r"first_int8@1 failed its gate \(NDCG@10 lost 3 %\); --force publishes it"
    ):
        promote(repository, "rank", "rank_first_int8")
    assert promote(repository, "rank", "rank_first_int8", force=True).forced
    assert read_manifest(repository).served["rank"].forced


def test_rank_itself_is_not_retired(repository: Path, built: Callable[..., None]) -> None:
    built("first", 1, served="fp32")
    with pytest.raises(RepositoryError, match="'rank' is what search services call; point it at another variant"):
        retire(repository, "rank")


def test_the_status_tells_what_serves_since_when_and_what_is_kept(repository: Path, built: Callable[..., None]) -> None:
    built("first", 1, served="fp32")
    built("first", 2, served="fp32")
    told = [
        (each.endpoint, each.generation.name, each.served, each.recipe) for each in published_generations(repository)
    ]
    assert told[:2] == [
        ("rank", "first_fp32@2", True, "recipes/first.toml"),
        ("rank", "first_fp32@1", False, "recipes/first.toml"),
    ]


def test_a_manifest_of_before_is_read_and_its_endpoints_go_on(repository: Path, built: Callable[..., None]) -> None:
    built("first", 1, served="fp32")
    manifest = read_manifest(repository)
    old = {
        "libraries": {},
        "models": {name: {"version": 1, "built_from": each[1].built_from} for name, each in manifest.models.items()},
        "ensembles": {name: each.steps for name, each in manifest.served.items()},
    }
    (repository / "manifest.json").write_text(json.dumps(old))
    assert served(repository) == ("first_fp32@1", {"first_preprocess": 1, "first_fp32": 1, "postprocess": 1})
    built("second", 1)
    assert_whole(repository)


# ---------------------------------------------------------------- trouble
def test_a_full_disk_leaves_what_was_and_no_version_that_fills_it(
    repository: Path, built: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    built("first", 1, served="fp32")
    before = sorted(path for path in repository.rglob("*") if path.is_file())
    copies = 0

    def full(source: Path, target: Path) -> None:  # stands for a disk that is full after the second copy
        nonlocal copies
        copies += 1
        if copies > 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr("builders.publish.repository.shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        built("first", 2, served="fp32")
    assert sorted(path for path in repository.rglob("*") if path.is_file()) == before
    assert_whole(repository)


PUBLISHES = """
import sys
from pathlib import Path
from tests.builders.publish.test_lifecycle import publish
for content in range(5):
    publish(Path(sys.argv[1]), Path(sys.argv[2]) / sys.argv[3], sys.argv[3], content, served="fp32")
"""


def test_publications_at_once_wait_for_one_another(repository: Path, tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHES, repository, tmp_path, recipe],
            cwd=REPOSITORY_ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for recipe in ("first", "second")
    ]
    assert [(each.wait(), each.communicate()[1]) for each in running] == [(0, "")] * 2
    assert_whole(repository)
    assert {name.removeprefix("rank_") for name in read_manifest(repository).endpoints} == {"rank", *VARIANTS}
