"""Every bad input of an endpoint with its exact code and message, and the limits that are still good.

Raw requests: the client would refuse most of these before they leave.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from builders.core.contract import (
    ITEM_IDS,
    MAX_CANDIDATES,
    MAX_ITEM_ID_BYTES,
    MAX_QUERY_BYTES,
    QUERY,
    RANK,
    TOP_K,
    UNSCORED,
)
from builders.data.find import JudgedQueries
from server import TritonServer
from tests.support.endpoint import Array, integers, metric, rank, send, texts

pytestmark = pytest.mark.server

ENDPOINTS = ["rank", "rank_two_tower_fp32_onnx"]
GOOD_QUERY, ITEMS = texts("coffee mug"), texts("a", "b")

REFUSED_BY_THE_KIT: dict[str, tuple[dict[str, Array], str]] = {
    "an empty query": (
        {QUERY.name: texts("")},
        f"{QUERY.name}: empty, wanted at least one character that is not white space",
    ),
    "a query of white space": (
        {QUERY.name: texts(" \t\n\u3000")},
        f"{QUERY.name}: empty, wanted at least one character that is not white space",
    ),
    "a query of too many bytes": (
        {QUERY.name: texts("杯" * 683)},
        f"{QUERY.name}: 2049 bytes, wanted at most 2048",
    ),
    "a query that is not UTF-8": ({QUERY.name: texts(b"mug\xff")}, f"{QUERY.name}: not UTF-8 (byte 0xff at 3)"),
    "no items": ({ITEM_IDS.name: texts()}, f"{ITEM_IDS.name}: 0 items, wanted 1 to 1024"),
    "too many items": (
        {ITEM_IDS.name: texts(*map(str, range(MAX_CANDIDATES + 1)))},
        f"{ITEM_IDS.name}: 1025 items, wanted 1 to 1024",
    ),
    "an item twice": (
        {ITEM_IDS.name: texts("a", "b", "c", "b")},
        f"{ITEM_IDS.name}: {ITEM_IDS.name}[3] repeats {ITEM_IDS.name}[1], wanted distinct ids",
    ),
    "an empty id": ({ITEM_IDS.name: texts("a", "")}, f"{ITEM_IDS.name}[1]: 0 bytes, wanted 1 to 511"),
    "an id of too many bytes": ({ITEM_IDS.name: texts("é" * 256)}, f"{ITEM_IDS.name}[0]: 512 bytes, wanted 1 to 511"),
    "an id that is not UTF-8": (
        {ITEM_IDS.name: texts("a", b"\xc3(")},
        f"{ITEM_IDS.name}[1]: not UTF-8 (byte 0xc3 at 0)",
    ),
    "a negative top_k": ({TOP_K.name: integers([-1])}, f"{TOP_K.name}: [-1], wanted one number >= 0 (0 = all)"),
}

MISSING = f"expected number of inputs between 2 and {len(RANK.inputs)} but got 1 inputs for model '{{endpoint}}'."
SHAPE = "unexpected shape for input '{name}' for model '{{endpoint}}'. Expected [{wanted}], got [{found}]."
DTYPE = "inference input '{name}' data-type is '{found}', but model '{{endpoint}}' expects '{wanted}'"

REFUSED_BY_TRITON: dict[str, tuple[dict[str, Array | None], str]] = {
    "query of another dtype": (
        {QUERY.name: integers([1])},
        DTYPE.format(name=QUERY.name, found="INT32", wanted="BYTES"),
    ),
    "item_ids of another dtype": (
        {ITEM_IDS.name: integers([1, 2], "INT64")},
        DTYPE.format(name=ITEM_IDS.name, found="INT64", wanted="BYTES"),
    ),
    "top_k of another dtype": (
        {TOP_K.name: integers([1], "INT64")},
        DTYPE.format(name=TOP_K.name, found="INT64", wanted="INT32"),
    ),
    "query of another rank": (
        {QUERY.name: (GOOD_QUERY[0].reshape(1, 1), "BYTES")},
        SHAPE.format(name=QUERY.name, wanted="1", found="1,1"),
    ),
    "two queries": ({QUERY.name: texts("a", "b")}, SHAPE.format(name=QUERY.name, wanted="1", found="2")),
    "item_ids of another rank": (
        {ITEM_IDS.name: (ITEMS[0].reshape(1, 2), "BYTES")},
        SHAPE.format(name=ITEM_IDS.name, wanted="-1", found="1,2"),
    ),
    "top_k of another rank": ({TOP_K.name: integers([[1]])}, SHAPE.format(name=TOP_K.name, wanted="1", found="1,1")),
    "two numbers in top_k": ({TOP_K.name: integers([1, 2])}, SHAPE.format(name=TOP_K.name, wanted="1", found="2")),
    "no number in top_k": ({TOP_K.name: integers([])}, SHAPE.format(name=TOP_K.name, wanted="1", found="0")),
    "no query": (
        {QUERY.name: None},
        f"{MISSING} Got input(s) ['{ITEM_IDS.name}'], but missing required input(s) ['{QUERY.name}'].",
    ),
    "no item_ids": (
        {ITEM_IDS.name: None},
        f"{MISSING} Got input(s) ['{QUERY.name}'], but missing required input(s) ['{ITEM_IDS.name}'].",
    ),
    "an input that the contract does not have": (
        {"user": integers([1])},
        "unexpected inference input 'user' for model '{endpoint}'",
    ),
}


@pytest.fixture(scope="module")
def client(served_kit: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(served_kit.grpc_url) as client:
        yield client


@pytest.fixture
def known(judged: JudgedQueries) -> list[str]:
    """Ten items that the store knows."""
    return list(judged.products)[:10]


def refusal(client: grpc.InferenceServerClient, endpoint: str, changes: dict[str, Array | None]) -> tuple[str, str]:
    """Code and message for a good request with some tensors changed or, where None, left out."""
    tensors = {QUERY.name: GOOD_QUERY, ITEM_IDS.name: ITEMS, **changes}
    with pytest.raises(InferenceServerException) as error:
        send(client, endpoint, **{name: tensor for name, tensor in tensors.items() if tensor is not None})
    return error.value.status(), error.value.message()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("fault", REFUSED_BY_THE_KIT)
def test_pre_or_post_processing_refuses(client: grpc.InferenceServerClient, endpoint: str, fault: str) -> None:
    changes, message = REFUSED_BY_THE_KIT[fault]
    assert refusal(client, endpoint, dict(changes)) == (
        "StatusCode.INVALID_ARGUMENT",
        f"in ensemble '{endpoint}', {message}",
    )


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("fault", REFUSED_BY_TRITON)
def test_triton_refuses_what_is_not_the_contracts(
    client: grpc.InferenceServerClient, endpoint: str, fault: str
) -> None:
    changes, message = REFUSED_BY_TRITON[fault]
    code, found = refusal(client, endpoint, changes)
    assert code == "StatusCode.INVALID_ARGUMENT"
    assert message.format(endpoint=endpoint) in found


# ---------------------------------------------------------------- at the limits
def test_the_longest_query_is_ranked(client: grpc.InferenceServerClient, known: list[str]) -> None:
    ids, _ = rank(client, "rank", "x" * MAX_QUERY_BYTES, known)
    assert sorted(ids) == sorted(known)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_query_of_many_words_is_ranked_as_its_first_32_tokens(
    client: grpc.InferenceServerClient, endpoint: str, known: list[str]
) -> None:
    kept = " ".join(["red", "mug"] * 16)  # each of these words is one token of the packaged vocabulary
    ids, scores = rank(client, endpoint, kept, known)
    assert rank(client, endpoint, f"{kept} and a blue tent", known) == (ids, scores)
    assert rank(client, endpoint, kept.rsplit(" ", 1)[0], known)[1] != scores


def test_the_longest_id_is_ranked(client: grpc.InferenceServerClient) -> None:
    longest = "x" * MAX_ITEM_ID_BYTES
    assert rank(client, "rank", "mug", [longest]) == ([longest], [pytest.approx(UNSCORED)])


@pytest.mark.parametrize(("top_k", "count"), [(None, 10), (0, 10), (1, 1), (9, 9), (10, 10), (11, 10), (2**31 - 1, 10)])
def test_top_k_keeps_the_best(
    client: grpc.InferenceServerClient, known: list[str], top_k: int | None, count: int
) -> None:
    all_ids, all_scores = rank(client, "rank", "coffee mug", known)
    assert rank(client, "rank", "coffee mug", known, top_k) == (all_ids[:count], all_scores[:count])


# ---------------------------------------------------------------- items that the store does not know
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_unknown_items_come_last_in_first_stage_order_with_the_lowest_finite_score(
    client: grpc.InferenceServerClient, endpoint: str, known: list[str]
) -> None:
    wanted_ids, wanted_scores = rank(client, endpoint, "coffee mug", known)
    mixed = ["absent z", *known[:4], "absent a", "杯", *known[4:]]
    ids, scores = rank(client, endpoint, "coffee mug", mixed)
    assert ids == [*wanted_ids, "absent z", "absent a", "杯"]
    assert scores[: len(known)] == pytest.approx(wanted_scores, abs=1e-4)
    assert scores[len(known) :] == [UNSCORED] * 3


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_request_of_unknown_items_only_keeps_first_stage_order(
    client: grpc.InferenceServerClient, endpoint: str
) -> None:
    absent = [f"absent {number}" for number in (3, 1, 2)]
    assert rank(client, endpoint, "mug", absent) == (absent, [UNSCORED] * 3)


def test_unknown_items_are_counted(
    served_kit: TritonServer, client: grpc.InferenceServerClient, known: list[str]
) -> None:
    counted = ("tritonrank_unknown_items_total", "two_tower_preprocess")
    before = metric(served_kit, *counted)
    rank(client, "rank_two_tower_fp32_onnx", "mug", [*known, "absent 1", "absent 2"])
    assert metric(served_kit, *counted) == before + 2


def test_1024_unknown_items_are_ranked_too(client: grpc.InferenceServerClient) -> None:
    absent = [f"absent {number}" for number in range(MAX_CANDIDATES)]
    assert rank(client, "rank_two_tower_fp32_onnx", "mug", absent)[0] == absent
