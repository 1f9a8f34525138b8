"""scores => ranked ids: heads combined, fallback, business rules, highest first, cut to top_k.

``rules.py`` says what each rule does and in which order they apply. A rule that the request does not bring is as the
recipe says; the item store is read only where a rule that needs attributes is active.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from rules import Attributes, Rules, arranged, best_first, combined
from served import Counter, InvalidArgument, ItemReader, ItemStore, answer_each, check_ids, read_contract, shown


class TritonPythonModel:
    """inputs and outputs: see ``builders.publish.postprocessing.postprocess_contract``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the contract; open the store where the recipe's own rules need it.

        Raises: RuntimeError when they do and the store has no attributes.
        """
        contract = read_contract(args)
        self.parameters = contract["parameters"]
        self.defaults = self.parameters["rules"]
        optional = [tensor["name"] for tensor in contract["inputs"] if tensor["optional"]]
        self.rule_inputs = [name for name in optional if name != "top_k"]
        self.unscored = Counter(
            "tritonrank_unscored_items_total", "Known candidates whose score was not a number", args["model_name"]
        )
        self.store: ItemStore | None = None
        self.items: ItemReader | None = None
        if default_rules(self.defaults, []).read_attributes:
            self.open_attributes()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; see :func:`served.answer_each`."""
        return answer_each(requests, self.answer, pb_utils.Logger)

    def answer(self, request: Any) -> list[Any]:
        """ranked_ids and scores, both [ranked], and left_out [1]."""
        item_ids = pb_utils.get_input_tensor_by_name(request, "item_ids").as_numpy()
        scores = self.scores(request)
        count = top_k(request, len(item_ids))
        given = given_rules(request, self.rule_inputs)
        if not given and not any(self.defaults.values()):
            order, left_out = best_first(scores)[:count], 0
        else:
            rules = requested_rules(given, self.defaults, item_ids.tolist(), self.parameters)
            attributes = self.attributes(item_ids.tolist()) if rules.read_attributes else []
            order, scores, left_out = arranged(scores, self.parameters["unscored"], rules, attributes, count)
        return [
            pb_utils.Tensor("ranked_ids", item_ids[order]),
            pb_utils.Tensor("scores", scores[order]),
            pb_utils.Tensor("left_out", np.array([left_out], dtype=np.int32)),
        ]

    def scores(self, request: Any) -> np.ndarray:
        """FP32 [candidates], all finite."""
        score = pb_utils.get_input_tensor_by_name(request, "score").as_numpy()
        known = pb_utils.get_input_tensor_by_name(request, "known").as_numpy()
        fallback = pb_utils.get_input_tensor_by_name(request, "fallback")
        scores = combined(score, self.parameters["head_weights"])
        if fallback is not None:
            scores = np.where(np.isnan(fallback.as_numpy()), scores, fallback.as_numpy())
        self.unscored.add(int((known & ~np.isfinite(scores)).sum()))
        return np.where(known & np.isfinite(scores), scores, np.float32(self.parameters["unscored"]))

    def attributes(self, item_ids: list[bytes]) -> list[Attributes]:
        """Of each item; {} where the store has none. Raises: RuntimeError when it has no attributes of any item."""
        if self.items is None:
            self.open_attributes()
        assert self.items is not None
        return [{} if stored is None else parsed(stored) for stored in self.items.read(item_ids)]

    def open_attributes(self) -> None:
        """Open the table; one that was not there may have been filled meanwhile. Raises: RuntimeError."""
        self.store = self.store or ItemStore()
        self.items = self.store.table(self.parameters["attributes"], self.parameters["attributes_version"])

    def finalize(self) -> None:
        """Close the store."""
        if self.store is not None:
            self.store.close()


@functools.lru_cache(maxsize=65_536)
def parsed(stored: bytes) -> Attributes:
    """A stored JSON object, not to be changed; of 1,024 items, parsing is three quarters of what rules cost."""
    attributes: Attributes = json.loads(stored)
    return attributes


def top_k(request: Any, candidates: int) -> int:
    """How many items to return: input ``top_k`` (INT32 [1]), all when absent or 0. Raises: InvalidArgument."""
    tensor = pb_utils.get_input_tensor_by_name(request, "top_k")
    if tensor is None:
        return candidates
    values = tensor.as_numpy().reshape(-1)
    if values.size != 1 or values[0] < 0:
        raise InvalidArgument(f"top_k: {values.tolist()}, wanted one number >= 0 (0 = all)")
    return min(int(values[0]) or candidates, candidates)


# ---------------------------------------------------------------- what a request asks
def given_rules(request: Any, names: list[str]) -> dict[str, list[Any]]:
    """Input name => its values, of those that the request brings."""
    tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in names}
    return {name: tensor.as_numpy().reshape(-1).tolist() for name, tensor in tensors.items() if tensor is not None}


def requested_rules(
    given: Mapping[str, list[Any]], defaults: Mapping[str, Any], item_ids: list[bytes], limits: Mapping[str, Any]
) -> Rules:
    """The recipe's rules with those of the request in their place. Raises: InvalidArgument."""
    rules = default_rules(defaults, item_ids)
    in_stock_only, max_per_brand = given.get("in_stock_only"), given.get("max_per_brand")
    boosts = _pairs(given, "boosted", "boost_amounts")
    pins = _pairs(given, "pinned_ids", "pinned_positions")
    return Rules(
        rules.in_stock_only if in_stock_only is None else in_stock_only[0],
        rules.boosts if boosts is None else _boosts(boosts, limits),
        rules.pins if pins is None else _pins(pins, item_ids),
        rules.max_per_brand if max_per_brand is None else _limit(max_per_brand[0]),
    )


def default_rules(defaults: Mapping[str, Any], item_ids: list[bytes]) -> Rules:
    """The recipe's rules; its pins of items or positions that this request does not have do nothing."""
    rows = {item_id: row for row, item_id in enumerate(item_ids)}
    pins = {item_id.encode(): position for item_id, position in defaults["pins"].items()}
    return Rules(
        defaults["in_stock_only"],
        tuple((*key.split("=", 1), amount) for key, amount in defaults["boosts"].items()),
        {rows[item_id]: position for item_id, position in pins.items() if item_id in rows and position <= len(rows)},
        defaults["max_per_brand"],
    )


def _pairs(given: Mapping[str, list[Any]], first: str, second: str) -> list[tuple[bytes, Any]] | None:
    """Values of two inputs that belong together; None where the request brings neither."""
    if first not in given and second not in given:
        return None
    found = {name: str(len(given[name])) if name in given else "absent" for name in (first, second)}
    if found[first] != found[second]:
        raise InvalidArgument(
            f"{first}: {found[first]}, {second}: {found[second]}, wanted as many of one as of the other"
        )
    return list(zip(given[first], given[second], strict=True))


def _boosts(pairs: list[tuple[bytes, float]], limits: Mapping[str, Any]) -> tuple[tuple[str, str, float], ...]:
    if len(pairs) > limits["max_boosts"]:
        raise InvalidArgument(f"boosted: {len(pairs)} boosts, wanted at most {limits['max_boosts']}")
    check_ids([key for key, _ in pairs], "boosted", limits["max_attribute_bytes"])
    boosts = []
    for place, (key, amount) in enumerate(pairs):
        name, _, value = key.decode().partition("=")
        if not name or not value:
            raise InvalidArgument(f"boosted[{place}]: {shown(key.decode())}, wanted attribute=value")
        if not abs(amount) <= (limit := limits["max_boost_amount"]):
            raise InvalidArgument(f"boost_amounts[{place}]: {amount}, wanted a number from {-limit:.0f} to {limit:.0f}")
        boosts.append((name, value, amount))
    return tuple(boosts)


def _pins(pairs: list[tuple[bytes, int]], item_ids: list[bytes]) -> dict[int, int]:
    rows = {item_id: row for row, item_id in enumerate(item_ids)}
    pins: dict[int, int] = {}
    for place, (item_id, position) in enumerate(pairs):
        if item_id not in rows:
            stranger = shown(item_id.decode(errors="replace"))
            raise InvalidArgument(f"pinned_ids[{place}]: {stranger}, wanted one of item_ids")
        if not 1 <= position <= len(item_ids):
            raise InvalidArgument(f"pinned_positions[{place}]: {position}, wanted 1 to {len(item_ids)} (items asked)")
        if rows[item_id] in pins:
            raise InvalidArgument(f"pinned_ids[{place}]: {shown(item_id.decode())} a second time, wanted distinct ids")
        if position in pins.values():
            raise InvalidArgument(f"pinned_positions[{place}]: {position} a second time, wanted distinct positions")
        pins[rows[item_id]] = position
    return pins


def _limit(value: int) -> int:
    if value < 0:
        raise InvalidArgument(f"max_per_brand: {value}, wanted 0 (no limit) or more")
    return int(value)
