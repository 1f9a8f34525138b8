"""A shadow's log, written by the client itself, and what is said of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from tritonrank_client import InferRequest, MockTransport, RankClient, Shadow, append_to

from builders import commands
from builders.data.beir import DatasetError
from builders.feedback.log import joined
from builders.feedback.shadow import read_shadow, shadow_report
from tests.support.feedback import click, shown

IDS = [f"item {number}" for number in range(12)]


def both(request: InferRequest) -> dict[str, np.ndarray]:
    """The candidate swaps the first two of what is live, and scores 5 higher."""
    ids = request.inputs["item_ids"].copy()
    candidate = request.model == "rank_candidate"
    if candidate:
        ids[[0, 1]] = ids[[1, 0]]
    return {"ranked_ids": ids, "scores": np.arange(len(ids), 0, -1, dtype=np.float32) + 5 * candidate}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "shadow.jsonl"
    shadow = Shadow("rank_candidate", 1.0, append_to(path))
    with RankClient("fake", transport=MockTransport(both), shadow=shadow) as client:
        for number in range(3):
            client.rank("shoes", IDS, request_id=f"r{number}")
    return path


def test_orders_and_scores_are_compared(log: Path) -> None:
    report = shadow_report(read_shadow([log]))
    figures = {each.figure: each.mean for each in report.figures}
    pairs = 12 * 11 / 2
    assert report.models == ("rank", "rank_candidate") and report.requests == 3
    assert figures["overlap of the first 10"] == 1.0 and figures["the same first item"] == 0.0
    assert figures["rank correlation (Kendall's tau)"] == pytest.approx((pairs - 2) / pairs)
    assert report.mean_scores == (6.5, 11.5) and report.score_distance == pytest.approx(5 / 12)
    assert report.without_label is None


def test_clicks_of_the_same_request_are_labels(log: Path) -> None:
    report = shadow_report(read_shadow([log]), joined([shown("r0", IDS), click("r0", IDS[1])]))
    figures = {each.figure: each.mean for each in report.figures}
    assert report.without_label == 2
    assert figures["NDCG@10 by clicks, live"] == pytest.approx(1 / math.log2(3))
    assert figures["NDCG@10 by clicks, shadow"] == 1.0
    gains = [[float(item_id == IDS[1]) for item_id in IDS]]
    assert figures["NDCG@10 by clicks, live"] == sklearn.metrics.ndcg_score(gains, [list(range(12, 0, -1))], k=10)


def test_the_verb_prints_the_report_and_its_json(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.shadow_report(logs=[log], feedback=[])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["requests"] == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: "", "no line, wanted what a client's Shadow.log writes"),
        (lambda text: text + "{}\n", r"shadow.jsonl:4: request_id: Field required"),
        (lambda text: text.replace('"rank"', '"other"', 2), "wanted one pair of rankers"),
        (lambda text: text.replace('"scores": [', '"scores": [1, ', 1), "found 12 ids and 13 scores"),
    ],
)
def test_what_is_no_log_of_one_pair_is_refused(log: Path, change: object, told: str) -> None:
    log.write_text(change(log.read_text()))  # type: ignore[operator]
    with pytest.raises(DatasetError, match=told):
        read_shadow([log])
