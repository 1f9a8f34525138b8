"""What the hand-written served models share: their contract, the checks of a request, the item store.

Copied beside ``model.py`` into each published version folder, so that a version is complete in itself. Runs in the
server's environment only: numpy < 2, lmdb, tokenizers, Triton's python backend. Imports neither builders nor clients.
"""

from __future__ import annotations

import abc
import collections
import functools
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import triton_python_backend_utils as pb_utils
from byte_tensors import decoded, encoded
from counters import Counter
from deadlines import Deadlines
from tokenizers import Tokenizer

# Triton's own take some steps of Python a string; its stub looks them up anew for each tensor (pb_tensor.cc).
pb_utils.deserialize_bytes_tensor, pb_utils.serialize_byte_tensor = decoded, encoded

ITEM_STORE_VARIABLE = "TRITONRANK_ITEM_STORE"
LEFT_FOR_THE_STEPS = 0.5
"""Share of its time that a request must have left when pre-processing begins: else the scorer would refuse it after
the work, or compute it for nobody."""
MAX_READERS = 1024
"""Slots of the lock file where this process is the first to open it; as ``builders/publish/item_store.py`` has it."""
LOW_READERS = 0.1
"""Share of the store's reader slots; where fewer are free, it is looked for readers that were killed."""
GAUGES_EVERY_S = 1.0
ABOUT = ":about"
"""The store's table of what is known of the store itself; see ``builders/publish/item_store.py``."""


class InvalidArgument(ValueError):
    """The request is at fault: answered with the code INVALID_ARGUMENT."""


class StoreError(RuntimeError):
    """The item store is at fault; the message says what to run. It goes to the log: it names a path, but no request."""


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

    A fault of ours is answered INTERNAL with its kind alone: its text may name paths and memory regions, or quote the
    request.

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
            raised = traceback.extract_tb(error.__traceback__)[-1]  # its text may quote the request: not for a log
            kind = type(error).__name__
            where = f"{Path(raised.filename).name}:{raised.lineno}"
            store_fault = f": {error}" if isinstance(error, StoreError) else ""
            log.log_error(f"request failed: {type(error).__name__} at {where}{store_fault}")
            answer_text = f"{kind}, a fault of the server and not of the request; its log says more"
            responses.append(_error(answer_text, pb_utils.TritonError.INTERNAL))
    return responses


def _error(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


# ---------------------------------------------------------------- raw fields of a request
SHOWN_CHARACTERS = 60
"""Of a value that an error quotes: gRPC takes 8 KiB of an error at most."""
ERROR_CHARACTERS = 200
"""Of an error that quotes a value itself."""
MOST_NESTED = 32
FP32_MAX = float(np.finfo(np.float32).max)


def json_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object of raw fields that every reader can take: its numbers finite in FP32, its texts UTF-8, nested at
    most 32 deep. Raises: InvalidArgument, naming ``what``."""
    try:
        fields = json.loads(text, parse_int=_number, parse_float=_number)
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{what}: not JSON ({error}), wanted an object of raw fields") from None
    except RecursionError:
        raise InvalidArgument(f"{what}: {_TOO_DEEP}") from None
    if not isinstance(fields, dict):
        raise InvalidArgument(f"{what}: a JSON {type(fields).__name__}, wanted an object of raw fields")
    if fault := next(_faults(fields), None):
        raise InvalidArgument(f"{what}: {fault}")
    return fields


_TOO_DEEP = f"nested more than {MOST_NESTED} deep, wanted fields of texts, numbers and lists of them"


def _number(digits: str) -> int | float:
    """A number too large for its type is infinite, and refused as that."""
    value = float(digits)
    return int(digits) if abs(value) <= FP32_MAX and digits.lstrip("-").isdigit() else value


def _faults(value: Any, depth: int = 0) -> Iterator[str]:
    if depth > MOST_NESTED:
        yield _TOO_DEEP
    elif isinstance(value, (dict, list)):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _faults(inner, depth + 1)
    elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        yield f"{value!a:.{SHOWN_CHARACTERS}} has half a surrogate pair, wanted text that UTF-8 can carry"
    elif isinstance(value, (int, float)) and not abs(value) <= FP32_MAX:
        yield f"{value!r} is not finite in FP32, wanted a number of at most {FP32_MAX:.3g}"


def shown(text: str) -> str:
    """As an error quotes it: at most 60 characters."""
    return f"{text!r:.{SHOWN_CHARACTERS}}"


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
    check_ids(ids, "item_ids", limits["max_item_id_bytes"])
    if len(set(ids)) != len(ids):
        raise InvalidArgument(_duplicate(ids))
    return ids


def history(request: Any, limits: dict[str, Any]) -> list[bytes]:
    """Input ``history`` (BYTES [events]) checked, oldest first; empty where it is absent. Raises: InvalidArgument."""
    tensor = pb_utils.get_input_tensor_by_name(request, "history")
    events: list[bytes] = [] if tensor is None else tensor.as_numpy().reshape(-1).tolist()
    if len(events) > limits["max_history_events"]:
        raise InvalidArgument(f"history: {len(events)} events, wanted at most {limits['max_history_events']}")
    check_ids(events, "history", limits["max_item_id_bytes"])
    return events


def check_ids(ids: Sequence[bytes], name: str, limit: int) -> None:
    """Each of 1 to ``limit`` bytes of UTF-8. Raises: InvalidArgument for the first that is not."""
    lengths = [*map(len, ids)]
    if lengths and not 1 <= min(lengths) <= max(lengths) <= limit:
        position = next(row for row, length in enumerate(lengths) if not 1 <= length <= limit)
        raise InvalidArgument(f"{name}[{position}]: {lengths[position]} bytes, wanted 1 to {limit}")
    try:
        b"\n".join(ids).decode("utf-8")  # all at once: a line feed ends every unfinished sequence
    except UnicodeDecodeError:
        for position, item_id in enumerate(ids):
            _utf8(item_id, f"{name}[{position}]")


def optional_text(request: Any, name: str, limit: int) -> str | None:
    """An optional input of one string (BYTES [1]); None where it is absent or empty. Raises: InvalidArgument."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    raw = tensor.as_numpy().reshape(-1)
    if raw.size != 1 or len(raw[0]) > limit:
        found = f"{raw.size} strings" if raw.size != 1 else f"{len(raw[0])} bytes"
        raise InvalidArgument(f"{name}: {found}, wanted one string of at most {limit} bytes")
    return _utf8(raw[0], name) or None


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


class ItemStore:
    """Read side of the item store (LMDB), opened once a process.

    Needs to write LMDB's lock file: mount the store's folder writable, the models read-only.
    """

    def __init__(self) -> None:
        """Open the store that ``TRITONRANK_ITEM_STORE`` names. Raises: StoreError: no store, or not writable."""
        self.folder = Path(os.environ.get(ITEM_STORE_VARIABLE, "item_store"))
        if not (self.folder / "data.mdb").is_file():
            raise StoreError(
                f"no item store at '{self.folder}' ({ITEM_STORE_VARIABLE}): run 'make repository', "
                "or mount the store there"
            )
        if not os.access(self.folder / "lock.mdb", os.W_OK):
            # On a read-only mount LMDB would silently read without a lock, and a writer could reuse pages in use.
            raise StoreError(
                f"'{self.folder / 'lock.mdb'}' is not writable: mount the item store writable (the models need not be)"
            )
        self.environment = _opened(self.folder)
        _USERS[self.folder] += 1
        self.environment.reader_check()  # slots of readers that were killed

    def table(self, features: str, version: str) -> ItemReader:
        """One table.

        Args:
            features: of one ranker, such as ``cross_encoder``.
            version: the features' version that the ranker was built with.

        Raises:
            StoreError: the store holds this table in other versions only, or not at all, or not all of it yet.
        """
        name = f"{features}@{version}"
        present = sorted(present for present in self._tables() if present.startswith(f"{features}@"))
        if name not in present:
            raise StoreError(
                f"item store '{self.folder}' has {', '.join(present) or f'no features of {features}'}; "
                f"this model was built with {name}: run 'make repository', or serve the store that belongs to it"
            )
        if self._is_filling(name):
            raise StoreError(
                f"item store '{self.folder}': {name} is being filled, or its filling was cut off: run the build again"
            )
        return ItemReader(self.environment, self.environment.open_db(name.encode(), create=False))

    def _is_filling(self, name: str) -> bool:
        if ABOUT not in self._tables():
            return False
        about = self.environment.open_db(ABOUT.encode(), create=False)
        with self.environment.begin(db=about) as transaction:
            return transaction.get(f"filling {name}".encode()) is not None

    @property
    def size_bytes(self) -> int:
        """Of the pages in use or free for use again; the file may be larger."""
        return int((self.environment.info()["last_pgno"] + 1) * self.environment.stat()["psize"])

    @property
    def age_s(self) -> float:
        """Seconds since it was last written."""
        return max(time.time() - (self.folder / "data.mdb").stat().st_mtime, 0.0)

    def free_readers(self) -> int:
        """Slots that further readers can take. Where they run low, those of readers that were killed are freed."""
        most = self.environment.info()["max_readers"]
        if most - self._readers() < most * LOW_READERS:
            self.environment.reader_check()
        return int(most - self._readers())

    def _readers(self) -> int:
        """LMDB lists them below a heading, or says that there are none."""
        listed = self.environment.readers().strip().splitlines()
        return len(listed) - 1

    def _tables(self) -> list[str]:
        try:
            with self.environment.begin() as transaction:
                return [key.decode() for key, _ in transaction.cursor()]
        except lmdb.ReadersFullError as error:
            raise StoreError(
                f"item store '{self.folder}': all {self.environment.info()['max_readers']} reader slots are taken; "
                "stop servers that share it, or give this one a store of its own"
            ) from error
        except lmdb.LockError as error:  # LMDB tells its readers apart by process id
            raise StoreError(
                f"item store '{self.folder}' has a reader with this process id already ({error}): containers that "
                "share a store must share a PID namespace (--pid=host), or have a store each"
            ) from error

    def close(self) -> None:
        """Give up the reader's slot in the lock file, where nothing else in this process reads the store."""
        _USERS[self.folder] -= 1
        if not _USERS[self.folder]:
            self.environment.close()
            _opened.cache_clear()


_USERS: collections.Counter[Path] = collections.Counter()
"""Folder => how many read it in this process: LMDB opens a folder once a process, and a fused model reads it in two
steps."""


@functools.cache
def _opened(folder: Path) -> Any:
    return lmdb.open(str(folder), readonly=True, max_dbs=64, max_readers=MAX_READERS, create=False, readahead=False)


class ItemReader:
    """One features table of one version.

    Every request reads in a transaction of its own, so items that a writer commits meanwhile are seen by the next
    request.
    """

    def __init__(self, environment: Any, table: Any) -> None:
        self._environment, self._table = environment, table

    def read(self, ids: Sequence[bytes]) -> list[bytes | None]:
        """Stored bytes of each id, None where the store does not know it."""
        try:
            return self._read(ids)
        except lmdb.MapResizedError:  # a writer enlarged the map: adopt its size
            self._environment.set_mapsize(0)
            return self._read(ids)

    def _read(self, ids: Sequence[bytes]) -> list[bytes | None]:
        with self._environment.begin(db=self._table) as transaction:
            return [*map(transaction.get, ids)]  # a third quicker than a cursor's getmulti, sorted or not


class StoreGauges:
    """What is known of the store among Triton's own metrics, as of the model's latest request."""

    def __init__(self, store: ItemStore, model: str) -> None:
        self._read: dict[str, Callable[[], float]] = {
            "bytes": lambda: store.size_bytes,
            "free_readers": store.free_readers,
            "age_seconds": lambda: store.age_s,
        }
        meanings = ("Size of the item store", "Reader slots left in it", "Time since it was last written")
        families = [
            pb_utils.MetricFamily(
                name=f"tritonrank_store_{name}", description=meaning, kind=pb_utils.MetricFamily.GAUGE
            )
            for name, meaning in zip(self._read, meanings, strict=True)
        ]
        self._gauges = [(family, family.Metric(labels={"model": model})) for family in families]  # see counters.py
        self._next_s = 0.0
        self.update()

    def update(self) -> None:
        """At most once a second: it costs a look at the lock file."""
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + GAUGES_EVERY_S
        for (_, gauge), read in zip(self._gauges, self._read.values(), strict=True):
            gauge.set(float(read()))


class StoreModel(abc.ABC):
    """What all pre-processing shares: contract, item store, count of unknown items, one response a request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load contract and item store. Raises: RuntimeError when the store belongs to another model."""
        contract = read_contract(args)
        self.parameters = contract["parameters"]
        self.output_names = [tensor["name"] for tensor in contract["outputs"]]
        self.store: ItemStore | None = None
        self.items: ItemReader | None = None
        if self.parameters["item_features"]:  # None: all that it reads of an item comes in the request
            self.store = ItemStore()
            self.items = self.store.table(self.parameters["item_features"], self.parameters["item_features_version"])
        self.gauges = StoreGauges(self.store, args["model_name"]) if self.store else None
        self.deadlines = Deadlines(needed=LEFT_FOR_THE_STEPS)
        self.unknown = Counter(
            "tritonrank_unknown_items_total", "Candidates that the item store does not know", args["model_name"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; see :class:`deadlines.Deadlines` and :func:`answer_each`."""
        if self.gauges is not None:
            self.gauges.update()
        return self.deadlines.answer(requests, lambda kept: answer_each(kept, self._answer, pb_utils.Logger))

    def _answer(self, request: Any) -> list[Any]:
        tensors = self.answer(request)
        return [pb_utils.Tensor(name, tensors[name]) for name in self.output_names]

    @abc.abstractmethod
    def answer(self, request: Any) -> dict[str, np.ndarray]:
        """The tensors of the contract beside ``model.py``, by name."""

    def finalize(self) -> None:
        """Close the store."""
        if self.store is not None:
            self.store.close()


def load_tokenizer(args: dict[str, str]) -> Tokenizer:
    """``tokenizer.json`` of the version, without padding and truncation."""
    tokenizer = Tokenizer.from_file(str(version_folder(args) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class TextPreprocessor(StoreModel):
    """The part of pre-processing that text rankers share: the query, and each item as it is stored or as the request
    brings its text.

    A ranker's ``model.py`` derives from it and gives :meth:`tensors`.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load tokenizer, template and item store. Raises: RuntimeError when the store belongs to another model."""
        from item_text import ItemTemplate  # beside the models of text rankers only

        super().initialize(args)
        self.tokenizer = load_tokenizer(args)
        self.template = ItemTemplate(self.parameters["item"])
        self.truncated = Counter(
            "tritonrank_truncated_texts_total",
            "Candidates whose text, or whose query, is not read to its end",
            args["model_name"],
        )

    def answer(self, request: Any) -> dict[str, np.ndarray]:
        """The tensors of the contract beside ``model.py``."""
        query = self.parameters["query_prompt"] + query_text(request, self.parameters)
        ids = item_ids(request, self.parameters)
        texts = self._texts(request, ids)
        stored = self._stored(ids, texts)
        known = np.array(
            [text is not None or value is not None for text, value in zip(texts, stored, strict=True)], dtype=np.bool_
        )
        self.unknown.add(int((~known).sum()))
        return {"known": known, **self.tensors(query, stored, texts)}

    @abc.abstractmethod
    def tensors(self, query: str, stored: list[bytes | None], texts: list[str | None]) -> dict[str, np.ndarray]:
        """What the ranker's graphs take.

        Args:
            query: with its prompt.
            stored: per candidate its stored bytes; None where the store does not know it or ``texts`` has its text.
            texts: per candidate the text that the request brings, with its prompt; None where it brings none.
        """

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text, without special tokens, not cut."""
        return [one.ids for one in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    # ------------------------------------------------------------ what the request brings
    def _texts(self, request: Any, ids: list[bytes]) -> list[str | None]:
        given = _per_item(request, "item_texts", ids, self.parameters["max_text_bytes"])
        fields = _per_item(request, "item_fields", ids, self.parameters["max_context_bytes"])
        prompt = self.parameters["item_prompt"]
        texts: list[str | None] = [None] * len(ids)
        for row, text in given.items():
            texts[row] = prompt + text
        for row, raw in fields.items():
            if row in given:
                raise InvalidArgument(f"item_fields[{row}]: item_texts has this item's text, wanted one of the two")
            texts[row] = prompt + self._templated(raw, f"item_fields[{row}]")
        return texts

    def _templated(self, raw: str, what: str) -> str:
        fields = json_object(raw, what)
        try:
            return str(self.template.text(fields))
        except ValueError as error:  # of the template; it quotes the value
            raise InvalidArgument(f"{what}: {error!s:.{ERROR_CHARACTERS}}") from None

    def _stored(self, ids: list[bytes], texts: list[str | None]) -> list[bytes | None]:
        wanted = [row for row, text in enumerate(texts) if text is None]
        stored: list[bytes | None] = [None] * len(ids)
        if not wanted:
            return stored
        if self.items is None:
            raise InvalidArgument(
                f"item_texts[{wanted[0]}]: no text, and this ranker reads no item store; wanted item_texts (or "
                "item_fields) with a text for each item"
            )
        for row, value in zip(wanted, self.items.read([ids[row] for row in wanted]), strict=True):
            stored[row] = value
        return stored


def _per_item(request: Any, name: str, ids: list[bytes], limit: int) -> dict[int, str]:
    """Row => value, of an optional input with a string an item; empty ones are left out. Raises: InvalidArgument."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return {}
    given = tensor.as_numpy().reshape(-1).tolist()
    if len(given) != len(ids):
        raise InvalidArgument(f"{name}: {len(given)} values, wanted one for each of {len(ids)} items")
    values = {}
    for row, raw in enumerate(given):
        if len(raw) > limit:
            raise InvalidArgument(f"{name}[{row}]: {len(raw)} bytes, wanted at most {limit}")
        if raw:
            values[row] = _utf8(raw, f"{name}[{row}]")
    return values


def known_mask(stored: Sequence[bytes | None]) -> np.ndarray:
    """BOOL [candidates]: whether the store knows the item."""
    return np.array([value is not None for value in stored], dtype=np.bool_)


def padded_length(longest: int, parameters: dict[str, Any]) -> int:
    """The length bucket of ``longest`` tokens: the next multiple of its step, at most ``max_length``.

    Args:
        parameters: of the contract: ``length_steps``, pairs (a, s): above a tokens to a multiple of s; ``max_length``.
    """
    step = next(step for above, step in reversed(parameters["length_steps"]) if longest > above or not above)
    return min(max(-(-longest // step), 1) * step, parameters["max_length"])
