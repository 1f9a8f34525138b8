"""What `make scale` measures and tells: loads, stores of generated items, sentences, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tritonrank_client import Overloaded

from builders.publish.item_store import ItemStore
from perf import scale
from perf.errors import PerfError
from perf.kit.data import JudgedQueries
from perf.kit.stores import generated_ids, index_line, steady_writer, write_generated_store
from perf.machine import Machine
from perf.scale import (
    BESIDE_WRITER,
    PREPROCESS,
    RANK,
    SIMILAR,
    Catalogue,
    Load,
    ScalePoint,
    ScaleReport,
    bends,
    timed,
)
from perf.scale_page import write_scale

PARAMETERS = {"item_features": "two_tower", "item_features_version": "1", "vector_width": 8}


def point(what: str, p50_ms: float, items: int = 2000, processes: int = 1, **load: int) -> ScalePoint:
    return ScalePoint(items, processes, Load(what, **load), 90, {"Overloaded": 7}, p50_ms, 2 * p50_ms, 3 * p50_ms,
                      70.0, 1, 1000 / p50_ms)  # fmt: skip


def report() -> ScaleReport:
    points = [
        *(point(what, cost * items / 1000, items) for items in (2000, 8000) for what, cost in
          ((PREPROCESS, 0.1), (SIMILAR, 1.0), (BESIDE_WRITER, 2.0))),
        *(point(RANK, 1.0 + candidates, items, candidates=candidates)
          for items in (2000, 8000) for candidates in (1, 40, 1024)),
        *(point(what, 10.0 * count, 8000, processes, concurrency=count)
          for what in (RANK, SIMILAR) for processes in (1, 2) for count in (4, 64)),
    ]  # fmt: skip
    catalogues = [Catalogue(items, 1.0, 2.0, 3.0, 4.0, 3.5, "every item is compared") for items in (2000, 8000)]
    return ScaleReport(Machine("a processor", 2, 8.0, "Linux", 0.5, {}), 3.0, catalogues, points)


def test_each_thing_that_grows_has_a_sentence_with_counts() -> None:
    said = bends(report())
    assert (
        "pre-processing, one request at a time: p50 0.20 ms with 2,000 items (n 90), 0.80 ms with 8,000 items (n 90): "
    )
    assert any("0.80 ms with 8,000 items (n 90): 4.0 times; longest of the latter 70 ms." in line for line in said)
    assert any("2.00 ms with 1 candidates (n 90), 1025.00 ms with 1,024 candidates" in line for line in said)
    assert any(
        line.startswith(
            "`rank` of 8,000 items by 2 servers: most answers, 25 a second, with 4 at once; with 64 at once 2"
        )
        and line.endswith("p99 1,920 ms of n 90, 7 refused.")
        for line in said
    )
    assert len(said) == 3 + 1 + 4


def test_the_page_and_the_figures_say_every_count(tmp_path: Path) -> None:
    figures, page = write_scale(report(), tmp_path)
    assert len(json.loads(figures.read_text())["points"]) == len(report().points)
    text = page.read_text()
    assert text.count("<td>90</td>") == len(report().points)
    assert "Items and their vectors are generated" in text and "every item is compared" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_of_a_load_answers_are_timed_and_refusals_counted() -> None:
    def ask(number: int) -> None:
        if number % 3 == 0:
            raise Overloaded("refused")

    spans_ms, failed = timed(ask, callers=3, seconds=0.05)
    assert failed.keys() == {"Overloaded"} and failed["Overloaded"] > 0 < len(spans_ms)
    assert min(spans_ms) >= 0


def test_several_servers_are_asked_at_once_only() -> None:
    assert {load.what for load in scale._loads(1)} == {RANK, SIMILAR, PREPROCESS, BESIDE_WRITER}
    assert all(load.what in (RANK, SIMILAR) and load.candidates == 40 for load in scale._loads(2))
    assert len(set(scale._loads(1))) == len(scale._loads(1))


def test_a_generated_store_has_a_vector_and_attributes_of_each_item_and_is_written_steadily(tmp_path: Path) -> None:
    write_generated_store(tmp_path / "store", PARAMETERS, 1500)
    with ItemStore(tmp_path / "store") as store:
        assert store.kind == "generated"
        assert store.tables() == {"attributes@1": 1500, "two_tower@1": 1500}
        first = store.values("two_tower@1", generated_ids(1))[0]
    assert np.linalg.norm(np.frombuffer(first or b"", "<f4")) == pytest.approx(1, abs=1e-6)
    assert index_line(tmp_path / "store", PARAMETERS).endswith("every item is compared")

    writer = steady_writer(tmp_path / "store", PARAMETERS, per_s=1000)
    try:
        with ItemStore(tmp_path / "store") as store:
            while store.values("two_tower@1", generated_ids(1))[0] == first:
                assert writer.is_alive()
    finally:
        writer.terminate()
        writer.join()


def test_catalogues_smaller_than_a_request_are_refused() -> None:
    with pytest.raises(PerfError, match="catalogues of 10 items, wanted 1024 or more"):
        scale.run_scale([10], [1], 1.0, JudgedQueries({}, {}, {}), Console())
