"""How the tensorrt drop-in answers requests, on the real server with a FAKE TensorRT: no GPU computes anything here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from server import ModelsNotReady, TritonServer
from server.environment import TENSORRT_VARIABLE
from tests.support.admin import admin_client
from tests.support.driving import waits_for
from tests.support.fake_gpu import write_drop_ins
from tests.support.onnx_models import write_config
from tests.support.plans import CONFIG, fake_plan
from tests.support.repositories import infer, infer_together

pytestmark = pytest.mark.server

BOTH_PROFILES = 'instance_group [{ count: 1 kind: KIND_CPU profile: ["0", "1"] }]'


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'


def write_model(repository: Path, name: str, config: str, plan: str | None = None) -> None:
    (write_config(repository, name, config) / "model.plan").write_text(plan or fake_plan())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder, "scorer", CONFIG + BOTH_PROFILES + waits_for(4))
    write_model(folder, "hurried", CONFIG + BOTH_PROFILES + "dynamic_batching { max_queue_delay_microseconds: 100000 }")
    write_model(folder, "capped", CONFIG + BOTH_PROFILES + parameter("max_rows_per_run", "3"))
    write_model(folder, "first_profile", CONFIG + "optimization { cuda { graphs: true } priority: PRIORITY_MAX }")
    whole = CONFIG.replace("1024", "0").replace("dims: [-1]", "dims: [-1, -1]").replace("dims: [1]", "dims: [-1, 1]")
    write_model(folder, "whole", whole + BOTH_PROFILES)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    backends = write_drop_ins(tmp_path_factory.mktemp("backends"))
    with (
        pytest.MonkeyPatch.context() as patches,
        TritonServer(
            _unchecked(patches, repository), None, grpc_port=0, http_port=0, metrics_port=0, backends=backends
        ) as running,
    ):
        yield running
        running.kill()  # quicker than a clean stop


def _unchecked(patches: pytest.MonkeyPatch, repository: Path) -> Path:
    """As on a machine that the plans were built for."""
    patches.setattr("server.triton.servable_repository", lambda repository, view, tensorrt: (repository, []))
    return repository


@pytest.fixture(scope="module")
def client(server: TritonServer) -> grpc.InferenceServerClient:
    return admin_client(server)


def tokens(rows: int, length: int = 8, first: int = 0) -> dict[str, np.ndarray]:
    return {"tokens": np.arange(first, first + rows * length, dtype=np.int32).reshape(rows, length)}


def column(answer: grpc.InferResult, name: str) -> list[int]:
    return answer.as_numpy(name).ravel().tolist()


def test_requests_that_the_batcher_joins_share_an_enqueue_and_get_their_own_rows(
    client: grpc.InferenceServerClient,
) -> None:
    requests = [tokens(1), tokens(2, first=100), tokens(1, first=200)]
    answers = [future.result() for future in infer_together(client, "scorer", requests)]
    assert [column(answer, "rows_in_run") for answer in answers] == [[4], [4, 4], [4]]
    for request, answer in zip(requests, answers, strict=True):
        assert column(answer, "score") == request["tokens"].sum(axis=1).tolist()


def test_the_padded_length_chooses_the_profile(client: grpc.InferenceServerClient) -> None:
    assert column(infer(client, "scorer", **tokens(4, 8)), "profile") == [0] * 4
    assert column(infer(client, "scorer", **tokens(4, 16)), "profile") == [1] * 4


def test_an_instance_without_profiles_has_the_first(client: grpc.InferenceServerClient) -> None:
    assert column(infer(client, "first_profile", **tokens(2, 8)), "profile") == [0, 0]
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*no optimization profile takes tokens \[2, 16\]"):
        infer(client, "first_profile", **tokens(2, 16))


def test_more_rows_than_the_profile_or_the_cap_takes_are_run_in_parts(client: grpc.InferenceServerClient) -> None:
    answer = infer(client, "hurried", **tokens(20))
    assert column(answer, "rows_in_run") == [8] * 16 + [4] * 4
    assert column(answer, "score") == tokens(20)["tokens"].sum(axis=1).tolist()
    assert column(infer(client, "capped", **tokens(5)), "rows_in_run") == [3, 3, 3, 2, 2]


def test_many_requests_of_many_shapes_get_their_own_answers(client: grpc.InferenceServerClient) -> None:
    requests = [tokens(1 + number % 7, 8 * (1 + number % 2), first=number) for number in range(48)]
    for request, future in zip(requests, infer_together(client, "hurried", requests), strict=True):
        assert column(future.result(), "score") == request["tokens"].sum(axis=1).tolist()


def test_one_request_that_no_profile_takes_fails_alone(client: grpc.InferenceServerClient) -> None:
    good, bad = infer_together(client, "hurried", [tokens(2), tokens(2, 24)])
    assert column(good.result(), "score") == tokens(2)["tokens"].sum(axis=1).tolist()
    with pytest.raises(InferenceServerException, match="no optimization profile takes"):
        bad.result()


def test_a_model_that_does_not_batch_runs_a_request_as_it_is(client: grpc.InferenceServerClient) -> None:
    assert column(infer(client, "whole", **tokens(5)), "rows_in_run") == [5] * 5


def test_only_the_outputs_asked_for_are_sent(client: grpc.InferenceServerClient) -> None:
    request = grpc.InferInput("tokens", [4, 8], "INT32")
    request.set_data_from_numpy(tokens(4)["tokens"])
    answer = client.infer("scorer", [request], outputs=[grpc.InferRequestedOutput("score")])
    assert [output.name for output in answer.get_response().outputs] == ["score"]


def test_the_log_counts_the_settings_that_it_does_not_follow(server: TritonServer) -> None:
    assert "2 settings of speed are not followed" in server.log()


def test_a_configuration_that_does_not_fit_the_plan_is_refused_at_load(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    write_model(repository, "wrong", CONFIG.replace("TYPE_INT32 dims: [-1]", "TYPE_INT64 dims: [-1]") + BOTH_PROFILES)
    with pytest.raises(
        InferenceServerException, match="expects datatype TYPE_INT64 for input 'tokens', model provides"
    ):
        client.load_model("wrong")


def test_a_profile_that_the_plan_does_not_have_is_refused_at_load(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    write_model(repository, "strange", CONFIG + BOTH_PROFILES.replace('"1"', '"2"'))
    with pytest.raises(InferenceServerException, match="has '2', the plan has the profiles 0 to 1"):
        client.load_model("strange")


def test_a_warm_up_of_each_profile_runs_before_the_model_is_ready(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    warm_up = "".join(
        f'model_warmup {{ name: "length_{length}" batch_size: 2 inputs {{ key: "tokens" value {{ '
        f"data_type: TYPE_INT32 dims: [{length}] zero_data: true }} }} }}"
        for length in (8, 16)
    )
    write_model(repository, "warm", CONFIG + BOTH_PROFILES + warm_up)
    client.load_model("warm")
    assert client.is_model_ready("warm")


# ---------------------------------------------------------------- the real drop-in, without a GPU
def test_the_real_drop_in_refuses_an_instance_on_the_cpu(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _unchecked(monkeypatch, repository)
    with (
        pytest.raises(
            ModelsNotReady, match=r"supports only GPU device, instance kind is KIND_CPU.* serve the ONNX variant"
        ),
        TritonServer(repository, ["scorer"], grpc_port=0, http_port=0, metrics_port=0),
    ):
        pass


def test_the_drop_in_takes_tensorrt_from_the_folder_that_the_variable_names(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, drop_ins = tmp_path / "packages", tmp_path / "backends"
    packages.mkdir()
    drop_ins.mkdir()
    write_drop_ins(drop_ins, packages)
    monkeypatch.setenv(TENSORRT_VARIABLE, str(packages))
    _unchecked(monkeypatch, repository)
    with TritonServer(repository, ["scorer"], grpc_port=0, http_port=0, metrics_port=0, backends=drop_ins) as running:
        client = admin_client(running)
        assert infer(client, "scorer", tokens=np.ones((2, 8), np.int32)).as_numpy("score").tolist() == [[8.0], [8.0]]
        running.kill()


def test_without_tensorrt_the_drop_in_names_both_places_for_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, drop_ins = tmp_path / "packages", tmp_path / "backends"
    packages.mkdir()
    drop_ins.mkdir()
    write_drop_ins(drop_ins, packages)
    monkeypatch.delenv(TENSORRT_VARIABLE, raising=False)
    _unchecked(monkeypatch, repository)
    with pytest.raises(ModelsNotReady, match=f"server's environment or in the folder that {TENSORRT_VARIABLE} names"):
        TritonServer(repository, ["scorer"], grpc_port=0, http_port=0, metrics_port=0, backends=drop_ins).start()
