"""The page over a Triton of its own: everything put together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console

from builders.core.contract import ENDPOINTS, RECOMMEND
from builders.core.recipe import load_recipes
from builders.core.workspace import Workspace
from builders.data.find import DataSource, load_judged
from clients.examples.search.app import search_app, served
from clients.examples.search.first_stage import Catalogue, Customers
from clients.examples.search.prepare import prepare, purchases_of
from clients.examples.search.ranking import RankingServer, published_endpoints
from clients.examples.search.service import SearchService
from clients.examples.search.triton import LoadedOnce
from clients.examples.search.why import Explainer
from perf.endpoints import serving
from server import TritonServer

EXAMPLES = ("ugg slippers women", "weighted blanket without glass beads", "airpods 2", "red dog bowl")
"""Queries of ESCI to begin with; of other data the first test queries."""
CUSTOMERS = 40
NO_RECOMMENDER = "No customer can be picked: no endpoint recommends; 'make repository' builds some."


@contextlib.contextmanager
def running(
    workspace: Workspace, source: DataSource, console: Console, port: int = 0
) -> Iterator[tuple[TritonServer, str]]:
    """The server and the page's address, until the block ends; builds what is missing before.

    Args:
        port: of the page; 0 = a free one.

    Raises:
        DatasetError: the data holds no judged queries.
        NothingToServe, ServerError: see there.
    """
    judged = load_judged(source.folder)
    purchases, no_customers = purchases_of(source)
    prepare(judged, purchases, source, workspace, console)
    recipes = load_recipes()
    endpoints = published_endpoints(workspace.repository, recipes)
    if RECOMMEND.name not in {each.kind for each in endpoints.values()}:
        purchases, no_customers = None, no_customers or NO_RECOMMENDER
    names = [name for name in endpoints if name in ENDPOINTS] or list(endpoints)[:1]
    test_queries = judged.subset("test").queries.values()
    with serving(names, workspace) as server, contextlib.ExitStack() as opened:
        ranking = RankingServer(server.grpc_url, endpoints, LoadedOnce(server))
        opened.callback(ranking.close)
        service = SearchService(
            ranking,
            Catalogue(judged.products),
            Explainer(recipes),
            customers=None if purchases is None else Customers.of(purchases, CUSTOMERS),
            examples=[query for query in EXAMPLES if query in test_queries] or list(test_queries)[: len(EXAMPLES)],
            note=note_of(source, len(judged.products)),
            no_customers=no_customers,
        )
        yield server, opened.enter_context(served(search_app(service), port))


def note_of(source: DataSource, products: int) -> str:
    """For the page's foot."""
    made_up = " All of it is made up: a better order means nothing here." if source.generated else ""
    return f"{products:,} products can be found.{made_up}"
