"""The endpoints that a repository publishes, and the requests that judged queries make of them."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton
from tritonrank_client import Overloaded, RankClient, RankedList

from perf.errors import PerfError
from perf.kit.data import (
    CONTEXT,
    ENDPOINTS,
    HISTORY,
    PROJECT,
    RECOMMEND,
    USER_ID,
    JudgedQueries,
    Recipe,
    Request,
    Variant,
    Workspace,
)
from perf.kit.served import left_out, published_names, scorer_files, served_variant
from server import ServerTls, TritonServer

RANK = "rank"
TIMEOUT_S = 300.0
"""Quality is judged, not speed: a request may take this long."""
ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One variant as served.

    Attributes:
        kind: what a search service calls, "rank" or "recommend".
    """

    recipe: Recipe
    variant: Variant
    kind: str = RANK

    @property
    def model(self) -> str:
        """Name of the scorer, such as ``cross_encoder_int8_onnx``."""
        return self.recipe.model_name(self.variant)

    @property
    def name(self) -> str:
        """``rank_<model>`` or ``recommend_<model>``."""
        return f"{self.kind}_{self.model}"

    @property
    def is_reference(self) -> bool:
        """Whether the other variants of its ranker are compared with this one."""
        return self.variant == self.recipe.variants[0]

    @property
    def is_fp32(self) -> bool:
        """Whether it must agree with torch."""
        return self.variant.exact

    @property
    def split(self) -> str:
        """Which queries may judge it: "test" or "all"."""
        return "test" if self.recipe.trained_on_judgements else "all"


def published_endpoints(
    recipes: Mapping[str, Recipe],
    workspace: Workspace = PROJECT,
    data: str | None = "judged",
    say: Callable[[str], object] = print,
) -> list[Endpoint]:
    """The variants of the recipes that were published in ``workspace.repository``, in the order of the recipes.

    Args:
        data: only of recipes that are judged on this; None = all.
        say: told in one line which others have a configuration there, from git, and are left out.

    Raises:
        PerfError: there is none.
    """
    endpoints = [
        Endpoint(recipe, variant, kind)
        for recipe in recipes.values()
        for variant in recipe.variants
        for kind in ENDPOINTS
        if data in (None, recipe.data)
    ]
    names = published_names(workspace.repository)
    published = [endpoint for endpoint in endpoints if endpoint.name in names]
    if line := left_out(workspace.repository, [endpoint.name for endpoint in endpoints]):
        say(line)
    if not published:
        raise PerfError(
            f"{workspace.repository}: no endpoint of {', '.join(recipes) or 'any recipe'}; run 'make repository'"
        )
    return published


def chosen_endpoints(variants: Sequence[str], endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Those of the variants' or endpoints' names, each once, in the order of ``endpoints``; all where none is named.

    Raises:
        PerfError: one is not published.
    """
    known = {name for each in endpoints for name in (each.model, each.name)}
    if strangers := [name for name in variants if name not in known]:
        models = ", ".join(each.model for each in endpoints)
        raise PerfError(f"variant {', '.join(strangers)} is not published; wanted of {models}")
    return [each for each in endpoints if not variants or {each.model, each.name} & set(variants)]


def published_model(workspace: Workspace = PROJECT, kind: str = RANK) -> str:
    """The scorer that ``rank`` (or ``recommend``) serves. Raises: RepositoryError."""
    return served_variant(workspace.repository, kind)


def served_scorers(endpoint: Endpoint, workspace: Workspace = PROJECT) -> list[Path]:
    """The scorer files of the versions that the endpoint names, in the order in which a request passes them."""
    return scorer_files(workspace.repository, endpoint.name)


@contextlib.contextmanager
def serving(
    names: Sequence[str],
    workspace: Workspace = PROJECT,
    *,
    tls: ServerTls | None = None,
    open_apis: bool = False,
    config_name: str | None = None,
    score_cache: Path | None = None,
    response_cache_mb: int = 0,
) -> Iterator[TritonServer]:
    """A Triton of our own with these endpoints, on free ports of this machine.

    Args:
        score_cache: folder for models that ask for a score cache; None = every row is run, since a measurement asks the
            same again and again.
        response_cache_mb: MiB of Triton's own.
        tls: of gRPC; None = in the clear.
        open_apis: clients may register shared memory, which perf_analyzer cannot show a key for.
        config_name: of a machine's own configurations.
    """
    with TritonServer(
        workspace.repository,
        list(names),
        store=workspace.item_store,
        verify="hash",
        config_name=config_name,
        score_cache=score_cache or False,
        response_cache_mb=response_cache_mb,
        grpc_port=0,
        http_port=0,
        metrics_port=0,
        tls=tls,
        open_apis=open_apis,
    ) as server:
        yield server


class EndpointClient:
    """Asks one endpoint whatever a request holds that it reads. Use as a context manager.

    Asks again when the server refuses for load, since a busy machine is no matter of quality.
    """

    def __init__(self, url: str, name: str) -> None:
        self._recommends = name.split("_")[0] == RECOMMEND.name
        self._client = RankClient(url, **{"recommend_model" if self._recommends else "model": name})
        with triton.InferenceServerClient(url) as server:
            self._reads = {tensor.name for tensor in server.get_model_metadata(name).inputs}

    def __enter__(self) -> EndpointClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def ask(self, request: Request, item_ids: Sequence[str]) -> RankedList:
        """All items. Raises: TritonRankError: any but a refusal for load, or that ``ATTEMPTS`` times."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self._ask(request, item_ids)
            except Overloaded:
                time.sleep(0.5)
        return self._ask(request, item_ids)

    def _ask(self, request: Request, item_ids: Sequence[str]) -> RankedList:
        held = {USER_ID.name: request.user_id, CONTEXT.name: request.context, HISTORY.name: request.history}
        further: dict[str, Any] = {name: value for name, value in held.items() if value and name in self._reads}
        if not self._recommends:
            return self._client.rank(request.query, item_ids, timeout_s=TIMEOUT_S, **further)
        further.pop(HISTORY.name, None)
        return self._client.recommend(request.history, item_ids, timeout_s=TIMEOUT_S, **further)

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()


def first_queries(judged: JudgedQueries, count: int) -> JudgedQueries:
    """The first ``count`` test queries: the smallest set that may judge every ranker."""
    test = judged.subset("test")
    return test.only(list(test.queries)[:count])
