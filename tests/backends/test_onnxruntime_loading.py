"""What the onnxruntime drop-in completes, honours and refuses when a model is loaded, on the real server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from onnx import TensorProto
from tritonclient.utils import InferenceServerException

from server import ModelsNotReady, ServerNotReady, TritonServer
from tests.support.admin import admin_client
from tests.support.onnx_models import (
    CONFIG,
    save_always_failing_model,
    save_identity_model,
    save_optional_input_model,
    save_summing_model,
    write_config,
)

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    save_summing_model(write_config(folder, "good", CONFIG) / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[grpc.InferenceServerClient]:
    with TritonServer(repository, ["good"], grpc_port=0, http_port=0, metrics_port=0) as server:
        yield admin_client(server)
        server.kill()  # quicker than a clean stop


def replaced(old: str, new: str) -> str:
    assert old in CONFIG
    return CONFIG.replace(old, new)


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'


def with_parameter(name: str, value: str) -> str:
    return CONFIG + parameter(name, value)


UNBATCHED = """
backend: "onnxruntime"
input [{ name: "tokens" data_type: TYPE_INT64 dims: [-1, -1] }]
output [{ name: "score" data_type: TYPE_FP32 dims: [-1] }]
"""


REFUSALS = {
    "wrong input dtype": (
        replaced("TYPE_INT64", "TYPE_INT32"),
        "configuration expects datatype TYPE_INT32 for input 'tokens', model provides TYPE_INT64",
    ),
    "wrong output dtype": (
        replaced("TYPE_FP32", "TYPE_FP16"),
        "configuration expects datatype TYPE_FP16 for output 'score', model provides TYPE_FP32",
    ),
    "wrong input rank": (
        replaced("dims: [-1]", "dims: [-1, 4]"),
        "tensor 'tokens': the model expects 2 dimensions (shape [-1, -1]) but the model configuration specifies "
        "3 dimensions, shape [-1, -1, 4]",
    ),
    "wrong output dims": (
        replaced("dims: [1] reshape { shape: [] }", "dims: [2]"),
        "tensor 'score': the model expects 1 dimensions (shape [-1]) but the model configuration specifies 2 dim",
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
        "configuration expects 2 inputs (tokens, more), model provides 1 (tokens)",
    ),
    "optional input in a batching model": (
        replaced("dims: [-1]", "dims: [-1] optional: true"),
        "optional input 'tokens' is not supported for models that support batching",
    ),
    "batch dimension missing from the configuration": (
        replaced("max_batch_size: 1024", "max_batch_size: 0").replace("dims: [1] reshape { shape: [] }", "dims: [-1]"),
        "tensor 'tokens': the model expects 2 dimensions (shape [-1, -1]) but the model configuration specifies 1 dim",
    ),
    "CPU accelerator": (
        CONFIG + 'optimization { execution_accelerators { cpu_execution_accelerator [{ name: "openvino" }] } }',
        "unknown Execution Accelerator 'openvino' is requested",
    ),
    "GPU accelerator": (
        CONFIG + 'optimization { execution_accelerators { gpu_execution_accelerator [{ name: "tensorrt" }] } }',
        "unknown Execution Accelerator 'tensorrt' is requested",
    ),
    "thread count that is no number": (
        with_parameter("intra_op_thread_count", "two"),
        "parameter intra_op_thread_count: failed to convert 'two' to integral number",
    ),
    "unknown execution mode": (
        with_parameter("execution_mode", "2"),
        "Expected values for execution_mode are 0 or 1 but got 2",
    ),
    "arena that is no boolean": (
        with_parameter("enable_mem_arena", "maybe"),
        "parameter enable_mem_arena: failed to convert 'maybe' to boolean",
    ),
    "shared session": (
        with_parameter("share_session_between_instances", "true"),
        "share_session_between_instances is set",
    ),
    "negative row cap": (with_parameter("max_rows_per_run", "-1"), "parameter max_rows_per_run is -1, wanted 0"),
    "negative token budget": (with_parameter("max_tokens_per_run", "-8"), "parameter max_tokens_per_run is -8, wanted"),
    "token budget that is no number": (with_parameter("max_tokens_per_run", "8k"), "failed to convert '8k'"),
    "row cap of a model that does not batch": (
        UNBATCHED + parameter("max_rows_per_run", "8"),
        "parameter max_rows_per_run is 8, wanted 0 (no limit) or more, and with it a model that takes any number of "
        "rows, or parameter row_inputs",
    ),
    "padding mask without lengths": (
        with_parameter("padding_mask", "tokens"),
        "parameter padding_mask is 'tokens' and lengths is '', wanted both or none",
    ),
    "lengths that are not in order": (
        with_parameter("padding_mask", "tokens") + parameter("lengths", "8,4"),
        "lengths is '8,4', wanted both or none: an input, and the lengths that a run may be cut to, shortest first",
    ),
    "padding mask that there is not": (
        with_parameter("padding_mask", "mask") + parameter("lengths", "8"),
        "parameter padding_mask is mask, wanted the name of an input of rows and lengths",
    ),
    "padding mask of rows that are not run apart": (
        UNBATCHED + parameter("padding_mask", "tokens") + parameter("lengths", "8"),
        "parameter padding_mask is",
    ),
    "row inputs without a cap": (
        UNBATCHED + parameter("row_inputs", "tokens"),
        "parameter row_inputs is set without max_rows_per_run or max_tokens_per_run",
    ),
    "row inputs of a model that batches": (
        with_parameter("row_inputs", "tokens"),
        "parameter row_inputs is set and max_batch_size is above 0",
    ),
    "row inputs that there are not": (
        UNBATCHED + parameter("max_rows_per_run", "8") + parameter("row_inputs", "tokens, keys"),
        "but keys is no tensor whose first dimension is -1",
    ),
    "ragged batch": (
        replaced("dims: [-1]", "dims: [-1] allow_ragged_batch: true"),
        "input 'tokens' has allow_ragged_batch",
    ),
    "missing file": (CONFIG + 'default_model_filename: "other.onnx"', "other.onnx'; export the model there"),
    "missing operator library": (
        CONFIG + 'model_operations { op_library_filename: "no_such_library.so" }',
        "no_such_library.so",
    ),
}


@pytest.fixture(scope="module")
def refusals(repository: Path, client: grpc.InferenceServerClient) -> dict[str, str]:
    """Fault => what the server answered when a model with that fault was to be loaded; all at once, to save time."""

    def answer(fault: str) -> str:
        model = fault.replace(" ", "_")
        save_summing_model(write_config(repository, model, REFUSALS[fault][0]) / "model.onnx")
        try:
            client.load_model(model)
        except InferenceServerException as error:
            return str(error)
        return "loaded"

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(REFUSALS, pool.map(answer, REFUSALS), strict=True))


@pytest.mark.parametrize("fault", REFUSALS)
def test_refuses_at_load_and_says_why(refusals: dict[str, str], fault: str) -> None:
    assert REFUSALS[fault][1] in refusals[fault]


def test_refuses_a_fixed_first_dimension_where_the_model_shall_batch(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    save_summing_model(write_config(repository, "fixed", CONFIG) / "model.onnx", rows=4)
    with pytest.raises(
        InferenceServerException, match="first dimension must be -1; but shape expected by the model is"
    ):
        client.load_model("fixed")


def test_a_refused_model_leaves_the_others_serving(client: grpc.InferenceServerClient) -> None:
    assert client.is_model_ready("good")


def test_a_server_that_shall_load_a_faulty_model_names_it_and_the_reason(repository: Path) -> None:
    config, reason = REFUSALS["wrong input dtype"]
    save_summing_model(write_config(repository, "faulty", config) / "model.onnx")
    with (
        pytest.raises(ModelsNotReady) as failure,
        TritonServer(repository, ["good", "faulty"], grpc_port=0, http_port=0, metrics_port=0),
    ):
        pass
    assert set(failure.value.reasons) == {"faulty"}
    assert reason in failure.value.reasons["faulty"]


def loaded_config(client: grpc.InferenceServerClient, model: str) -> dict:
    client.load_model(model)
    return client.get_model_config(model, as_json=True)["config"]


def test_completes_everything_that_the_configuration_leaves_out(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    save_summing_model(write_config(repository, "bare", 'backend: "onnxruntime"') / "model.onnx")
    config = loaded_config(client, "bare")
    assert config["max_batch_size"] == 4
    assert "dynamic_batching" in config
    assert [(i["name"], i["data_type"], i["dims"]) for i in config["input"]] == [("tokens", "TYPE_INT64", ["-1"])]
    assert [(o["name"], o["data_type"], o["dims"]) for o in config["output"]] == [("score", "TYPE_FP32", ["1"])]
    assert config["output"][0]["reshape"] == {}


def test_completes_no_batching_for_a_model_with_a_fixed_first_dimension(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    save_identity_model(
        write_config(repository, "unbatched", 'backend: "onnxruntime"') / "model.onnx", TensorProto.FLOAT, [2, "n"]
    )
    config = loaded_config(client, "unbatched")
    assert config.get("max_batch_size", 0) == 0
    assert config["input"][0]["dims"] == ["2", "-1"]


def test_completion_refuses_max_batch_size_for_a_model_that_cannot_batch(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    version = write_config(repository, "cannot", 'backend: "onnxruntime" max_batch_size: 8')
    save_identity_model(version / "model.onnx", TensorProto.FLOAT, [2, "n"])
    with pytest.raises(InferenceServerException, match="does not support batching while max_batch_size 8 is specified"):
        client.load_model("cannot")


def test_completes_nothing_where_inputs_and_outputs_are_given(client: grpc.InferenceServerClient) -> None:
    assert "dynamic_batching" not in client.get_model_config("good", as_json=True)["config"]


def test_accepts_an_input_dimension_that_the_model_leaves_open(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    save_summing_model(write_config(repository, "narrow", replaced("dims: [-1]", "dims: [16]")) / "model.onnx")
    assert loaded_config(client, "narrow")["input"][0]["dims"] == ["16"]


def test_ignores_parameters_that_it_does_not_know(repository: Path, client: grpc.InferenceServerClient) -> None:
    save_summing_model(write_config(repository, "extra", with_parameter("of_no_one", "x")) / "model.onnx")
    client.load_model("extra")
    assert client.is_model_ready("extra")


def test_honours_default_model_filename_and_a_folder_of_that_name(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    config = CONFIG + 'default_model_filename: "ranker.onnx"'
    save_summing_model(write_config(repository, "named", config) / "ranker.onnx")
    save_summing_model(write_config(repository, "foldered", config) / "ranker.onnx" / "model.onnx")
    client.load_model("named")
    client.load_model("foldered")
    assert client.is_model_ready("named")
    assert client.is_model_ready("foldered")


def test_takes_optional_inputs_that_the_graph_has_defaults_for(
    repository: Path, client: grpc.InferenceServerClient
) -> None:
    config = """
    backend: "onnxruntime"
    input [{ name: "x" data_type: TYPE_FP32 dims: [-1] },
           { name: "factor" data_type: TYPE_FP32 dims: [1] optional: true }]
    output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
    """
    save_optional_input_model(write_config(repository, "optional", config) / "model.onnx")
    client.load_model("optional")
    assert client.is_model_ready("optional")


WARM_UP = """
model_warmup [{{ name: "length {length}" batch_size: {rows}
                inputs {{ key: "tokens" value {{ data_type: TYPE_INT64 dims: [{length}] zero_data: true }} }} }}]
"""


def test_warms_up_with_several_named_entries(repository: Path, client: grpc.InferenceServerClient) -> None:
    entries = WARM_UP.format(length=8, rows=1) + WARM_UP.format(length=16, rows=4)
    save_summing_model(write_config(repository, "warm", CONFIG + entries) / "model.onnx")
    client.load_model("warm")
    assert client.is_model_ready("warm")


def test_a_warm_up_that_fails_keeps_the_server_from_being_ready(tmp_path: Path) -> None:
    """By a refusal with the reason, or, in about a third of the tries with Triton 2.51.0, by Triton's own crash."""
    version = write_config(tmp_path, "cold", CONFIG + WARM_UP.format(length=8, rows=1))
    save_always_failing_model(version / "model.onnx")
    with (
        pytest.raises(ServerNotReady, match=r"out of data bounds|tritonserver ended with code"),
        TritonServer(tmp_path, ["cold"], grpc_port=0, http_port=0, metrics_port=0),
    ):
        pass
