"""The client's copy of the endpoints' contracts, and how a server's model compares with one.

`contracts.json` is generated with the model repository; nothing here repeats a dtype, shape or limit that it holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from importlib import resources
from typing import Any

import numpy as np

from ._errors import ContractMismatch

FREE = -1

# BYTES arrays hold Python bytes objects.
_NUMPY_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "BYTES": np.dtype(np.object_),
}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a model: Triton's dtype name, shape with -1 for each free dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class ListRules:
    """What an endpoint's own rules do to a list, where a request brings none in their place.

    Attributes:
        in_stock_only: items may be left out.
        pinned: ids of items that stand where the recipe says, whatever their scores.
        max_per_brand: items of a brand among the first; further ones stand behind them. 0 = no limit.
        default_top_k: items of a list where the request asks for no number; 0 = all.
    """

    in_stock_only: bool = False
    pinned: frozenset[str] = frozenset()
    max_per_brand: int = 0
    default_top_k: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """The interface of a model; `lists`: its own rules, None where it does not say."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lists: ListRules | None = None


@dataclass(frozen=True)
class Limits:
    """Of every endpoint's requests.

    Attributes:
        max_candidates: items of one request.
        max_item_id_bytes, max_query_bytes: of the UTF-8 text; the first also of a user's id.
        max_history_events: items of a history.
        max_context_bytes: of the JSON text of a request's or an item's raw fields.
        max_text_bytes: of an item's or a document's UTF-8 text.
        max_attribute_bytes: of a boost's attribute=value.
        max_boosts: of one request.
        max_boost_amount: in either direction.
        max_similar: items of one answer of `similar`.
        unscored: FP32 score of an item that the server could not score, the lowest finite one.
    """

    max_candidates: int
    max_item_id_bytes: int
    max_query_bytes: int
    max_history_events: int
    max_context_bytes: int
    max_text_bytes: int
    max_attribute_bytes: int
    max_boosts: int
    max_boost_amount: float
    max_similar: int
    unscored: np.float32


def check_served_model(name: str, served: ModelSpec, contract: ModelSpec) -> None:
    """Raise ContractMismatch, naming every tensor at fault, unless `served` does what `contract` says.

    An optional input may be missing: who uses it is told then. An optional output may be missing too.
    """
    there = {tensor.name for tensor in served.inputs}
    wanted = tuple(tensor for tensor in contract.inputs if tensor.name in there or not tensor.optional)
    differences = (
        *_differences("input", wanted, served.inputs),
        *_unknown_inputs(contract.inputs, served.inputs),
        *_differences("output", _plain(outputs_there(contract, served)), _plain(served.outputs)),
    )
    if differences:
        listed = "".join(f"\n  {difference}" for difference in differences)
        raise ContractMismatch(
            f"model '{name}' on the server differs from this client's contract:{listed}\n"
            "Upgrade tritonrank-client if the server is newer, or publish the model repository again "
            "('make repository') if the client is.",
            differences,
        )


def array_fault(tensor: TensorSpec, array: np.ndarray) -> str | None:
    """What makes `array` unfit to be `tensor`, found and wanted; None where nothing does."""
    if array.dtype != _NUMPY_DTYPES[tensor.dtype]:
        return f"{tensor.name}: found dtype {array.dtype}, wanted {_NUMPY_DTYPES[tensor.dtype]} ({tensor.dtype})"
    if not _fits(array.shape, tensor.shape):
        return f"{tensor.name}: found shape {_shown(array.shape)}, wanted {_shown(tensor.shape)}"
    return None


def outputs_there(contract: ModelSpec, served: ModelSpec) -> tuple[TensorSpec, ...]:
    """The outputs that a request asks for: the contract's, without optional ones that `served` does not give."""
    there = {tensor.name for tensor in served.outputs}
    return tuple(tensor for tensor in contract.outputs if tensor.name in there or not tensor.optional)


def _plain(outputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """A server's configuration has the word optional for inputs alone."""
    return tuple(replace(tensor, optional=False) for tensor in outputs)


def list_rules(text: str, name: str) -> ListRules:
    """What the parameter `answer` of the server's model `name` says: JSON. Raises: ContractMismatch."""
    try:
        return _list_rules(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ContractMismatch(
            f"model '{name}' on the server says of its lists {text[:200]!r}, which this client cannot read ({error}); "
            "upgrade tritonrank-client, or publish the model repository again ('make repository')",
            (f"parameter 'answer': {error}",),
        ) from error


def unserved(names: Iterable[str], served: ModelSpec) -> list[str]:
    """Those of the inputs that `served` does not have."""
    there = {tensor.name for tensor in served.inputs}
    return [name for name in names if name not in there]


def _tensors(items: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item["name"], item["dtype"], _shape(item["dims"]), item["optional"]) for item in items)


def _shape(dims: list[int | str]) -> tuple[int, ...]:
    return tuple(FREE if isinstance(dim, str) else dim for dim in dims)


def _differences(kind: str, wanted: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...]) -> list[str]:
    by_name = {tensor.name: tensor for tensor in found}
    return [
        f"{kind} '{tensor.name}': server has {_described(by_name.get(tensor.name))}, client wants {_described(tensor)}"
        for tensor in wanted
        if by_name.get(tensor.name) != tensor
    ]


def _unknown_inputs(known: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...]) -> list[str]:
    """Inputs that the server demands and this client does not send; optional ones and new outputs do no harm."""
    names = {tensor.name for tensor in known}
    return [
        f"input '{tensor.name}': server demands {_described(tensor)}, client does not know it"
        for tensor in found
        if tensor.name not in names and not tensor.optional
    ]


def _described(tensor: TensorSpec | None) -> str:
    if tensor is None:
        return "none"
    return f"{tensor.dtype} {_shown(tensor.shape)}{' optional' if tensor.optional else ''}"


def _shown(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("any" if size == FREE else str(size) for size in shape) + "]"


def _fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(found) == len(wanted) and all(size in (FREE, actual) for actual, size in zip(found, wanted, strict=True))


def _list_rules(answer: dict[str, Any]) -> ListRules:
    if answer["score_order"] != "descending":
        raise ValueError(f"score_order: found {answer['score_order']!r}, wanted 'descending'")
    rules = answer["rules"]
    return ListRules(
        in_stock_only=bool(rules.get("in_stock_only", False)),
        pinned=frozenset(rules.get("pins", {})),
        max_per_brand=int(rules.get("max_per_brand", 0)),
        default_top_k=int(answer["default_top_k"]),
    )


def _model(contract: dict[str, Any]) -> ModelSpec:
    answer = contract["parameters"].get("answer")
    lists = None if answer is None else _list_rules(answer)
    return ModelSpec(_tensors(contract["inputs"]), _tensors(contract["outputs"]), lists)


def _limits(contracts: Iterable[dict[str, Any]]) -> Limits:
    found = {name: value for contract in contracts for name, value in contract["parameters"].items()}
    found["unscored"] = np.float32(found["unscored"])
    return Limits(**{field.name: found[field.name] for field in fields(Limits)})


_CONTRACTS = json.loads(resources.files(__package__).joinpath("contracts.json").read_text(encoding="utf-8"))
ENDPOINTS = {name: _model(contract) for name, contract in _CONTRACTS.items()}
"""The endpoints that this client calls, each with every optional input that some ranker reads."""
RANK, RECOMMEND, SIMILAR = ENDPOINTS["rank"], ENDPOINTS["recommend"], ENDPOINTS["similar"]
LIMITS = _limits(_CONTRACTS.values())
