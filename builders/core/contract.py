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

from builders.core.errors import BuilderError

# ---------------------------------------------------------------- limits of a request
MAX_CANDIDATES = 1024
"""Items of one request, at least 1."""
USUAL_CANDIDATES = 40
"""Of a search page's request: what is warmed up and checked for parity, beside the smallest and the largest."""
MAX_ITEM_ID_BYTES = 511
"""LMDB's key limit."""
MAX_QUERY_BYTES = 2048
"""A longer query is refused; a query of more than MAX_QUERY_TOKENS tokens is truncated."""

MAX_HISTORY_EVENTS = 10_000
"""A longer history is refused; a ranker reads as many of the latest events as its own features say."""
MAX_CONTEXT_BYTES = 4096
"""Of ``context`` and of each item's ``item_fields``."""
MAX_TEXT_BYTES = 32_768
"""Of each of ``item_texts``; what has more tokens than the ranker reads is truncated, and counted."""

# ---------------------------------------------------------------- limits of business rules and of similar items
MAX_BOOSTS = 64
"""Boosts of one request; each is compared with every candidate."""
MAX_ATTRIBUTE_BYTES = 511
"""Of one attribute=value."""
MAX_BOOST_AMOUNT = 1e6
"""Far above any score, so that a boost can put an item first, and far enough below what FP32 holds."""
MAX_SIMILAR = 1024
DEFAULT_SIMILAR = 10

# ---------------------------------------------------------------- limits of a token sequence
MAX_QUERY_TOKENS = 32
"""Word pieces of the query that are kept, special tokens not counted."""
MAX_LENGTH = 128
"""Tokens of one sequence, special tokens counted; the item is cut to what the query leaves."""
LENGTH_BUCKET = 8
"""Sequences of up to 128 tokens are padded to a multiple of this."""
LENGTH_STEPS = ((0, LENGTH_BUCKET), (128, 32), (512, 128))
"""(a, s): sequences of more than a tokens are padded to a multiple of s. Wider steps for longer sequences keep the
number of shapes small that a scorer warms up and prepares kernels for: 28 up to 512 tokens, 88 up to 8,192. Served
pre-processing reads them from its contract."""

# ---------------------------------------------------------------- limits of a scorer
MAX_ROWS_PER_RUN = 64
"""Rows that a scorer runs at once, whatever a request or the batcher brings: 1,024 rows of 64 tokens through a
6-layer encoder would otherwise take 1.9 GB."""
MAX_REQUESTS_PER_RUN = 8
"""Requests of one row each, such as the queries of a query encoder, that are joined: 64 of them take 0.22 s on two
cores, longer than a client waits by default, and on a CPU a row is no quicker in a larger run."""
MAX_TOKENS_PER_RUN = 2048
"""Rows times padded length that a scorer of token sequences runs at once; one row always runs. On a CPU larger runs
take more memory and more time a token: docs/explanation/batching.md has the figures."""

UNSCORED = -3.4028234663852886e38
"""Score of an item without one: the lowest finite FP32, since infinities are not JSON."""

Scope = Literal["per_request", "per_candidate"]
FREE = -1
DTYPES = ("BOOL", "INT8", "INT32", "INT64", "FP16", "FP32", "BYTES")
"""As Triton's protocol spells them."""


class ContractError(BuilderError):
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
        optional: whether a request may leave it out; of an output, whether a model may have none.
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


def padded_length(longest: int, maximum: int | None = None) -> int:
    """The length bucket of a batch whose longest sequence has ``longest`` tokens.

    Args:
        maximum: tokens that a sequence may have; the last bucket ends there, as the backbone's positions may.
    """
    step = length_step(longest)
    length = max(-(-longest // step), 1) * step
    return length if maximum is None else min(length, maximum)


def length_step(longest: int) -> int:
    """What the length of a batch whose longest sequence has ``longest`` tokens is a multiple of."""
    return next(step for above, step in reversed(LENGTH_STEPS) if longest > above or not above)


def length_buckets(maximum: int = MAX_LENGTH) -> tuple[int, ...]:
    """Every padded length that a scorer of sequences of at most ``maximum`` tokens can meet, shortest first."""
    return tuple(sorted({padded_length(longest, maximum) for longest in range(1, maximum + 1)}))


def rows_per_run(length: int) -> int:
    """Rows of ``length`` tokens that a scorer runs at once: at least 1, at most MAX_ROWS_PER_RUN."""
    return max(1, min(MAX_ROWS_PER_RUN, MAX_TOKENS_PER_RUN // max(length, 1)))


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
    "score of each ranked id, highest first but for pins and a brand limit; lowest finite FP32 = not scored",
    "per_candidate",
)
LEFT_OUT = Tensor("left_out", "INT32", (1,), "how many of item_ids a filter left out of the list", optional=True)
INPUT_IDS = Tensor("input_ids", "INT32", ("rows", "length"), "token ids, padded", "per_candidate")
ATTENTION_MASK = Tensor("attention_mask", "INT32", ("rows", "length"), "1 = token, 0 = padding", "per_candidate")
TOKEN_TYPE_IDS = Tensor("token_type_ids", "INT32", ("rows", "length"), "0 = query, 1 = item", "per_candidate")
SCORE = Tensor("score", "FP32", ("rows", 1), "one score a row, higher is better", "per_candidate")
KNOWN = Tensor("known", "BOOL", ("candidates",), "whether the item store knows the item", "per_candidate")
FALLBACK = Tensor(
    "fallback",
    "FP32",
    ("candidates",),
    "takes the ranker's score's place where it is not NaN: popularity, for a user without a known history",
    "per_candidate",
)

PROMPT_LENGTH = Tensor(
    "prompt_length",
    "INT32",
    ("rows", 1),
    "tokens at the start of the row that its vector leaves out: the prompt's; 0 = none",
    "per_candidate",
)
SOURCE = Tensor(
    "source",
    "INT32",
    ("candidates",),
    "the row of text_vectors that is the item's, for an item whose text the request brings; -1 = its stored vector",
    "per_candidate",
)

# ---------------------------------------------------------------- tensors of a user and of a request
HISTORY = Tensor("history", "BYTES", ("events",), "ids of the items that the user took, oldest first; may be empty")
USER_ID = Tensor("user_id", "BYTES", (1,), "whose stored features to use; absent = an unknown user's", optional=True)
CONTEXT = Tensor("context", "BYTES", (1,), "JSON object: raw fields of this request", optional=True)
ITEM_FIELDS = Tensor(
    "item_fields",
    "BYTES",
    ("candidates",),
    "per item a JSON object of raw fields in place of its stored features; empty = the stored ones",
    "per_candidate",
    optional=True,
)
ITEM_TEXTS = Tensor(
    "item_texts",
    "BYTES",
    ("candidates",),
    f"per item its text, UTF-8, at most {MAX_TEXT_BYTES} bytes, in place of what is stored; empty = the stored one",
    "per_candidate",
    optional=True,
)

# ---------------------------------------------------------------- tensors of business rules
IN_STOCK_ONLY = Tensor("in_stock_only", "BOOL", (1,), "leave items out that are not in stock", optional=True)
BOOSTED = Tensor(
    "boosted",
    "BYTES",
    ("boosts",),
    f"at most {MAX_BOOSTS} of attribute=value, UTF-8: items with it get the amount at the same place",
    optional=True,
)
BOOST_AMOUNTS = Tensor(
    "boost_amounts",
    "FP32",
    ("boosts",),
    "added to the score; negative buries; several of one item add up",
    optional=True,
)
PINNED_IDS = Tensor(
    "pinned_ids", "BYTES", ("pins",), "distinct ids of item_ids to put at fixed positions", optional=True
)
PINNED_POSITIONS = Tensor(
    "pinned_positions", "INT32", ("pins",), "distinct positions, 1 = first, at most the number of items", optional=True
)
MAX_PER_BRAND = Tensor(
    "max_per_brand", "INT32", (1,), "items of one brand among the first top_k; 0 = no limit", optional=True
)
RULE_INPUTS = (IN_STOCK_ONLY, BOOSTED, BOOST_AMOUNTS, PINNED_IDS, PINNED_POSITIONS, MAX_PER_BRAND)
"""Each absent = what the recipe says; see ``served/postprocess/rules.py`` for the order of application."""

# ---------------------------------------------------------------- tensors of similar items
ITEM_ID = Tensor("item_id", "BYTES", (1,), f"id of an item of the store, UTF-8, 1 to {MAX_ITEM_ID_BYTES} bytes")

ANSWER = "answer"
"""Parameter of an endpoint: what its lists may look like. Written into its configuration too, as JSON: clients read it
from there, and hold every list against it."""
ANY_LIST: dict[str, Any] = {"rules": {}, "default_top_k": 0, "score_order": "descending"}
"""Of an endpoint without rules of its own.

    rules: the recipe's, as ``postprocess`` has them; a request may bring its own in their place.
    default_top_k: items of a list where the request asks for no number; 0 = all.
    score_order: of the scores before pins and the brand limit move items.
"""

_LIMITS = {
    "max_candidates": MAX_CANDIDATES,
    "max_item_id_bytes": MAX_ITEM_ID_BYTES,
    "max_query_bytes": MAX_QUERY_BYTES,
    "max_history_events": MAX_HISTORY_EVENTS,
    "max_context_bytes": MAX_CONTEXT_BYTES,
    "max_text_bytes": MAX_TEXT_BYTES,
    "max_attribute_bytes": MAX_ATTRIBUTE_BYTES,
    "max_boosts": MAX_BOOSTS,
    "max_boost_amount": MAX_BOOST_AMOUNT,
    "unscored": UNSCORED,
}
RANK = Contract(
    name="rank",
    inputs=(QUERY, ITEM_IDS, TOP_K, *RULE_INPUTS),
    outputs=(RANKED_IDS, SCORES, LEFT_OUT),
    score="of the published ranker; comparable within one response only; higher is better",
    parameters={**_LIMITS, ANSWER: ANY_LIST},
)
"""The endpoint that a search service calls; every ``rank_<variant>`` has these tensors, and optional inputs where its
ranker reads more."""

RECOMMEND = Contract(
    name="recommend",
    inputs=(HISTORY, ITEM_IDS, TOP_K, *RULE_INPUTS),
    outputs=(RANKED_IDS, SCORES, LEFT_OUT),
    score="of the published ranker; comparable within one response only; higher is better",
    parameters={**_LIMITS, ANSWER: ANY_LIST},
)
"""The endpoint that ranks items for a user; every ``recommend_<variant>`` has these tensors, and optional inputs where
its ranker reads more."""

ENDPOINTS = {endpoint.name: endpoint for endpoint in (RANK, RECOMMEND)}

SIMILAR = Contract(
    name="similar",
    inputs=(
        ITEM_ID,
        dataclasses.replace(
            TOP_K, meaning=f"how many items to return, at most {MAX_SIMILAR}; absent or 0 = {DEFAULT_SIMILAR}"
        ),
    ),
    outputs=(RANKED_IDS, SCORES),
    score="cosine of the items' stored vectors, -1 to 1; higher is better",
    parameters={
        "max_item_id_bytes": MAX_ITEM_ID_BYTES,
        "max_similar": MAX_SIMILAR,
        "default_similar": DEFAULT_SIMILAR,
        "unscored": UNSCORED,
    },
)
"""The endpoint that finds the items nearest to one; a model, not an ensemble."""

_READ_BY_SOME = {
    RANK.name: (dataclasses.replace(HISTORY, optional=True), USER_ID, CONTEXT, ITEM_FIELDS, ITEM_TEXTS),
    RECOMMEND.name: (USER_ID, CONTEXT, ITEM_FIELDS),
    SIMILAR.name: (),
}


def client_contracts() -> str:
    """``clients/tritonrank_client/contracts.json``: each endpoint with every input that some ranker reads."""
    contracts = [
        dataclasses.replace(endpoint, inputs=(*endpoint.inputs, *_READ_BY_SOME[endpoint.name]))
        for endpoint in (RANK, RECOMMEND, SIMILAR)
    ]
    by_name = {contract.name: dataclasses.asdict(contract) for contract in contracts}
    return json.dumps(by_name, indent=2, ensure_ascii=False) + "\n"


def query_vector(width: int, rows: int | str = 1) -> Tensor:
    """FP32 [rows, width]: the query tower's output, a row a request."""
    return Tensor("query_vector", "FP32", (rows, width), "L2-normalized query vector")


def text_vectors(width: int) -> Tensor:
    """FP32 [rows, width]: of the query first, then of each item's text that the request brings."""
    return Tensor("text_vectors", "FP32", ("rows", width), "vectors of the query and of the given texts")


def item_vectors(width: int) -> Tensor:
    """FP32 [candidates, width]: from the item store; zeros where the item is unknown."""
    return Tensor("item_vectors", "FP32", ("candidates", width), "L2-normalized item vectors", "per_candidate")
