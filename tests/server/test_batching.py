"""DESIGN's claims on batching, optional inputs, errors and queues, each tried on the real server."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from server import ModelsNotReady, TritonServer
from tests.support.repositories import (
    ECHO,
    VECTOR_CONFIG,
    infer,
    infer_together,
    python_model,
    texts,
    vector,
    write_model,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.server

MAX_ROWS, PREFERRED_ROWS = 1024, 128

PREPROCESS = (
    """
    backend: "python" max_batch_size: 0
    input [{ name: "length" data_type: TYPE_FP32 dims: [1] }, { name: "items" data_type: TYPE_STRING dims: [-1] },
           { name: "top_k" data_type: TYPE_INT32 dims: [1] optional: true }]
    output [{ name: "tokens" data_type: TYPE_INT64 dims: [-1, -1] }, { name: "limit" data_type: TYPE_INT32 dims: [1] },
            { name: "known" data_type: TYPE_BOOL dims: [-1] }]
    """,
    python_model(
        {
            "tokens": "np.ones((len(tensor('items')), length), np.int64)",
            "limit": "np.array([0 if tensor('top_k') is None else tensor('top_k')[0]], np.int32)",
            "known": "np.array([item != b'unknown' for item in tensor('items')])",
        },
        """
        length = int(tensor("length")[0])
        if length < 0:
            error = pb_utils.TritonError("length: found -1, wanted 0 or more", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        """,
    ),
)

# Answers each row with the shape of its request and with how many rows were run together.
SCORER = (
    f"""
    backend: "python" max_batch_size: {MAX_ROWS}
    input [{{ name: "tokens" data_type: TYPE_INT64 dims: [-1] }}]
    output [{{ name: "seen" data_type: TYPE_FP32 dims: [3] }}]
    instance_group [{{ count: 1 kind: KIND_CPU }}]
    dynamic_batching {{ preferred_batch_size: [{PREFERRED_ROWS}] max_queue_delay_microseconds: 300000 }}
    """,
    python_model(
        {"seen": "seen"},
        """
        rows, length = tensor("tokens").shape
        together = sum(len(tensor("tokens", of=other)) for other in requests)
        seen = np.tile(np.array([rows, length, together], np.float32), (rows, 1))
        """,
    ),
)

POSTPROCESS = (
    """
    backend: "python" max_batch_size: 0
    input [{ name: "seen" data_type: TYPE_FP32 dims: [-1, 3] }, { name: "limit" data_type: TYPE_INT32 dims: [1] },
           { name: "known" data_type: TYPE_BOOL dims: [-1] }]
    output [{ name: "result" data_type: TYPE_FP32 dims: [-1, 3] }]
    """,
    python_model(
        {"result": "tensor('seen')[: tensor('limit')[0] or None]"},
        """
        self.unknown.increment(int((~tensor("known")).sum()))
        """,
        initialize="""
        kind = pb_utils.MetricFamily.COUNTER
        # Kept: a metric whose family is gone fails.
        self.family = pb_utils.MetricFamily(name="test_unknown_items", description="not in the store", kind=kind)
        self.unknown = self.family.Metric(labels={"model": args["model_name"]})
        """,
    ),
)

RANK = """
platform: "ensemble" max_batch_size: 0
input [{ name: "length" data_type: TYPE_FP32 dims: [1] }, { name: "item_ids" data_type: TYPE_STRING dims: [-1] },
       { name: "top_k" data_type: TYPE_INT32 dims: [1] optional: true }]
output [{ name: "result" data_type: TYPE_FP32 dims: [-1, 3] }]
ensemble_scheduling { step [
    { model_name: "preprocess" model_version: -1
      input_map { key: "length" value: "length" } input_map { key: "items" value: "item_ids" }
      input_map { key: "top_k" value: "top_k" }
      output_map { key: "tokens" value: "tokens" } output_map { key: "limit" value: "limit" }
      output_map { key: "known" value: "known" } },
    { model_name: "scorer" model_version: -1
      input_map { key: "tokens" value: "tokens" } output_map { key: "seen" value: "seen" } },
    { model_name: "postprocess" model_version: -1
      input_map { key: "seen" value: "seen" } input_map { key: "limit" value: "limit" }
      input_map { key: "known" value: "known" }
      output_map { key: "result" value: "result" } }
] }
"""

TWO_INPUTS = VECTOR_CONFIG.replace("max_batch_size: 0", "max_batch_size: 8").replace(
    "input [", 'input [{ name: "query" data_type: TYPE_FP32 dims: [-1] },'
)

# Runs until the file "door" is there, so that a test decides how long a request takes.
SLOW = python_model(
    {"y": "tensor('x')"},
    """
    open(os.environ["TRITONRANK_ITEM_STORE"] + "/started", "w").close()
    while not os.path.exists(os.environ["TRITONRANK_ITEM_STORE"] + "/door"):
        time.sleep(0.01)
    """,
)

BOUNDED_QUEUE = """
instance_group [{ count: 1 kind: KIND_CPU }]
dynamic_batching { default_queue_policy {
    max_queue_size: 2 timeout_action: REJECT default_timeout_microseconds: 60000000 allow_timeout_override: true } }
"""

QUEUED_ENSEMBLE = VECTOR_CONFIG.replace('backend: "python"', 'platform: "ensemble"') + (
    """
    ensemble_scheduling { step [
        { model_name: "echo" model_version: -1
          input_map { key: "x" value: "x" } output_map { key: "y" value: "z" } },
        { model_name: "queued" model_version: -1
          input_map { key: "x" value: "z" } output_map { key: "y" value: "y" } }
    ] }
    """
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository, store = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("store")
    write_model(repository, "preprocess", *PREPROCESS)
    write_model(repository, "scorer", *SCORER)
    write_model(repository, "postprocess", *POSTPROCESS)
    write_model(repository, "rank", RANK)
    write_model(repository, "two_inputs", TWO_INPUTS, ECHO)
    write_model(repository, "echo", VECTOR_CONFIG, ECHO)
    write_model(repository, "queued", VECTOR_CONFIG + BOUNDED_QUEUE, SLOW)
    write_model(repository, "queued_ensemble", QUEUED_ENSEMBLE)
    with TritonServer(repository, None, store=store, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running
        running.kill()  # quicker than a clean stop, which test_launcher.py tests


@pytest.fixture(scope="module")
def client(server: TritonServer) -> grpc.InferenceServerClient:
    return grpc.InferenceServerClient(server.grpc_url)


def request(items: int, length: int = 8, **more: np.ndarray) -> dict[str, np.ndarray]:
    return {"length": vector(length), "item_ids": texts(*["a"] * items), **more}


def rank(client: grpc.InferenceServerClient, *requests: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [future.result().as_numpy("result") for future in infer_together(client, "rank", requests)]


def rows_run_together(results: list[np.ndarray]) -> list[int]:
    return [int(result[0, 2]) for result in results]


def test_a_batching_scorer_in_an_unbatched_ensemble_sees_items_by_length(client: grpc.InferenceServerClient) -> None:
    [result] = rank(client, request(items=5, length=16))
    assert result[:, :2].tolist() == [[5, 16]] * 5


def test_rows_of_several_requests_of_equal_length_are_run_together(client: grpc.InferenceServerClient) -> None:
    assert rows_run_together(rank(client, request(40), request(48), request(40))) == [128, 128, 128]


def test_rows_of_different_length_are_not_run_together(client: grpc.InferenceServerClient) -> None:
    assert rows_run_together(rank(client, request(64, length=8), request(64, length=16))) == [64, 64]


def test_joining_stops_at_the_preferred_size(client: grpc.InferenceServerClient) -> None:
    together = rows_run_together(rank(client, *[request(50)] * 6))
    assert max(together) <= PREFERRED_ROWS
    assert max(together) > 50


def test_one_request_may_have_more_rows_than_the_preferred_size(client: grpc.InferenceServerClient) -> None:
    assert rows_run_together(rank(client, request(MAX_ROWS))) == [MAX_ROWS]


def test_more_rows_than_max_batch_size_are_refused(client: grpc.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*batch-size must be <= 1024 for 'scorer'"):
        rank(client, request(MAX_ROWS + 1))


def test_no_rows_are_refused_by_the_batching_scorer(client: grpc.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*byte size mismatch for input 'tokens'"):
        rank(client, request(0))


def test_an_optional_input_of_an_ensemble_may_be_absent(client: grpc.InferenceServerClient) -> None:
    without, with_limit = rank(client, request(5), request(5, top_k=np.array([2], np.int32)))
    assert (len(without), len(with_limit)) == (5, 2)


def test_a_batching_model_refuses_one_row_beside_several(client: grpc.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*batch size does not match other inputs"):
        infer(client, "two_inputs", query=np.zeros((1, 3), np.float32), x=np.zeros((4, 3), np.float32))


def test_an_error_of_a_step_reaches_the_client_with_its_code_and_text(client: grpc.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as refusal:
        rank(client, request(5, length=-1))
    assert str(refusal.value) == "[StatusCode.INVALID_ARGUMENT] in ensemble 'rank', length: found -1, wanted 0 or more"


def test_a_counter_of_a_served_model_is_among_the_metrics(
    server: TritonServer, client: grpc.InferenceServerClient
) -> None:
    rank(client, {"length": vector(8), "item_ids": texts("a", "unknown", "unknown")})
    assert 'test_unknown_items{model="postprocess"} 2' in metrics(server)


def test_an_ensemble_that_maps_an_unused_output_is_refused(tmp_path: Path) -> None:
    unused = QUEUED_ENSEMBLE.replace(
        'output_map { key: "y" value: "y" }',
        'output_map { key: "y" value: "y" } output_map { key: "other" value: "o" }',
    )
    two_outputs = VECTOR_CONFIG + 'output [{ name: "other" data_type: TYPE_FP32 dims: [-1] }]'
    write_model(tmp_path, "echo", VECTOR_CONFIG, ECHO)
    write_model(tmp_path, "queued", two_outputs, ECHO)
    write_model(tmp_path, "unused", unused)
    with (
        pytest.raises(ModelsNotReady, match="ensemble tensor 'o' is unused in ensemble 'unused'"),
        TritonServer(tmp_path, ["unused"], grpc_port=0, http_port=0, metrics_port=0),
    ):
        pass


@contextmanager
def one_request_running(
    server: TritonServer, client: grpc.InferenceServerClient, model: str
) -> Iterator[Future[grpc.InferResult]]:
    """Keep the only instance of `queued` busy with a request until the block ends."""
    started, door = server.store / "started", server.store / "door"
    started.unlink(missing_ok=True)
    door.unlink(missing_ok=True)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(infer, client, model, x=vector(1))
        try:
            wait_until(started.exists)
            yield running
        finally:
            door.touch()


@pytest.mark.parametrize("model", ["queued", "queued_ensemble"])
def test_a_full_queue_refuses_at_once_also_without_batching(
    server: TritonServer, client: grpc.InferenceServerClient, model: str
) -> None:
    with ThreadPoolExecutor(5) as pool, one_request_running(server, client, model) as running:
        others = [pool.submit(infer, client, model, x=vector(1)) for _ in range(5)]
        wait_until(lambda: sum(other.done() for other in others) == 3)
        assert not running.done()
    errors = [str(other.exception()) for other in others if other.exception()]
    assert len(errors) == 3
    assert all("StatusCode.UNAVAILABLE" in error and "Exceeds maximum queue size" in error for error in errors)


@pytest.mark.parametrize("model", ["queued", "queued_ensemble"])
def test_a_request_is_refused_when_its_own_timeout_has_passed_in_the_queue(
    server: TritonServer, client: grpc.InferenceServerClient, model: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with one_request_running(server, client, model):
            waiting = pool.submit(infer, client, model, timeout=1000, x=vector(1))
            wait_until(lambda: queued_requests(server, "queued") == 1)
        with pytest.raises(InferenceServerException, match=r"UNAVAILABLE.*Request timeout expired"):
            waiting.result(30)


def queued_requests(server: TritonServer, model: str) -> int:
    metric = f'nv_inference_pending_request_count{{model="{model}",version="1"}} '
    return next(int(line.removeprefix(metric)) for line in metrics(server).splitlines() if line.startswith(metric))


def metrics(server: TritonServer) -> str:
    return urllib.request.urlopen(server.metrics_url).read().decode()
