"""Where the data is: judged queries in BEIR's layout (:mod:`builders.data.beir`), purchases as Parquet.

Looked for in this order: an explicit option, ``TRITONRANK_DATA``, ``../shared/data``, what was downloaded before, the
data set's public home, and at last a small generated catalogue.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

from builders.core.workspace import REPOSITORY_ROOT
from builders.data.beir import (
    GAINS,
    GRADES,
    DatasetError,
    JudgedQueries,
    Product,
    is_generated,
    is_test_query,
    judged_folder,
    load_judged,
)
from builders.data.esci import DownloadError, download_esci
from builders.data.purchases import PURCHASES, PURCHASES_CSV, load_purchases, purchases_path
from builders.data.synthetic import write_generated

__all__ = [
    "GAINS",
    "GRADES",
    "DataSource",
    "DatasetError",
    "JudgedQueries",
    "Product",
    "find_data",
    "is_test_query",
    "load_judged",
    "load_purchases",
]

SHARED = REPOSITORY_ROOT.parent / "shared" / "data"
DOWNLOADED = REPOSITORY_ROOT / "build" / "data" / "downloaded"
GENERATED = REPOSITORY_ROOT / "build" / "data" / "generated"

DATA_VARIABLE = "TRITONRANK_DATA"
OFFLINE_VARIABLE = "TRITONRANK_OFFLINE"

Kind = Literal["option", "environment", "shared", "download", "generated"]


@dataclasses.dataclass(frozen=True)
class DataSource:
    """A folder that :func:`load_judged` reads; one that the user names may hold purchases alone.

    Attributes:
        note: a line for the user: which folder, why this one, and what its figures are worth.
    """

    folder: Path
    kind: Kind
    note: str

    @property
    def generated(self) -> bool:
        """Whether the data is made up, so that quality figures mean nothing."""
        return self.kind == "generated" or is_generated(self.folder)


def find_data(option: Path | None = None) -> DataSource:
    """The first folder that holds judged queries; downloads or generates one where there is none.

    Args:
        option: a folder named by the user. It, and ``TRITONRANK_DATA``, are refused rather than passed over.

    Raises:
        DatasetError: the named folder holds neither judged queries nor purchases, or a download's SHA-256 is wrong.
    """
    named = _named_folder(option)
    if named is not None:
        return named
    if judged_folder(SHARED):
        return DataSource(SHARED, "shared", f"data: {SHARED}")
    if judged_folder(DOWNLOADED):
        return DataSource(DOWNLOADED, "download", f"data: {DOWNLOADED} (downloaded before)")
    return _downloaded_or_generated()


def _named_folder(option: Path | None) -> DataSource | None:
    named: list[tuple[Kind, str, str | Path | None]] = [
        ("option", "the option", option),
        ("environment", DATA_VARIABLE, os.environ.get(DATA_VARIABLE)),
    ]
    for kind, origin, value in named:
        if value:
            folder = Path(value).expanduser().resolve()
            if judged_folder(folder) is None and purchases_path(folder) is None:
                raise DatasetError(
                    f"{folder}: named by {origin}, but no corpus.jsonl here nor in esci/ below it, and no "
                    f"{PURCHASES} or {PURCHASES_CSV}; name a folder in BEIR's layout or with purchases, or none to let "
                    "the data be looked for"
                )
            return DataSource(folder, kind, f"data: {folder} (from {origin})")
    return None


def _downloaded_or_generated() -> DataSource:
    if os.environ.get(OFFLINE_VARIABLE) == "1":
        return _generated(f"{OFFLINE_VARIABLE}=1")
    try:
        download_esci(DOWNLOADED)
    except DownloadError as error:
        return _generated(str(error))
    return DataSource(DOWNLOADED, "download", f"data: {DOWNLOADED} (downloaded now; it holds no purchases)")


def _generated(reason: str) -> DataSource:
    write_generated(GENERATED)
    note = f"data: {GENERATED} is GENERATED ({reason}): quality figures mean nothing; for real data set {DATA_VARIABLE}"
    return DataSource(GENERATED, "generated", note)
