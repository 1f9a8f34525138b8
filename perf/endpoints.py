"""The endpoints that a repository publishes, and the requests that judged queries make of them."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tritonrank_client import Overloaded, RankClient, RankedList

from builders import model_config
from builders.build import PROJECT, Places
from builders.datasets import JudgedQueries
from builders.recipe import Recipe, Variant
from builders.repository import CONFIG, served_variant
from perf.errors import PerfError
from server import TritonServer

RANK = "rank"
TIMEOUT_S = 300.0
"""Quality is judged, not speed: a request may take this long."""
ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One variant as served."""

    recipe: Recipe
    variant: Variant

    @property
    def model(self) -> str:
        """Name of the scorer, such as ``cross_encoder_int8_onnx``."""
        return self.recipe.model_name(self.variant)

    @property
    def name(self) -> str:
        """``rank_<model>``."""
        return f"{RANK}_{self.model}"

    @property
    def is_reference(self) -> bool:
        """Whether the other variants of its ranker are compared with this one."""
        return self.variant == self.recipe.variants[0]

    @property
    def is_fp32(self) -> bool:
        """Whether it must agree with torch."""
        return self.variant.int8 is None

    @property
    def split(self) -> str:
        """Which queries may judge it: "test" or "all"."""
        return "test" if self.recipe.trained_on_judgements else "all"


def published_endpoints(recipes: Mapping[str, Recipe], places: Places = PROJECT) -> list[Endpoint]:
    """The variants of the recipes that ``places.repository`` serves, in the order of the recipes.

    Raises:
        PerfError: there is none.
    """
    endpoints = [Endpoint(recipe, variant) for recipe in recipes.values() for variant in recipe.variants]
    published = [endpoint for endpoint in endpoints if (places.repository / endpoint.name / CONFIG).is_file()]
    if not published:
        raise PerfError(
            f"{places.repository}: no endpoint of {', '.join(recipes) or 'any recipe'}; run 'make repository'"
        )
    return published


def published_model(places: Places = PROJECT) -> str:
    """The scorer that ``rank`` serves. Raises: RepositoryError."""
    return served_variant(places.repository)


def served_onnx_files(endpoint: Endpoint, places: Places = PROJECT) -> list[Path]:
    """The ONNX files of the versions that the endpoint names, in the order in which a request passes them."""
    config = model_config.parse((places.repository / endpoint.name / CONFIG).read_text(encoding="utf-8"))
    folders = [
        places.repository / step.model_name / str(step.model_version) for step in config.ensemble_scheduling.step
    ]
    return [folder / "model.onnx" for folder in folders if (folder / "model.onnx").is_file()]


@contextlib.contextmanager
def serving(names: Sequence[str], places: Places = PROJECT) -> Iterator[TritonServer]:
    """A Triton of our own with these endpoints, on free ports."""
    with TritonServer(
        places.repository, list(names), store=places.item_store, grpc_port=0, http_port=0, metrics_port=0
    ) as server:
        yield server


def rank_patiently(client: RankClient, query: str, item_ids: Sequence[str]) -> RankedList:
    """Rank all items; asks again when the server refuses for load, since a busy machine is no matter of quality.

    Raises:
        TritonRankError: any other error, or refused ``ATTEMPTS`` times.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return client.rank(query, item_ids, timeout_s=TIMEOUT_S)
        except Overloaded:
            time.sleep(0.5)
    return client.rank(query, item_ids, timeout_s=TIMEOUT_S)


def first_queries(judged: JudgedQueries, count: int) -> JudgedQueries:
    """The first ``count`` test queries: the smallest set that may judge every ranker."""
    test = judged.subset("test")
    kept = dict(list(test.queries.items())[:count])
    return JudgedQueries(kept, judged.products, {query_id: judged.judgements[query_id] for query_id in kept})
