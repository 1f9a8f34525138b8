"""First stage, ranking server and explanations put together. Knows nothing of HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from builders.core.contract import RANK, RECOMMEND
from builders.core.errors import BuilderError
from builders.data.beir import Product, Request
from clients.examples.search.answers import Answer, Customer, Endpoint, Item, Start, Why
from clients.examples.search.first_stage import Catalogue, Customers
from clients.examples.search.ranking import PublishedEndpoint, Ranked, RankingServer

CURRENCIES = {RANK.name: "$", RECOMMEND.name: "£"}
"""Of the prices of the two data sets."""
BOUGHT_SHOWN = 6
NOTHING = Ranked([], [], 0.0)
"""Where the first stage finds nothing, the server is not asked."""

Explain = Callable[[str, Request, Product, Mapping[str, str]], Why]
"""Recipe, request, product and titles of the history => why the product is scored so. Raises: ExplainError."""


class UnknownChoice(BuilderError):
    """What was picked is not there: an endpoint, a customer, an item."""


class SearchService:
    """What the page asks for.

    Args:
        customers: None where none can be picked.
        note: which data it is.
        no_customers: why there are none.
    """

    def __init__(
        self,
        server: RankingServer,
        catalogue: Catalogue,
        explain: Explain,
        *,
        customers: Customers | None = None,
        examples: Sequence[str] = (),
        note: str = "",
        no_customers: str = "",
    ) -> None:
        self._server = server
        self._catalogue = catalogue
        self._explain = explain
        self._customers = customers or Customers({}, {})
        self._examples = list(examples)
        self._note = note
        self._no_customers = no_customers

    def start(self) -> Start:
        """What can be asked."""
        return Start(
            note=self._note,
            endpoints=[
                Endpoint(name=each.name, kind=each.kind, model=each.model) for each in self._server.endpoints.values()
            ],
            examples=self._examples,
            customers=[self._described(customer) for customer in self._customers.requests],
            no_customers=self._no_customers,
        )

    def search(self, query: str, endpoint: str) -> Answer:
        """Products with words of the query, and how the endpoint orders them.

        Raises: UnknownChoice; InvalidRequest for such a query.
        """
        self._endpoint(endpoint, RANK.name)
        started_s = time.perf_counter()
        found = self._catalogue.found(query)
        first_stage_ms = (time.perf_counter() - started_s) * 1e3
        return self._answer(endpoint, Request(query), found, self._catalogue.products, first_stage_ms)

    def recommend(self, customer: str, endpoint: str) -> Answer:
        """Popular products, and how the endpoint orders them for the customer. Raises: UnknownChoice."""
        self._endpoint(endpoint, RECOMMEND.name)
        request = self._customer(customer)
        started_s = time.perf_counter()
        found = self._customers.popular(customer)
        first_stage_ms = (time.perf_counter() - started_s) * 1e3
        return self._answer(endpoint, request, found, self._customers.products, first_stage_ms)

    def why(self, endpoint: str, item_id: str, *, query: str = "", customer: str = "") -> Why:
        """What makes the item's score for the query, or for the customer. Raises: UnknownChoice, ExplainError."""
        request = self._customer(customer) if customer else Request(query)
        kind, products = (
            (RECOMMEND.name, self._customers.products) if customer else (RANK.name, self._catalogue.products)
        )
        if item_id not in products:
            raise UnknownChoice(f"item '{item_id}' is not in the catalogue; search again")
        titles = {each: readable(products[each].title) for each in request.history if each in products}
        return self._explain(self._endpoint(endpoint, kind).recipe, request, products[item_id], titles)

    def ready(self, endpoint: str) -> bool:
        """Whether the server answers a request for the endpoint."""
        if endpoint not in self._server.endpoints:
            raise UnknownChoice(f"endpoint '{endpoint}' is not published here; load the page again")
        return self._server.ready(endpoint)

    def _answer(
        self,
        endpoint: str,
        request: Request,
        found: list[str],
        products: Mapping[str, Product],
        first_stage_ms: float,
    ) -> Answer:
        kind = self._server.endpoints[endpoint].kind
        ranked = self._server.ask(endpoint, request, found) if found else NOTHING
        return Answer(
            model=ranked.model,
            request_id=ranked.request_id,
            degraded=ranked.degraded,
            items={item_id: described(products[item_id], CURRENCIES[kind]) for item_id in found},
            first_stage=found,
            ranked=ranked.ids,
            scores=ranked.scores,
            times=ranked.times(first_stage_ms),
        )

    def _endpoint(self, name: str, kind: str) -> PublishedEndpoint:
        found = self._server.endpoints.get(name)
        if found is None or found.kind != kind:
            there = ", ".join(each.name for each in self._server.endpoints.values() if each.kind == kind) or "none"
            raise UnknownChoice(f"endpoint '{name}' is not published here, wanted one of {there}; load the page again")
        return found

    def _customer(self, customer: str) -> Request:
        if customer not in self._customers.requests:
            raise UnknownChoice(f"customer '{customer}' cannot be picked here; load the page again")
        return self._customers.requests[customer]

    def _described(self, customer: str) -> Customer:
        history = self._customers.requests[customer].history
        known = [item_id for item_id in reversed(history) if item_id in self._customers.products]
        titles = [readable(self._customers.products[item_id].title) for item_id in known[:BOUGHT_SHOWN]]
        return Customer(id=customer, bought=titles, items=len(history))


def described(product: Product, currency: str) -> Item:
    """For a reader."""
    price = "" if product.price is None else f"{currency}{product.price:,.2f}"
    rating = "" if product.rating is None else f"★ {product.rating:.1f}"
    ratings = f" ({product.rating_count:,})" if rating and product.rating_count else ""
    return Item(
        title=readable(product.title) or product.item_id,
        about=" · ".join(filter(None, (product.brand, price, rating + ratings))),
    )


def readable(title: str) -> str:
    """A title in capitals alone is put in small letters."""
    return title.strip().capitalize() if title.isupper() else title.strip()
