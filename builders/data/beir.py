"""Judged queries in BEIR's file layout: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels.tsv``, read and written.

Refuses a broken file with its line, what was found and what was wanted. Knows nothing of where the data comes from.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from builders.core.contract import MAX_ITEM_ID_BYTES
from builders.core.errors import BuilderError
from builders.core.keys import key_of

GRADES = {3: "Exact", 2: "Substitute", 1: "Complement", 0: "Irrelevant"}
GAINS = {3: 1.0, 2: 0.1, 1: 0.01, 0: 0.0}
"""Gain of each grade in NDCG, as ESCI (Reddy et al., 2022) sets them."""

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels.tsv"
QRELS_HEADER = "query-id\tcorpus-id\tscore"
FAULTS_TOLD = 3
"""Broken lines of judgements that one error names."""
GENERATED_MARK = "GENERATED"
"""File beside data that is made up."""
MAX_DIGITS = 300
"""Of a whole number; a float holds a few more."""
TEST_SHARE = 3
"""One query in this many, by hash of its text, is a test query."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

Split = Literal["train", "validation", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""That a query of the file may name as its ``split``."""


class DatasetError(BuilderError):
    """Data that cannot be used; the message says which file and line, what was found and what was wanted."""


@dataclasses.dataclass(frozen=True)
class Product:
    """One item of the corpus; an absent text is ``""``, an absent number None.

    Attributes:
        text: bullet points and description, lines.
        category: from the widest to the narrowest.
        price: in US dollars.
        rating: mean of 1 to 5 stars over ``rating_count`` ratings.
    """

    item_id: str
    title: str
    text: str = ""
    brand: str = ""
    color: str = ""
    category: tuple[str, ...] = ()
    price: float | None = None
    rating: float | None = None
    rating_count: int | None = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Whatever else ``metadata`` holds: an image's vector, a stock level."""

    @property
    def raw_fields(self) -> dict[str, Any]:
        """Everything by name, as ``builders.features.encoder`` reads it; ``text`` and ``fields`` included."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "fields"}
        return {**own, **self.fields}


_PRODUCT_FIELDS = {field.name for field in dataclasses.fields(Product)}


@dataclasses.dataclass(frozen=True)
class Request:
    """What an endpoint is asked, besides its candidates.

    Attributes:
        history: item ids that the user took, oldest first.
        user_id: "" = not told.
        user: raw fields of that user; the server reads them from its store instead. None = an unknown user.
        context: raw fields of this request.
    """

    query: str = ""
    history: tuple[str, ...] = ()
    user_id: str = ""
    user: Mapping[str, Any] | None = None
    context: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class UnlabeledRequests(Protocol):
    """Requests that nobody judged, made of something else than the products' texts."""

    @property
    def digest(self) -> str:
        """Changes with what they are made of."""

    def __call__(self, count: int, seed: int) -> Sequence[Request]:
        """At most ``count``; other seeds give others."""


@dataclasses.dataclass(frozen=True)
class JudgedQueries:
    """Queries, the corpus, and each query's judged candidates.

    Attributes:
        queries: query id to its text, in file order; "" for a request without one.
        products: item id to product, in file order; the whole corpus, whatever the subset.
        judgements: query id to {item id: grade}, at least one each; grades as in :data:`GRADES`.
        requests: query id to what it asks besides its text, where there is more.
        users: user id to raw fields.
        unlabeled: makes requests that nobody judged; None = they are made of the products' texts.
        splits: query id to "train", "validation" or "test", where the data says so itself: of every query or of none.
        sampled: how the candidates of a request were drawn, for tables: "1 + 99 sampled"; "" = all that were judged.
        notes: lines for a reader: where the judgements come from, what was left out.
        generated: whether it is made up, so that quality figures mean nothing.
    """

    queries: dict[str, str]
    products: dict[str, Product]
    judgements: dict[str, dict[str, int]]
    requests: Mapping[str, Request] = dataclasses.field(default_factory=dict)
    users: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sampled: str = dataclasses.field(default="", compare=False)
    unlabeled: UnlabeledRequests | None = dataclasses.field(default=None, compare=False)
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    generated: bool = dataclasses.field(default=False, compare=False)

    @functools.cached_property
    def digest(self) -> str:
        """Changes with anything that it holds: products with titles and prices, judgements, requests, users, and what
        unlabeled requests are made of."""
        held = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.compare}
        if not self.splits:  # then what it was without the field: figures of before stay
            del held["splits"]
        return key_of({**held, "unlabeled": getattr(self.unlabeled, "digest", "")})

    def request(self, query_id: str) -> Request:
        """What the query asks, with the raw fields of its user. Raises: KeyError."""
        request = self.requests.get(query_id) or Request(self.queries[query_id])
        return dataclasses.replace(request, user=self.users.get(request.user_id))

    def subset(self, split: Split) -> JudgedQueries:
        """The queries of ``split`` with their judgements, as :meth:`split_of` says.

        Raises: DatasetError for another name.
        """
        if split not in (*SPLITS, "all"):
            raise DatasetError(f"split '{split}', wanted 'train', 'validation', 'test' or 'all'")
        return self.only(query_id for query_id in self.queries if split in ("all", self.split_of(query_id)))

    def split_of(self, query_id: str) -> str:
        """The data's own name, or "train" or "test" by the text; one without a text is a test query, set apart by
        time."""
        text = self.queries[query_id]
        return self.splits.get(query_id) or ("test" if not text or is_test_query(text) else "train")

    def only(self, query_ids: Iterable[str]) -> JudgedQueries:
        """These queries with their judgements."""
        kept = {query_id: self.queries[query_id] for query_id in query_ids}
        judgements = {query_id: self.judgements[query_id] for query_id in kept}
        return dataclasses.replace(self, queries=kept, judgements=judgements)


def is_test_query(text: str) -> bool:
    """Whether a query is set apart for testing, never trained or tuned on: by SHA-1 of its UTF-8 text, mod 3."""
    return int(hashlib.sha1(text.encode()).hexdigest(), 16) % TEST_SHARE == 0


def judged_folder(folder: Path) -> Path | None:
    """``folder/esci`` or ``folder`` itself, whichever holds a corpus; None where neither does."""
    return next((place for place in (folder / "esci", folder) if (place / CORPUS).is_file()), None)


def is_generated(folder: Path) -> bool:
    """Whether the data in a folder is made up."""
    return (folder / GENERATED_MARK).is_file()


def load_judged(folder: Path) -> JudgedQueries:
    """Reads judged queries from ``folder/esci`` or from ``folder`` itself.

    Raises:
        DatasetError: a file is missing or empty, is not UTF-8, or a line of it is not what BEIR's layout wants.
    """
    place = judged_folder(Path(folder))
    if place is None:
        raise DatasetError(
            f"{folder}: no {CORPUS} here nor in esci/ below it; wanted {CORPUS}, {QUERIES} and {QRELS} in BEIR's layout"
        )
    products = read_corpus(place / CORPUS)
    queries, splits = _read_queries(place / QUERIES)
    judgements = _read_qrels(place / QRELS, queries, products)
    return JudgedQueries(queries, products, judgements, splits=splits, generated=is_generated(place))


def write_judged(judged: JudgedQueries, folder: Path) -> None:
    """Writes the three files into ``folder``, which exists; :func:`load_judged` reads back an equal value."""
    corpus = (_json_line(_corpus_row(product)) for product in judged.products.values())
    queries = (
        _json_line({"_id": query_id, "text": text, **({"split": judged.splits[query_id]} if judged.splits else {})})
        for query_id, text in judged.queries.items()
    )
    qrels = (
        f"{query_id}\t{item_id}\t{grade}\n"
        for query_id, grades in judged.judgements.items()
        for item_id, grade in grades.items()
    )
    _write_lines(folder / CORPUS, corpus)
    _write_lines(folder / QUERIES, queries)
    _write_lines(folder / QRELS, itertools.chain([f"{QRELS_HEADER}\n"], qrels))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


# ---------------------------------------------------------------- the three files
def read_corpus(path: Path) -> dict[str, Product]:
    """Item id to product, of one ``corpus.jsonl``. Raises: DatasetError."""
    products: dict[str, Product] = {}
    for where, row in _json_rows(path):
        product = product_of_row(where, row)
        if product.item_id in products:
            raise DatasetError(f"{where}: product '{product.item_id}' stands twice, wanted distinct ids")
        products[product.item_id] = product
    return products


@dataclasses.dataclass(frozen=True)
class Deletion:
    """A line ``{"_id": ..., "deleted": true}``: the product is gone."""

    item_id: str


def catalogue_lines(path: Path, called: str = "") -> Iterator[tuple[str, Product | Deletion]]:
    """(where, product or deletion) of each line of a corpus, one after the other, so that none is held.

    Args:
        called: the file in messages; "" = its path.

    Raises:
        DatasetError: a line is neither. Whether ids are distinct is not looked at.
    """
    for where, row in _json_rows(path, called):
        deleted = row.get("deleted", False)
        if not isinstance(deleted, bool):
            raise DatasetError(f"{where}: 'deleted' is {deleted!r}, wanted true, false or nothing")
        yield where, Deletion(_item_id(where, row)) if deleted else product_of_row(where, row)


def read_users(path: Path) -> dict[str, dict[str, Any]]:
    """User id to raw fields, of JSON lines ``{"_id": "u1", "country": "SE", ...}``. Raises: DatasetError."""
    users: dict[str, dict[str, Any]] = {}
    for where, row in _json_rows(path):
        user_id = _item_id(where, row, "user")
        if user_id in users:
            raise DatasetError(f"{where}: '_id' is '{user_id}' a second time, wanted distinct ids")
        users[user_id] = {name: value for name, value in row.items() if name != "_id"}
    return users


def _read_queries(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Query id to text, and to the split that it names."""
    queries: dict[str, str] = {}
    splits: dict[str, str] = {}
    for where, row in _json_rows(path):
        query_id, text = _string(where, row, "_id"), _string(where, row, "text")
        if not query_id or not text:
            raise DatasetError(f"{where}: '_id' is '{query_id}' and 'text' is '{text}', wanted neither empty")
        if query_id in queries:
            raise DatasetError(f"{where}: query '{query_id}' stands twice, wanted distinct ids")
        if "split" in row and row["split"] not in SPLITS:
            raise DatasetError(f"{where}: 'split' is {row['split']!r}, wanted one of {', '.join(SPLITS)}")
        if queries and bool(splits) != ("split" in row):
            raise DatasetError(f"{where}: a 'split' in some queries and not in others, wanted it in all or in none")
        queries[query_id] = text
        splits |= {query_id: row["split"]} if "split" in row else {}
    return queries, splits


def _read_qrels(path: Path, queries: dict[str, str], products: dict[str, Product]) -> dict[str, dict[str, int]]:
    lines = _lines(path)
    where, header = next(lines)
    if header != QRELS_HEADER:
        raise DatasetError(f"{where}: header is {header!r}, wanted {QRELS_HEADER!r}")
    judgements: dict[str, dict[str, int]] = {query_id: {} for query_id in queries}
    faults = []
    for where, line in lines:
        try:
            query_id, item_id, grade = _judgement(where, line, judgements, products)
        except DatasetError as fault:
            faults.append(str(fault))
        else:
            judgements[query_id][item_id] = grade
    if faults:
        rest = f"; and {len(faults) - FAULTS_TOLD} more lines" if len(faults) > FAULTS_TOLD else ""
        raise DatasetError("; ".join(faults[:FAULTS_TOLD]) + rest)
    unjudged = [query_id for query_id, grades in judgements.items() if not grades]
    if unjudged:
        raise DatasetError(
            f"{path}: no judgement of {len(unjudged)} queries, first '{unjudged[0]}', wanted at least one"
        )
    return judgements


# ---------------------------------------------------------------- one row
def product_of_row(where: str, row: dict[str, Any]) -> Product:
    """Of a line of a corpus. where: it, for messages. Raises: DatasetError."""
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise DatasetError(f"{where}: 'metadata' is {metadata!r}, wanted an object")
    return Product(
        item_id=_item_id(where, row),
        title=_string(where, row, "title"),
        text=_string(where, row, "text", optional=True),
        brand=_string(where, metadata, "brand", optional=True),
        color=_string(where, metadata, "color", optional=True),
        category=_strings(where, metadata, "category"),
        price=_number(where, metadata, "price"),
        rating=_number(where, metadata, "rating"),
        rating_count=None if (count := _number(where, metadata, "rating_count")) is None else int(count),
        fields={name: value for name, value in metadata.items() if name not in _PRODUCT_FIELDS},
    )


def _item_id(where: str, row: dict[str, Any], what: str = "product") -> str:
    """Raises: DatasetError: none, or one that the item store cannot hold."""
    item_id = _string(where, row, "_id")
    size = len(item_id.encode())
    if not item_id:
        raise DatasetError(f"{where}: '_id' is empty, wanted a {what} id")
    if size > MAX_ITEM_ID_BYTES:
        raise DatasetError(f"{where}: '_id' has {size} bytes, wanted at most {MAX_ITEM_ID_BYTES}: {item_id[:60]!r}")
    return item_id


def _corpus_row(product: Product) -> dict[str, Any]:
    metadata = dataclasses.asdict(product)
    metadata |= metadata.pop("fields")
    return {
        "_id": metadata.pop("item_id"),
        "title": metadata.pop("title"),
        "text": metadata.pop("text"),
        "metadata": metadata,
    }


def _judgement(
    where: str, line: str, judgements: Mapping[str, Mapping[str, int]], products: Mapping[str, Product]
) -> tuple[str, str, int]:
    """Query id, item id and grade. Raises: DatasetError where the line does not fit the lines before or the files."""
    query_id, item_id, grade = _qrel(where, line)
    if query_id not in judgements:
        raise DatasetError(f"{where}: query '{query_id}' is unknown, wanted one of {QUERIES}")
    if item_id not in products:
        raise DatasetError(f"{where}: product '{item_id}' is unknown, wanted one of {CORPUS}")
    if item_id in judgements[query_id]:
        raise DatasetError(f"{where}: query '{query_id}' judges product '{item_id}' twice, wanted once")
    return query_id, item_id, grade


def _qrel(where: str, line: str) -> tuple[str, str, int]:
    fields = line.split("\t")
    if len(fields) != 3:
        raise DatasetError(f"{where}: {len(fields)} tab-separated fields, wanted 3 ({QRELS_HEADER!r})")
    query_id, item_id, grade = fields
    if grade not in {str(known) for known in GRADES}:
        raise DatasetError(f"{where}: grade '{grade}', wanted {min(GRADES)} to {max(GRADES)}")
    return query_id, item_id, int(grade)


# ---------------------------------------------------------------- lines and fields
def _lines(path: Path, called: str = "") -> Iterator[tuple[str, str]]:
    """Each line without its end, with ``path:number`` for messages; a byte order mark and empty lines at the file's end
    are none of its content."""
    called = called or str(path)
    if not path.is_file():
        raise DatasetError(f"{called}: no such file, wanted {path.name} in BEIR's layout")
    empty: list[tuple[str, str]] = []
    number = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{called}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DatasetError(f"{where}: byte {error.start} is not UTF-8, wanted UTF-8 text") from error
            if not line.strip() and number > 1:
                empty.append((where, line))
                continue
            yield from empty
            empty.clear()
            yield where, line
    if number == 0:
        raise DatasetError(f"{called}: the file is empty, wanted at least one line")


def _json_rows(path: Path, called: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _lines(path, called):
        try:
            row = json.loads(line, parse_int=_whole_number)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{where}: not JSON ({error}), wanted one object a line") from error
        except RecursionError as error:
            raise DatasetError(f"{where}: JSON nested too deeply, wanted one object a line") from error
        except DatasetError as error:
            raise DatasetError(f"{where}: {error}") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{where}: a JSON {type(row).__name__}, wanted one object a line")
        yield where, _without_surrogates(where, line, row)


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise DatasetError(f"a number of {len(digits)} digits, wanted at most {MAX_DIGITS}")
    return int(digits)


def _without_surrogates(where: str, line: str, row: dict[str, Any]) -> dict[str, Any]:
    """JSON can spell lone surrogates, UTF-8 cannot carry them."""
    if "\\u" in line:
        for name, value in row.items():
            if _LONE_SURROGATE.search(json.dumps([name, value], ensure_ascii=False)):
                raise DatasetError(f"{where}: {name!r} is {value!r}, wanted a string without lone surrogates")
    return row


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _string(where: str, row: dict[str, Any], name: str, *, optional: bool = False) -> str:
    value = row.get(name)
    if value is None and optional:
        return ""
    if name not in row:
        raise DatasetError(f"{where}: no '{name}', wanted a string")
    if not isinstance(value, str):
        raise DatasetError(f"{where}: '{name}' is {value!r}, wanted a string")
    return value


def _strings(where: str, row: dict[str, Any], name: str) -> tuple[str, ...]:
    value = row.get(name) or []
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise DatasetError(f"{where}: '{name}' is {value!r}, wanted a list of strings")
    return tuple(value)


def _number(where: str, row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DatasetError(f"{where}: '{name}' is {value!r}, wanted a finite number or null")
    return value
