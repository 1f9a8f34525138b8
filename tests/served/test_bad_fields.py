"""What a request's fields may not hold, and made-up requests: refused as the request's fault, in a short sentence.

The usual run sends a few hundred made-up requests, the slow one 10,000 over HTTP and 100,000 over gRPC.
"""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from server import TritonServer
from tests.support.endpoint import Array, integers, send, texts
from tests.support.raw_endpoints import ANY_PORTS, IDS, write_raw_endpoints

pytestmark = pytest.mark.server
LONG = 400
"""Characters of an error, whatever the request brought."""
DEEP = "[" * 1500 + "]" * 1500


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("raw")
    write_raw_endpoints(folder)
    with TritonServer(folder / "models", load=None, store=folder / "store", **ANY_PORTS) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as connected:
        yield connected


def good(endpoint: str) -> dict[str, Array]:
    asked = {"recommend": {"history": texts("i1")}, "rank": {"query": texts("red shoe")}}
    return {**asked[endpoint], "item_ids": texts("i1", "fresh")}


def refused(client: grpc.InferenceServerClient, endpoint: str, **changes: Array) -> str:
    """The message. Fails unless it is the request's fault, said in few words."""
    with pytest.raises(InferenceServerException) as error:
        send(client, endpoint, **{**good(endpoint), **changes})
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT", error.value
    assert len(error.value.message()) < LONG
    return str(error.value.message())


# ---------------------------------------------------------------- fields
OF_ANY_JSON: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "not JSON"),
    "no object": ("[1]", "a JSON list, wanted an object"),
    "lists nested beyond any stack": ('{"price": ' + DEEP + "}", "nested more than 32 deep"),
    "lists nested beyond our limit": ('{"price": ' + "[" * 40 + "]" * 40 + "}", "nested more than 32 deep"),
    "objects nested beyond any stack": ('{"a":' * 600 + "1" + "}" * 600, "nested more than 32 deep"),
    "an integer of 400 digits": ('{"price": %s}' % ("9" * 400), "inf is not finite in FP32"),
    "a negative integer of 4,000 digits": ('{"price": -%s}' % ("9" * 4000), "-inf is not finite in FP32"),
    "1e300": ('{"price": 1e300}', "1e+300 is not finite in FP32"),
    "infinity": ('{"price": Infinity}', "inf is not finite in FP32"),
    "no number": ('{"price": NaN}', "nan is not finite in FP32"),
    "1e300 in a list": ('{"image": [1, 1e300]}', "1e+300 is not finite in FP32"),
    "half a surrogate pair": (r'{"title": "\ud800"}', "half a surrogate pair"),
    "half a surrogate pair in a list": (r'{"category": ["a", "\udfff"]}', "half a surrogate pair"),
    "half a surrogate pair as a name": (r'{"\ud800": 1}', "half a surrogate pair"),
    "a long text with half a surrogate pair": (r'{"title": "%s\ud800"}' % ("x" * 4000), "half a surrogate pair"),
}
OF_DECLARED_FIELDS: dict[str, tuple[str, str]] = {
    "a popularity of text": (
        '{"popularity": "much"}',
        "field 'popularity': found 'much', wanted a finite number or null",
    ),
    "a popularity of a list": ('{"popularity": [1]}', "field 'popularity': found [1], wanted a finite number or null"),
    "a popularity of an object": ('{"popularity": {"a": 1}}', "field 'popularity': found {'a': 1}"),
    "a price of a long text": ('{"price": "%s"}' % ("x" * 4000), "field 'price': found 'xxx"),
    "a vector of a long text": ('{"image": "%s"}' % ("x" * 4000), "field 'image': found 'xxx"),
    "a vector of numbers and lists": ('{"image": [1, [2]]}', "field 'image': found [1, [2]]"),
}


@pytest.mark.parametrize("endpoint", ["recommend", "rank"])
@pytest.mark.parametrize("fault", OF_ANY_JSON)
def test_fields_that_no_reader_can_take_are_refused(
    client: grpc.InferenceServerClient, endpoint: str, fault: str
) -> None:
    raw, wanted = OF_ANY_JSON[fault]
    message = refused(client, endpoint, item_fields=texts("", raw))
    assert "item_fields[1]: " in message and wanted in message


@pytest.mark.parametrize("fault", OF_ANY_JSON)
def test_so_are_those_of_the_context(client: grpc.InferenceServerClient, fault: str) -> None:
    raw, wanted = OF_ANY_JSON[fault]
    message = refused(client, "recommend", context=texts(raw))
    assert "context: " in message and wanted in message


@pytest.mark.parametrize("fault", OF_DECLARED_FIELDS)
def test_declared_fields_of_another_kind_are_refused(client: grpc.InferenceServerClient, fault: str) -> None:
    raw, wanted = OF_DECLARED_FIELDS[fault]
    assert f"item_fields[1]: {wanted}" in refused(client, "recommend", item_fields=texts("", raw))


@pytest.mark.parametrize(
    ("name", "value"),
    [("boosted", texts("x" * 500)), ("pinned_ids", texts("\x00" * 500)), ("pinned_ids", texts(b"\xff" * 500))],
)
def test_quoted_names_are_cut(client: grpc.InferenceServerClient, name: str, value: Array) -> None:
    other = {"boosted": ("boost_amounts", (np.ones(1, np.float32), "FP32"))}.get(
        name, ("pinned_positions", integers([1]))
    )
    assert f"{name}[0]: " in refused(client, "rank", **{name: value, other[0]: other[1]})


def test_an_index_beyond_a_table_is_the_fault_of_who_asks_a_scorer_directly(
    client: grpc.InferenceServerClient,
) -> None:
    shapes = {"input_ids": 10**6, "attention_mask": 1, "token_type_ids": 0}
    inputs = []
    for name, value in shapes.items():
        inputs.append(grpc.InferInput(name, [1, 8], "INT32"))
        inputs[-1].set_data_from_numpy(np.full((1, 8), value, np.int32))
    with pytest.raises(InferenceServerException, match="indices element out of data bounds") as error:
        client.infer("cross_encoder_fp32_onnx", inputs)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


# ---------------------------------------------------------------- made-up requests
SCRAPS = [
    "", "{}", "[]", "null", "0", "-1e999", '"', "{", '{"price":', '{"price": 1}', r'{"title": "\ud83d"}', "\x00",
    "i1", "red shoe", "{title}", "%s", "../../etc/passwd", "x" * 600, "é" * 300, '{"image": [1, 2]}', '{"hour": true}',
    '{"popularity": "1"}', '{"brand": {"a": []}}', '{"category": [[1]]}', DEEP[:900], '{"price": 1e400}',
]  # fmt: skip
NAMES = {
    "recommend": ("history", "item_ids", "context", "item_fields"),
    "rank": ("query", "item_ids", "item_texts", "item_fields"),
}
TRITON_CANNOT_READ = (b"failed to parse the request JSON buffer", b"Unable to parse")
"""Triton's own words, and its own code 500, for a body that is no request of its protocol."""


def made_up(draw: random.Random, endpoint: str) -> dict[str, Array]:
    """A good request with some inputs changed: values, counts, bytes; now and then one left out."""
    tensors: dict[str, Array] = dict(good(endpoint))
    ids = [f"i{draw.randrange(2 * IDS)}" for _ in range(draw.choice([1, 2, 2, 2, 5]))]
    tensors["item_ids"] = texts(*dict.fromkeys(ids)) if draw.random() < 0.9 else texts(*ids)
    count = len(tensors["item_ids"][0])
    for name in NAMES[endpoint]:
        if draw.random() < 0.4:
            wanted = 1 if name in ("query", "context") else count
            size = wanted if draw.random() < 0.8 else draw.randrange(4)
            tensors[name] = texts(*(mutated(draw, draw.choice(SCRAPS)) for _ in range(size)))
    if draw.random() < 0.3:
        tensors["top_k"] = integers([draw.choice([0, 1, -1, 2**31 - 1, -(2**31)])])
    if draw.random() < 0.2:
        tensors["max_per_brand"] = integers([draw.choice([0, 1, -1, 2**31 - 1])])
    if draw.random() < 0.2:
        tensors["pinned_ids"] = texts(draw.choice(["i1", "x" * 700, ""]))
        tensors["pinned_positions"] = integers([draw.choice([1, 0, -5, 2**31 - 1])])
    if draw.random() < 0.2:
        tensors["boosted"] = texts(draw.choice(["brand=acme", "=", "a=b=c", "x" * 600, ""]))
        tensors["boost_amounts"] = np.array([draw.choice([1, np.nan, np.inf, -1e30])], np.float32), "FP32"
    if draw.random() < 0.05:
        tensors.pop(draw.choice(list(tensors)))
    return tensors


def mutated(draw: random.Random, text: str) -> bytes:
    raw = bytearray(text.encode())
    for _ in range(draw.choice([0, 0, 0, 1, 3])):
        place = draw.randrange(len(raw) + 1)
        raw[place : place + draw.randrange(2)] = bytes([draw.randrange(256)])
    return bytes(raw)


def faults_over_grpc(url: str, seed: int, count: int) -> list[str]:
    """Answers that are neither a list nor the request's fault in few words."""
    draw, found = random.Random(seed), []
    with grpc.InferenceServerClient(url) as client:
        for _ in range(count):
            endpoint = draw.choice(list(NAMES))
            tensors = made_up(draw, endpoint)
            try:
                ids, scores = send(client, endpoint, **tensors)
                if len(ids) != len(scores) or not np.isfinite(scores).all():
                    found.append(f"{tensors}: {ids} {scores}")
            except InferenceServerException as error:
                if error.status() != "StatusCode.INVALID_ARGUMENT" or len(error.message()) > LONG:
                    found.append(f"{endpoint} {tensors}: {error}"[:2000])
    return found


def faults_over_http(url: str, seed: int, count: int) -> list[str]:
    """The same over HTTP, where a body may also be no request at all."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        endpoint = draw.choice(list(NAMES))
        body = http_body(draw, made_up(draw, endpoint))
        request = urllib.request.Request(f"http://{url}/v2/models/{endpoint}/infer", data=body)
        try:
            with urllib.request.urlopen(request) as answer:
                json.loads(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read()
            if not any(words in text for words in TRITON_CANNOT_READ) and (error.code != 400 or len(text) > 2000):
                found.append(f"{endpoint} {body[:500]!r}: {error.code} {text[:500]!r}")
    return found


def http_body(draw: random.Random, tensors: dict[str, Array]) -> bytes:
    inputs: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": dtype,
            "data": [value.decode("utf-8", "replace") for value in array] if dtype == "BYTES" else array.tolist(),
        }
        for name, (array, dtype) in tensors.items()
    ]
    body = json.dumps({"inputs": inputs}).encode()
    return mutated(draw, body.decode()) if draw.random() < 0.3 else body


def assert_made_up_requests_are_answered(server: TritonServer, over_http: int, over_grpc: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        parts = [pool.submit(faults_over_grpc, server.grpc_url, seed, over_grpc // 2) for seed in (1, 2)]
        parts += [pool.submit(faults_over_http, server.http_url, seed, over_http // 2) for seed in (3, 4)]
    found = [fault for part in parts for fault in part.result()]
    assert not found, f"{len(found)} answers, such as {found[:3]}"
    with grpc.InferenceServerClient(server.grpc_url) as client:
        for endpoint in NAMES:  # and the server is still there
            assert len(send(client, endpoint, **good(endpoint))[0]) == 2


def test_some_hundred_made_up_requests_are_ranked_or_refused(server: TritonServer) -> None:
    assert_made_up_requests_are_answered(server, over_http=200, over_grpc=600)


@pytest.mark.slow
def test_100_000_made_up_requests_are_ranked_or_refused(server: TritonServer) -> None:
    assert_made_up_requests_are_answered(server, over_http=10_000, over_grpc=100_000)
