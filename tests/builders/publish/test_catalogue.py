"""Products and users that change, come and go, and what the item store then holds; real LMDB, a real ranker."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.core.recipe import load_recipes
from builders.core.workspace import REPOSITORY_ROOT, Workspace
from builders.data.beir import DatasetError, JudgedQueries, Product
from builders.evaluate.judge import BuiltRanker
from builders.publish import catalogue
from builders.publish.catalogue import (
    CatalogueError,
    Changes,
    add_items,
    add_users,
    check_versions,
    fill_item_store,
    read_catalogue,
    refresh,
)
from builders.publish.item_store import ItemStore, ItemStoreError
from builders.rankers.feature_ranker import FeatureRanker
from tests.support.catalogues import Watched, line, mug, shop

ATTRIBUTES = "attributes@1"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "build", tmp_path / "model_repository", tmp_path / "store")


@pytest.fixture
def ranker() -> Watched:
    return Watched()


@pytest.fixture
def build(workspace: Workspace) -> Callable[..., list[str]]:
    """Fills the store for a ranker and a catalogue; gives what was said."""

    def run(ranker: FeatureRanker, data: JudgedQueries, **further: Any) -> list[str]:
        said: list[str] = []
        recipe = load_recipes()["two_tower"]  # what it says is not read
        fill_item_store([BuiltRanker(recipe, ranker, (), data)], said.append, workspace, **further)
        return said

    return run


def values(workspace: Workspace, table: str) -> dict[str, bytes]:
    """What the table holds."""
    with ItemStore(workspace.item_store) as store:
        if not store.has(table):
            return {}
        handle = store._handle(table)
        return store._transact(lambda transaction: {key.decode(): value for key, value in transaction.cursor(handle)})


def held(workspace: Workspace, ranker: FeatureRanker) -> list[str]:
    """Ids in the ranker's table, whose values are those of ``wanted`` products."""
    return sorted(values(workspace, catalogue.items_table(ranker)))


def brands(workspace: Workspace) -> dict[str, str]:
    return {item_id: json.loads(value)["brand"] for item_id, value in values(workspace, ATTRIBUTES).items()}


def assert_holds(workspace: Workspace, ranker: FeatureRanker, *products: Product) -> None:
    """Just these, with the features and attributes of their present content."""
    wanted = dict(FeatureRanker.item_features(ranker, products))
    assert values(workspace, catalogue.items_table(ranker)) == wanted
    assert brands(workspace) == {product.item_id: product.brand for product in products}


# ---------------------------------------------------------------- builds
def test_a_build_computes_what_changed_adds_what_is_new_and_removes_what_has_gone(
    workspace: Workspace, ranker: Watched, build: Callable
) -> None:
    a, b, c, d = (mug(item_id) for item_id in "abcd")
    other_price, other_brand = mug("b", 2.0), dataclasses.replace(c, brand="other")
    steps = [
        ([a, b, c], "3 added, 0 changed, 0 removed, 0 unchanged", "abc"),
        ([a, b, c], "0 added, 0 changed, 0 removed, 3 unchanged", ""),
        ([a, other_price, other_brand], "0 added, 2 changed, 0 removed, 1 unchanged", "bc"),
        ([a, d], "1 added, 0 changed, 2 removed, 1 unchanged", "d"),
        ([a, b, d], "1 added, 0 changed, 0 removed, 2 unchanged", "b"),  # back again, as it was
        ([other_price], "0 added, 1 changed, 2 removed, 0 unchanged", "b"),
    ]
    for products, told, computed in steps:
        ranker.computed.clear()
        assert f"item store: priced: {told}" in build(ranker, shop(*products))
        assert "".join(ranker.computed) == computed
        assert_holds(workspace, ranker, *products)


def test_an_added_product_stays_until_a_catalogue_has_held_it(
    workspace: Workspace, ranker: Watched, build: Callable
) -> None:
    a, new = mug("a"), mug("new")
    build(ranker, shop(a))
    assert add_items([ranker], [new], workspace) == Changes(added=1)
    build(ranker, shop(a))
    assert_holds(workspace, ranker, a, new)
    build(ranker, shop(a, new))
    build(ranker, shop(a))
    assert_holds(workspace, ranker, a)


def test_an_added_products_content_is_that_of_the_last_who_wrote_it(
    workspace: Workspace, ranker: Watched, build: Callable
) -> None:
    a, changed = mug("a"), mug("a", 5.0)
    build(ranker, shop(a))
    assert add_items([ranker], [changed], workspace) == Changes(changed=1)
    assert_holds(workspace, ranker, changed)
    build(ranker, shop(a))
    assert_holds(workspace, ranker, a)


def test_a_build_leaves_the_items_of_another_rankers_catalogue_alone(workspace: Workspace, build: Callable) -> None:
    searched, bought = Watched("searched"), Watched("bought")
    a, b, c = (mug(item_id) for item_id in "abc")
    build(searched, shop(a, b))
    build(bought, shop(b, c))
    assert brands(workspace).keys() == {"a", "b", "c"}

    build(searched, shop(a))
    assert (held(workspace, searched), held(workspace, bought)) == (["a"], ["b", "c"])
    assert brands(workspace).keys() == {"a", "b", "c"}  # the other catalogue still holds b

    build(bought, shop(c))
    assert (held(workspace, searched), held(workspace, bought)) == (["a"], ["c"])
    assert brands(workspace).keys() == {"a", "c"}


def test_what_has_gone_is_removed_from_other_versions_of_the_features_too(
    workspace: Workspace, ranker: Watched, build: Callable
) -> None:
    build(ranker, shop(mug("a"), mug("b")))
    with ItemStore(workspace.item_store) as store:
        store.put("priced", "before", [("a", b"x"), ("b", b"x")])
    build(ranker, shop(mug("a")))
    assert values(workspace, "priced@before").keys() == {"a"}


def test_added_products_that_a_new_version_lacks_are_told(
    workspace: Workspace, ranker: Watched, build: Callable
) -> None:
    build(ranker, shop(mug("a")))
    add_items([ranker], [mug("new"), mug("newer")], workspace)
    said = build(Watched(version="retrained"), shop(mug("a")))
    assert any("priced: 2 items that were added one by one have no features of this version" in line for line in said)


def test_users_change_come_and_go_like_products(workspace: Workspace, ranker: Watched, build: Callable) -> None:
    table = f"priced_users@{ranker.features_version}"
    build(ranker, shop(mug("a"), users={"anna": {"country": "se"}, "paul": {"country": "se"}}))
    add_users([ranker], {"eve": {"country": "no"}}, workspace)
    before = values(workspace, table)
    said = build(ranker, shop(mug("a"), users={"anna": {"country": "no"}}))
    after = values(workspace, table)
    assert "item store: priced_users: 0 added, 1 changed, 1 removed, 0 unchanged" in said
    assert after.keys() == {"anna", "eve"}
    assert after["anna"] == before["eve"] != before["anna"]


KILLED = """
import sys
from pathlib import Path
from builders.core.workspace import Workspace
from tests.builders.publish.test_catalogue import BuiltRanker, Watched, fill_item_store, many
workspace, ranker = Workspace(item_store=Path(sys.argv[1])), Watched(killed_at=int(sys.argv[2]))
fill_item_store([BuiltRanker(None, ranker, (), many(float(sys.argv[3])))], print, workspace)
"""


def many(price: float) -> JudgedQueries:
    """More than one transaction holds."""
    return shop(*(mug(f"{number:05d}", price) for number in range(6000)))


def test_a_build_killed_in_the_middle_is_gone_on_with(workspace: Workspace, ranker: Watched, build: Callable) -> None:
    def killed(at: int, price: float) -> None:
        arguments = [sys.executable, "-c", KILLED, str(workspace.item_store), str(at), str(price)]
        assert subprocess.run(arguments, cwd=REPOSITORY_ROOT, capture_output=True).returncode == -signal.SIGKILL

    table = catalogue.items_table(ranker)
    killed(5000, 1.0)
    with ItemStore(workspace.item_store) as store:
        assert store.unfilled() >= {table}
        assert 0 < store.tables()[table] < 6000
    build(ranker, many(1.0))
    assert 0 < len(ranker.computed) < 6000
    assert_holds(workspace, ranker, *many(1.0).products.values())

    killed(5000, 2.0)  # some are new, some old: each with the digest of its own content
    with ItemStore(workspace.item_store) as store:
        assert not store.unfilled()
    build(ranker, many(2.0))
    assert_holds(workspace, ranker, *many(2.0).products.values())


def test_a_long_build_says_how_far_it_is_and_how_quick(
    build: Callable, ranker: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "Pace", functools.partial(catalogue.Pace, every_s=0.0))
    told = [line for line in build(ranker, many(1.0)) if "items/s" in line]
    assert [line.split(",")[0:2] for line in told][:1] == [["item store: priced: 4", "096 of 6"]]
    assert re.search(r"6,000 of 6,000 stored, [\d,]+ items/s, 0 minutes left", told[-1])
    assert not [line for line in build(ranker, many(1.0)) if "items/s" in line]  # nothing is computed again


# ---------------------------------------------------------------- real and generated data
def test_generated_data_never_enters_a_store_of_real_data_nor_real_data_one_of_generated(
    workspace: Workspace, ranker: Watched, build: Callable
) -> None:
    real, made_up = shop(mug("a")), shop(mug("g"), generated=True)
    for first, second in ((real, made_up), (made_up, real)):
        build(ranker, first, anew=True)
        before = values(workspace, ATTRIBUTES)
        with pytest.raises(ItemStoreError, match=r"never mixed.*--new-store"):
            build(ranker, second)
        with pytest.raises(ItemStoreError, match="never mixed"):
            add_items([ranker], [mug("b")], workspace, generated=second.generated)
        assert values(workspace, ATTRIBUTES) == before


def test_a_store_started_anew_takes_the_old_ones_place_and_readers_of_the_old_one_go_on(
    workspace: Workspace, ranker: Watched, build: Callable
) -> None:
    import lmdb

    build(ranker, shop(mug("g"), generated=True))
    (workspace.item_store / "lock.mdb").chmod(0o666)
    reader = lmdb.open(str(workspace.item_store), readonly=True, max_dbs=9, create=False)
    table = reader.open_db(ATTRIBUTES.encode(), create=False)
    said = build(ranker, shop(mug("a")), anew=True)
    with reader.begin(db=table) as transaction:
        assert transaction.get(b"g") is not None
    reader.close()
    assert_holds(workspace, ranker, mug("a"))
    assert "start the servers that read it again" in said[-1]
    assert (workspace.item_store / "lock.mdb").stat().st_mode & 0o777 == 0o666
    assert [path.name for path in workspace.item_store.parent.iterdir()] == ["store"]


def test_a_store_whose_new_one_cannot_be_filled_stays_as_it_is(
    workspace: Workspace, ranker: Watched, build: Callable
) -> None:
    build(ranker, shop(mug("a")))
    with pytest.raises(DatasetError, match="in_stock is 'no'"):
        build(ranker, shop(mug("b", fields={"in_stock": "no"})), anew=True)
    assert_holds(workspace, ranker, mug("a"))
    assert [path.name for path in workspace.item_store.parent.iterdir()] == ["store"]


# ---------------------------------------------------------------- refresh
@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Path]:
    def write(*products: Product, further: str = "") -> Path:
        path = tmp_path / "corpus.jsonl"
        path.write_text("".join(map(line, products)) + further, encoding="utf-8")
        return path

    return write


DELETED_A = '{"_id": "a", "deleted": true}\n'


def test_a_refresh_brings_the_store_to_the_catalogue_and_tells_counts(
    workspace: Workspace, ranker: Watched, build: Callable, corpus: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "REFRESHED_AT_ONCE", 2)
    a, b, c, d = (mug(item_id) for item_id in "abcd")
    build(ranker, shop(a, b, c))
    add_items([ranker], [mug("added")], workspace)
    ranker.computed.clear()
    said: list[str] = []
    found = refresh([ranker], read_catalogue(corpus(a, mug("b", 3.0), d)), workspace, say=said.append)
    assert found == Changes(added=1, changed=1, removed=1, unchanged=1)
    assert said == ["priced: 1 added, 1 changed, 1 removed, 1 unchanged"]
    assert ranker.computed == ["b", "d"]
    assert_holds(workspace, ranker, a, mug("added"), mug("b", 3.0), d)
    again = refresh([ranker], read_catalogue(corpus(a, mug("b", 3.0), d)), workspace, say=said.append)
    assert again == Changes(unchanged=3)


def test_a_partial_refresh_removes_only_what_its_lines_call_deleted(
    workspace: Workspace, ranker: Watched, build: Callable, corpus: Callable
) -> None:
    a, b, new = mug("a"), mug("b"), mug("new")
    build(ranker, shop(a, b))
    found = refresh([ranker], read_catalogue(corpus(new, further=DELETED_A)), workspace, partial=True)
    assert found == Changes(added=1, removed=1)
    assert_holds(workspace, ranker, b, new)


def test_a_deleted_line_removes_an_added_product_from_the_whole_catalogue(
    workspace: Workspace, ranker: Watched, build: Callable, corpus: Callable
) -> None:
    build(ranker, shop(mug("b")))
    add_items([ranker], [mug("a")], workspace)
    assert refresh([ranker], read_catalogue(corpus(mug("b"), further=DELETED_A)), workspace) == Changes(
        removed=1, unchanged=1
    )
    assert_holds(workspace, ranker, mug("b"))


def test_a_catalogue_that_is_cut_off_changes_nothing_unless_it_is_meant_so(
    workspace: Workspace, ranker: Watched, build: Callable, corpus: Callable
) -> None:
    products = [mug(item_id) for item_id in "abcde"]
    build(ranker, shop(*products))
    half = read_catalogue(corpus(mug("a", 9.0), mug("b")))
    with pytest.raises(CatalogueError, match=r"2 products would remove 3 of the 5 items of priced, .*--allow-shrink"):
        refresh([ranker], half, workspace)
    assert_holds(workspace, ranker, *products)
    refresh([ranker], half, workspace, allow_shrink=True)
    assert_holds(workspace, ranker, mug("a", 9.0), mug("b"))


def test_a_file_that_changes_while_it_is_read_removes_nothing(
    workspace: Workspace, ranker: Watched, build: Callable, corpus: Callable
) -> None:
    a, b, c = (mug(item_id) for item_id in "abc")
    build(ranker, shop(a, b, c))
    read = read_catalogue(corpus(a, b))
    corpus(mug("a", 2.0), b, c, mug("d"))
    with pytest.raises(CatalogueError, match="changed while it was read: nothing was removed"):
        refresh([ranker], read, workspace)
    assert "c" in held(workspace, ranker)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (line(mug("a")), "corpus.jsonl:2: product 'a' stands twice, wanted distinct ids"),
        (DELETED_A, "corpus.jsonl:2: product 'a' stands twice"),
        ('{"_id": "b", "deleted": 1}\n', "corpus.jsonl:2: 'deleted' is 1, wanted true, false or nothing"),
        ('{"_id": 7, "title": "x"}\n', "corpus.jsonl:2: '_id' is 7, wanted a string"),
        (f'{{"_id": "{"x" * 512}", "title": "x"}}\n', "corpus.jsonl:2: '_id' has 512 bytes, wanted at most 511"),
        (
            f'{{"_id": "b", "title": "x", "metadata": {{"price": {"9" * 400}}}}}\n',
            "corpus.jsonl:2: a number of 400 digits, wanted at most 300",
        ),
        (
            f'{{"_id": "b", "title": "x", "metadata": {{"stock": {"9" * 5000}}}}}\n',
            "corpus.jsonl:2: a number of 5000 digits, wanted at most 300",
        ),
        (
            '{"_id": "b", "title": "x", "metadata": {"shelf": ["\\ud800"]}}\n',
            "corpus.jsonl:2: 'metadata' is {'shelf': ['\\ud800']}, wanted a string without lone surrogates",
        ),
        (
            '{"_id": "b", "title": "x", "metadata": {"in_stock": "no"}}\n',
            "corpus.jsonl:2: item 'b': in_stock is 'no', wanted true, false or nothing",
        ),
        ("[" * 200_000 + "\n", "corpus.jsonl:2: JSON nested too deeply, wanted one object a line"),
        ("\n" + line(mug("b")), "corpus.jsonl:2: not JSON"),
    ],
)
def test_a_malformed_line_is_refused_before_anything_is_written(
    workspace: Workspace, corpus: Callable, further: str, message: str
) -> None:
    path = corpus(mug("a"), further=further)
    with pytest.raises(DatasetError) as refusal:
        read_catalogue(path)
    assert message in str(refusal.value)
    assert not workspace.item_store.exists()


def test_a_byte_order_mark_and_blank_lines_at_the_end_are_fine(corpus: Callable) -> None:
    path = corpus(mug("a"), mug("b"), further="\n  \r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = read_catalogue(path)
    assert found.present == {"a", "b"}
    assert [product.item_id for product in found.products()] == ["a", "b"]


def test_features_of_another_version_than_the_published_are_not_refreshed(ranker: Watched) -> None:
    check_versions(ranker, ())
    check_versions(ranker, {catalogue.items_table(ranker), "priced@before"})
    with pytest.raises(CatalogueError, match=r"published models read priced@before, and .* compute priced@"):
        check_versions(ranker, {"priced@before", ATTRIBUTES})
