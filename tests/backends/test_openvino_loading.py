"""What the openvino drop-in completes, honours and refuses when a model is loaded, on the real server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from onnx import TensorProto
from tritonclient.utils import InferenceServerException

from server import TritonServer
from tests.support.admin import admin_client
from tests.support.onnx_models import save_identity_model, save_summing_model, write_config
from tests.support.openvino_models import ANY_ROWS, CONFIG, parameter, save_ir

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    save_ir(write_config(folder, "good", CONFIG) / "model.xml", save_summing_model)
    return folder


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[grpc.InferenceServerClient]:
    with TritonServer(repository, ["good"], grpc_port=0, http_port=0, metrics_port=0) as server:
        yield admin_client(server)
        server.kill()  # quicker than a clean stop


def replaced(old: str, new: str) -> str:
    assert old in CONFIG
    return CONFIG.replace(old, new)


REFUSALS = {
    "data type that OpenVINO's backend lacks": (
        replaced("TYPE_INT64", "TYPE_FP64"),
        "unsupported datatype TYPE_FP64 for input 'tokens'",
    ),
    "wrong input rank": (
        replaced("dims: [-1]", "dims: [-1, 4]"),
        "tensor 'tokens': the model expects 2 dimensions (shape [-1, -1]) but the model configuration specifies "
        "3 dimensions (shape [64, -1, 4])",
    ),
    "wrong output rank": (
        replaced("dims: [1] reshape { shape: [] }", "dims: [2]"),
        "tensor 'score': the model expects 1 dimensions (shape [64]) but the model configuration specifies 2 dim",
    ),
    "unknown input": (
        replaced('"tokens"', '"tokns"'),
        "unexpected inference input 'tokns', allowed inputs are: tokens",
    ),
    "unknown output": (
        replaced('"score"', '"scores"'),
        "unexpected inference output 'scores', allowed outputs are: score",
    ),
    "one input too many": (
        CONFIG + 'input [{ name: "more" data_type: TYPE_INT64 dims: [-1] }]',
        "configuration expects 2 inputs, model provides 1",
    ),
    "thread count that is no number": (
        CONFIG + parameter("INFERENCE_NUM_THREADS", "two"),
        "expected the parameter 'INFERENCE_NUM_THREADS' to be a non-negative number, got two",
    ),
    "compilation threads": (
        CONFIG + parameter("COMPILATION_NUM_THREADS", "1"),
        "parameter COMPILATION_NUM_THREADS is set, which OpenVINO's CPU plugin does not have",
    ),
    "unknown number of streams": (
        CONFIG + parameter("NUM_STREAMS", "many"),
        "expected the parameter 'NUM_STREAMS' to be either AUTO/NUMA/<int_value>, got MANY",
    ),
    "unknown performance hint": (
        CONFIG + parameter("PERFORMANCE_HINT", "speed"),
        "expected the parameter 'PERFORMANCE_HINT' to be LATENCY/THROUGHPUT/CUMULATIVE_THROUGHPUT, got SPEED",
    ),
    "bf16 hint that is not yes": (
        CONFIG + parameter("HINT_BF16", "NO"),
        "expected the parameter 'HINT_BF16' to be YES, got NO",
    ),
    "two precisions": (
        CONFIG + parameter("HINT_BF16", "YES") + parameter("inference_precision_hint", "f32"),
        "parameters inference_precision_hint (f32) and HINT_BF16 (YES) are both set",
    ),
    "unknown precision": (
        CONFIG + parameter("inference_precision_hint", "f16"),
        "parameter inference_precision_hint is f16, wanted f32",
    ),
    "other device": (CONFIG + parameter("TARGET_DEVICE", "GPU"), "parameter TARGET_DEVICE is GPU"),
    "flag that is neither yes nor no": (
        CONFIG + parameter("ENABLE_BATCH_PADDING", "true"),
        "expected the parameter 'ENABLE_BATCH_PADDING' to be either YES or NO, got true",
    ),
    "reshape to another rank": (
        replaced("dims: [-1]", "dims: [8, 8]") + parameter("RESHAPE_IO_LAYERS", "YES"),
        "tensor 'tokens': the model expects 2 dimensions (shape [-1, -1]) but the model configuration specifies "
        "3 dimensions (shape [-1, 8, 8]), which RESHAPE_IO_LAYERS cannot change",
    ),
    "missing extension": (
        CONFIG + parameter("CPU_EXTENSION_PATH", "/no/such/library.so"),
        "openvino error in loading custom CPU extensions : ",
    ),
    "row cap where each run has a fixed number of rows": (
        CONFIG + parameter("max_rows_per_run", 8),
        "parameter max_rows_per_run is 8, wanted 0 (no limit) or more, and with it a model that takes any number",
    ),
    "token budget where each run has a fixed number of rows": (
        CONFIG + parameter("max_tokens_per_run", 8),
        "parameter max_tokens_per_run is 8, wanted 0 (no limit) or more, and with it a model that takes any number",
    ),
    "ragged batch": (
        replaced("dims: [-1]", "dims: [-1] allow_ragged_batch: true"),
        "input 'tokens' has allow_ragged_batch",
    ),
    "missing file": (CONFIG + 'default_model_filename: "other.xml"', "unable to find '"),
}


@pytest.fixture(scope="module")
def refusals(repository: Path, client: grpc.InferenceServerClient) -> dict[str, str]:
    """Fault => what the server answered when a model with that fault was to be loaded; all at once, to save time."""

    def answer(fault: str) -> str:
        model = fault.replace(" ", "_").replace("'", "")
        save_ir(write_config(repository, model, REFUSALS[fault][0]) / "model.xml", save_summing_model)
        try:
            client.load_model(model)
        except InferenceServerException as error:
            return str(error)
        return "loaded"

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(REFUSALS, pool.map(answer, REFUSALS), strict=True))


@pytest.mark.parametrize("fault", REFUSALS)
def test_refuses_at_load_and_says_why(refusals: dict[str, str], fault: str) -> None:
    assert f"': {REFUSALS[fault][1]}" in refusals[fault]  # right after "unable to load model 'NAME': "


def test_a_refused_model_leaves_the_others_serving(
    refusals: dict[str, str], client: grpc.InferenceServerClient
) -> None:
    assert client.is_model_ready("good")


def loaded_config(client: grpc.InferenceServerClient, model: str) -> dict:
    client.load_model(model)
    return client.get_model_config(model, as_json=True)["config"]


def test_completes_batching_where_every_layout_names_the_batch(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    version = write_config(repository, "laid_out", 'backend: "openvino"')
    save_ir(version / "model.xml", save_identity_model, TensorProto.FLOAT, ["rows", 3], layout="N...")
    config = loaded_config(client, "laid_out")
    assert config["max_batch_size"] == 4
    assert "dynamic_batching" in config
    assert [(i["name"], i["data_type"], i["dims"]) for i in config["input"]] == [("x", "TYPE_FP32", ["3"])]
    assert [(o["name"], o["data_type"], o["dims"]) for o in config["output"]] == [("y", "TYPE_FP32", ["3"])]


def test_completes_no_batching_without_a_layout(repository: Path, client: grpc.InferenceServerClient) -> None:
    save_ir(write_config(repository, "bare", 'backend: "openvino"') / "model.xml", save_summing_model)
    config = loaded_config(client, "bare")
    assert config.get("max_batch_size", 0) == 0
    assert config["input"][0]["dims"] == ["-1", "-1"]
    assert config["output"][0]["dims"] == ["-1"]


def test_honours_default_model_filename_of_another_format(repository: Path, client: grpc.InferenceServerClient) -> None:
    version = write_config(repository, "named", CONFIG + 'default_model_filename: "model.onnx"')
    save_summing_model(version / "model.onnx")
    client.load_model("named")
    assert client.is_model_ready("named")


def test_honours_every_value_of_every_parameter(repository: Path, client: grpc.InferenceServerClient) -> None:
    accepted = {
        "threads": parameter("INFERENCE_NUM_THREADS", 1),
        "auto": parameter("NUM_STREAMS", "auto") + parameter("PERFORMANCE_HINT", "throughput"),
        "numa": parameter("NUM_STREAMS", "NUMA") + parameter("PERFORMANCE_HINT", "CUMULATIVE_THROUGHPUT"),
        "lone": parameter("NUM_STREAMS", 1) + parameter("PERFORMANCE_HINT", "LATENCY"),
        "skip": parameter("SKIP_OV_DYNAMIC_BATCHSIZE", "YES") + ANY_ROWS + parameter("of_no_one", "x"),
        "cpu": parameter("TARGET_DEVICE", "cpu") + parameter("HINT_BF16", "yes"),
    }
    for model, parameters in accepted.items():
        save_ir(write_config(repository, model, CONFIG + parameters) / "model.xml", save_summing_model)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(client.load_model, accepted))
    assert [model for model in accepted if not client.is_model_ready(model)] == []
