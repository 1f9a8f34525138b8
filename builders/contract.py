"""The floor: every tensor name, dtype, shape, limit and meaning that more than one part relies on, named once.

Standard library only, imports nothing of the project. Across the process border a contract travels as
``contract.json`` (see :func:`Contract.to_json`), written beside each ``config.pbtxt``.

Knows nothing of torch, ONNX, Triton's configuration format or any dataset.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any, Literal

# ---------------------------------------------------------------- limits of a request
MAX_CANDIDATES = 1024
"""Items of one request, at least 1."""
MAX_ITEM_ID_BYTES = 511
"""LMDB's key limit."""
MAX_QUERY_BYTES = 2048
"""A longer query is refused; a query of more than MAX_QUERY_TOKENS tokens is truncated."""

# ---------------------------------------------------------------- limits of a token sequence
MAX_QUERY_TOKENS = 32
"""Word pieces of the query that are kept, special tokens not counted."""
MAX_LENGTH = 128
"""Tokens of one sequence, special tokens counted; the item is cut to what the query leaves."""
LENGTH_BUCKET = 8
"""Sequences are padded to a multiple of this."""

# ---------------------------------------------------------------- limits of a scorer
MAX_ROWS_PER_RUN = 128
"""Rows that a scorer runs at once, whatever a request or the batcher brings: 1,024 rows of 64 tokens through a
6-layer encoder would otherwise take 1.9 GB."""

UNSCORED = -3.4028234663852886e38
"""Score of an item without one: the lowest finite FP32, since infinities are not JSON."""

Scope = Literal["per_request", "per_candidate"]
FREE = -1
DTYPES = ("BOOL", "INT32", "INT64", "FP16", "FP32", "BYTES")
"""As Triton's protocol spells them."""


class ContractError(ValueError):
    """Something disagrees with a contract; the message says what was found, what was wanted and what to do."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a model's interface.

    Attributes:
        name: lower case, as in the ONNX graph and on the wire.
        dtype: one of :data:`DTYPES`.
        dims: named free dimensions (``"candidates"``) and fixed sizes (``384``), outermost first.
        meaning: one line for a reader.
        scope: sent once a request (query, user), or one row a candidate.
        optional: whether a request may leave it out.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    meaning: str
    scope: Scope = "per_request"
    optional: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ContractError(f"tensor '{self.name}': dtype '{self.dtype}', wanted one of {', '.join(DTYPES)}")
        if self.name != self.name.lower():
            raise ContractError(f"tensor '{self.name}': wanted a lower-case name")

    @property
    def shape(self) -> tuple[int, ...]:
        """``dims`` with -1 for every free dimension."""
        return tuple(FREE if isinstance(dim, str) else dim for dim in self.dims)


@dataclasses.dataclass(frozen=True)
class Contract:
    """The interface of one served model.

    Attributes:
        name: the model's or ranker's name.
        inputs, outputs: in the order of the graph.
        score: what the score means and which direction is better; empty for a model without one.
        parameters: facts that the served model needs besides its tensors (limits, special tokens, store version).
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    score: str = ""
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)

    def input(self, name: str) -> Tensor:
        """The input called ``name``. Raises: ContractError."""
        return _named(self.name, "input", self.inputs, name)

    def output(self, name: str) -> Tensor:
        """The output called ``name``. Raises: ContractError."""
        return _named(self.name, "output", self.outputs, name)

    def to_json(self) -> str:
        """Stable text: keys in declaration order, one trailing newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Inverse of :meth:`to_json`. Raises: ContractError when a field is missing, unknown or malformed."""
        try:
            fields = json.loads(text)
            fields["inputs"] = _tensors(fields["inputs"])
            fields["outputs"] = _tensors(fields["outputs"])
            return cls(**fields)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ContractError(
                f"contract.json is not a contract ({type(error).__name__}: {error}); run 'make repository'"
            ) from error


def padded_length(longest: int) -> int:
    """The length bucket of a batch whose longest sequence has ``longest`` tokens."""
    return max(-(-longest // LENGTH_BUCKET), 1) * LENGTH_BUCKET


def length_buckets(maximum: int = MAX_LENGTH) -> range:
    """Every padded length that a scorer can meet, shortest first."""
    return range(LENGTH_BUCKET, maximum + 1, LENGTH_BUCKET)


def _tensors(items: Iterable[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(**{**item, "dims": tuple(item["dims"])}) for item in items)


def _named(model: str, kind: str, tensors: tuple[Tensor, ...], name: str) -> Tensor:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise ContractError(f"{model}: no {kind} '{name}', it has {', '.join(tensor.name for tensor in tensors)}")


# ---------------------------------------------------------------- tensors that several models share
QUERY = Tensor("query", "BYTES", (1,), f"search query, UTF-8, 1 to {MAX_QUERY_BYTES} bytes")
ITEM_IDS = Tensor(
    "item_ids",
    "BYTES",
    ("candidates",),
    f"1 to {MAX_CANDIDATES} distinct item ids, UTF-8, 1 to {MAX_ITEM_ID_BYTES} bytes each, in first-stage order",
    "per_candidate",
)
TOP_K = Tensor("top_k", "INT32", (1,), "how many items to return; absent or 0 = all", optional=True)
RANKED_IDS = Tensor("ranked_ids", "BYTES", ("ranked",), "item ids, best first", "per_candidate")
SCORES = Tensor(
    "scores",
    "FP32",
    ("ranked",),
    "score of each ranked id, highest first; lowest finite FP32 = not scored",
    "per_candidate",
)
INPUT_IDS = Tensor("input_ids", "INT32", ("rows", "length"), "token ids, padded", "per_candidate")
ATTENTION_MASK = Tensor("attention_mask", "INT32", ("rows", "length"), "1 = token, 0 = padding", "per_candidate")
TOKEN_TYPE_IDS = Tensor("token_type_ids", "INT32", ("rows", "length"), "0 = query, 1 = item", "per_candidate")
SCORE = Tensor("score", "FP32", ("rows", 1), "one score a row, higher is better", "per_candidate")
KNOWN = Tensor("known", "BOOL", ("candidates",), "whether the item store knows the item", "per_candidate")

RANK = Contract(
    name="rank",
    inputs=(QUERY, ITEM_IDS, TOP_K),
    outputs=(RANKED_IDS, SCORES),
    score="of the published ranker; comparable within one response only; higher is better",
    parameters={
        "max_candidates": MAX_CANDIDATES,
        "max_item_id_bytes": MAX_ITEM_ID_BYTES,
        "max_query_bytes": MAX_QUERY_BYTES,
        "unscored": UNSCORED,
    },
)
"""The endpoint that a search service calls; every ``rank_<variant>`` has the same tensors."""


def query_vector(width: int, rows: int | str = 1) -> Tensor:
    """FP32 [rows, width]: the query tower's output, a row a request."""
    return Tensor("query_vector", "FP32", (rows, width), "L2-normalised query vector")


def item_vectors(width: int) -> Tensor:
    """FP32 [candidates, width]: from the item store; zeros where the item is unknown."""
    return Tensor("item_vectors", "FP32", ("candidates", width), "L2-normalised item vectors", "per_candidate")
