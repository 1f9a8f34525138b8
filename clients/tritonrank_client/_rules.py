"""Business rules of one request: their arrays, each checked, and what they may do to an answer.

The server says what each rule does and in which order they apply; see the kit's `postprocess/rules.py`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._contract import LIMITS, ListRules
from ._errors import InvalidRequest


@dataclass(frozen=True)
class Boost:
    """Adds `amount` to the score of each item whose stored `attribute` is `value`; a negative one buries.

    value: text; "true" or "false" of a boolean, "7" of a number.
    """

    attribute: str
    value: str
    amount: float


@dataclass(frozen=True)
class Rules:
    """Business rules. Of each, None leaves what the server's recipe says, and an empty one switches it off.

        Rules(in_stock_only=True)                               leave items out that are not in stock
        Rules(boosts={"brand=Acme": 0.2, "season=winter": -1})  raise one brand, bury a season
        Rules(boosts=[Boost("brand", "Acme", 0.2)])             the same, where a name holds "="
        Rules(pins={"B07": 1})                                  this item of the request first
        Rules(max_per_brand=2)                                  at most 2 items of a brand among the first top_k
        Rules(pins={}, max_per_brand=0)                         no pins and no limit, whatever the recipe says

    boosts: "attribute=value" => amount, or Boosts; at most 64, amounts from -1,000,000 to 1,000,000.
    pins: item id of the request => its position, 1 = first; distinct positions.
    """

    in_stock_only: bool | None = None
    boosts: Mapping[str, float] | Sequence[Boost] | None = None
    pins: Mapping[str, int] | None = None
    max_per_brand: int | None = None


RULE_OF_INPUT = {
    "in_stock_only": "in_stock_only",
    "boosted": "boosts",
    "boost_amounts": "boosts",
    "pinned_ids": "pins",
    "pinned_positions": "pins",
    "max_per_brand": "max_per_brand",
}


def rule_inputs(rules: Rules | None, item_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Inputs by name, of the rules that are not None. Raises: InvalidRequest."""
    if rules is None:
        return {}
    if not isinstance(rules, Rules):
        raise _fault(f"rules: found {type(rules).__name__}, wanted Rules or None")
    inputs: dict[str, np.ndarray] = {}
    if rules.in_stock_only is not None:
        inputs["in_stock_only"] = _flag(rules.in_stock_only)
    if rules.boosts is not None:
        inputs |= _boost_arrays(_boosts(rules.boosts))
    if rules.pins is not None:
        inputs |= _pin_arrays(rules.pins, item_ids)
    if rules.max_per_brand is not None:
        inputs["max_per_brand"] = np.array([_integer(rules.max_per_brand, "rules.max_per_brand", 0)], dtype=np.int32)
    return inputs


@dataclass(frozen=True)
class Allowed:
    """What rules may do to one answer.

    Attributes:
        may_leave_out: whether a filter may shorten it.
        pinned: ids that may stand anywhere, whatever their scores.
        limits_brands: whether items may stand behind the others although their scores are higher.
    """

    may_leave_out: bool = False
    pinned: frozenset[str] = frozenset()
    limits_brands: bool = False


def allowed(inputs: Mapping[str, np.ndarray], own: ListRules) -> Allowed:
    """By this request's rules, and by the endpoint's `own` where it brings none in their place."""
    in_stock_only = inputs.get("in_stock_only")
    pinned_ids = inputs.get("pinned_ids")
    max_per_brand = inputs.get("max_per_brand")
    return Allowed(
        own.in_stock_only if in_stock_only is None else bool(in_stock_only[0]),
        own.pinned if pinned_ids is None else frozenset(item_id.decode() for item_id in pinned_ids),
        bool(own.max_per_brand if max_per_brand is None else max_per_brand[0]),
    )


def _flag(value: Any) -> np.ndarray:
    if not isinstance(value, (bool, np.bool_)):
        raise _fault(f"rules.in_stock_only: found {value!r}, wanted True, False or None")
    return np.array([value], dtype=np.bool_)


def _boosts(boosts: Any) -> list[Boost]:
    if isinstance(boosts, Mapping):
        return [_boost_of(key, amount) for key, amount in boosts.items()]
    if isinstance(boosts, Iterable) and not isinstance(boosts, (str, bytes)):
        listed = list(boosts)
        if all(isinstance(boost, Boost) for boost in listed):
            return listed
    raise _fault(f"rules.boosts: found {type(boosts).__name__}, wanted a mapping or a sequence of Boost")


def _boost_of(key: Any, amount: Any) -> Boost:
    if not isinstance(key, str) or "=" not in key:
        raise _fault(f"rules.boosts: found {key!r}, wanted 'attribute=value'")
    attribute, _, value = key.partition("=")
    return Boost(attribute, value, amount)


def _boost_arrays(boosts: list[Boost]) -> dict[str, np.ndarray]:
    if len(boosts) > LIMITS.max_boosts:
        raise _fault(f"rules.boosts: found {len(boosts)}, wanted at most {LIMITS.max_boosts}")
    keys = [_boost_key(boost) for boost in boosts]
    amounts = [_amount(boost) for boost in boosts]
    return {"boosted": np.array(keys, dtype=np.object_), "boost_amounts": np.array(amounts, dtype=np.float32)}


def _boost_key(boost: Boost) -> bytes:
    for part in (boost.attribute, boost.value):
        if not isinstance(part, str) or not part:
            raise _fault(f"rules.boosts: found {boost}, wanted attribute and value as text that is not empty")
    if "=" in boost.attribute:
        raise _fault(f"rules.boosts: found {boost}, wanted an attribute without '='")
    try:
        key = f"{boost.attribute}={boost.value}".encode()
    except UnicodeEncodeError as error:
        raise _fault(f"rules.boosts: found {boost}, wanted text that UTF-8 can hold") from error
    if len(key) > LIMITS.max_attribute_bytes:
        raise _fault(f"rules.boosts: found {len(key)} bytes of UTF-8, wanted at most {LIMITS.max_attribute_bytes}")
    return key


def _amount(boost: Boost) -> float:
    limit = LIMITS.max_boost_amount
    number = isinstance(boost.amount, (int, float, np.number)) and not isinstance(boost.amount, bool)
    if not number or not math.isfinite(boost.amount) or abs(boost.amount) > limit:
        raise _fault(f"rules.boosts: found {boost}, wanted an amount from {-limit:,.0f} to {limit:,.0f}")
    return float(boost.amount)


def _pin_arrays(pins: Any, item_ids: Sequence[str]) -> dict[str, np.ndarray]:
    if not isinstance(pins, Mapping):
        raise _fault(f"rules.pins: found {type(pins).__name__}, wanted a mapping of item ids to positions")
    for stranger in set(pins).difference(item_ids):
        raise _fault(f"rules.pins: found {stranger!r}, wanted ids of item_ids")
    positions = [_integer(position, f"rules.pins[{item!r}]", 1, len(item_ids)) for item, position in pins.items()]
    if len(set(positions)) != len(positions):
        raise _fault(f"rules.pins: found positions {positions}, wanted distinct ones")
    ids = [item_id.encode() for item_id in pins]
    return {"pinned_ids": np.array(ids, dtype=np.object_), "pinned_positions": np.array(positions, dtype=np.int32)}


def _integer(value: Any, place: str, lowest: int, highest: int = int(np.iinfo(np.int32).max)) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or not lowest <= operator.index(value) <= highest:
        raise _fault(f"{place}: found {value!r}, wanted an integer from {lowest} to {highest}")
    return operator.index(value)


def _fault(message: str) -> InvalidRequest:
    return InvalidRequest(message, "rules")
