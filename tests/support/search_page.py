"""A small shop, and a repository that ranks it, for the search page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from builders.core.contract import HISTORY, ITEM_IDS, QUERY, RANKED_IDS, SCORES, Contract, Tensor
from builders.data.beir import Product, Request
from builders.publish import model_config, pbtxt
from clients.examples.search.first_stage import Customers
from tests.support.repositories import python_model, write_model
from tests.support.small_repository import seal

SNEAKY = '<img src="x" onerror="document.title = 1"> red mug'
"""A title that must be shown as it is."""
UNKNOWN = "P00"
"""The item that no ranker knows."""
PRODUCTS = {
    product.item_id: product
    for product in (
        *(
            Product(f"P{number:02}", "red mug" + " large" * (number % 5), brand="Acme", price=number + 0.5)
            for number in range(1, 31)
        ),
        Product(UNKNOWN, "red mug large large", rating=4.5, rating_count=1200),
        Product("P31", SNEAKY),
        Product("P32", "GREEN TEAPOT"),
    )
}
CUSTOMERS = Customers(PRODUCTS, {"7": Request(history=("P05", "P32", "P03"), user_id="7")})

# An item's score is its number, or what is left to 100: the best are the last by name, or the first.
_IDS = f"tensor('{ITEM_IDS.name}')"
_ORDER = f"""
ids = {_IDS}
scores = np.array([{{sign}} * int(item[1:] or 0) for item in ids], np.float32)
scores[ids == b'{UNKNOWN}'] = np.finfo(np.float32).min
order = np.argsort(-scores, kind='stable')
"""
_OUTPUTS = {RANKED_IDS.name: "ids[order]", SCORES.name: "scores[order]"}


def write_repository(repository: Path) -> None:
    """``rank`` and ``recommend`` by falling numbers, ``rank_rising_fp32_onnx`` by rising ones."""
    _write(repository, "rank", "falling_fp32_onnx", QUERY, sign=1)
    _write(repository, "rank_rising_fp32_onnx", "rising_fp32_onnx", QUERY, sign=-1)
    _write(repository, "recommend", "customers_fp32_onnx", HISTORY, sign=1)
    seal(repository)


def _write(repository: Path, endpoint: str, model: str, asked: Tensor, sign: int) -> None:
    contract = Contract(model, (asked, ITEM_IDS), (RANKED_IDS, SCORES))
    step = model_config.python_config(contract)
    ensemble = model_config.ensemble_config(dataclasses.replace(contract, name=endpoint), [(step, 1)])
    write_model(repository, model, pbtxt.render(step), python_model(_OUTPUTS, _ORDER.format(sign=sign)))
    write_model(repository, endpoint, pbtxt.render(ensemble))
