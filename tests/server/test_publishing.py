"""DESIGN's claims on version folders, publishing, rolling back and per-machine configurations, on the real server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from server import ModelsNotReady, ServerNotReady, TritonServer
from tests.support.admin import admin_client
from tests.support.repositories import VECTOR_CONFIG, infer, python_model, vector, write_model
from tests.support.waiting import wait_until

pytestmark = pytest.mark.server

# Answers with its own version; x[0] == 1 makes it wait until the store's folder holds a file "door".
VERSIONED = python_model(
    {"y": "np.array([self.version], np.float32)"},
    """
    while tensor("x")[0] == 1 and not os.path.exists(os.environ["TRITONRANK_ITEM_STORE"] + "/door"):
        open(os.environ["TRITONRANK_ITEM_STORE"] + "/started", "w").close()
        time.sleep(0.01)
    """,
    initialize="self.version = int(args['model_version'])",
)


def serving(*versions: int) -> str:
    return VECTOR_CONFIG + f"version_policy: {{ specific {{ versions: {list(versions)} }} }}"


def ensemble(version: int) -> str:
    return VECTOR_CONFIG.replace('backend: "python"', 'platform: "ensemble"') + (
        f"""
        ensemble_scheduling {{ step [{{ model_name: "scorer" model_version: {version}
            input_map {{ key: "x" value: "x" }} output_map {{ key: "y" value: "y" }} }}] }}
        """
    )


def replace_config(repository: Path, model: str, config: str) -> None:
    """As a publisher does: written beside, then renamed."""
    new = repository / model / "config.pbtxt.new"
    new.write_text(config)
    new.replace(repository / model / "config.pbtxt")


def publish_version(repository: Path, version: int, code: str = VERSIONED) -> None:
    """A new version folder, written under a name that Triton ignores, then renamed."""
    write_model(repository, "scorer", (repository / "scorer" / "config.pbtxt").read_text(), code, f".{version}.new")
    (repository / "scorer" / f".{version}.new").rename(repository / "scorer" / str(version))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", "scorer", serving(1), VERSIONED)
    write_model(tmp_path / "models", "rank", ensemble(1))
    return tmp_path / "models"


@pytest.fixture
def server(repository: Path, tmp_path: Path) -> Iterator[TritonServer]:
    (tmp_path / "store").mkdir()
    write_model(repository, "scorer", serving(1), "raise ValueError('half written')", ".9.new")
    with TritonServer(
        repository, ["rank"], store=tmp_path / "store", grpc_port=0, http_port=0, metrics_port=0
    ) as running:
        yield running
        running.kill()  # quicker than a clean stop, which test_launcher.py tests


@pytest.fixture
def client(server: TritonServer) -> grpc.InferenceServerClient:
    return admin_client(server)


def served_version(client: grpc.InferenceServerClient, wait: float = 0) -> int:
    return int(infer(client, "rank", x=vector(wait)).as_numpy("y")[0])


def test_publish_and_roll_back_by_renaming_configurations(
    repository: Path, server: TritonServer, client: grpc.InferenceServerClient
) -> None:
    publish_version(repository, 2)
    assert served_version(client) == 1  # nothing is loaded before it is asked for

    replace_config(repository, "scorer", serving(1, 2))
    client.load_model("scorer")
    assert served_version(client) == 1

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(served_version, client, 1)
        wait_until((server.store / "started").exists)
        replace_config(repository, "rank", ensemble(2))
        client.load_model("rank")
        assert served_version(client) == 2
        (server.store / "door").touch()
        assert running.result() == 1  # the request that ran during the change was not disturbed

    replace_config(repository, "rank", ensemble(1))
    client.load_model("rank")
    assert served_version(client) == 1


def test_loading_the_ensemble_loads_changed_dependencies_too(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    publish_version(repository, 2)
    replace_config(repository, "scorer", serving(2))
    replace_config(repository, "rank", ensemble(2))
    client.load_model("rank")
    assert served_version(client) == 2


def test_a_new_version_that_fails_to_load_leaves_the_old_one_serving(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    publish_version(repository, 2, "raise ValueError('no weights')")
    replace_config(repository, "scorer", serving(1, 2))
    with pytest.raises(InferenceServerException, match="ValueError: no weights"):
        client.load_model("scorer")
    assert served_version(client) == 1


def test_an_ensemble_that_names_a_version_that_failed_is_down(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    """Why a scorer is loaded, and seen to be ready, before the ensemble is pointed at it."""
    publish_version(repository, 2, "raise ValueError('no weights')")
    replace_config(repository, "scorer", serving(1, 2))
    replace_config(repository, "rank", ensemble(2))
    with pytest.raises(InferenceServerException):
        client.load_model("rank")
    assert not client.is_model_ready("rank")


def test_one_listed_version_that_fails_keeps_a_server_from_starting(repository: Path) -> None:
    """Why a version that is not published is not listed, which a version_policy of all would do."""
    publish_version(repository, 2, "raise ValueError('no weights')")
    replace_config(repository, "scorer", serving(1, 2))
    with (
        pytest.raises(ModelsNotReady, match="ValueError: no weights"),
        TritonServer(repository, ["rank"], grpc_port=0, http_port=0, metrics_port=0),
    ):
        pass


def test_a_folder_whose_name_starts_with_a_digit_counts_as_that_version(repository: Path) -> None:
    """So `2.new` would be taken for version 2; `.2.new` is ignored, as the other tests show.

    A Python model's version without a model.py is not refused: Triton waits for it and is never ready.
    """
    (repository / "scorer" / "1").rename(repository / "scorer" / "1.new")
    with (
        pytest.raises(ServerNotReady, match=r"Python model file not found in '.*/scorer/1/model\.py'"),
        TritonServer(repository, ["rank"], grpc_port=0, http_port=0, metrics_port=0, ready_timeout_s=3),
    ):
        pass


def test_config_name_chooses_a_configuration_where_a_model_has_it(repository: Path) -> None:
    (repository / "scorer" / "configs").mkdir()
    tuned = serving(1) + "instance_group [{ count: 2 kind: KIND_CPU }]"
    (repository / "scorer" / "configs" / "this_machine.pbtxt").write_text(tuned)
    with TritonServer(
        repository, ["rank"], config_name="this_machine", grpc_port=0, http_port=0, metrics_port=0
    ) as server:
        client = grpc.InferenceServerClient(server.grpc_url)
        assert client.get_model_config("scorer", as_json=True)["config"]["instance_group"][0]["count"] == 2
        assert served_version(client) == 1  # rank has no such file, and keeps its config.pbtxt
