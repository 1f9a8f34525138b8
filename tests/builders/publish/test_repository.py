"""The model repository: versions, roll-back, tuning, the manifest, and a build that is killed at any moment."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from builders.core.contract import RANK, SCORES, Contract, Tensor
from builders.core.files import sha256
from builders.core.workspace import Workspace
from builders.publish import model_config, pbtxt
from builders.publish.endpoints import DEFAULT_PUBLISHED, endpoint_of, published_variants
from builders.publish.lifecycle import promote
from builders.publish.manifest import RepositoryError, read_manifest
from builders.publish.repository import (
    Ensemble,
    ServedModel,
    left_out,
    publish_models,
    published_names,
    served_variant,
    tune_machine,
)
from builders.publish.state import version_numbers
from server import TritonServer
from tests.support.endpoint import rank
from tests.support.tiny_models import CONTRACT, ensembles, publish, tiny_model

VERSION_FILES = ("model.py", "contract.json", "config.pbtxt", "__pycache__")
ANY_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., ServedModel]:
    """score => the tiny model that answers with it."""
    return lambda score, **options: tiny_model(tmp_path / "sources", score, **options)


def pinned(repository: Path, endpoint: str = "rank") -> dict[str, int]:
    """Step => the version that an endpoint names."""
    config = pbtxt.parse((repository / endpoint / "config.pbtxt").read_text())
    return {step.model_name: step.model_version for step in config.ensemble_scheduling.step}


def policy(repository: Path, model: str) -> list[int]:
    """The versions that a model loads."""
    config = pbtxt.parse((repository / model / "config.pbtxt").read_text())
    return list(config.version_policy.specific.versions)


def tree(repository: Path) -> dict[str, str]:
    """Every file with its SHA-256."""
    return {str(path.relative_to(repository)): sha256(path) for path in repository.rglob("*") if path.is_file()}


def leftovers(repository: Path) -> list[Path]:
    """Files and folders under temporary names."""
    return [path for path in repository.rglob(".*") if path.name not in (".gitkeep", ".lock")]


# ---------------------------------------------------------------- versions
def test_the_first_publish_is_version_1_and_whole(repository: Path, model: Callable[..., ServedModel]) -> None:
    assert publish(repository, model(1)) == {"tiny": 1}
    assert set(tree(repository)) == {
        "manifest.json",
        *(f"{name}/{file}" for name in ("tiny", "rank", "rank_tiny") for file in ("config.pbtxt", "contract.json")),
        *(f"tiny/1/{file}" for file in VERSION_FILES),
        ".lock",
    }
    assert (repository / "rank" / "1").is_dir()
    assert pinned(repository) == pinned(repository, "rank_tiny") == {"tiny": 1}


def test_publishing_the_same_again_changes_nothing(repository: Path, model: Callable[..., ServedModel]) -> None:
    publish(repository, model(1))
    before = tree(repository)
    assert publish(repository, model(1)) == {"tiny": 1}
    assert tree(repository) == before


def test_a_changed_file_is_the_next_version_and_the_old_one_stays(
    repository: Path, model: Callable[..., ServedModel]
) -> None:
    publish(repository, model(1))
    before = tree(repository)
    assert publish(repository, model(2)) == {"tiny": 2}
    assert pinned(repository) == pinned(repository, "rank_tiny") == {"tiny": 2}
    assert policy(repository, "tiny") == [1, 2]  # a running server takes up the steps before the endpoint
    assert tree(repository)["tiny/1/model.py"] == before["tiny/1/model.py"]
    assert tree(repository).keys() - before.keys() == {f"tiny/2/{file}" for file in VERSION_FILES}


def test_a_changed_contract_alone_is_a_new_version_too(repository: Path, model: Callable[..., ServedModel]) -> None:
    publish(repository, model(1))
    assert publish(repository, model(1, contract=dataclasses.replace(CONTRACT, parameters={"unscored": 0}))) == {
        "tiny": 2
    }


def test_an_unchanged_step_keeps_its_version_beside_a_changed_one(
    repository: Path, model: Callable[..., ServedModel]
) -> None:
    publish(repository, model(1), model(7, name="steady"))
    assert publish(repository, model(2), model(7, name="steady")) == {"tiny": 2, "steady": 1}


def test_three_versions_are_kept_and_two_are_loaded(repository: Path, model: Callable[..., ServedModel]) -> None:
    for score in (1, 2, 3, 4, 5):
        publish(repository, model(score))
    assert version_numbers(repository / "tiny") == [3, 4, 5]
    assert policy(repository, "tiny") == [4, 5]


def test_going_back_to_earlier_weights_is_a_publish_like_any_other(
    repository: Path, model: Callable[..., ServedModel]
) -> None:
    publish(repository, model(1))
    publish(repository, model(2))
    assert publish(repository, model(1)) == {"tiny": 3}


def test_python_caches_nothing_in_a_version_folder(repository: Path, model: Callable[..., ServedModel]) -> None:
    publish(repository, model(1))
    before = tree(repository)
    found = subprocess.run(
        [sys.executable, "-c", "import importlib; importlib.import_module('helper')"],
        cwd=repository / "tiny" / "1",
        env={"PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert "No module named 'helper'" in found.stderr
    subprocess.run([sys.executable, "-c", "import ast, contract"], cwd=repository / "tiny" / "1", capture_output=True)
    assert tree(repository) == before


# ---------------------------------------------------------------- manifest
def test_the_manifest_names_what_was_built_from_what_with_every_files_hash(
    repository: Path, model: Callable[..., ServedModel]
) -> None:
    publish(repository, model(1))
    publish(repository, model(2))
    manifest = read_manifest(repository)
    assert manifest.libraries == {"library": "1.0"}
    assert {name: each.steps for name, each in manifest.served.items()} == {
        "rank": {"tiny": 2},
        "rank_tiny": {"tiny": 2},
    }
    assert [each.built_from for each in manifest.models["tiny"].values()] == [{"recipe": "tiny.toml"}] * 2
    on_disk = tree(repository)
    assert set(manifest.files) == set(on_disk) - {"manifest.json", ".lock"}
    assert all(digests == [on_disk[path]] for path, digests in manifest.files.items())


# ---------------------------------------------------------------- which variant is rank
@pytest.fixture
def two_variants(repository: Path, model: Callable[..., ServedModel]) -> Path:
    """``rank`` = ``rank_first``; ``rank_second`` beside it."""
    first, second = model(1, name="first"), model(2, name="second")
    publish_models(repository, [first, second], [*ensembles("second")[:1], *ensembles("first")], {})
    return repository


def test_rank_points_at_another_variant_by_replacing_its_configuration(two_variants: Path) -> None:
    before = tree(two_variants)
    promote(two_variants, "rank", "rank_second")
    assert pinned(two_variants) == {"second": 1}
    changed = {name for name, digest in tree(two_variants).items() if before.get(name) != digest}
    assert changed == {"rank/config.pbtxt", "manifest.json"}  # both variants have one contract, which keeps its name
    assert read_manifest(two_variants).served["rank"].steps == {"second": 1}


def test_rank_rolls_back_likewise(two_variants: Path) -> None:
    before = pbtxt.parse((two_variants / "rank" / "config.pbtxt").read_text())
    promote(two_variants, "rank", "rank_second")
    promote(two_variants, "rank", "rank_first")
    assert pbtxt.parse((two_variants / "rank" / "config.pbtxt").read_text()) == before


def test_rank_is_not_pointed_at_a_variant_that_is_not_there(two_variants: Path) -> None:
    before = tree(two_variants)
    with pytest.raises(RepositoryError, match=r"no ensemble 'rank_third' in .*; there are: rank_first, rank_second"):
        promote(two_variants, "rank", "rank_third")
    assert tree(two_variants) == before


def test_the_served_variant_of_an_empty_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"no endpoint 'rank' in .*; run 'make repository'"):
        served_variant(tmp_path)


# ---------------------------------------------------------------- what git brings and what was published
def as_git_brings_it(repository: Path, variant: str, of: str, version: int) -> str:
    """An endpoint's configuration without its variant: made elsewhere, of a version that is not here."""
    endpoint = f"rank_{variant}"
    config = pbtxt.parse((repository / f"rank_{of}" / "config.pbtxt").read_text())
    config.name = endpoint
    config.ensemble_scheduling.step[0].model_version = version
    (repository / endpoint).mkdir()
    (repository / endpoint / "config.pbtxt").write_text(pbtxt.render(config))
    return endpoint


def test_a_configuration_alone_is_not_a_published_endpoint(two_variants: Path) -> None:
    endpoint = as_git_brings_it(two_variants, "third", of="first", version=3)
    assert published_names(two_variants) == {"first", "second", "rank", "rank_first", "rank_second"}
    assert left_out(two_variants, ["rank_first", endpoint, "rank_fourth"]).startswith(
        "left out, not published on this machine: rank_third (failed the gate here, or not built"
    )
    assert left_out(two_variants, ["rank_first", "rank_fourth"]) == ""
    with pytest.raises(RepositoryError, match=r"no ensemble 'rank_third' in .*; there are: rank_first, rank_second"):
        promote(two_variants, "rank", endpoint)


def test_a_variant_that_only_git_knows_is_under_no_endpoint(two_variants: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "build", two_variants, tmp_path / "store")
    as_git_brings_it(two_variants, "third", of="first", version=3)
    assert (endpoint_of("first", workspace), endpoint_of("third", workspace)) == ("rank", None)


def test_rank_as_git_brings_it_serves_no_variant_yet(two_variants: Path, tmp_path: Path) -> None:
    (two_variants / "manifest.json").unlink()
    with pytest.raises(RepositoryError, match="no endpoint 'rank'"):
        served_variant(two_variants)
    workspace = Workspace(tmp_path / "build", two_variants, tmp_path / "store")
    assert published_variants(workspace) == DEFAULT_PUBLISHED


# ---------------------------------------------------------------- recipes side by side
def of_recipe(name: str) -> list[Ensemble]:
    """A recipe's endpoint of a step that all recipes share, as ``postprocess`` is."""
    return [Ensemble(f"rank_{name}", ["shared"], model_config.endpoint_contract(f"rank_{name}", RANK, [CONTRACT]))]


@pytest.mark.server
def test_publishing_one_recipe_leaves_anothers_endpoint_as_it_was(
    repository: Path, model: Callable[..., ServedModel]
) -> None:
    publish_models(repository, [model(8, name="shared")], of_recipe("first"), {})
    for score in (9, 10, 11):  # more changes than versions are kept
        publish_models(repository, [model(score, name="shared")], of_recipe("second"), {})
    assert (pinned(repository, "rank_first"), pinned(repository, "rank_second")) == ({"shared": 1}, {"shared": 4})
    assert policy(repository, "shared") == [1, 3, 4]
    assert published_names(repository) == {"shared", "rank_first", "rank_second"}
    with (
        TritonServer(repository, None, **ANY_PORTS) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        for endpoint, wanted in (("rank_first", [8]), ("rank_second", [11])):
            assert rank(client, endpoint, "mug", ["a"])[1] == wanted


OTHER_TENSORS = dataclasses.replace(CONTRACT, outputs=(*CONTRACT.outputs, Tensor("extra", "FP32", ("ranked",), "")))


def test_a_publication_that_anothers_endpoint_would_not_survive_is_refused_and_changes_nothing(
    repository: Path, model: Callable[..., ServedModel]
) -> None:
    publish_models(repository, [model(8, name="shared")], of_recipe("first"), {})
    before = tree(repository)
    of_other = dataclasses.replace(model(9, name="shared", contract=OTHER_TENSORS), built_from={"recipe": "other.toml"})
    with pytest.raises(
        RepositoryError, match=r"'shared' has other tensors in version 2 \(rank_second\) than in version 1"
    ):
        publish_models(repository, [of_other], of_recipe("second"), {})
    assert tree(repository) == before


def test_a_variant_of_the_same_recipe_that_was_not_built_anew_goes_and_is_named(
    repository: Path, model: Callable[..., ServedModel]
) -> None:
    def first(score: int, contract: Contract = CONTRACT) -> list[ServedModel]:
        return [model(score, name="scorer"), model(score, name="shared", contract=contract)]

    def endpoint(name: str) -> Ensemble:
        return Ensemble(f"rank_{name}", [name, "shared"], model_config.endpoint_contract(name, RANK, [CONTRACT] * 2))

    said: list[str] = []
    publish_models(repository, first(1), [endpoint("scorer")], {})
    changed = [model(2, name="scorer_int8"), first(2, OTHER_TENSORS)[1]]
    publish_models(repository, changed, [endpoint("scorer_int8")], {}, said.append)
    assert published_names(repository) == {"shared", "scorer_int8", "rank_scorer_int8"}
    assert said == ["rank_scorer is published no more: shared has other tensors now, and it was not built anew"]


# ---------------------------------------------------------------- tuning
def test_tuning_is_written_beside_the_committed_configuration(
    repository: Path, model: Callable[..., ServedModel]
) -> None:
    publish(repository, model(1))
    before = tree(repository)
    assert tune_machine(repository, "lab", instances=4, threads=2) == [repository / "tiny" / "configs" / "lab.pbtxt"]
    changed = {name for name, digest in before.items() if tree(repository)[name] != digest}
    assert changed == {"manifest.json"}  # which now names the tuned one, too


def test_tuning_survives_a_publish_and_serves_the_new_version(
    repository: Path, model: Callable[..., ServedModel]
) -> None:
    publish(repository, model(1))
    [path] = tune_machine(repository, "lab", instances=4, threads=2)
    tuned = pbtxt.parse(path.read_text())
    tuned.instance_group[0].count = 6
    path.write_text(pbtxt.render(tuned))
    publish(repository, model(2))
    carried = pbtxt.parse(path.read_text())
    assert carried.instance_group[0].count == 6
    assert list(carried.version_policy.specific.versions) == [1, 2]


# ---------------------------------------------------------------- killed
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.copyfile", "shutil.rmtree"}


def killed_at(operation: int, publish_it: Callable[[], object]) -> bool:
    """Run ``publish_it`` in a process that is killed before its n-th change of a file; whether it was killed."""
    child = os.fork()
    if child == 0:
        left = operation

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES or writes:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            publish_it()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def killed_publishes(base: Path, scratch: Path, new: ServedModel) -> Iterator[Path]:
    """A copy of the repository ``base`` for every moment at which publishing ``new`` to it can be killed."""
    for operation in range(1, 1000):
        repository = scratch / str(operation)
        shutil.copytree(base, repository)
        if not killed_at(operation, lambda repository=repository: publish(repository, new)):
            assert pinned(repository) == {"tiny": 4}
            return
        yield repository
    pytest.fail("the publish never came to its end")


def assert_can_be_loaded(repository: Path) -> None:
    """Every version that an endpoint names is loaded by its model's policy, and every version loaded is whole."""
    for endpoint in ("rank", "rank_tiny"):
        for name, version in pinned(repository, endpoint).items():
            assert version in policy(repository, name)
    for version in policy(repository, "tiny"):
        assert {path.name for path in (repository / "tiny" / str(version)).iterdir()} == set(VERSION_FILES)


@pytest.fixture
def three_publishes(repository: Path, model: Callable[..., ServedModel]) -> Path:
    """Versions 2 and 3 are there, so that the next publish also has one to drop; one machine is tuned."""
    for score in (1, 2, 3):
        publish(repository, model(score))
    tune_machine(repository, "lab", instances=4, threads=2)
    return repository


def test_a_publish_killed_at_any_moment_leaves_a_repository_that_loads(
    three_publishes: Path, tmp_path: Path, model: Callable[..., ServedModel]
) -> None:
    versions_seen = set()
    moments = 0
    for repository in killed_publishes(three_publishes, tmp_path / "killed", model(4)):
        assert_can_be_loaded(repository)
        versions_seen.add(pinned(repository)["tiny"])
        moments += 1
    assert moments > 20
    assert versions_seen == {3, 4}


def test_the_publish_after_a_kill_ends_as_if_nothing_had_happened(
    three_publishes: Path, tmp_path: Path, model: Callable[..., ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builders.publish.manifest.now", lambda: "some day")
    monkeypatch.setattr("builders.publish.repository.now", lambda: "some day")
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(three_publishes, undisturbed)
    publish(undisturbed, model(4))
    for repository in killed_publishes(three_publishes, tmp_path / "killed", model(4)):
        publish(repository, model(4))
        assert tree(repository) == tree(undisturbed)
        assert leftovers(repository) == []


@pytest.mark.server
def test_triton_serves_the_last_good_version_after_a_kill(
    three_publishes: Path, tmp_path: Path, model: Callable[..., ServedModel]
) -> None:
    half_written = both_listed = None
    for repository in killed_publishes(three_publishes, tmp_path / "killed", model(4)):
        if any((repository / "tiny").glob(".new-*/model.py")):
            half_written = repository
        if {3, 4} <= set(policy(repository, "tiny")) and pinned(repository) == {"tiny": 3}:
            both_listed = repository
    assert half_written is not None and both_listed is not None
    for repository in (half_written, both_listed):
        with TritonServer(repository, ["rank", "rank_tiny"], **ANY_PORTS) as server:
            client = grpc.InferenceServerClient(server.grpc_url)
            assert rank(client, "rank", "mug", ["a", "b"]) == (["a", "b"], [3, 3])


def test_a_publish_that_changes_tensors_is_mended_by_the_next_wherever_it_is_killed(
    three_publishes: Path, tmp_path: Path, model: Callable[..., ServedModel]
) -> None:
    more = Tensor("extra", "FP32", ("ranked",), "")
    new = model(4, contract=dataclasses.replace(CONTRACT, outputs=(*CONTRACT.outputs, more)))
    assert SCORES in new.contract.outputs
    for repository in killed_publishes(three_publishes, tmp_path / "killed", new):
        publish(repository, new)
        assert_can_be_loaded(repository)
        assert pinned(repository) == {"tiny": 4}


def test_a_configuration_that_cannot_be_read_is_refused_by_its_path(repository: Path) -> None:
    (repository / "rank").mkdir(parents=True)
    (repository / "rank" / "config.pbtxt").write_text("name: 'rank'\nflavour: 3\n")
    with pytest.raises(pbtxt.ConfigError, match=r"rank/config\.pbtxt: not a model configuration .*flavour.*'make repo"):
        tune_machine(repository, "lab", instances=1, threads=1)


@pytest.mark.parametrize("text", ["{", "[]", '{"models": {}}'])
def test_a_manifest_that_is_none_is_refused_with_what_to_do(repository: Path, text: str) -> None:
    repository.mkdir()
    (repository / "manifest.json").write_text(text)
    with pytest.raises(RepositoryError, match=r"manifest\.json: not the repository's manifest .*'make repository'"):
        read_manifest(repository)
