"""What perf_analyzer asks of each endpoint: real requests of the data that its ranker is judged on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from perf.endpoints import Endpoint, published_model
from perf.errors import PerfError
from perf.inputs import RequestMix, mean_candidates, mixed_requests, write_requests
from perf.kit.data import ENDPOINTS, JudgedQueries, Recipe, Workspace, fingerprint, first_stage, judging_queries
from perf.kit.served import endpoint_inputs, published_names

JudgedOf = Callable[[str], JudgedQueries]
"""A recipe's ``data`` => what is judged on it."""
CUSTOMERS = 200
"""Requests of a purchase log that are sent in turn, at most; judged queries are sent all."""


@dataclasses.dataclass(frozen=True)
class EndpointRequests:
    """Of one endpoint.

    Attributes:
        file: as perf_analyzer reads it.
        candidates: of a request, mean.
        data: digest of the judged data.
    """

    file: Path
    candidates: float
    data: str


def plain_names(workspace: Workspace) -> list[str]:
    """What search services call, as far as it is published: ``rank``, ``recommend``."""
    return [name for name in ENDPOINTS if name in published_names(workspace.repository)]


def named_endpoints(names: Sequence[str], endpoints: Sequence[Endpoint], workspace: Workspace) -> list[str]:
    """Endpoint names, each once, of models' or endpoints' names; none = all of them.

    Raises:
        PerfError: one is not published.
    """
    known = {name: name for name in plain_names(workspace)}
    known |= {name: each.name for each in endpoints for name in (each.model, each.name)}
    if strangers := [name for name in names if name not in known]:
        wanted = ", ".join([*plain_names(workspace), *(each.model for each in endpoints)])
        raise PerfError(
            f"{', '.join(strangers)} is not published, wanted of {wanted}; or its recipe lies outside recipes/: "
            "name it with --recipe PATH"
        )
    return list(dict.fromkeys(known[name] for name in names or known))


def recipe_of(name: str, endpoints: Sequence[Endpoint], workspace: Workspace) -> Recipe:
    """The recipe behind an endpoint; behind ``rank`` or ``recommend`` that of what it serves.

    Raises:
        PerfError: it is of none of the endpoints.
    """
    behind = f"{name}_{published_model(workspace, name)}" if name in ENDPOINTS else name
    for each in endpoints:
        if each.name == behind:
            return each.recipe
    raise PerfError(f"{name}: no recipe is known of {behind}, so no request of it; name its recipe with --recipe PATH")


def write_endpoint_requests(
    names: Sequence[str],
    endpoints: Sequence[Endpoint],
    judged_of: JudgedOf,
    workspace: Workspace,
    folder: Path,
    mix: RequestMix | None = None,
) -> dict[str, EndpointRequests]:
    """A file of requests in ``folder`` for each endpoint.

    Raises:
        PerfError: an endpoint's recipe is not known, or the mix leaves no request of its data.
        DatasetError: its data is not there.
    """
    found = {}
    asked: dict[str, tuple[JudgedQueries, Mapping[str, Sequence[str]]]] = {}
    for name in names:
        recipe = recipe_of(name, endpoints, workspace)
        of = recipe.data if recipe.data == "judged" else recipe.ranker  # a first stage indexes the whole catalogue
        if of not in asked:
            judged = _sent(recipe, judged_of(recipe.data))
            asked[of] = judged, first_stage(judged)
        judged, lists = asked[of]
        reads = endpoint_inputs(workspace.repository, name)
        requests = mixed_requests(judged, lists, mix or RequestMix(), reads)
        file = folder / f"{name}.json"
        write_requests(requests, file)
        found[name] = EndpointRequests(file, mean_candidates(requests), judged.digest)
    return found


def _sent(recipe: Recipe, judged: JudgedQueries) -> JudgedQueries:
    """All queries; of a purchase log the first :data:`CUSTOMERS`."""
    if recipe.data == "judged":
        return judged
    judging = judging_queries(recipe, judged)
    return judging.only(list(judging.queries)[:CUSTOMERS])


def data_digest(requests: Mapping[str, EndpointRequests]) -> str:
    """Of the data of all; that of the one where all are of one."""
    digests = sorted({each.data for each in requests.values()})
    return digests[0] if len(digests) == 1 else fingerprint(digests)
