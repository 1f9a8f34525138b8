"""What the hand-written served models share: their contract, the checks of a request, the item store.

Copied beside ``model.py`` into each published version folder, so that a version is complete in itself. Runs in the
server's environment only: numpy < 2, lmdb, tokenizers, Triton's python backend. Imports neither builders nor clients.
"""

from __future__ import annotations

import abc
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

ITEM_STORE_VARIABLE = "TRITONRANK_ITEM_STORE"


class InvalidArgument(ValueError):
    """The request is at fault: answered with the code INVALID_ARGUMENT."""


def read_contract(args: dict[str, str]) -> dict[str, Any]:
    """``contract.json`` of the version that Triton is loading: inputs, outputs, parameters.

    Args:
        args: what Triton hands to ``TritonPythonModel.initialize``.
    """
    return json.loads((version_folder(args) / "contract.json").read_text(encoding="utf-8"))


def version_folder(args: dict[str, str]) -> Path:
    """The folder of the version that Triton is loading."""
    return Path(args["model_repository"]) / args["model_version"]


def answer_each(requests: Sequence[Any], answer: Callable[[Any], list[Any]], log: Any) -> list[Any]:
    """One response a request; a bad request gets its own error and leaves its neighbours alone.

    Args:
        requests: ``pb_utils.InferenceRequest`` of one ``execute`` call.
        answer: request => list of ``pb_utils.Tensor``; raises InvalidArgument when the request is at fault.
        log: ``pb_utils.Logger``; told of faults that are ours, never of a request's content.
    """
    responses = []
    for request in requests:
        try:
            responses.append(pb_utils.InferenceResponse(answer(request)))
        except InvalidArgument as error:
            responses.append(_error(str(error), pb_utils.TritonError.INVALID_ARG))
        except Exception as error:
            log.log_error(f"request failed: {type(error).__name__}: {error}")
            responses.append(_error(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL))
    return responses


def _error(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def query_text(request: Any, limits: dict[str, Any]) -> str:
    """Input ``query`` (BYTES [1]) as text. Raises: InvalidArgument."""
    raw = pb_utils.get_input_tensor_by_name(request, "query").as_numpy().reshape(-1)
    if raw.size != 1:
        raise InvalidArgument(f"query: {raw.size} strings, wanted 1")
    encoded: bytes = raw[0]
    if len(encoded) > limits["max_query_bytes"]:
        raise InvalidArgument(f"query: {len(encoded)} bytes, wanted at most {limits['max_query_bytes']}")
    text = _utf8(encoded, "query")
    if not text.strip():
        raise InvalidArgument("query: empty, wanted at least one character that is not white space")
    return text


def item_ids(request: Any, limits: dict[str, Any]) -> list[bytes]:
    """Input ``item_ids`` (BYTES [candidates]) checked: count, length, UTF-8, no duplicates. Raises: InvalidArgument."""
    ids: list[bytes] = pb_utils.get_input_tensor_by_name(request, "item_ids").as_numpy().reshape(-1).tolist()
    if not 1 <= len(ids) <= limits["max_candidates"]:
        raise InvalidArgument(f"item_ids: {len(ids)} items, wanted 1 to {limits['max_candidates']}")
    for position, item_id in enumerate(ids):
        if not 1 <= len(item_id) <= limits["max_item_id_bytes"]:
            raise InvalidArgument(
                f"item_ids[{position}]: {len(item_id)} bytes, wanted 1 to {limits['max_item_id_bytes']}"
            )
        _utf8(item_id, f"item_ids[{position}]")
    if len(set(ids)) != len(ids):
        raise InvalidArgument(_duplicate(ids))
    return ids


def _utf8(encoded: bytes, what: str) -> str:
    try:
        return encoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{what}: not UTF-8 (byte 0x{encoded[error.start]:02x} at {error.start})") from None


def _duplicate(ids: list[bytes]) -> str:
    first: dict[bytes, int] = {}
    for position, item_id in enumerate(ids):
        if item_id in first:
            return f"item_ids: item_ids[{position}] repeats item_ids[{first[item_id]}], wanted distinct ids"
        first[item_id] = position
    raise AssertionError("called without a duplicate")


class ItemReader:
    """Read side of the item store (LMDB), one features table of one version.

    Every request reads in a transaction of its own, so items that a writer commits meanwhile are seen by the next
    request. Needs to write LMDB's lock file: mount the store's folder writable, the models read-only.
    """

    def __init__(self, table: str, version: str) -> None:
        """Open the store that ``TRITONRANK_ITEM_STORE`` names.

        Args:
            table: features of one ranker, such as ``cross_encoder``.
            version: the features' version that the ranker was built with.

        Raises:
            RuntimeError: no store, or it holds this table in other versions only.
        """
        folder = Path(os.environ.get(ITEM_STORE_VARIABLE, "item_store"))
        if not (folder / "data.mdb").is_file():
            raise RuntimeError(
                f"no item store at '{folder}' ({ITEM_STORE_VARIABLE}): run 'make repository', or mount the store there"
            )
        if not os.access(folder / "lock.mdb", os.W_OK):
            # On a read-only mount LMDB would silently read without a lock, and a writer could reuse pages in use.
            raise RuntimeError(
                f"'{folder / 'lock.mdb'}' is not writable: mount the item store writable (the models need not be)"
            )
        self._environment = lmdb.open(str(folder), readonly=True, max_dbs=64, create=False, readahead=False)
        self._table = self._open_table(folder, f"{table}@{version}", table)

    def _open_table(self, folder: Path, name: str, table: str) -> Any:
        try:
            with self._environment.begin() as transaction:
                tables = [key.decode() for key, _ in transaction.cursor()]
        except lmdb.LockError as error:  # LMDB tells its readers apart by process id
            raise RuntimeError(
                f"item store '{folder}' has a reader with this process id already ({error}): containers that share a "
                "store must share a PID namespace (--pid=host), or have a store each"
            ) from error
        present = sorted(present for present in tables if present.startswith(f"{table}@"))
        if name not in present:
            raise RuntimeError(
                f"item store '{folder}' has {', '.join(present) or f'no features of {table}'}; "
                f"this model was built with {name}: run 'make repository', or serve the store that belongs to it"
            )
        return self._environment.open_db(name.encode(), create=False)

    def read(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """Stored bytes of each id, None where the store does not know it."""
        try:
            return self._read(ids)
        except lmdb.MapResizedError:  # a writer enlarged the map: adopt its size
            self._environment.set_mapsize(0)
            return self._read(ids)

    def _read(self, ids: Sequence[bytes]) -> list[bytes | None]:
        with self._environment.begin(db=self._table) as transaction:
            return [transaction.get(item_id) for item_id in ids]

    def close(self) -> None:
        """Give up the reader's slot in the lock file."""
        self._environment.close()


class Counter:
    """A counter of Triton's own metrics, labelled with the model's name."""

    def __init__(self, name: str, description: str, model: str) -> None:
        # The family must outlive its metric, or Triton drops both.
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
        self._metric = self._family.Metric(labels={"model": model})

    def add(self, amount: int) -> None:
        """Add ``amount`` >= 0."""
        if amount:
            self._metric.increment(amount)


class Preprocessor(abc.ABC):
    """The part of pre-processing that all rankers share: check the request, tokenise the query, read the items.

    A ranker's ``model.py`` derives from it and gives :meth:`tensors`.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load tokenizer and item store. Raises: RuntimeError when the store belongs to another model."""
        contract = read_contract(args)
        self.parameters = contract["parameters"]
        self.output_names = [tensor["name"] for tensor in contract["outputs"]]
        self.tokenizer = Tokenizer.from_file(str(version_folder(args) / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.items = ItemReader(self.parameters["item_features"], self.parameters["item_features_version"])
        self.unknown = Counter(
            "tritonrank_unknown_items_total", "Candidates that the item store does not know", args["model_name"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; see :func:`answer_each`."""
        return answer_each(requests, self.answer, pb_utils.Logger)

    def answer(self, request: Any) -> list[Any]:
        """The tensors of the contract beside ``model.py``."""
        query = query_text(request, self.parameters)
        stored = self.items.read(item_ids(request, self.parameters))
        known = known_mask(stored)
        self.unknown.add(int((~known).sum()))
        tensors = {"known": known, **self.tensors(self.query_tokens(query), stored)}
        return [pb_utils.Tensor(name, tensors[name]) for name in self.output_names]

    def query_tokens(self, query: str) -> list[int]:
        """At most ``max_query_tokens`` token ids, without special tokens."""
        return self.tokenizer.encode(query, add_special_tokens=False).ids[: self.parameters["max_query_tokens"]]

    @abc.abstractmethod
    def tensors(self, query: list[int], stored: list[bytes | None]) -> dict[str, np.ndarray]:
        """What the ranker's scorer takes.

        Args:
            query: token ids without special tokens.
            stored: per candidate its stored bytes, None where the store does not know it.
        """

    def finalize(self) -> None:
        """Close the store."""
        self.items.close()


def known_mask(stored: Sequence[bytes | None]) -> np.ndarray:
    """BOOL [candidates]: whether the store knows the item."""
    return np.fromiter((value is not None for value in stored), dtype=np.bool_, count=len(stored))


def padded_length(longest: int, bucket: int) -> int:
    """The next multiple of ``bucket``."""
    return max(-(-longest // bucket), 1) * bucket
