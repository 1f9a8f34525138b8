"""The index of ``similar``: made by builders of a real store, read by the served code, followed, renewed, refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import lmdb
import numpy as np
import pytest

from builders.core.recipe import Recipe
from builders.core.workspace import REPOSITORY_ROOT
from builders.publish import similar_index
from builders.publish.index_search import INDEXES
from builders.publish.item_store import ItemStore
from builders.publish.similar_index import SimilarIndexError, SimilarPlan, keep_indexes, plan_index, told
from tests.support.similar import load_vectors_code

TABLE, WIDTH, ITEMS = "two_tower@1", 16, 3000
PLAN = SimilarPlan(WIDTH, exact=False, recall=0.95)
WRITER = """
import json, pathlib, sys
import numpy as np
from builders.publish import item_store, similar_index
from builders.publish.item_store import ItemStore
folder, put, removed, kept, elsewhere, index = json.loads(sys.argv[1])
similar_index.EXACT_UP_TO, item_store.KEPT_CHANGES = 1000, kept
with ItemStore(pathlib.Path(folder)) as store:
    values = ((name, np.array(vector, "<f4").tobytes()) for name, vector in put.items())
    store.put(elsewhere or "two_tower", "1", values)
    store.remove("two_tower@1", removed)
    if index:
        similar_index.keep_indexes(store, ["two_tower@1"], print, anew=True)
"""
Write = Callable[..., None]


def catalogue(count: int = ITEMS) -> dict[str, np.ndarray]:
    """Vectors around 40 middles, as those of texts are, of any length."""
    draw = np.random.default_rng(3)
    middles = draw.normal(size=(40, WIDTH))
    rows = middles[draw.integers(40, size=count)] + 0.5 * draw.normal(size=(count, WIDTH))
    return {f"item {row}": vector for row, vector in enumerate(rows.astype("<f4"))}


VECTORS = catalogue()


def fill(folder: Path, vectors: Mapping[str, np.ndarray], plan: SimilarPlan = PLAN) -> list[str]:
    said: list[str] = []
    with ItemStore(folder) as store:
        store.put("two_tower", "1", ((name, vector.tobytes()) for name, vector in vectors.items()))
        plan_index(store, TABLE, plan, said.append)
    return said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("index") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similar_index, "EXACT_UP_TO", 1000)
        said = fill(folder, VECTORS)
        assert len(said) == 2 and "an index of 3,000 items, recall@10 0.9" in said[1]
        yield folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


@pytest.fixture
def write(store: Path) -> Write:
    def run(
        put: Mapping[str, Sequence[float]] | None = None,
        removed: Sequence[str] = (),
        kept: int = 100_000,
        elsewhere: str = "",
        index: bool = False,
    ) -> None:
        given = json.dumps([str(store), dict(put or {}), list(removed), kept, elsewhere, index])
        subprocess.run([sys.executable, "-c", WRITER, given], check=True, cwd=REPOSITORY_ROOT)

    return run


@pytest.fixture(scope="module")
def code() -> ModuleType:
    return load_vectors_code()


@pytest.fixture
def follow(code: ModuleType, store: Path) -> Iterator[Callable[..., Any]]:
    with contextlib.ExitStack() as held:

        def opened(**settings: Any) -> Any:
            if not environments:  # LMDB wants it opened once a process
                environments.append(lmdb.open(str(store), readonly=True, max_dbs=64, create=False))
                held.callback(environments[0].close)
            table = code.FollowedTable(environments[0], TABLE, WIDTH, **settings)
            held.callback(table.close)
            return table

        environments: list[Any] = []
        yield opened


def nearest(followed: Any, item_id: str, count: int = 10) -> dict[str, float]:
    ids, scores = followed.vectors().nearest(item_id.encode(), count)
    return dict(zip([each.decode() for each in ids], scores.tolist(), strict=True))


def exact(item_id: str, vectors: Mapping[str, np.ndarray] = VECTORS) -> dict[str, float]:
    """All others by NumPy in FP64, highest first."""
    rows = np.stack(list(vectors.values())).astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = dict(zip(vectors, (unit @ unit[list(vectors).index(item_id)]).tolist(), strict=True))
    return {one: cosines[one] for one in sorted(cosines, key=lambda one: -cosines[one]) if one != item_id}


def at(item_id: str, nudge: float = 0.0) -> list[float]:
    """A vector beside an item's."""
    return [float(VECTORS[item_id][0] + nudge), *VECTORS[item_id][1:].tolist()]


# ---------------------------------------------------------------- what it finds
def test_nineteen_of_twenty_of_the_exact_nearest_are_found_and_scored_exactly(follow: Callable[..., Any]) -> None:
    followed = follow()
    assert (followed.opened, followed.loads) == (1, 0)
    shares = []
    for item_id in list(VECTORS)[5::37]:
        wanted, found = exact(item_id), nearest(followed, item_id)
        assert list(found.values()) == pytest.approx([wanted[one] for one in found], abs=1e-6)
        assert (
            len(found) == 10 and item_id not in found and sorted(found.values(), reverse=True) == list(found.values())
        )
        shares.append(len(found.keys() & set(list(wanted)[:10])) / 10)
    assert np.mean(shares) >= 0.95
    for item_id in ("item 7", "item 8"):
        assert len(nearest(followed, item_id, 1024)) == 1024  # also where the lists that are looked through hold fewer


def test_told_recall_is_that_of_the_served_search(made: Path, follow: Callable[..., Any]) -> None:
    search = follow().vectors().search
    with ItemStore(made) as store:
        assert f"recall@10 {search.recall:.3f} of 256 items, {search.probes} lists a search; 0 changes" in told(
            store, TABLE
        )
    assert 0.95 <= search.recall <= 1


def test_an_item_that_the_table_does_not_hold_is_unknown(code: ModuleType, follow: Callable[..., Any]) -> None:
    with pytest.raises(code.UnknownItem):
        nearest(follow(), "absent")


# ---------------------------------------------------------------- what changes
def test_what_is_added_changed_and_removed_is_seen_at_once_and_the_index_stays(
    follow: Callable[..., Any], write: Write
) -> None:
    followed = follow()
    before = list(nearest(followed, "item 1"))
    write(put={"new": at("item 1", 1e-4), before[1]: at("item 2")}, removed=[before[0]])
    found = nearest(followed, "item 1")
    assert next(iter(found)) == "new" and found["new"] == pytest.approx(1, abs=1e-5)
    assert not {before[0], before[1]} & found.keys()
    assert before[1] in nearest(followed, "item 2") and "item 1" in nearest(followed, "new")
    write(put={before[0]: at("item 1")})  # again
    assert before[0] in nearest(followed, "item 1")
    assert (followed.opened, followed.loads) == (1, 0)
    assert nearest(follow(), "item 1") == nearest(followed, "item 1")  # opened now, it catches up


def test_all_nearest_items_changed_leave_the_next_ones(follow: Callable[..., Any], write: Write) -> None:
    followed = follow()
    wanted = list(exact("item 1"))
    write(removed=wanted[:60])
    assert len(nearest(followed, "item 1").keys() & set(wanted[60:70])) >= 9


def test_a_commit_to_another_table_reads_nothing_and_opens_nothing(follow: Callable[..., Any], write: Write) -> None:
    followed = follow()
    before = nearest(followed, "item 1")
    write(put={"item 1": [1.0, 2.0]}, elsewhere="other")
    assert nearest(followed, "item 1") == before
    assert (followed.opened, followed.loads, len(followed.vectors().beside)) == (1, 0, 0)


def test_changes_since_the_index_are_kept_however_many(follow: Callable[..., Any], write: Write) -> None:
    write(put={f"new {row}": at("item 1", 1e-4 * row) for row in range(1, 30)}, kept=2)
    followed = follow()
    assert all(one.startswith("new ") for one in nearest(followed, "item 1"))
    assert (followed.loads, len(followed.vectors().beside)) == (0, 29)


def test_a_new_index_takes_the_place_of_the_old_one_beside_the_requests(
    store: Path, follow: Callable[..., Any], write: Write
) -> None:
    followed = follow()
    write(put={"new": at("item 1", 1e-4)})
    assert "new" in nearest(followed, "item 1")
    write(put={"newer": at("item 1", 2e-4)}, index=True)
    assert {"new", "newer"} <= nearest(followed, "item 1").keys()  # by the old one, and the new one is opened
    followed.close()
    assert {"new", "newer"} <= nearest(followed, "item 1").keys()
    vectors = followed.vectors()
    assert (followed.opened, followed.loads, len(vectors.beside), vectors.search.items) == (2, 0, 0, ITEMS + 2)
    assert len(list((store / INDEXES / TABLE).iterdir())) == 1  # the old one's files are gone


def test_a_server_without_an_index_takes_the_first_one_up(
    follow: Callable[..., Any], store: Path, write: Write
) -> None:
    with ItemStore(store) as opened:
        opened.set_note(TABLE, "index", None)
    followed = follow()
    assert followed.loads == 1 and nearest(followed, "item 1") == pytest.approx(
        dict(list(exact("item 1").items())[:10]), abs=1e-6
    )
    write(index=True)
    followed.vectors()
    followed.close()
    nearest(followed, "item 1")
    assert (followed.opened, followed.vectors().search.items) == (1, ITEMS)


# ---------------------------------------------------------------- where there is none
@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar_index, "EXACT_UP_TO", 1000)


def test_an_index_that_finds_too_few_is_refused_with_a_warning_and_not_made_again(
    follow: Callable[..., Any], store: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similar_index, "LEAST_PROBES", 1)
    monkeypatch.setattr(similar_index, "MOST_PROBED", 0)
    said: list[str] = []
    with ItemStore(store) as opened:
        plan_index(opened, TABLE, PLAN._replace(recall=1.0), said.append)
        assert "WARNING" in said[-1] and "wants 1: none is kept, and similar compares every item" in said[-1]
        assert "would find too few" in told(opened, TABLE)
        keep_indexes(opened, [TABLE], said.append)
    assert len(said) == 2
    followed = follow()
    assert (followed.loads, followed.opened) == (1, 0)


@pytest.mark.parametrize("plan", [PLAN._replace(exact=True), None], ids=["the recipe says exact", "few are left"])
def test_an_index_is_given_up_where_none_is_wanted(
    plan: SimilarPlan | None, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similar_index, "EXACT_UP_TO", 1000 if plan else 2 * ITEMS + 2)
    with ItemStore(store) as opened:
        if plan:
            plan_index(opened, TABLE, plan, print)
        keep_indexes(opened, [TABLE], print)
        assert told(opened, TABLE).endswith("every item is compared")
    assert not (store / INDEXES / TABLE).exists()


def test_a_recipe_that_says_exact_uses_no_index_that_is_there(follow: Callable[..., Any]) -> None:
    followed = follow(exact=True)
    assert (followed.opened, followed.loads) == (0, 1)
    followed.vectors()
    assert (followed.opened, followed.loads) == (0, 1)


@pytest.mark.parametrize("damage", ["gone", "cut off", "of another table", "by another version"])
def test_an_index_that_cannot_be_read_is_not_used_and_made_anew(
    damage: str, store: Path, follow: Callable[..., Any], small: None
) -> None:
    [folder] = (store / INDEXES / TABLE).iterdir()
    with ItemStore(store) as opened:
        note = json.loads(opened.note(TABLE, "index") or "")
        if damage == "gone":
            shutil.rmtree(folder)
        elif damage == "cut off":
            whole = (folder / "vectors.faiss").read_bytes()
            (folder / "vectors.faiss").write_bytes(whole[: len(whole) // 2])
        elif damage == "of another table":
            opened.set_note(TABLE, "index", json.dumps({**note, "items": 7}))
        else:
            opened.set_note(TABLE, "index", json.dumps({"form": 2}))
    warned: list[str] = []
    followed = follow(warn=warned.append)
    assert (followed.opened, followed.loads) == (0, 1)
    assert len(warned) == 1 and "run 'python -m builders index'" in warned[0]
    assert len(nearest(followed, "item 1")) == 10


def test_an_index_whose_files_are_gone_is_made_by_the_next_writer(store: Path, small: None) -> None:
    shutil.rmtree(store / INDEXES)
    said: list[str] = []
    with ItemStore(store) as opened:
        keep_indexes(opened, [TABLE], said.append)
        keep_indexes(opened, [TABLE], said.append)
    assert len(said) == 2 and "an index of 3,000 items" in said[1]


def test_few_changes_make_no_new_index_and_many_do(store: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar_index, "CHANGED_LEAST", 100)
    said: list[str] = []
    with ItemStore(store) as opened:
        for count, lines in ((150, 0), (1, 2)):  # 5 % of the items, and one more
            opened.put("two_tower", "1", ((f"more {count} {row}", VECTORS["item 1"].tobytes()) for row in range(count)))
            keep_indexes(opened, [TABLE], said.append)
            assert len(said) == lines


def test_a_vector_of_nan_is_refused_by_its_item(store: Path, small: None) -> None:
    with ItemStore(store) as opened:
        opened.put("two_tower", "1", [("broken", np.full(WIDTH, np.nan, "<f4").tobytes())])
        with pytest.raises(SimilarIndexError, match="item 'broken' has a vector with NaN or infinities"):
            keep_indexes(opened, [TABLE], print, anew=True)
        assert "an index of 3,000 items" in told(opened, TABLE)  # the one before
        opened.put("two_tower", "1", [("broken", VECTORS["item 1"][1:].tobytes())])
        with pytest.raises(SimilarIndexError, match="a stored vector has 60 bytes, wanted 64"):
            keep_indexes(opened, [TABLE], print, anew=True)


def test_a_dropped_table_takes_its_index_along(store: Path) -> None:
    with ItemStore(store) as opened:
        opened.drop([TABLE])
        assert opened.note(TABLE, "index") is opened.note(TABLE, "similar") is None
    assert not (store / INDEXES / TABLE).exists()


def test_settings_of_similar_are_refused_where_nothing_reads_them() -> None:
    with pytest.raises(ValueError, match="nothing reads it, similar compares by the vectors of 'two_tower'"):
        Recipe.model_validate(
            {"ranker": "mine", "module": "a.py:B", "similar": {"exact": True}, "variants": [{"name": "fp32_onnx"}]}
        )
