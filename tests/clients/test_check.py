"""`tritonrank-client check`, and what the package brings for its users' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tritonrank_client import InvalidRequest, RankClient, Unavailable, _check, testing
from tritonrank_client._sync._transport import GrpcTransport

from server import TritonServer


@pytest.mark.server
def test_a_server_that_is_well(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert _check.main(["check", server.grpc_url]) == 0
    told = capsys.readouterr().out
    assert "rank: ready: yes" in told
    assert "rank: contract: the same; reads query, item_ids; takes top_k" in told
    assert "rank: canary: answered 21 of 21 requests of one item" in told


@pytest.mark.server
@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("rank_absent", "rank_absent: ready: Unavailable"),
        ("rank_foreign", "rank_foreign: contract: ContractMismatch: model 'rank_foreign' on the server differs"),
        ("rank_unread", "rank_unread: contract: ContractMismatch"),
    ],
)
def test_what_is_wrong_is_said(server: TritonServer, capsys: pytest.CaptureFixture[str], model: str, told: str) -> None:
    assert _check.main(["check", server.grpc_url, "--model", "rank", "--model", model]) == 1
    out = capsys.readouterr().out
    assert told in out and "rank: canary: answered" in out


def test_nothing_there_and_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert _check.main(["check", "localhost:1", "--timeout-s", "0.5"]) == 1
    assert "Unavailable" in capsys.readouterr().out
    assert _check.main(["check", "http://localhost:8001"]) == 2
    with pytest.raises(SystemExit, match="2"):
        _check.main(["check", "localhost:1", "--model", "two_tower"])
    assert "wanted rank, recommend, similar, or a name that begins so" in capsys.readouterr().err


def test_the_fixture_ranks(rank_client: RankClient) -> None:
    assert rank_client.rank("shoes", ["a", "b", "c"], top_k=2).ids == ("c", "b")


@pytest.mark.server
def test_recorded_answers_are_given_again_and_nothing_else(
    server: TritonServer, connect: Callable[..., RankClient], tmp_path: Path
) -> None:
    recording = testing.RecordingTransport(GrpcTransport(server.grpc_url), tmp_path / "answers.jsonl")
    with RankClient("mock", transport=recording, timeout_s=10) as client:
        live = client.rank("shoes", ["1", "3", "unknown"])
    with RankClient("mock", transport=testing.RecordedTransport(tmp_path / "answers.jsonl")) as client:
        again = client.rank("shoes", ["1", "3", "unknown"], timeout_s=0.1, request_id="another")
        assert again.ids == live.ids and again.scores.tolist() == live.scores.tolist()
        with pytest.raises(Unavailable, match="no answer of 'rank' to this request was recorded, of 1"):
            client.rank("boots", ["1", "3", "unknown"])


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InvalidRequest, match=r"x\.jsonl: no answers recorded"):
        testing.RecordedTransport(tmp_path / "x.jsonl")
