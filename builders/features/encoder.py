"""Raw fields => the tensors that a network takes: the one implementation that training, item store and serving share.

A :class:`Feature` declares one input tensor of a network and the raw fields that it is made of. A
:class:`FeatureEncoder` makes the tensors: of an item or a user once, as a record of fixed size that the item store
keeps, and of a request as it comes.

Ids of a vocabulary: 0 = absent, 1 to ``oov_buckets`` = a value that the vocabulary does not hold, by its CRC-32,
then the vocabulary in its order. So an embedding table has ``feature.rows(field)`` rows, and a new brand or item
shares a row with few others instead of failing. With ``oov_buckets=0`` the vocabulary's ids start at 1, as those of
most libraries do, and a value that it does not hold counts as absent.

This file is copied beside the served models that need it: NumPy and the standard library only, nothing of the project.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

Kind = Literal["dense", "sparse", "multi_hot", "tokens", "vector"]
Source = Literal["item", "user", "query", "history", "context"]
Padding = Literal["front", "behind"]
Fields = Mapping[str, Any]
"""Raw field name => text, number, list of them, or None."""

ABSENT = 0
"""Id of a missing value, and padding of ids that are not tokens."""
FALLBACK = "fallback"
STORED: tuple[Source, ...] = ("item", "user")
_KINDS_OF = {
    "item": ("dense", "sparse", "multi_hot", "tokens", "vector"),
    "user": ("dense", "sparse", "multi_hot", "vector"),
    "context": ("dense", "sparse"),
    "history": ("multi_hot",),
    "query": ("tokens",),
}
_IDS = ("sparse", "multi_hot")
_MANY = ("multi_hot", "tokens", "vector")
"""Kinds of one field with ``size`` values."""


FP32_MAX = float(np.finfo(np.float32).max)
SHOWN_CHARACTERS = 60
"""Of a value that an error quotes."""


class FeatureError(ValueError):
    """A declaration or a raw field cannot be used; the message says what was found and what was wanted."""


@dataclasses.dataclass(frozen=True)
class Feature:
    """One input tensor of a network.

    ===========  =======  =======================================  ============================================
    kind         dtype    shape                                    made of
    ===========  =======  =======================================  ============================================
    ``dense``    FP32     [rows, fields]                           numbers, normalized; absent = the mean
    ``sparse``   INT32    [rows, fields]                           one value a field => its id
    ``multi_hot``      INT32    [rows, size], padded with 0              a list of values => their ids, the last kept
    ``tokens``   INT32    [rows, length], padded behind            text => token ids, the first ``size`` kept
    ``vector``   FP32     [rows, size]                             numbers as they are, from elsewhere; absent = 0
    ===========  =======  =======================================  ============================================

    ``rows`` is the number of candidates for what an item has (``source`` "item"), 1 for what the request has. Tokens
    are padded with the tokenizer's own padding id.

    Attributes:
        name: of the tensor, lower case.
        fields: raw fields, one a column; a single one for multi_hot, tokens and vector. Source "history" and "query"
            have one of their own: the item ids, the text.
        source: "item" and "user" come from the item store, the others with the request.
        size: at most so many ids or tokens; the width of a vector.
        log1p: of dense: take ln(1 + x) first, for prices and counts.
        mean, std: of dense, per field, after ``log1p``; absent = 0 and 1.
        vocabularies: of sparse (per field) and multi_hot (one): known values.
        oov_buckets: rows that unseen values share; 0 = an unseen value is absent, and a multi_hot leaves it out.
        padding: of multi_hot: where the zeros stand, "front" or "behind".
    """

    name: str
    kind: Kind
    fields: tuple[str, ...]
    source: Source = "item"
    size: int = 0
    log1p: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    vocabularies: tuple[tuple[str, ...], ...] = ()
    oov_buckets: int = 1
    padding: Padding = "front"

    def __post_init__(self) -> None:
        for name, convert in (("fields", str), ("mean", float), ("std", float), ("vocabularies", tuple)):
            object.__setattr__(self, name, tuple(map(convert, getattr(self, name))))  # lists are welcome too
        faults = [*self._faults()]
        if faults:
            raise FeatureError(f"feature '{self.name}': {'; '.join(faults)}")

    def _faults(self) -> Iterable[str]:
        if self.kind not in _KINDS_OF.get(self.source, ()):
            wanted = ", ".join(_KINDS_OF.get(self.source, ())) or f"source of {', '.join(_KINDS_OF)}"
            yield f"kind '{self.kind}' of source '{self.source}', wanted {wanted}"
        if not self.fields or (self.kind in _MANY and len(self.fields) != 1):
            yield f"fields {list(self.fields)}, wanted {'just one' if self.kind in _MANY else 'at least one'}"
        if (self.size > 0) != (self.kind in _MANY):
            yield f"size {self.size}, wanted {'at least 1' if self.kind in _MANY else '0'} for kind '{self.kind}'"
        for name, given in (("mean", self.mean), ("std", self.std), ("vocabularies", self.vocabularies)):
            if given and len(given) != len(self.fields):
                yield f"{len(given)} {name} for {len(self.fields)} fields, wanted one each or none"
        if self.kind in _IDS and self.oov_buckets < 0:
            yield f"oov_buckets {self.oov_buckets}, wanted at least 0"
        if self.kind in _IDS and self.oov_buckets == 0 and not (self.vocabularies and all(self.vocabularies)):
            yield "oov_buckets 0 without a vocabulary, wanted one or the other: every value would count as absent"
        if self.padding != "front" and (self.padding != "behind" or self.kind != "multi_hot"):
            yield f"padding '{self.padding}' of kind '{self.kind}', wanted 'front', or 'behind' for a multi_hot"
        if any(not value > 0 for value in self.std):
            yield f"std {list(self.std)}, wanted all above 0"

    @property
    def per_candidate(self) -> bool:
        """Whether each candidate has a row of its own; else the request has one."""
        return self.source == "item"

    @property
    def dtype(self) -> str:
        """As Triton's protocol spells it."""
        return "FP32" if self.kind in ("dense", "vector") else "INT32"

    @property
    def width(self) -> int | str:
        """Size of the tensor's last dimension; "length" where it differs from request to request."""
        if self.kind == "tokens":
            return "length"
        return self.size or len(self.fields)

    def rows(self, field: str | None = None) -> int:
        """Rows of an embedding table for a sparse or multi_hot field (the first, where none is named)."""
        column = self.fields.index(field) if field else 0
        return 1 + self.oov_buckets + (len(self.vocabularies[column]) if self.vocabularies else 0)

    @functools.cached_property
    def table_rows(self) -> tuple[int, ...]:
        """Rows of each field's embedding table."""
        return tuple(self.rows(field) for field in self.fields)

    @functools.cached_property
    def _ids(self) -> tuple[dict[str, int], ...]:
        first = 1 + self.oov_buckets
        return tuple({value: first + row for row, value in enumerate(values)} for values in self.vocabularies)

    def id_of(self, value: Any, column: int = 0) -> int:
        """Id of one raw value: 0 for None and "" (and the unseen without ``oov_buckets``), else its row.

        Numbers and booleans count as their text.
        """
        if value is None or value == "":
            return ABSENT
        text = value if isinstance(value, str) else json.dumps(value)
        known = self._ids[column].get(text) if self._ids else None
        if known is not None:
            return known
        encoded = encodable(text, self.fields[column])
        return 1 + zlib.crc32(encoded) % self.oov_buckets if self.oov_buckets else ABSENT

    def knows(self, identifier: int) -> bool:
        """Whether the id is one of the vocabulary's, neither absent nor a bucket of unseen values."""
        return identifier > self.oov_buckets

    def encode(self, fields: Fields, tokenizer: Any = None, padding_id: int = ABSENT) -> np.ndarray:
        """[fields] or [size] of one item, user or context. Raises: FeatureError for a field of the wrong type.

        tokenizer, padding_id: of tokens, see :class:`FeatureEncoder`.
        """
        if self.kind == "dense":
            return np.array([self._number(fields, column) for column in range(len(self.fields))], dtype="<f4")
        if self.kind == "sparse":
            values = [_first(fields.get(field)) for field in self.fields]
            return np.array([self.id_of(value, column) for column, value in enumerate(values)], dtype="<i4")
        value = fields.get(self.fields[0])
        if self.kind == "multi_hot":
            return self._padded([self.id_of(each) for each in self.kept(value)], in_front=self.padding == "front")
        if self.kind == "tokens":
            text = encodable(str(value or ""), self.fields[0]).decode()
            return self._padded(token_ids(tokenizer, text, self.size), in_front=False, with_id=padding_id)
        return self._vector(value)

    def kept(self, value: Any) -> Sequence[Any]:
        """Of a multi_hot: the last ``size`` of the listed values; without ``oov_buckets``, of those it knows."""
        listed = _listed(value)
        if self.oov_buckets:
            return listed[-self.size :]
        read = self.values_read(reversed(listed), len(listed))
        return [each for each in listed[len(listed) - read :] if self.id_of(each) != ABSENT]

    def values_read(self, from_last: Iterable[Any], count: int) -> int:
        """Of a multi_hot: how many of ``count`` listed values, the last first, are looked at until it is full."""
        if self.oov_buckets or count <= self.size:
            return min(count, self.size)
        known = (place for place, each in enumerate(from_last, 1) if self.id_of(each) != ABSENT)
        return next(itertools.islice(known, self.size - 1, None), count)

    def _number(self, fields: Fields, column: int) -> float:
        value = fields.get(self.fields[column])
        if value is None:
            return 0.0
        if not is_fp32(value) or (self.log1p and value <= -1):
            wanted = "a finite number above -1" if self.log1p else "a finite number"
            raise FeatureError(f"field '{self.fields[column]}': found {shown(value)}, wanted {wanted} or null")
        number = math.log1p(value) if self.log1p else value
        number = (number - (self.mean[column] if self.mean else 0.0)) / (self.std[column] if self.std else 1.0)
        if not is_fp32(number):
            raise FeatureError(
                f"field '{self.fields[column]}': found {shown(value)}, which is {number} by the recipe's mean and std, "
                "wanted what FP32 holds"
            )
        return number

    def _padded(self, ids: Sequence[int], *, in_front: bool, with_id: int = ABSENT) -> np.ndarray:
        padded = np.full(self.size, with_id, dtype="<i4")
        if ids:
            padded[slice(-len(ids), None) if in_front else slice(len(ids))] = ids
        return padded

    def _vector(self, value: Any) -> np.ndarray:
        if value is None:
            return np.zeros(self.size, dtype="<f4")
        try:
            with np.errstate(over="ignore"):  # an infinity is refused below
                vector = np.asarray(value, dtype="<f4")
        except (TypeError, ValueError, OverflowError) as error:
            raise FeatureError(f"field '{self.fields[0]}': found {shown(value)}, wanted {self.size} numbers") from error
        if vector.shape != (self.size,) or not np.isfinite(vector).all():
            raise FeatureError(
                f"field '{self.fields[0]}': found shape {list(vector.shape)}"
                f"{'' if np.isfinite(vector).all() else ' with values that are not finite'}, "
                f"wanted {self.size} finite numbers"
            )
        return vector


def dense(name: str, fields: Sequence[str], source: Source = "item", **settings: Any) -> Feature:
    """FP32 [rows, fields]; see :class:`Feature`."""
    return Feature(name, "dense", tuple(fields), source, **_renamed(settings))


def sparse(name: str, fields: Sequence[str], source: Source = "item", **settings: Any) -> Feature:
    """INT32 [rows, fields]; see :class:`Feature`."""
    return Feature(name, "sparse", tuple(fields), source, **_renamed(settings))


def multi_hot(name: str, field: str, source: Source, size: int, **settings: Any) -> Feature:
    """INT32 [rows, size]; see :class:`Feature`."""
    return Feature(name, "multi_hot", (field,), source, size, **_renamed(settings))


def bag(name: str, field: str, source: Source, size: int, **settings: Any) -> Feature:
    """The name of :func:`multi_hot` until 0.1; goes with 0.3."""
    warnings.warn("builders.features.bag is now called multi_hot", FutureWarning, stacklevel=2)
    return multi_hot(name, field, source, size, **settings)


def history(name: str, size: int, vocabulary: Sequence[str], **settings: Any) -> Feature:
    """INT32 [1, size]: the latest items that the user took, oldest first, padded in front (``padding="behind"``)."""
    return Feature(
        name, "multi_hot", ("item_id",), "history", size, vocabularies=(tuple(vocabulary),), **_renamed(settings)
    )


def tokens(name: str, source: Source, size: int, field: str = "query") -> Feature:
    """INT32 [rows, length]; see :class:`Feature`. An item's field is named, such as "title"."""
    return Feature(name, "tokens", (field,), source, size)


def vector(name: str, field: str, size: int, source: Source = "item") -> Feature:
    """FP32 [rows, size]; see :class:`Feature`."""
    return Feature(name, "vector", (field,), source, size)


def token_ids(tokenizer: Any, text: str, limit: int) -> list[int]:
    """At most ``limit`` token ids of ``text``, without special tokens."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids[:limit]


class FeatureEncoder:
    """Makes the tensors of declared features.

    Args:
        features: in the order of the network's inputs, distinct names.
        tokenizer: of the ``tokenizers`` library, without padding and truncation; only where a feature has tokens.
        fallback_field: raw item field, a number, that ranks items for a user without a known history.
        length_bucket: token sequences are padded to a multiple of it.
        padding_id: token id that stands for no token: the tokenizer's own, whatever id that is. A text that is absent
            is all padding.

    Raises:
        FeatureError: two features have the same name, or tokens are declared without a tokenizer.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        tokenizer: Any = None,
        *,
        fallback_field: str = "",
        length_bucket: int = 8,
        padding_id: int = ABSENT,
    ) -> None:
        names = [feature.name for feature in features]
        if len(set(names)) != len(names) or FALLBACK in names:
            raise FeatureError(f"features {', '.join(names)}: wanted distinct names, none of them '{FALLBACK}'")
        if tokenizer is None and any(feature.kind == "tokens" for feature in features):
            raise FeatureError("a feature has tokens, but there is no tokenizer; name a backbone or a tokenizer file")
        self.features = tuple(features)
        self.tokenizer = tokenizer
        self.fallback_field = fallback_field
        self.length_bucket = length_bucket
        self.padding_id = padding_id
        self._records = {source: self._record_dtype(source) for source in STORED}
        self._absent = {source: self._absent_record(source) for source in STORED}
        self._history = next((feature for feature in features if feature.source == "history"), None)

    def to_json(self) -> str:
        """Everything but the tokenizer; stable text. What came later stands there only where it is set, so that
        records stored before still belong to it."""
        padding_id = {"padding_id": self.padding_id} if self.padding_id != ABSENT else {}
        return json.dumps(
            {
                "length_bucket": self.length_bucket,
                "fallback_field": self.fallback_field,
                **padding_id,
                "features": [_settings(feature) for feature in self.features],
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str, tokenizer: Any = None) -> FeatureEncoder:
        """Inverse of :meth:`to_json`. Raises: FeatureError."""
        try:
            content = json.loads(text)
            features = cls.features_from_json(content["features"])
            settings = {name: content[name] for name in ("fallback_field", "length_bucket")}
        except (TypeError, KeyError, ValueError) as error:
            raise FeatureError(f"not features ({error}); run 'make repository' or train anew") from error
        return cls(features, tokenizer, **settings, padding_id=content.get("padding_id", ABSENT))

    @staticmethod
    def features_from_json(content: Sequence[dict[str, Any]]) -> tuple[Feature, ...]:
        """The declarations alone. Raises: TypeError, KeyError or FeatureError where they are broken."""
        return tuple(_feature(each) for each in content)

    def of(self, source: Source) -> tuple[Feature, ...]:
        """The features that come from ``source``."""
        return tuple(feature for feature in self.features if feature.source == source)

    # ------------------------------------------------------------ what the store keeps
    def item_record(self, fields: Fields) -> bytes:
        """An item's stored features. Raises: FeatureError naming the field at fault."""
        return self._record("item", fields)

    def user_record(self, fields: Fields) -> bytes:
        """A user's stored features. Raises: FeatureError naming the field at fault."""
        return self._record("user", fields)

    def _record_dtype(self, source: Source) -> np.dtype[Any]:
        columns: list[tuple[Any, ...]] = [
            (feature.name, "<f4" if feature.dtype == "FP32" else "<i4", (feature.size or len(feature.fields),))
            for feature in self.of(source)
        ]
        return np.dtype(columns + ([(FALLBACK, "<f4")] if source == "item" else []))

    def _record(self, source: Source, fields: Fields) -> bytes:
        record = np.zeros(1, dtype=self._records[source])
        for feature in self.of(source):
            record[feature.name] = self.encoded(feature, fields)
        if source == "item" and self.fallback_field:
            record[FALLBACK] = self._fallback(fields.get(self.fallback_field))
        return record.tobytes()

    def _fallback(self, value: Any) -> float:
        if value is not None and not is_fp32(value):
            raise FeatureError(
                f"field '{self.fallback_field}': found {shown(value)}, wanted a finite number or null: it ranks items "
                "for a user without a known history"
            )
        return float(value or 0.0)

    def encoded(self, feature: Feature, fields: Fields) -> np.ndarray:
        """One feature's row, with this encoder's tokenizer; see :meth:`Feature.encode`."""
        return feature.encode(fields, self.tokenizer, self.padding_id)

    # ------------------------------------------------------------ what a network takes
    def candidate_tensors(self, records: Sequence[bytes | None]) -> dict[str, np.ndarray]:
        """Name => [candidates, ...]; absent where there is no record; token sequences cut to the longest's bucket."""
        stored = self._stacked("item", records)
        return {feature.name: self._column(stored, feature) for feature in self.of("item")}

    def request_tensors(
        self,
        *,
        query: str = "",
        history: Sequence[str] = (),
        user: bytes | None = None,
        context: Fields | None = None,
    ) -> dict[str, np.ndarray]:
        """Name => [1, ...] of what the request has. user: a record, None for an unknown one. Raises: FeatureError."""
        stored = self._stacked("user", [self.user_record({}) if user is None else user])
        tensors = {feature.name: self._column(stored, feature) for feature in self.of("user")}
        raw: dict[Source, Fields] = {
            "query": {"query": query},
            "history": {"item_id": list(history)},
            "context": context or {},
        }
        for source, fields in raw.items():
            for feature in self.of(source):
                row = self.encoded(feature, fields)[None, :]
                tensors[feature.name] = self._cut(row) if feature.kind == "tokens" else row
        return tensors

    def events_read(self, events: Sequence[bytes]) -> list[str]:
        """The latest events of a history, oldest first: as many as its features look at. events: ids in UTF-8."""
        read = 0
        for feature in self.of("history"):
            from_last = (event.decode() for event in reversed(events))
            read = max(read, feature.values_read(from_last, len(events)))
        return [event.decode() for event in events[len(events) - read :]]

    def fallback_scores(self, records: Sequence[bytes | None], history: Sequence[str]) -> np.ndarray:
        """FP32 [candidates]: each item's fallback field where the history holds no known item; else NaN.

        All NaN for a network that reads no history, or without a fallback field.
        """
        if not self.fallback_field or self._history is None or self._knows_some(history):
            return np.full(len(records), np.nan, dtype=np.float32)
        return np.ascontiguousarray(self._stacked("item", records)[FALLBACK])

    def _knows_some(self, history: Sequence[str]) -> bool:
        feature = self._history
        assert feature is not None
        return any(feature.knows(feature.id_of(item_id)) for item_id in history[-feature.size :])

    def _stacked(self, source: Source, records: Sequence[bytes | None]) -> np.ndarray:
        dtype = self._records[source]
        if dtype.itemsize == 0:
            return np.zeros(len(records), dtype=dtype)
        absent = self._absent[source]
        joined = b"".join([absent if record is None else record for record in records])
        if len(joined) != len(records) * dtype.itemsize:
            raise FeatureError(f"a stored {source} is not of {dtype.itemsize} bytes; fill the item store anew")
        return np.frombuffer(joined, dtype=dtype)

    def _absent_record(self, source: Source) -> bytes:
        """A record of padding alone: zeros, and the tokenizer's padding id in texts."""
        record = np.zeros(1, dtype=self._records[source])
        for feature in self.of(source):
            if feature.kind == "tokens":
                record[feature.name] = self.padding_id
        return record.tobytes()

    def _column(self, stored: np.ndarray, feature: Feature) -> np.ndarray:
        column = np.array(stored[feature.name], order="C")  # a copy: what a buffer holds is not writable
        return self._cut(column) if feature.kind == "tokens" else column

    def _cut(self, ids: np.ndarray) -> np.ndarray:
        """INT32 [rows, length]: without the columns that only pad, but a multiple of the bucket, at least one."""
        used = np.flatnonzero((ids != self.padding_id).any(axis=0))
        longest = int(used[-1]) + 1 if used.size else 1
        length = -(-longest // self.length_bucket) * self.length_bucket
        if length > ids.shape[1]:
            return np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=self.padding_id)
        return np.ascontiguousarray(ids[:, :length])


def is_fp32(value: Any) -> bool:
    """Whether it is a number, or true or false, that FP32 holds: no infinity, no NaN."""
    return isinstance(value, (int, float)) and bool(abs(value) <= FP32_MAX)


def shown(value: Any) -> str:
    """A raw value as an error quotes it: at most 60 characters."""
    try:
        return f"{value!r:.{SHOWN_CHARACTERS}}"
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list in a list without end
        return f"a {type(value).__name__} too large to show"


def encodable(text: str, field: str) -> bytes:
    """As UTF-8. Raises: FeatureError: it has half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise FeatureError(f"field '{field}': found {text!a:.{SHOWN_CHARACTERS}}, wanted text of UTF-8") from None


def _renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``buckets``, as ``oov_buckets`` was called until 0.1, under its name of now; goes with 0.3."""
    if "buckets" not in settings:
        return dict(settings)
    if "oov_buckets" in settings:
        raise FeatureError("'buckets' is the name of 'oov_buckets' until 0.1, and both are given; keep one")
    warnings.warn("a feature's 'buckets' is now called 'oov_buckets'", FutureWarning, stacklevel=3)
    return {"oov_buckets" if name == "buckets" else name: value for name, value in settings.items()}


def _settings(feature: Feature) -> dict[str, Any]:
    settings = dataclasses.asdict(feature)
    if feature.padding == "front":
        del settings["padding"]
    return settings


def _feature(content: dict[str, Any]) -> Feature:
    """A feature as :meth:`FeatureEncoder.to_json` writes it, or as it was written until 0.1."""
    if "buckets" in content:
        kind = "multi_hot" if content["kind"] == "bag" else content["kind"]
        content = {"oov_buckets": content["buckets"], **content, "kind": kind}
        del content["buckets"]
    lists = {name: tuple(content[name]) for name in ("fields", "mean", "std")}
    vocabularies = tuple(tuple(values) for values in content["vocabularies"])
    return Feature(**{**content, **lists, "vocabularies": vocabularies})


def _first(value: Any) -> Any:
    """A category path is a list from the widest on: its first counts."""
    return (value[0] if value else None) if isinstance(value, (list, tuple)) else value


def _listed(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, (list, tuple)) else (value,)
