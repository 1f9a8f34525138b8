"""A gRPC server that is none of ours: what it says is fuzzed, and no wrong list is ever returned as a healthy one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor
from tritonrank_client import RankClient, TritonRankError
from tritonrank_client._contract import RANK
from tritonrank_client._wire import MAX_ANSWER_BYTES

IDS = ["a", "b", "c"]


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Has the contract's `rank`, and answers with `said`."""

    def __init__(self) -> None:
        self.said = pb.ModelInferResponse()

    def ModelMetadata(self, request: object, context: object) -> pb.ModelMetadataResponse:
        tensors = [
            [pb.ModelMetadataResponse.TensorMetadata(name=t.name, datatype=t.dtype, shape=t.shape) for t in side]
            for side in (RANK.inputs, RANK.outputs)
        ]
        return pb.ModelMetadataResponse(name="rank", inputs=tensors[0], outputs=tensors[1])

    def ModelConfig(self, request: object, context: object) -> pb.ModelConfigResponse:
        response = pb.ModelConfigResponse()
        for tensor in RANK.inputs:
            response.config.input.add(name=tensor.name, optional=tensor.optional)
        return response

    def ModelInfer(self, request: object, context: object) -> pb.ModelInferResponse:
        return self.said


@pytest.fixture(scope="module")
def fake() -> Iterator[tuple[FakeTriton, RankClient]]:
    servicer = FakeTriton()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with RankClient(f"127.0.0.1:{port}", timeout_s=5) as client:
        yield servicer, client
    server.stop(None)


def answer(ids: list[bytes], scores: list[float]) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="rank", model_version="1")
    for name, datatype, count in (("ranked_ids", "BYTES", len(ids)), ("scores", "FP32", len(scores))):
        response.outputs.add(name=name, datatype=datatype, shape=[count])
    packed = serialize_byte_tensor(np.array(ids, dtype=object))
    response.raw_output_contents.append(packed.item() if packed.size else b"")
    response.raw_output_contents.append(np.array(scores, dtype="<f4").tobytes())
    return response


def test_a_right_answer_is_taken(fake: tuple[FakeTriton, RankClient]) -> None:
    servicer, client = fake
    servicer.said = answer([b"c", b"a", b"b"], [3, 2, 1])
    assert client.rank("shoes", IDS).ids == ("c", "a", "b")


broken = st.builds(
    answer,
    st.lists(st.sampled_from([b"a", b"b", b"c", b"d", b"", b"\xff", b"a" * 600]), max_size=5),
    st.lists(st.floats(width=32), max_size=5),
)


@hypothesis.given(said=broken, data=st.data())
@hypothesis.settings(max_examples=300, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_a_fuzzed_answer_is_an_order_of_the_request_or_an_error(
    fake: tuple[FakeTriton, RankClient], said: pb.ModelInferResponse, data: st.DataObject
) -> None:
    servicer, client = fake
    for number in range(len(said.raw_output_contents)):
        raw = bytearray(said.raw_output_contents[number])
        for place in data.draw(st.lists(st.integers(0, max(0, len(raw) - 1)), max_size=2)):
            if raw:
                raw[place] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(raw)) | st.just(len(raw)))
        said.raw_output_contents[number] = bytes(raw[:cut])
    if data.draw(st.booleans()) and said.outputs:
        output = data.draw(st.sampled_from(list(said.outputs)))
        change = data.draw(st.sampled_from(["name", "datatype", "shape", "gone"]))
        if change == "name":
            output.name = "other"
        elif change == "datatype":
            output.datatype = data.draw(st.sampled_from(["FP16", "INT32", "BYTES", "NONE"]))
        elif change == "shape":
            output.shape[:] = data.draw(st.lists(st.integers(-1, 5), max_size=3))
        else:
            said.raw_output_contents.pop()
    servicer.said = said
    with contextlib.suppress(TritonRankError):
        found = client.rank("shoes", IDS)
        assert sorted(found.ids) == IDS
        assert np.isfinite(found.scores).all() and (np.diff(found.scores) <= 0).all()


def test_an_answer_beyond_the_limit_is_an_error_and_not_memory(fake: tuple[FakeTriton, RankClient]) -> None:
    servicer, client = fake
    servicer.said = answer([b"a" * MAX_ANSWER_BYTES], [1.0])
    with pytest.raises(TritonRankError, match="larger than max"):
        client.rank("shoes", IDS)
