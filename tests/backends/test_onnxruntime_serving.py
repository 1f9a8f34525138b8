"""How the onnxruntime drop-in runs requests, on the real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from onnx import TensorProto
from tritonclient.utils import InferenceServerException

from server import TritonServer
from tests.support.driving import stubs_of, waits_for
from tests.support.onnx_models import (
    CONFIG,
    VOCABULARY,
    save_identity_model,
    save_optional_input_model,
    save_row_counting_model,
    save_sharing_model,
    save_summing_model,
    write_config,
)
from tests.support.repositories import infer, infer_together

pytestmark = pytest.mark.server

COUNTING = """
backend: "onnxruntime"
max_batch_size: 1024
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "rows_in_run" data_type: TYPE_INT64 dims: [1] reshape { shape: [] } }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""


SHARING = """
backend: "onnxruntime"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1, -1] }, { name: "shared" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "rows_in_run" data_type: TYPE_INT64 dims: [-1] }, { name: "total" data_type: TYPE_FP32 dims: [-1] }]
"""


def parameter(name: str, value: int | str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'


def identity(triton_type: str, dims: str, max_batch_size: int) -> str:
    return f"""
    backend: "onnxruntime" max_batch_size: {max_batch_size}
    input [{{ name: "x" data_type: {triton_type} dims: {dims} }}]
    output [{{ name: "y" data_type: {triton_type} dims: {dims} }}]
    """


ONE_TYPE_EACH = {
    "bool": (TensorProto.BOOL, "TYPE_BOOL", np.array([[True, False], [False, True]])),
    "half": (TensorProto.FLOAT16, "TYPE_FP16", np.array([[1.5, -2], [0, 4]], np.float16)),
    "long": (TensorProto.INT64, "TYPE_INT64", np.array([[2**60, -1], [0, 5]], np.int64)),
    "text": (TensorProto.STRING, "TYPE_STRING", np.array([[b"a", "ü商".encode()], [b"", b"b'c'"]], object)),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("serving")

    def add(model: str, config: str, save: Callable[..., None], *arguments: Any) -> None:
        save(write_config(folder, model, config) / "model.onnx", *arguments)

    add("summing", CONFIG + "dynamic_batching {}" + parameter("max_rows_per_run", 16), save_summing_model)
    add("summing_three", CONFIG + waits_for(3), save_summing_model)
    add("counting", COUNTING + waits_for(4), save_row_counting_model)
    add("counting_hurried", COUNTING + waits_for(4).replace("10000000", "300000"), save_row_counting_model)
    add("capped", COUNTING + waits_for(6) + parameter("max_rows_per_run", 4), save_row_counting_model)
    budget = parameter("max_rows_per_run", 4) + parameter("max_tokens_per_run", 12)
    add("budgeted", COUNTING + budget, save_row_counting_model)
    add("trimming", COUNTING + parameter("padding_mask", "x") + parameter("lengths", "2,4,8"), save_row_counting_model)
    add("sharing", SHARING + budget + parameter("row_inputs", "x"), save_sharing_model)
    add("one_thread", CONFIG + parameter("intra_op_thread_count", 1), save_summing_model)
    add("three_threads", CONFIG + parameter("intra_op_thread_count", 3), save_summing_model)
    add("two_instances", CONFIG.replace("count: 1", "count: 2"), save_summing_model)
    add("unbatched", identity("TYPE_FP32", "[1]", 0), save_identity_model, TensorProto.FLOAT, [])
    add("optional", OPTIONAL, save_optional_input_model)
    for name, (kind, triton_type, _) in ONE_TYPE_EACH.items():
        add(name, identity(triton_type, "[-1]", 8), save_identity_model, kind, ["rows", "length"])
    with TritonServer(folder, None, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running
        running.kill()  # quicker than a clean stop


OPTIONAL = """
backend: "onnxruntime"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }, { name: "factor" data_type: TYPE_FP32 dims: [1] optional: true }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
"""


@pytest.fixture(scope="module")
def client(server: TritonServer) -> grpc.InferenceServerClient:
    return grpc.InferenceServerClient(server.grpc_url)


def rows_in_runs(answers: Sequence[Future]) -> list[list[int]]:
    return [answer.result().as_numpy("rows_in_run").ravel().tolist() for answer in answers]


def zeros(rows: int, length: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.zeros((rows, length), np.float32)}


def test_requests_that_the_batcher_joins_are_one_run(client: grpc.InferenceServerClient) -> None:
    answers = infer_together(client, "counting", [zeros(1), zeros(1), zeros(2)])
    assert rows_in_runs(answers) == [[4], [4], [4, 4]]


def test_requests_of_different_length_are_never_one_run(client: grpc.InferenceServerClient) -> None:
    answers = infer_together(client, "counting_hurried", [zeros(2, 3), zeros(2, 5)])
    assert rows_in_runs(answers) == [[2, 2], [2, 2]]


def test_a_request_above_the_row_cap_is_split(client: grpc.InferenceServerClient) -> None:
    assert rows_in_runs(infer_together(client, "capped", [zeros(10)])) == [[4] * 8 + [2] * 2]


def test_joined_requests_above_the_row_cap_are_split_and_each_gets_its_own_rows(
    client: grpc.InferenceServerClient,
) -> None:
    runs = rows_in_runs(infer_together(client, "capped", [zeros(3), zeros(3)]))
    assert sorted(runs) == [[4, 2, 2], [4, 4, 4]]


def test_a_run_has_no_more_tokens_than_the_budget(client: grpc.InferenceServerClient) -> None:
    runs = rows_in_runs(infer_together(client, "budgeted", [zeros(7, length) for length in (3, 5, 8, 20)]))
    assert runs == [[4] * 4 + [3] * 3, [2] * 6 + [1], [1] * 7, [1] * 7]


def test_rows_of_equal_padded_lengths_are_one_run(client: grpc.InferenceServerClient) -> None:
    tokens = np.zeros((5, 8), np.float32)
    for row, length in enumerate((7, 2, 3, 1, 4)):
        tokens[row, :length] = 1
    assert rows_in_runs(infer_together(client, "trimming", [{"x": tokens}])) == [[1, 2, 2, 2, 2]]


def test_inputs_that_are_not_of_rows_are_whole_in_every_part(client: grpc.InferenceServerClient) -> None:
    answer = infer(client, "sharing", **zeros(7, 3), shared=np.array([1, 2, 4], np.float32))
    assert answer.as_numpy("rows_in_run").tolist() == [4] * 4 + [3] * 3
    assert answer.as_numpy("total").tolist() == [7] * 7


def test_without_a_row_cap_a_request_runs_whole(client: grpc.InferenceServerClient) -> None:
    assert rows_in_runs(infer_together(client, "counting", [zeros(200)])) == [[200] * 200]


def test_one_failing_request_does_not_fail_those_it_was_joined_with(client: grpc.InferenceServerClient) -> None:
    out_of_range = np.full((1, 2), VOCABULARY, np.int64)
    good = [np.array([[1, 2]], np.int64), np.array([[3, 4]], np.int64)]
    first, failed, last = infer_together(
        client, "summing_three", [{"tokens": t} for t in (good[0], out_of_range, good[1])]
    )
    assert first.result().as_numpy("score").tolist() == [[3.0]]
    assert last.result().as_numpy("score").tolist() == [[7.0]]
    with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*onnx runtime error 2: .*out of data bounds"):
        failed.result()


def test_64_concurrent_requests_of_many_shapes_get_their_own_answers(client: grpc.InferenceServerClient) -> None:
    random = np.random.default_rng(0)
    tokens = [random.integers(0, VOCABULARY, (1 + i % 40, 8 * (1 + i % 3))) for i in range(64)]
    answers = infer_together(client, "summing", [{"tokens": array} for array in tokens])
    for array, answer in zip(tokens, answers, strict=True):
        np.testing.assert_array_equal(answer.result().as_numpy("score"), array.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("model", ONE_TYPE_EACH)
def test_values_of_each_type_come_back_unchanged(client: grpc.InferenceServerClient, model: str) -> None:
    array = ONE_TYPE_EACH[model][2]
    received = infer(client, model, x=array).as_numpy("y")
    assert received.dtype == array.dtype
    np.testing.assert_array_equal(received, array)


def test_a_scalar_of_the_graph_has_the_configured_shape_outside(client: grpc.InferenceServerClient) -> None:
    assert infer(client, "unbatched", x=np.array([7], np.float32)).as_numpy("y").tolist() == [7.0]


def test_an_absent_optional_input_takes_the_default_of_the_graph(client: grpc.InferenceServerClient) -> None:
    x, factor = np.array([1, 2], np.float32), np.array([10], np.float32)
    assert infer(client, "optional", x=x).as_numpy("y").tolist() == [2, 4]
    assert infer(client, "optional", x=x, factor=factor).as_numpy("y").tolist() == [10, 20]


def test_the_thread_count_of_a_session_is_the_configured_one(server: TritonServer) -> None:
    [one], [three] = stubs_of(server, "one_thread"), stubs_of(server, "three_threads")
    assert len(list((three / "task").iterdir())) - len(list((one / "task").iterdir())) == 2


def test_each_instance_is_a_process(server: TritonServer) -> None:
    assert len(stubs_of(server, "two_instances")) == 2


def resident_pages(process: Path) -> int:
    return int((process / "statm").read_text().split()[1])


def test_memory_does_not_grow_over_requests_of_many_shapes(
    server: TritonServer, client: grpc.InferenceServerClient
) -> None:
    random = np.random.default_rng(0)
    [stub] = stubs_of(server, "summing")

    def serve(requests: int) -> int:
        for _ in range(requests):
            shape = (int(random.integers(1, 41)), 8 * int(random.integers(1, 9)))
            infer(client, "summing", tokens=random.integers(0, VOCABULARY, shape))
        return resident_pages(stub)

    settled = serve(1000)
    assert serve(3000) <= 1.03 * settled
