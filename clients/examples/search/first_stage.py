"""First stages: products whose titles hold words of the query, and the products that sell best."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from builders.data.beir import JudgedQueries, Product, Request
from builders.data.bm25 import TextIndex

CANDIDATES = 40
"""That a first stage hands over: as many as the kit's figures are measured with."""
LEAST_HISTORY = 3
"""Items that a customer who can be picked has bought."""


class Catalogue:
    """Products that are found by BM25 over their titles.

    Args:
        products: item id => product.
    """

    def __init__(self, products: Mapping[str, Product]) -> None:
        self.products = products
        self._ids = sorted(products)
        self._index = TextIndex([products[item_id].title for item_id in self._ids])

    def found(self, query: str, count: int = CANDIDATES) -> list[str]:
        """Ids of at most ``count`` products that hold a word of the query, best first; ties go by id."""
        scores = self._index.scores(query)
        rows = np.argsort(-scores, kind="stable")[:count]
        return [self._ids[row] for row in rows if scores[row] > 0]


@dataclasses.dataclass(frozen=True)
class Customers:
    """Who can be picked, and the shop that they buy in.

    Attributes:
        products: item id => product, the most popular first.
        requests: customer => what `recommend` is asked for them.
    """

    products: Mapping[str, Product]
    requests: Mapping[str, Request]

    @classmethod
    def of(cls, judged: JudgedQueries, count: int) -> Customers:
        """The first ``count`` customers of a purchase log that have bought something."""
        requests = map(judged.request, judged.queries)
        known = (request for request in requests if len(request.history) >= LEAST_HISTORY)
        return cls(judged.products, {each.user_id: each for each in itertools.islice(known, count)})

    def popular(self, customer: str, count: int = CANDIDATES) -> list[str]:
        """Ids of at most ``count`` products that the customer has not bought, the most popular first."""
        bought = {*self.requests[customer].history}
        return list(itertools.islice((item_id for item_id in self.products if item_id not in bought), count))
