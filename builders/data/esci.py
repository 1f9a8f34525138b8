"""The judged queries' public home: Amazon's Shopping Queries data set (ESCI), Apache-2.0, fetched and converted.

The release is two Parquet files, 51 MB and 1.1 GB. A sample of US English queries is turned into BEIR's layout. The
public home has no prices, ratings or categories. Purchases are not fetched: UCI publishes Online Retail II as a
spreadsheet without a checksum to hold it to.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import rich.progress

from builders.data.beir import DatasetError, JudgedQueries, Product, write_judged

CONNECT_TIMEOUT_S = 5.0
CHUNK_BYTES = 1 << 20

SAMPLED_QUERIES = 150
MIN_CANDIDATES = 40
"""Judged candidates that a sampled query has at least; one of them Exact."""
GRADE_OF_LABEL = {"E": 3, "S": 2, "C": 1, "I": 0}


class DownloadError(DatasetError):
    """The public home could not be reached; the message is one line."""


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file of a public release and the SHA-256 that its content must have."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]


_RELEASE = (
    "https://media.githubusercontent.com/media/amazon-science/esci-data/"
    "7e0e3073f5ca36c0b5ff79e847cf99a74597645d/shopping_queries_dataset/"
)
# The sums are the object ids of the release's git-lfs pointers.
EXAMPLES = RemoteFile(
    _RELEASE + "shopping_queries_dataset_examples.parquet",
    "4a735b693b4a424a6fc67f5be6e4c811495c488bbf66d02a602d308b2744263a",
)
PRODUCTS = RemoteFile(
    _RELEASE + "shopping_queries_dataset_products.parquet",
    "25124442d064d64b26f74082d6fa09438d679efc0c183cf28d19064a2b65a265",
)


def download_esci(folder: Path) -> None:
    """Fetches the release and leaves a sample of it in ``folder``, in BEIR's layout; ``folder`` appears whole or not.

    Raises:
        DownloadError: no network, or it broke off.
        DatasetError: a file's SHA-256 is not the released one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".esci-") as scratch:
        examples, products = (fetch(remote, Path(scratch)) for remote in (EXAMPLES, PRODUCTS))
        with renamed_when_whole(folder) as beside:
            write_judged(judged_from_esci(examples, products), beside)


def fetch(remote: RemoteFile, folder: Path) -> Path:
    """Downloads one file into ``folder`` with a progress bar, and returns its path once its SHA-256 is right.

    Raises:
        DownloadError: no network, or it broke off.
        DatasetError: the SHA-256 is not ``remote.sha256``; nothing is kept.
    """
    part = folder / f"{remote.name}.part"
    try:
        with urllib.request.urlopen(remote.url, timeout=CONNECT_TIMEOUT_S) as response, part.open("wb") as file:
            found = _copy(response, file, remote.name)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{remote.name} could not be downloaded: {getattr(error, 'reason', error)}") from error
    if found != remote.sha256:
        part.unlink()
        raise DatasetError(
            f"{remote.url}: SHA-256 is {found}, wanted {remote.sha256}; nothing was kept. Try again, or set "
            "TRITONRANK_DATA to a folder in BEIR's layout, or TRITONRANK_OFFLINE=1 for generated data"
        )
    return part.rename(folder / remote.name)


def judged_from_esci(examples: Path, products: Path, queries: int = SAMPLED_QUERIES) -> JudgedQueries:
    """A sample of the release's US English queries (``small_version``) with their judgements and products.

    Args:
        examples, products: the release's two Parquet files.
        queries: how many at most, of those with MIN_CANDIDATES judged products, one of them Exact; drawn by the
            hash of their text, so the same release gives the same sample everywhere.

    Raises:
        DatasetError: no query qualifies.
    """
    import pyarrow.dataset as ds  # here and not above: only who downloads needs Parquet

    us_english = ds.field("product_locale") == "us"
    rows = ds.dataset(examples).to_table(
        columns=["query_id", "query", "product_id", "esci_label"],
        filter=us_english & (ds.field("small_version") == 1),
    )
    texts, judgements = _sampled(rows.to_pylist(), queries)
    if not texts:
        raise DatasetError(f"{examples}: no US English query with {MIN_CANDIDATES} judged products, one of them Exact")
    wanted = sorted({item_id for grades in judgements.values() for item_id in grades})
    corpus = ds.dataset(products).to_table(filter=us_english & ds.field("product_id").isin(wanted)).to_pylist()
    return _joined(texts, judgements, {row["product_id"]: _product(row) for row in corpus})


@contextmanager
def renamed_when_whole(folder: Path) -> Iterator[Path]:
    """A fresh folder beside ``folder`` that takes its name when the block ends well, and is removed when it does not.

    Of two processes that make the same folder, the first one's stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    beside = scratch / folder.name  # not scratch itself: mkdtemp makes folders that only their owner may read
    beside.mkdir()
    try:
        yield beside
        try:
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy(response: Any, file: IO[bytes], name: str) -> str:
    """Copies an HTTP response to ``file`` and returns its SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    size = int(length) if (length := response.headers["Content-Length"]) else None
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.DownloadColumn())
    with rich.progress.Progress(*columns) as progress:
        task = progress.add_task(name, total=size)
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            progress.advance(task, len(chunk))
    if size is not None and file.tell() != size:  # http.client takes an early end for the end
        raise ConnectionError(f"it broke off after {file.tell()} of {size} bytes")
    return digest.hexdigest()


def _sampled(rows: list[dict[str, Any]], limit: int) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    texts: dict[str, str] = {}
    judgements: dict[str, dict[str, int]] = {}
    for row in rows:
        query_id = f"q{row['query_id']}"
        texts[query_id] = row["query"]
        judgements.setdefault(query_id, {})[row["product_id"]] = GRADE_OF_LABEL[row["esci_label"]]
    fit = [q for q, grades in judgements.items() if len(grades) >= MIN_CANDIDATES and 3 in grades.values()]
    drawn = sorted(fit, key=lambda query_id: hashlib.sha256(texts[query_id].encode()).digest())[:limit]
    return {query_id: texts[query_id] for query_id in drawn}, {query_id: judgements[query_id] for query_id in drawn}


def _joined(
    texts: dict[str, str], judgements: dict[str, dict[str, int]], products: dict[str, Product]
) -> JudgedQueries:
    """Leaves out judgements of products that the release does not describe."""
    known = {
        query_id: {item_id: grade for item_id, grade in grades.items() if item_id in products}
        for query_id, grades in judgements.items()
    }
    return JudgedQueries(
        {query_id: text for query_id, text in texts.items() if known[query_id]},
        dict(sorted(products.items())),
        {query_id: grades for query_id, grades in known.items() if grades},
    )


def _product(row: dict[str, Any]) -> Product:
    texts = (row["product_bullet_point"], row["product_description"])
    return Product(
        item_id=row["product_id"],
        title=row["product_title"] or "",
        text="\n".join(text for text in texts if text),
        brand=row["product_brand"] or "",
        color=row["product_color"] or "",
    )
