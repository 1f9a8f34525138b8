"""Contracts: what they refuse, and that they cross the process border unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from builders.core.contract import (
    KNOWN,
    MAX_LENGTH,
    MAX_ROWS_PER_RUN,
    MAX_TOKENS_PER_RUN,
    RANK,
    SCORE,
    TOP_K,
    UNSCORED,
    Contract,
    ContractError,
    Tensor,
    item_vectors,
    length_buckets,
    padded_length,
    query_vector,
    rows_per_run,
)
from builders.core.workspace import REPOSITORY_ROOT
from builders.publish.postprocessing import postprocess_contract

ALL = (
    RANK,
    postprocess_contract(),
    Contract("head", (query_vector(384), item_vectors(384)), (SCORE, KNOWN), "cosine", {"a": [1]}),
)
ON_DISK = sorted((REPOSITORY_ROOT / "model_repository").glob("*/contract.json"))


@pytest.mark.parametrize("contract", ALL, ids=lambda contract: contract.name)
def test_a_contract_survives_the_round_trip_through_json(contract: Contract) -> None:
    assert Contract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize("path", ON_DISK, ids=lambda path: path.parent.name)
def test_a_committed_contract_reads_back_as_the_same_text(path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    assert Contract.from_json(text).to_json() == text


def test_the_project_commits_contracts() -> None:
    assert REPOSITORY_ROOT / "model_repository" / "rank" / "contract.json" in ON_DISK


def changed(**fields: Any) -> str:
    """RANK's JSON with some fields changed; None takes a field away."""
    content = {**json.loads(RANK.to_json()), **fields}
    return json.dumps({name: value for name, value in content.items() if value is not None})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("null", "TypeError"),
        (changed(name=None), "'name'"),
        (changed(inputs=None), "KeyError: 'inputs'"),
        (changed(outputs=7), "not iterable"),
        (changed(colour="red"), "'colour'"),
        (changed(inputs=[{"name": "query"}]), "'dims'"),
        (changed(inputs=["query"]), "TypeError"),
    ],
)
def test_a_malformed_contract_is_refused_with_the_reason_and_what_to_run(text: str, complaint: str) -> None:
    with pytest.raises(ContractError, match=r"contract\.json is not a contract .*run 'make repository'") as refusal:
        Contract.from_json(text)
    assert complaint in str(refusal.value)


def test_a_dtype_unknown_to_triton_is_refused() -> None:
    with pytest.raises(ContractError, match="tensor 'x': dtype 'FLOAT', wanted one of BOOL, INT8, INT32"):
        Tensor("x", "FLOAT", (1,), "")
    with pytest.raises(ContractError, match="dtype 'float32'"):
        Contract.from_json(changed(outputs=[{"name": "y", "dtype": "float32", "dims": [1], "meaning": ""}]))


def test_names_are_lower_case() -> None:
    with pytest.raises(ContractError, match="tensor 'Query': wanted a lower-case name"):
        Tensor("Query", "BYTES", (1,), "")


def test_a_named_dimension_is_free_and_a_number_is_fixed() -> None:
    assert item_vectors(384).shape == (-1, 384)
    assert RANK.input("query").shape == (1,)


def test_a_tensor_is_found_by_name_or_the_names_are_listed() -> None:
    assert RANK.input("top_k") is TOP_K
    assert RANK.output("scores").dtype == "FP32"
    with pytest.raises(ContractError, match="rank: no input 'scores', it has query, item_ids, top_k"):
        RANK.input("scores")
    with pytest.raises(ContractError, match="rank: no output 'query', it has ranked_ids, scores"):
        RANK.output("query")


@pytest.mark.parametrize(
    ("longest", "padded"),
    [(0, 8), (1, 8), (8, 8), (9, 16), (127, 128), (128, 128), (129, 160), (512, 512), (513, 640), (8100, 8192)],
)
def test_a_batch_is_padded_to_the_next_bucket(longest: int, padded: int) -> None:
    assert padded_length(longest) == padded


@pytest.mark.parametrize("maximum", [8, 40, 100, MAX_LENGTH, 300, 512, 514, 8192])
def test_every_padded_length_is_one_of_the_buckets(maximum: int) -> None:
    buckets = length_buckets(maximum)
    assert {padded_length(longest, maximum) for longest in range(1, maximum + 1)} == set(buckets)
    assert list(buckets) == sorted(buckets) and buckets[-1] == maximum


def test_longer_sequences_have_wider_buckets() -> None:
    assert length_buckets(40) == (8, 16, 24, 32, 40)
    assert length_buckets() == tuple(range(8, 129, 8))
    assert length_buckets(300)[-4:] == (224, 256, 288, 300)
    assert (len(length_buckets(512)), len(length_buckets(8192))) == (28, 88)


def test_a_run_has_a_row_at_least_and_never_more_than_the_caps_allow() -> None:
    for length in length_buckets(2 * MAX_TOKENS_PER_RUN):
        rows = rows_per_run(length)
        assert rows == 1 or rows * length <= MAX_TOKENS_PER_RUN
        assert rows == MAX_ROWS_PER_RUN or (rows + 1) * length > MAX_TOKENS_PER_RUN


def test_the_score_of_an_unscored_item_is_finite_and_survives_json() -> None:
    assert json.loads(json.dumps(UNSCORED, allow_nan=False)) == UNSCORED
