"""Every error of the wire has one of ours."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import tritonrank_client
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import InferenceServerException
from tritonrank_client import (
    DeadlineExceeded,
    InvalidRequest,
    MockTransport,
    Overloaded,
    RankClient,
    ServerError,
    TritonRankError,
    Unavailable,
    _errors,
)
from tritonrank_client._wire import ERROR_OF_STATUS, arrays, translated


def test_no_grpc_status_is_left_out():
    assert set(ERROR_OF_STATUS) == {code.name for code in grpc.StatusCode} - {"OK"}


def test_every_error_of_the_tree_is_public_and_drawn():
    errors = {name for name, item in vars(_errors).items() if isinstance(item, type) and issubclass(item, Exception)}

    assert errors <= set(tritonrank_client.__all__)
    assert all(issubclass(getattr(_errors, name), TritonRankError) for name in errors)
    assert all(f"+-- {name} " in _errors.__doc__ for name in errors - {"TritonRankError"})


def wire_error(code, text="as it came"):
    return translated(InferenceServerException(text, status=f"StatusCode.{code}"), "ranker:8001", 0.2)


@pytest.mark.parametrize("code", sorted(ERROR_OF_STATUS))
def test_a_status_becomes_its_error_with_server_text_and_status(code):
    error = wire_error(code)

    assert type(error) is ERROR_OF_STATUS[code]
    assert str(error).startswith("ranker:8001: ")
    if code != "DEADLINE_EXCEEDED":
        assert f"as it came ({code}); " in str(error)


@pytest.mark.parametrize(
    ("code", "text", "wanted"),
    [
        ("UNAVAILABLE", "in ensemble 'rank', [request id: <id_unknown>] Exceeds maximum queue size", Overloaded),
        ("UNAVAILABLE", "in ensemble 'rank', Request timeout expired", Overloaded),
        ("UNAVAILABLE", "failed to connect to all addresses", Unavailable),
        ("UNAVAILABLE", None, Unavailable),
        ("INTERNAL", "Exceeds maximum queue size", ServerError),
    ],
)
def test_only_the_text_tells_an_overloaded_server_from_one_that_is_gone(code, text, wanted):
    assert type(wire_error(code, text)) is wanted


def test_an_error_of_tritonclient_without_status_is_a_server_error():
    assert type(translated(InferenceServerException("odd"), "ranker:8001", 0.2)) is ServerError


def test_a_spent_deadline_says_how_long_it_was():
    assert "ranker:8001: no answer within 0.200 s; " in str(wire_error("DEADLINE_EXCEEDED"))


OUTAGES = [Unavailable("x"), Overloaded("x"), DeadlineExceeded("x"), ServerError("Stub process is not healthy")]


def ranked(request):
    return {"ranked_ids": request.inputs["item_ids"], "scores": np.zeros(1, np.float32)}


@pytest.mark.parametrize("outage", OUTAGES)
@pytest.mark.parametrize("of", ["is_ready", "infer"])
def test_ready_is_false_where_no_request_is_answered_whatever_the_server_says_of_itself(outage, of):
    class Transport(MockTransport):
        def fail(self, *arguments):
            raise outage

    transport = Transport(ranked)
    client = RankClient("mock", timeout_s=30, transport=transport)
    assert client.ready() is True
    setattr(transport, of, transport.fail)
    assert client.ready() is False


def test_ready_is_false_where_the_answer_is_no_list_and_true_where_the_model_refuses_the_item():
    def refuse(request):
        raise InvalidRequest("item_id: not in the item store", "item_id")

    assert RankClient("mock", timeout_s=30, transport=MockTransport(lambda request: {})).ready() is False
    assert RankClient("mock", timeout_s=30, transport=MockTransport(refuse)).ready(endpoint="similar") is True


def test_ready_does_not_hide_a_bad_budget():
    with pytest.raises(InvalidRequest):
        RankClient("mock", timeout_s=30, transport=MockTransport(ranked)).ready(timeout_s=-1)


def test_a_closed_client_is_unavailable_and_closes_again():
    with RankClient("mock", timeout_s=30, transport=MockTransport(lambda request: {})) as client:
        pass
    client.close()

    with pytest.raises(Unavailable, match="this client is closed"):
        client.rank("shoes", ["a"])
    assert client.ready() is False


@pytest.mark.parametrize(
    ("dtype", "raw"), [("FP32", b"\0\0\0\0"), ("BYTES", b"\x09\0\0\0abc")], ids=["too short for the shape", "cut off"]
)
def test_an_answer_that_cannot_be_decoded_is_a_server_error(dtype, raw):
    response = service_pb2.ModelInferResponse(raw_output_contents=[raw])
    response.outputs.add(name="scores", datatype=dtype, shape=[2])

    with pytest.raises(ServerError, match="ranker:8001: the answer cannot be decoded"):
        arrays("ranker:8001", InferResult(response), ("scores",))
