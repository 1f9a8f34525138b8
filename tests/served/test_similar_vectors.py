"""The vectors of ``similar`` without a server: they follow a store that another process writes, item by item."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lmdb
import numpy as np
import pytest

from builders.core.workspace import REPOSITORY_ROOT
from tests.support.similar import load_vectors_code

TABLE = "two_tower@1"
WRITER = """
import json, pathlib, sys
import numpy as np
from builders.publish import item_store
from builders.publish.item_store import ItemStore
put, removed, item_store.KEPT_CHANGES = json.loads(sys.argv[2])
with ItemStore(pathlib.Path(sys.argv[1])) as store:
    store.put("two_tower", "1", ((name, np.array(vector, "<f4").tobytes()) for name, vector in put.items()))
    store.remove("two_tower@1", removed)
"""
Write = Callable[..., None]


@pytest.fixture(scope="module")
def code() -> ModuleType:
    return load_vectors_code()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def run(removed: tuple[str, ...] = (), kept: int = 100_000, **put: list[float]) -> None:
        import json

        given = json.dumps([put, list(removed), kept])
        subprocess.run([sys.executable, "-c", WRITER, str(tmp_path), given], check=True, cwd=REPOSITORY_ROOT)

    return run


@pytest.fixture
def followed(code: ModuleType, tmp_path: Path, write: Write) -> Iterator[Any]:
    write(east=[2, 0], north=[0, 1])
    environment = lmdb.open(str(tmp_path), readonly=True, max_dbs=64, create=False)
    table = code.FollowedTable(environment, TABLE, 2)
    yield table
    table.close()
    environment.close()


def nearest(followed: Any, item_id: str) -> dict[str, float]:
    ids, scores = followed.vectors().nearest(item_id.encode(), 10)
    return dict(zip([each.decode() for each in ids], scores.astype(float).round(3).tolist(), strict=True))


def test_added_replaced_and_removed_items_are_followed_without_reading_the_table_again(
    followed: Any, write: Write
) -> None:
    assert nearest(followed, "east") == {"north": 0}
    write(south=[0, -1], close=[3, 3])
    assert nearest(followed, "east") == {"close": 0.707, "north": 0, "south": 0}
    write(removed=("north",), close=[1, 0])
    assert nearest(followed, "east") == {"close": 1, "south": 0}
    write(removed=("south", "close"))
    assert nearest(followed, "east") == {}
    write(north=[0, 1])  # again
    assert nearest(followed, "east") == {"north": 0}
    assert followed.loads == 1


def test_of_many_changes_at_once_each_request_takes_up_some(
    code: ModuleType, followed: Any, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "MOST_AT_ONCE", 2)
    write(a=[1, 0], b=[1, 0], c=[1, 0], removed=("north",))
    found = [sorted(nearest(followed, "east")) for _ in range(3)]
    assert [len(each) for each in found] == [3, 3, 3]
    assert found[0] == ["a", "b", "north"]
    assert found[1] == found[2] == ["a", "b", "c"]
    assert followed.loads == 1  # the table is not read again


def test_a_table_whose_changes_are_not_kept_is_read_beside_the_requests(followed: Any, write: Write) -> None:
    write(kept=2, a=[1, 0], b=[1, 0], c=[1, 0])
    assert nearest(followed, "east") == {"north": 0}  # as before, and at once
    followed.close()  # until it is read
    assert nearest(followed, "east") == {"a": 1, "b": 1, "c": 1, "north": 0}
    write(d=[1, 0])
    assert nearest(followed, "east").keys() == {"a", "b", "c", "d", "north"}
    assert followed.loads == 2


def test_a_vector_of_another_width_fails_the_request_that_meets_it(followed: Any, write: Write) -> None:
    write(wide=[1, 2, 3])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a stored vector has 12 bytes, wanted 8"):
            followed.vectors()
    write(wide=[1, 2])
    assert nearest(followed, "east").keys() == {"wide", "north"}


def test_vectors_put_and_removed_in_any_order_are_those_that_are_left(code: ModuleType) -> None:
    draw = np.random.default_rng(1)
    vectors, wanted = code.Vectors(4), {}
    for _ in range(3000):
        item_id = b"%d" % draw.integers(1500)
        if draw.random() < 0.3:
            vectors.remove(item_id)
            wanted.pop(item_id, None)
            continue
        wanted[item_id] = draw.normal(size=4).astype("<f4")
        vectors.put([(item_id, wanted[item_id].tobytes())])
    assert len(vectors) == len(wanted)
    first = next(iter(wanted))
    ids, scores = vectors.nearest(first, 5)
    unit = {item_id: vector / np.linalg.norm(vector) for item_id, vector in wanted.items()}
    cosines = {item_id: float(unit[first] @ vector) for item_id, vector in unit.items() if item_id != first}
    assert ids.tolist() == sorted(cosines, key=lambda item_id: -cosines[item_id])[:5]
    assert scores.tolist() == pytest.approx([cosines[item_id] for item_id in ids], abs=1e-6)
