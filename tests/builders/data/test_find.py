"""Judged queries and purchases: what is refused and how, where data is looked for, what is downloaded or generated."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.data import beir
from builders.data import esci as public_data
from builders.data import find as datasets
from builders.data.beir import DatasetError, JudgedQueries, Product, read_users, write_judged
from builders.data.bm25 import first_stage, told_without_word
from builders.data.esci import DownloadError, RemoteFile, fetch, judged_from_esci, renamed_when_whole
from builders.data.find import find_data, is_test_query, load_judged, load_purchases
from builders.data.purchases import purchases_schema
from builders.data.synthetic import generated_catalogue, write_generated
from builders.data.unlabeled import unlabeled_lists

SMALL = JudgedQueries(
    queries={"q1": "red mug", "q2": "杯子"},
    products={
        "a": Product("a", "Red mug", "Holds tea.\nNot soup.", "Alder", "red", ("Kitchen", "Mugs"), 9.5, 4.5, 12),
        "b": Product("b", "陶瓷 杯子"),
        "c": Product("c", "Green lamp\u2028with a line separator"),
    },
    judgements={"q1": {"a": 3, "b": 2, "c": 0}, "q2": {"b": 3, "c": 1}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_judged(SMALL, tmp_path)
    return tmp_path


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data anywhere and no network; places to look in lie below the returned folder."""
    monkeypatch.delenv(datasets.DATA_VARIABLE, raising=False)
    monkeypatch.setenv(datasets.OFFLINE_VARIABLE, "1")
    for name in ("SHARED", "DOWNLOADED", "GENERATED"):
        monkeypatch.setattr(datasets, name, tmp_path / name.lower())
    return tmp_path


@pytest.fixture(scope="module")
def real() -> JudgedQueries:
    """The data of this machine; never downloads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(datasets.OFFLINE_VARIABLE, "1")
        return load_judged(find_data().folder)


# ---------------------------------------------------------------- reading and writing
def test_written_files_read_back_equal(folder: Path) -> None:
    assert load_judged(folder) == SMALL


def test_files_may_lie_in_esci_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "esci").mkdir()
    write_judged(SMALL, tmp_path / "esci")
    assert load_judged(tmp_path) == SMALL


def test_windows_line_ends_read_the_same(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_judged(folder) == SMALL


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", b"", "{path}: the file is empty, wanted at least one line"),
        (
            "corpus.jsonl",
            b'{"_id": "a", "title": "x"}\n{"_id": ',
            "{path}:2: not JSON (Expecting value: line 1 column 9 (char 8)), wanted one object a line",
        ),
        ("corpus.jsonl", b"[1]\n", "{path}:1: a JSON list, wanted one object a line"),
        ("corpus.jsonl", b'{"title": "x"}\n', "{path}:1: no '_id', wanted a string"),
        ("corpus.jsonl", b'{"_id": 7, "title": "x"}\n', "{path}:1: '_id' is 7, wanted a string"),
        ("corpus.jsonl", b'{"_id": "", "title": "x"}\n', "{path}:1: '_id' is empty, wanted a product id"),
        ("corpus.jsonl", b'{"_id": "a"}\n', "{path}:1: no 'title', wanted a string"),
        (
            "corpus.jsonl",
            b'{"_id": "a", "title": "\\ud800"}\n',
            "{path}:1: 'title' is '\\ud800', wanted a string without lone surrogates",
        ),
        (
            "corpus.jsonl",
            b'{"_id": "a", "title": "x"}\n{"_id": "a", "title": "y"}\n',
            "{path}:2: product 'a' stands twice, wanted distinct ids",
        ),
        (
            "corpus.jsonl",
            b'{"_id": "a", "title": "x", "metadata": {"price": NaN}}\n',
            "{path}:1: 'price' is nan, wanted a finite number or null",
        ),
        (
            "corpus.jsonl",
            b'{"_id": "a", "title": "x", "metadata": {"category": "Mugs"}}\n',
            "{path}:1: 'category' is 'Mugs', wanted a list of strings",
        ),
        (
            "corpus.jsonl",
            b'{"_id": "a", "title": "x", "metadata": [1]}\n',
            "{path}:1: 'metadata' is [1], wanted an object",
        ),
        ("queries.jsonl", b"", "{path}: the file is empty, wanted at least one line"),
        ("queries.jsonl", b'{"_id": "q1"}\n', "{path}:1: no 'text', wanted a string"),
        (
            "queries.jsonl",
            b'{"_id": "q1", "text": ""}\n',
            "{path}:1: '_id' is 'q1' and 'text' is '', wanted neither empty",
        ),
        (
            "queries.jsonl",
            b'{"_id": "q1", "text": "x"}\n{"_id": "q1", "text": "y"}\n',
            "{path}:2: query 'q1' stands twice, wanted distinct ids",
        ),
        (
            "queries.jsonl",
            b'{"_id": "q1", "text": "x"}\n{"_id": "q2", "text": "\xff"}\n',
            "{path}:2: byte 23 is not UTF-8, wanted UTF-8 text",
        ),
        ("qrels.tsv", b"", "{path}: the file is empty, wanted at least one line"),
        (
            "qrels.tsv",
            b"q1\ta\t3\n",
            "{path}:1: header is 'q1\\ta\\t3', wanted 'query-id\\tcorpus-id\\tscore'",
        ),
        (
            "qrels.tsv",
            b"query-id\tcorpus-id\tscore\nq1 a 3\n",
            "{path}:2: 1 tab-separated fields, wanted 3 ('query-id\\tcorpus-id\\tscore')",
        ),
        ("qrels.tsv", b"query-id\tcorpus-id\tscore\nq1\ta\t4\n", "{path}:2: grade '4', wanted 0 to 3"),
        ("qrels.tsv", b"query-id\tcorpus-id\tscore\nq1\ta\t-1\n", "{path}:2: grade '-1', wanted 0 to 3"),
        (
            "qrels.tsv",
            b"query-id\tcorpus-id\tscore\nq9\ta\t3\n",
            "{path}:2: query 'q9' is unknown, wanted one of queries.jsonl",
        ),
        (
            "qrels.tsv",
            b"query-id\tcorpus-id\tscore\nq1\tz\t3\n",
            "{path}:2: product 'z' is unknown, wanted one of corpus.jsonl",
        ),
        (
            "qrels.tsv",
            b"query-id\tcorpus-id\tscore\nq1\ta\t3\nq1\ta\t2\n",
            "{path}:3: query 'q1' judges product 'a' twice, wanted once",
        ),
        (
            "qrels.tsv",
            b"query-id\tcorpus-id\tscore\nq1\ta\t3\n",
            "{path}: no judgement of 1 queries, first 'q2', wanted at least one",
        ),
    ],
)
def test_a_broken_file_is_refused_with_file_line_and_what_was_wanted(
    folder: Path, name: str, content: bytes, message: str
) -> None:
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(DatasetError) as refusal:
        load_judged(folder)
    assert str(refusal.value) == message.replace("{path}", str(path))


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_byte_order_mark_and_blank_lines_at_the_end_say_nothing(folder: Path, name: str) -> None:
    whole = load_judged(folder)
    path = folder / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n \n")
    assert load_judged(folder) == whole


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("queries.jsonl", b'{"_id": "q1", "text": "mug"}\n\n{"_id": "q2", "text": "lamp"}\n', ":2: not JSON"),
        ("queries.jsonl", b"\xef\xbb\xbf\n\n", ":1: not JSON"),
        ("queries.jsonl", b'{"_id": 7, "text": "mug"}\n', ":1: '_id' is 7, wanted a string"),
        (
            "queries.jsonl",
            b'{"_id": "q1", "text": "\\ud800"}\n',
            ":1: 'text' is '\\ud800', wanted a string without lone",
        ),
        ("queries.jsonl", b"[" * 100_000 + b"\n", ":1: JSON nested too deeply"),
        ("queries.jsonl", b'{"_id": ' + b"9" * 5000 + b"}\n", ":1: a number of 5000 digits, wanted"),
        ("qrels.tsv", b"query-id\tcorpus-id\tscore\nq1\ta\tNaN\n", ":2: grade 'NaN', wanted 0 to 3"),
        ("qrels.tsv", b"query-id\tcorpus-id\tscore\n\nq1\ta\t3\n", ":2: 1 tab-separated fields, wanted 3"),
    ],
)
def test_broken_queries_and_judgements_are_refused_by_line(
    folder: Path, name: str, content: bytes, message: str
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DatasetError) as refusal:
        load_judged(folder)
    assert f"{folder / name}{message}" in str(refusal.value)


def test_many_broken_judgements_are_one_error_with_the_first_lines_and_their_number(folder: Path) -> None:
    path = folder / "qrels.tsv"
    path.write_text("query-id\tcorpus-id\tscore\nq1\ta\t3\n" + "q1\tz\t3\n" * 5 + "q9\ta\t3\n")
    with pytest.raises(DatasetError) as refusal:
        load_judged(folder)
    first = f"{path}:3: product 'z' is unknown, wanted one of corpus.jsonl; {path}:4: product 'z'"
    assert str(refusal.value).startswith(first) and str(refusal.value).endswith("; and 3 more lines")


@pytest.mark.parametrize("name", ["queries.jsonl", "qrels.tsv"])
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DatasetError, match=rf"{name}: no such file, wanted {re.escape(name)} in BEIR's layout"):
        load_judged(folder)


def test_a_folder_without_a_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no corpus\.jsonl here nor in esci/ below it"):
        load_judged(tmp_path)


# ---------------------------------------------------------------- subsets
@pytest.mark.parametrize(
    ("text", "published_sha1"),
    [
        ("abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        ("The quick brown fox jumps over the lazy dog", "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12"),
        ("The quick brown fox jumps over the lazy cog", "de9f2c7fd25e1b3afad3e85a0bd17d9b100db4b3"),
    ],
)
def test_test_queries_are_those_whose_sha1_is_a_multiple_of_three(text: str, published_sha1: str) -> None:
    # 16 is 1 modulo 3, so a hexadecimal number is a multiple of 3 when the sum of its digits is.
    digit_sum = sum(int(digit, 16) for digit in published_sha1)
    assert is_test_query(text) == (digit_sum % 3 == 0)


def test_train_and_test_share_no_query_and_leave_none_out(real: JudgedQueries) -> None:
    train, test = real.subset("train"), real.subset("test")
    assert train.queries and test.queries
    assert not set(train.queries) & set(test.queries)
    assert {**train.queries, **test.queries} == real.queries
    assert set(test.judgements) == set(test.queries)
    assert test.products is real.products
    assert real.subset("all") == real


def test_an_unknown_subset_is_refused(real: JudgedQueries) -> None:
    with pytest.raises(ValueError, match="split 'dev', wanted 'train', 'validation', 'test' or 'all'"):
        real.subset("dev")  # type: ignore[arg-type]


def test_every_query_of_the_data_has_an_exact_product(real: JudgedQueries) -> None:
    assert all(3 in grades.values() for grades in real.judgements.values())


# ---------------------------------------------------------------- first stage
def test_first_stage_orders_by_title_and_breaks_ties_by_id() -> None:
    judged = JudgedQueries(
        {"q": "red mug"},
        {
            name: Product(name, title)
            for name, title in [("d", "lamp"), ("c", "red mug"), ("b", "red lamp"), ("a", "desk")]
        },
        {"q": {"d": 0, "c": 3, "b": 1, "a": 0}},
    )
    assert first_stage(judged) == {"q": ["c", "b", "a", "d"]}


@pytest.mark.parametrize("query", ["the", "杯", "zzz"])
def test_first_stage_of_a_query_without_a_known_word_goes_by_id(query: str) -> None:
    judged = JudgedQueries({"q": query}, {i: Product(i, f"mug {i * 3}") for i in "ba"}, {"q": {"b": 3, "a": 0}})
    assert first_stage(judged) == {"q": ["a", "b"]}


@pytest.mark.parametrize("titles", [["", ""], ["\U0001f600", "the of"], ["the", "x"]])
def test_a_catalogue_without_a_word_leaves_candidates_in_the_order_of_their_ids(titles: list[str]) -> None:
    products = {i: Product(i, title) for i, title in zip("ba", titles, strict=True)}
    judged = JudgedQueries({"q": "red mug", "r": "\U0001f600"}, products, {q: {"b": 3, "a": 0} for q in "qr"})
    assert first_stage(judged) == {"q": ["a", "b"], "r": ["a", "b"]}
    assert told_without_word(judged) == (
        "1 of 2 queries and 2 of 2 titles have no word that BM25 can search by: the first stage orders such candidates "
        "by id"
    )
    assert len(unlabeled_lists(judged, 2, 2, seed=0)) == 2


def test_nothing_is_told_where_every_query_and_title_has_a_word() -> None:
    judged = JudgedQueries({"q": "mug"}, {"a": Product("a", "red mug")}, {"q": {"a": 3}})
    assert told_without_word(judged) == ""


def test_first_stage_ranks_each_judged_candidate_once_whatever_the_subset(real: JudgedQueries) -> None:
    order = first_stage(real)
    assert all(sorted(order[query_id]) == sorted(grades) for query_id, grades in real.judgements.items())
    assert first_stage(real.subset("test")) == {query_id: order[query_id] for query_id in real.subset("test").queries}


# ---------------------------------------------------------------- purchases
def _purchases(**replaced: pa.Array) -> pa.Table:
    columns = {
        "customer_id": pa.array([1], pa.int64()),
        "invoice": pa.array(["7"]),
        "invoice_date": pa.array([0], pa.timestamp("us")),
        "stock_code": pa.array(["85048"]),
        "description": pa.array(["LIGHTS"]),
        "quantity": pa.array([12], pa.int64()),
        "price": pa.array([6.95]),
        "country": pa.array(["United Kingdom"]),
    }
    return pa.table({**columns, **replaced})


def test_purchases_are_read_with_their_schema_whichever_string_type_the_file_has(tmp_path: Path) -> None:
    pq.write_table(_purchases(country=pa.array(["Eire"], pa.large_string())), tmp_path / "purchases.parquet")
    table = load_purchases(tmp_path)
    assert table.schema == purchases_schema()
    assert table["country"].to_pylist() == ["Eire"]


def test_all_wrong_purchase_columns_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "purchases.parquet"
    pq.write_table(_purchases(quantity=pa.array([True])).drop_columns(["stock_code"]), path)
    with pytest.raises(DatasetError) as refusal:
        load_purchases(tmp_path)
    assert str(refusal.value).startswith(f"{path}: no column 'stock_code'; found 'customer_id', 'invoice', ")
    assert str(refusal.value).endswith("; column 'quantity' is bool, wanted int64")


def test_purchases_without_a_row_are_refused(tmp_path: Path) -> None:
    pq.write_table(_purchases().slice(0, 0), tmp_path / "purchases.parquet")
    with pytest.raises(DatasetError, match="no rows, wanted at least one invoice line"):
        load_purchases(tmp_path)


def test_purchases_that_are_not_parquet_are_refused(tmp_path: Path) -> None:
    (tmp_path / "purchases.parquet").write_text("customer_id,invoice\n")
    with pytest.raises(DatasetError, match=r"purchases\.parquet: not a Parquet file"):
        load_purchases(tmp_path)


def test_missing_purchases_are_refused_with_both_places(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no purchases, wanted .*online_retail/purchases\.parquet or .*/purchases"):
        load_purchases(tmp_path)


# ---------------------------------------------------------------- where data is looked for
def test_places_are_tried_in_the_documented_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {name: nowhere / name for name in ("named", "variable", "shared", "downloaded")}
    for place in places.values():
        place.mkdir()
        write_judged(SMALL, place)
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(places["variable"]))

    found = [find_data(places["named"]), find_data()]
    monkeypatch.delenv(datasets.DATA_VARIABLE)
    found.append(find_data())
    (places["shared"] / beir.CORPUS).unlink()
    found.append(find_data())
    (places["downloaded"] / beir.CORPUS).unlink()
    found.append(find_data())

    assert [source.kind for source in found] == ["option", "environment", "shared", "download", "generated"]
    assert [source.folder for source in found] == [*places.values(), nowhere / "generated"]
    assert [source.generated for source in found] == [False, False, False, False, True]


def test_a_named_folder_without_data_is_refused_and_not_passed_over(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatasetError, match=r"named by the option, but no corpus\.jsonl"):
        find_data(nowhere)
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(nowhere))
    with pytest.raises(DatasetError, match=r"named by TRITONRANK_DATA, but no corpus\.jsonl"):
        find_data()


def test_a_download_that_works_is_used(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(folder: Path) -> None:
        folder.mkdir()
        write_judged(SMALL, folder)

    monkeypatch.delenv(datasets.OFFLINE_VARIABLE)
    monkeypatch.setattr(datasets, "download_esci", download)
    source = find_data()
    assert source.kind == "download"
    assert load_judged(source.folder) == SMALL


def test_without_network_generated_data_says_what_it_is_in_one_line(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(folder: Path) -> None:
        raise DownloadError("x.parquet could not be downloaded: no route to host")

    monkeypatch.delenv(datasets.OFFLINE_VARIABLE)
    monkeypatch.setattr(datasets, "download_esci", download)
    assert find_data().note == (
        f"data: {nowhere / 'generated'} is GENERATED (x.parquet could not be downloaded: no route to host): "
        "quality figures mean nothing; for real data set TRITONRANK_DATA"
    )


# ---------------------------------------------------------------- download
class _Handler(http.server.BaseHTTPRequestHandler):
    content = b"0123456789" * 1000
    announced = len(content)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(self.announced))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/release.parquet"
        server.shutdown()


def test_a_download_with_the_right_sum_is_kept_under_its_name(url: str, tmp_path: Path) -> None:
    path = fetch(RemoteFile(url, hashlib.sha256(_Handler.content).hexdigest()), tmp_path)
    assert path == tmp_path / "release.parquet"
    assert path.read_bytes() == _Handler.content
    assert list(tmp_path.iterdir()) == [path]


def test_a_download_with_a_wrong_sum_is_refused_and_not_kept(url: str, tmp_path: Path) -> None:
    found = hashlib.sha256(_Handler.content).hexdigest()
    with pytest.raises(DatasetError, match=f"SHA-256 is {found}, wanted {'0' * 64}; nothing was kept"):
        fetch(RemoteFile(url, "0" * 64), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_download_that_breaks_off_is_not_taken_for_a_wrong_sum(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Handler, "announced", 20_000)
    with pytest.raises(DownloadError, match="could not be downloaded: it broke off after 10000 of 20000 bytes"):
        fetch(RemoteFile(url, "0" * 64), tmp_path)


def test_an_address_where_nobody_listens_is_one_line(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as failure:
        fetch(RemoteFile("http://127.0.0.1:1/release.parquet", "0" * 64), tmp_path)
    assert str(failure.value) == "release.parquet could not be downloaded: [Errno 111] Connection refused"


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_data, "EXAMPLES", RemoteFile("http://127.0.0.1:1/x.parquet", "0" * 64))
    with pytest.raises(DownloadError):
        public_data.download_esci(tmp_path / "build" / "downloaded")
    assert not list((tmp_path / "build").iterdir())


# ---------------------------------------------------------------- converter
def _release(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Queries 1 to 4 qualify; 5 has no Exact, 6 too few products, 7 is Spanish, 8 is of the large version only."""
    monkeypatch.setattr(public_data, "MIN_CANDIDATES", 2)
    judged = {1: "aE bS", 2: "aI bE", 3: "bE cC", 4: "aE gS", 5: "aS bS", 6: "aE", 7: "aE bS", 8: "aE bS"}
    examples = [
        {
            "query_id": query_id,
            "query": f"query {query_id}",
            "product_id": pair[0],
            "esci_label": pair[1],
            "product_locale": "es" if query_id == 7 else "us",
            "small_version": int(query_id != 8),
        }
        for query_id, pairs in judged.items()
        for pair in pairs.split()
    ]
    products = [
        {
            "product_id": item,
            "product_locale": locale,
            "product_title": f"{locale} title {item}",
            "product_description": None if item == "c" else f"description {item}",
            "product_bullet_point": f"bullet {item}",
            "product_brand": None,
            "product_color": "red",
        }
        for item in "cbax"
        for locale in ("us", "es")
    ]
    paths = folder / "examples.parquet", folder / "products.parquet"
    for path, rows in zip(paths, (examples, products), strict=True):
        pq.write_table(pa.Table.from_pylist(rows), path)
    return paths


def test_the_release_is_converted_to_judged_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = judged_from_esci(*_release(tmp_path, monkeypatch))
    assert judged.judgements == {
        "q1": {"a": 3, "b": 2},
        "q2": {"a": 0, "b": 3},
        "q3": {"b": 3, "c": 1},
        "q4": {"a": 3},  # the release does not describe product g
    }
    assert judged.queries["q1"] == "query 1"
    assert judged.products == {
        "a": Product("a", "us title a", "bullet a\ndescription a", color="red"),
        "b": Product("b", "us title b", "bullet b\ndescription b", color="red"),
        "c": Product("c", "us title c", "bullet c", color="red"),
    }


def test_a_smaller_sample_is_a_part_of_the_larger_and_always_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = _release(tmp_path, monkeypatch)
    two, three = judged_from_esci(*release, queries=2), judged_from_esci(*release, queries=3)
    assert two == judged_from_esci(*release, queries=2)
    assert set(two.queries) < set(three.queries)


def test_a_release_without_a_fit_query_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = _release(tmp_path, monkeypatch)
    monkeypatch.setattr(public_data, "MIN_CANDIDATES", 3)
    with pytest.raises(DatasetError, match="no US English query with 3 judged products, one of them Exact"):
        judged_from_esci(*release)


def test_a_download_is_converted_and_its_large_files_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, path in zip(("EXAMPLES", "PRODUCTS"), _release(tmp_path, monkeypatch), strict=True):
        remote = RemoteFile(path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())
        monkeypatch.setattr(public_data, name, remote)
    public_data.download_esci(tmp_path / "build" / "downloaded")
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["downloaded"]
    assert len(load_judged(tmp_path / "build" / "downloaded").queries) == 4


# ---------------------------------------------------------------- whole folders and generated data
def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "data"
    with pytest.raises(RuntimeError), renamed_when_whole(target) as beside:
        (beside / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with renamed_when_whole(target) as beside:
        (beside / "whole").touch()
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_of_two_makers_of_a_folder_the_first_one_stays(tmp_path: Path) -> None:
    target = tmp_path / "data"
    with renamed_when_whole(target) as second, renamed_when_whole(target) as first:
        (first / "first").touch()
        (second / "second").touch()
    assert [path.name for path in target.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_made_folder_is_readable_as_the_umask_says(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        with renamed_when_whole(tmp_path / "data"):
            pass
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o755


def test_generated_data_reads_back_like_real_data(tmp_path: Path) -> None:
    write_generated(tmp_path / "generated")
    judged = load_judged(tmp_path / "generated")
    assert judged == generated_catalogue()
    assert (len(judged.products), len(judged.queries)) == (600, 40)
    assert {grade for grades in judged.judgements.values() for grade in grades.values()} == set(datasets.GRADES)
    assert judged.subset("test").queries and judged.subset("train").queries
    bought = set(load_purchases(tmp_path / "generated")["stock_code"].to_pylist())
    assert bought <= set(judged.products)


def test_generated_data_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_generated(tmp_path / name)
    files = [sorted((path.name, path.read_bytes()) for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert files[0] == files[1]
    # Elsewhere, too: these bytes were written once on Python 3.11.
    assert hashlib.sha256((tmp_path / "one" / beir.QRELS).read_bytes()).hexdigest()[:16] == "7d2d55b04017aa42"


def test_users_are_read_with_their_raw_fields(tmp_path: Path) -> None:
    (tmp_path / "users.jsonl").write_text('{"_id": "u1", "country": "SE", "age": 31}\n{"_id": "u2"}\n')
    assert read_users(tmp_path / "users.jsonl") == {"u1": {"country": "SE", "age": 31}, "u2": {}}


@pytest.mark.parametrize("line", ['{"country": "SE"}', '{"_id": ""}', '{"_id": "u1"}\n{"_id": "u1"}'])
def test_a_user_without_an_id_of_its_own_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "users.jsonl").write_text(line)
    with pytest.raises(DatasetError, match=r"users\.jsonl:\d: "):
        read_users(tmp_path / "users.jsonl")
