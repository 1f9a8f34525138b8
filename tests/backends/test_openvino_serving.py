"""How the openvino drop-in runs requests, on the real server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import tritonclient.grpc as grpc
from onnx import TensorProto
from tritonclient.utils import InferenceServerException

from server import TritonServer
from tests.support.driving import stubs_of, waits_for
from tests.support.onnx_models import (
    VOCABULARY,
    save_identity_model,
    save_row_counting_model,
    save_sharing_model,
    save_summing_model,
    write_config,
)
from tests.support.openvino_models import (
    ANY_ROWS,
    CONFIG,
    WIDTH,
    parameter,
    save_dense_model,
    save_dividing_model,
    save_ir,
)
from tests.support.repositories import infer, infer_together

pytestmark = pytest.mark.server

COUNTING = """
backend: "openvino"
max_batch_size: 1024
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "rows_in_run" data_type: TYPE_INT64 dims: [1] reshape { shape: [] } }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""
UNBATCHED_COUNTING = """
backend: "openvino"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1, -1] }]
output [{ name: "rows_in_run" data_type: TYPE_INT64 dims: [-1] }]
"""
SHARING = """
backend: "openvino"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1, -1] }, { name: "shared" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "rows_in_run" data_type: TYPE_INT64 dims: [-1] }, { name: "total" data_type: TYPE_FP32 dims: [-1] }]
"""
DENSE = f"""
backend: "openvino"
max_batch_size: 64
input [{{ name: "x" data_type: TYPE_FP32 dims: [{WIDTH}] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [1] }}]
{ANY_ROWS}
"""
F32 = parameter("inference_precision_hint", "f32")
BF16_EPSILON = 2.0**-8  # half a unit in the last of bf16's 8 significant bits


def identity(triton_type: str, dims: str, max_batch_size: int) -> str:
    return f"""
    backend: "openvino" max_batch_size: {max_batch_size}
    input [{{ name: "x" data_type: {triton_type} dims: {dims} }}]
    output [{{ name: "y" data_type: {triton_type} dims: {dims} }}]
    """


ONE_TYPE_EACH = {
    "bool": (TensorProto.BOOL, "TYPE_BOOL", np.array([[True, False], [False, True]])),
    "half": (TensorProto.FLOAT16, "TYPE_FP16", np.array([[1.5, -2], [0, 4]], np.float16)),
    "integer": (TensorProto.INT32, "TYPE_INT32", np.array([[2**30 + 1, -1], [0, 5]], np.int32)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")

    def add(model: str, config: str, save: Callable[..., None], *arguments: Any) -> None:
        save_ir(write_config(folder, model, config) / "model.xml", save, *arguments)

    capped = parameter("max_rows_per_run", 4)
    add("summing", CONFIG + ANY_ROWS + "dynamic_batching {}" + parameter("max_rows_per_run", 16), save_summing_model)
    add("dividing_three", CONFIG + ANY_ROWS + waits_for(3), save_dividing_model)
    add("counting", COUNTING + ANY_ROWS + waits_for(4), save_row_counting_model)
    add("capped", COUNTING + ANY_ROWS + waits_for(6) + capped, save_row_counting_model)
    add("capped_unbatched", UNBATCHED_COUNTING + capped, save_row_counting_model)
    budget = capped + parameter("max_tokens_per_run", 12)
    add("budgeted", COUNTING + ANY_ROWS + budget, save_row_counting_model)
    add("budgeted_unbatched", UNBATCHED_COUNTING + budget, save_row_counting_model)
    add("sharing", SHARING + budget + parameter("row_inputs", "x"), save_sharing_model)
    add("full", CONFIG.replace("max_batch_size: 64", "max_batch_size: 4"), save_summing_model)
    add("converting", CONFIG.replace("TYPE_INT64", "TYPE_INT32") + ANY_ROWS, save_summing_model)
    add(
        "reshaped",
        identity("TYPE_FP32", "[-1, 3]", 0) + parameter("RESHAPE_IO_LAYERS", "YES"),
        save_identity_model,
        TensorProto.FLOAT,
        [1, 3],
    )
    add("two_instances", CONFIG.replace("count: 1", "count: 2") + ANY_ROWS, save_summing_model)
    add("one_thread", DENSE + parameter("INFERENCE_NUM_THREADS", 1), save_dense_model)
    add("two_threads", DENSE + parameter("INFERENCE_NUM_THREADS", 2), save_dense_model)
    add("dense_f32", DENSE + F32, save_dense_model)
    add("dense_bf16", DENSE + parameter("HINT_BF16", "YES"), save_dense_model)
    for name, (kind, triton_type, _) in ONE_TYPE_EACH.items():
        add(name, identity(triton_type, "[-1]", 8) + ANY_ROWS, save_identity_model, kind, ["rows", "length"])
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(folder: Path, home: Path) -> Iterator[TritonServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        with TritonServer(folder, None, grpc_port=0, http_port=0, metrics_port=0) as running:
            yield running
            running.kill()  # quicker than a clean stop


@pytest.fixture(scope="module")
def client(server: TritonServer) -> grpc.InferenceServerClient:
    return grpc.InferenceServerClient(server.grpc_url)


def zeros(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros((rows, 1), np.float32)}


def rows_in_runs(client: grpc.InferenceServerClient, model: str, *rows: int) -> list[list[int]]:
    answers = infer_together(client, model, [zeros(count) for count in rows])
    return [answer.result().as_numpy("rows_in_run").ravel().tolist() for answer in answers]


def test_requests_that_the_batcher_joins_are_one_run(client: grpc.InferenceServerClient) -> None:
    assert rows_in_runs(client, "counting", 1, 1, 2) == [[4], [4], [4, 4]]


def test_a_request_above_the_row_cap_is_split(client: grpc.InferenceServerClient) -> None:
    assert rows_in_runs(client, "capped", 10) == [[4] * 8 + [2] * 2]


def test_the_row_cap_holds_for_a_model_that_does_not_batch(client: grpc.InferenceServerClient) -> None:
    assert rows_in_runs(client, "capped_unbatched", 5) == [[4, 4, 4, 4, 1]]


@pytest.mark.parametrize("model", ["budgeted", "budgeted_unbatched"])
def test_a_run_has_no_more_tokens_than_the_budget(client: grpc.InferenceServerClient, model: str) -> None:
    inputs = [{"x": np.zeros((7, length), np.float32)} for length in (3, 5, 8, 20)]
    runs = [infer(client, model, **one).as_numpy("rows_in_run").ravel().tolist() for one in inputs]
    assert runs == [[4] * 4 + [3] * 3, [2] * 6 + [1], [1] * 7, [1] * 7]


def test_inputs_that_are_not_of_rows_are_whole_in_every_part(client: grpc.InferenceServerClient) -> None:
    x, shared = np.zeros((7, 3), np.float32), np.array([1, 2, 4], np.float32)
    answer = infer(client, "sharing", x=x, shared=shared)
    assert answer.as_numpy("rows_in_run").tolist() == [4] * 4 + [3] * 3
    assert answer.as_numpy("total").tolist() == [7] * 7


def test_one_failing_request_does_not_fail_those_it_was_joined_with(client: grpc.InferenceServerClient) -> None:
    good, bad = np.array([[1, 1]], np.int64), np.array([[5, 1]], np.int64)
    first, failed, last = infer_together(client, "dividing_three", [{"tokens": t} for t in (good, bad, good)])
    assert first.result().as_numpy("score").tolist() == [[2.0]]
    assert last.result().as_numpy("score").tolist() == [[2.0]]
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*openvino error in running inference : "):
        failed.result()


def test_without_padding_a_request_must_have_max_batch_size_rows(client: grpc.InferenceServerClient) -> None:
    tokens = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.int64)
    assert infer(client, "full", tokens=tokens).as_numpy("score").tolist() == [[3], [7], [11], [15]]
    with pytest.raises(InferenceServerException, match=r"expected requests with batch size '4', got '3'\.\.\."):
        infer(client, "full", tokens=tokens[:3])


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


def test_a_configured_data_type_that_differs_from_the_models_is_converted(client: grpc.InferenceServerClient) -> None:
    tokens = np.array([[1, 2, 3]], np.int32)
    assert infer(client, "converting", tokens=tokens).as_numpy("score").tolist() == [[6.0]]


def test_reshape_io_layers_gives_the_model_the_configured_dims(client: grpc.InferenceServerClient) -> None:
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.testing.assert_array_equal(infer(client, "reshaped", x=x).as_numpy("y"), x)


def test_each_instance_is_a_process(server: TritonServer) -> None:
    assert len(stubs_of(server, "two_instances")) == 2


def threads(process: Path) -> int:
    return len(list((process / "task").iterdir()))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="OpenVINO takes no more threads than there are cores")
def test_the_thread_count_is_the_configured_one(server: TritonServer, client: grpc.InferenceServerClient) -> None:
    for model in ("one_thread", "two_threads"):
        infer(client, model, x=dense_inputs())
    [one], [two] = stubs_of(server, "one_thread"), stubs_of(server, "two_threads")
    assert threads(two) - threads(one) == 1


def test_openvino_sends_no_telemetry(server: TritonServer, home: Path) -> None:
    """Before it sends anything, openvino-telemetry writes an id for this machine under the home directory."""
    assert list(home.iterdir()) == []


def dense_inputs() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((40, WIDTH), np.float32)


def in_process(folder: Path, model: str, precision: str) -> np.ndarray:
    compiled = ov.compile_model(folder / model / "1" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return compiled(dense_inputs())["y"]


def test_served_f32_scores_are_those_of_openvino_in_process(client: grpc.InferenceServerClient, folder: Path) -> None:
    served = infer(client, "dense_f32", x=dense_inputs()).as_numpy("y")
    np.testing.assert_allclose(served, in_process(folder, "dense_f32", "f32"), rtol=0, atol=1e-6)


@pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="this CPU has no bf16"
)
def test_hint_bf16_computes_in_bf16(client: grpc.InferenceServerClient, folder: Path) -> None:
    """Other numbers than f32, as far off as roundings of weights, inputs and the hidden layer make them."""
    served = infer(client, "dense_bf16", x=dense_inputs()).as_numpy("y")
    difference = np.abs(served - in_process(folder, "dense_bf16", "f32")).max()
    assert 1e-5 < difference < 4 * BF16_EPSILON * np.abs(served).max()
    np.testing.assert_allclose(served, in_process(folder, "dense_bf16", "bf16"), rtol=0, atol=1e-6)
