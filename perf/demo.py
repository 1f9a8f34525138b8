"""``make demo``: the first ranked lists as soon as one ranker is served, then the variants that it compares.

Builds and gates only what it shows, on the test queries, and stores only their items. Every ranked list comes from the
real server, and is judged and checked through it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from perf.endpoints import RANK, Endpoint, first_queries, published_endpoints, published_model, serving
from perf.examples import tally, telling_queries
from perf.kit.data import (
    PROJECT,
    DataSource,
    JudgedQueries,
    Recipe,
    Workspace,
    find_data,
    first_stage,
    load_judged,
    load_recipes,
)
from perf.kit.figures import ndcg_of_rankings
from perf.kit.rankers import BuiltRanker, Ranker, build_variants_of, fill_store, load_ranker, publish
from perf.kit.served import can_serve
from perf.report import write_report
from perf.served_quality import (
    FIRST_STAGE,
    RankerQuality,
    ServedQuality,
    inputs_fingerprint,
    measure_served_quality,
    offline_ndcg,
    read_quality,
    served_scores,
    write_quality,
)
from perf.tables import check_lines, differences_table, legend, quality_table, side_by_side

FIRST = "two_tower"
"""The quickest to build of those that rank search results; what ``rank`` serves unless the user chose otherwise."""
SHOWN = {FIRST: ("fp32_onnx",), "cross_encoder": ("fp32_onnx", "int8_onnx")}
"""Ranker => its variants that the demo builds, the reference first."""
FIDELITY_LISTS = 100
"""Of the gate, in place of the recipe's: fewer are quicker."""
FIRST_QUERIES = 24
"""Test queries of the first ranked lists: storing the items of more takes longer."""
LIVE_QUERIES = 10
"""Served again when the full figures are there already."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """What every part of it needs.

    Attributes:
        judged: all judged queries.
        rankers: those loaded so far.
    """

    source: DataSource
    judged: JudgedQueries
    recipes: dict[str, Recipe]
    workspace: Workspace
    console: Console
    started_s: float
    rankers: dict[str, Ranker] = dataclasses.field(default_factory=dict)

    @property
    def say(self) -> Callable[[str], None]:
        """A line of the builders as it is: figures in brackets are no markup."""
        return functools.partial(self.console.print, style="dim", markup=False, highlight=False, soft_wrap=True)

    def ranker(self, name: str) -> Ranker:
        """Loaded when it is first asked for."""
        if name not in self.rankers:
            self.rankers[name] = load_ranker(self.recipes[name])
        return self.rankers[name]

    @functools.cached_property
    def test(self) -> JudgedQueries:
        """The test queries: what may judge every ranker."""
        return self.judged.subset("test")

    @functools.cached_property
    def has_all(self) -> bool:
        """Whether :data:`FIRST` was judged on all queries before, by 'make repository'; then it stays so."""
        kept = offline_ndcg(Endpoint(self.recipes[FIRST], self.recipes[FIRST].variants[0]), self.workspace)
        return kept.keys() >= self.judged.queries.keys()

    @property
    def data(self) -> JudgedQueries:
        """What a ranker is judged on that was not trained on judgements."""
        return self.judged if self.has_all else self.test

    def build(self, ranker: str, data: JudgedQueries) -> BuiltRanker:
        """The variants that the demo shows, judged on ``data``; the items that it ranks are stored before."""
        recipe = self.recipes[ranker]
        stored = self.store(ranker, data)
        shown = tuple(variant for variant in recipe.variants if variant.name in SHOWN[ranker])
        built = build_variants_of(
            recipe.model_copy(update={"variants": shown}),
            self.ranker(ranker),
            self.judged if recipe.trained_on_judgements else data,  # it takes its test queries itself
            self.say,
            self.workspace,
            fidelity_lists=FIDELITY_LISTS,
        )
        return dataclasses.replace(built, data=stored)

    def store(self, ranker: str, data: JudgedQueries) -> JudgedQueries:
        """Store the items that ``data`` ranks, all at once, which is quicker than query by query; the data of these."""
        stored = with_own_items(data)
        fill_store(self.ranker(ranker), self.recipes[ranker], stored, self.say, self.workspace)
        return stored

    def publish(self, built: Sequence[BuiltRanker]) -> None:
        """Write what passed its gate; ``rank`` goes on as it is, or starts with :data:`FIRST`."""
        rank = {} if can_serve(self.workspace.repository, RANK) else {RANK: f"{FIRST}_{SHOWN[FIRST][0]}"}
        publish(built, self.source.kind, self.say, self.workspace, serves=rank)

    def elapsed(self, what: str) -> None:
        """Say how long it took until here."""
        self.console.print(f"{what} after {time.monotonic() - self.started_s:.0f} s", style="bold", highlight=False)


def run_demo(
    *,
    queries: int | None = None,
    fresh: bool = False,
    data: Path | None = None,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> list[str]:
    """Build, serve, show, judge, check and report.

    Args:
        queries: only the first so many test queries; None = all.
        fresh: serve all queries although the stored figures are of the same models and data.

    Returns:
        Names of the checks that failed. A variant that fails its gate is told and left out; it is no failed check.
    """
    console, started_s = console or Console(), time.monotonic()
    source = find_data(data)
    console.print(source.note, style="bold red" if source.generated else "")
    demo = Demo(source, load_judged(source.folder), load_recipes(), workspace, console, started_s)
    queries = min(queries or len(demo.test.queries), len(demo.test.queries))
    show_first_lists(demo, queries)
    endpoints = build_shown(demo)
    stored = None if fresh else stored_quality(source, queries, workspace)
    found = _serve_and_judge(demo, endpoints, queries, stored)
    full = stored or found
    _show_quality(full, console)
    _show_checks(found, stored, console)
    report = write_report(demo.judged, full, workspace=workspace)
    console.print(f"report: {report}", soft_wrap=True)
    demo.elapsed("done")
    console.print(_what_else(demo), soft_wrap=True, highlight=False)
    return [check.name for check in (*full.failed, *found.failed)]


def stored_quality(source: DataSource, queries: int, workspace: Workspace = PROJECT) -> ServedQuality | None:
    """The figures kept last, if they are of the same models, data and code, over these queries, and all passed."""
    stored = read_quality(workspace)
    if stored is None or stored.failed or stored.inputs != inputs_fingerprint(source.folder, workspace):
        return None
    return stored if stored.limit == queries else None


# ---------------------------------------------------------------- the first ranked lists
def show_first_lists(demo: Demo, queries: int) -> None:
    """Test queries ranked by ``rank``, as soon as it can be served: their items are stored before all others."""
    test = first_queries(demo.judged, min(queries, FIRST_QUERIES))
    if can_serve(demo.workspace.repository, RANK):
        demo.store(FIRST, test)
    else:
        demo.publish([demo.build(FIRST, test)])
    with demo.console.status("starting Triton"), contextlib.ExitStack() as stack:
        server = stack.enter_context(serving([RANK], demo.workspace))
        order = first_stage(test)
        served = served_scores(server.grpc_url, RANK, test, order)
    before = _ranking(FIRST_STAGE, test, {query_id: list(order[query_id]) for query_id in test.queries})
    after = _ranking(
        published_model(demo.workspace), test, {query_id: list(scores) for query_id, scores in served.items()}
    )
    show_lists(test, before, after, demo.console)
    demo.elapsed("first ranked lists")


def show_lists(judged: JudgedQueries, before: RankerQuality, after: RankerQuality, console: Console) -> None:
    """The first stage's order beside what ``rank`` answers, where it gains and where it loses."""
    for query_id, why in telling_queries(before.ndcg, after.ndcg).items():
        console.print(side_by_side(judged, query_id, before, after, why))
    console.print(legend())
    console.print(
        f"NDCG@10 of {RANK} = {after.name} against the first stage: {tally(before.ndcg, after.ndcg)}",
        soft_wrap=True,
        highlight=False,
    )


def with_own_items(judged: JudgedQueries) -> JudgedQueries:
    """The queries with the items that they rank, and no others."""
    ranked = dict.fromkeys(item_id for grades in judged.judgements.values() for item_id in grades)
    return dataclasses.replace(judged, products={item_id: judged.products[item_id] for item_id in ranked})


def _ranking(name: str, judged: JudgedQueries, rankings: dict[str, list[str]]) -> RankerQuality:
    return RankerQuality(name, "test", ndcg_of_rankings(judged, rankings), rankings)


# ---------------------------------------------------------------- what is compared
def build_shown(demo: Demo) -> list[Endpoint]:
    """Build, gate and publish all that the demo shows.

    Returns:
        The endpoints of the variants that passed, and of the one that ``rank`` serves.
    """
    built = [demo.build(ranker, demo.data) for ranker in SHOWN]
    demo.publish(built)
    endpoints = passed_endpoints(built, demo.recipes, demo.console)
    return [*endpoints, *_served_besides(demo, endpoints)]


def passed_endpoints(built: Sequence[BuiltRanker], recipes: Mapping[str, Recipe], console: Console) -> list[Endpoint]:
    """Of the variants that passed their gate; of each other one a line says that it is left out."""
    endpoints = []
    for each in built:
        for variant in each.variants:
            endpoint = Endpoint(recipes[each.recipe.ranker], variant.variant)
            if variant.passed:
                endpoints.append(endpoint)
                continue
            console.print(
                f"{endpoint.model} failed its gate on this machine, as said above: it is neither published nor shown",
                style="yellow",
                soft_wrap=True,
            )
    return endpoints


def _served_besides(demo: Demo, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """What ``rank`` serves, where the user published another variant."""
    served = published_model(demo.workspace)
    if served in (endpoint.model for endpoint in endpoints):
        return []
    others = published_endpoints(demo.recipes, demo.workspace)
    return [endpoint for endpoint in others if endpoint.model == served]


def _serve_and_judge(
    demo: Demo, endpoints: Sequence[Endpoint], queries: int, stored: ServedQuality | None
) -> ServedQuality:
    """All figures, or those of a few queries where the full ones are stored."""
    names = [RANK, *(endpoint.name for endpoint in endpoints)]
    with contextlib.ExitStack() as stack:
        with demo.console.status(f"starting Triton with {len(names)} endpoints"):
            server = stack.enter_context(serving(names, demo.workspace))
        found = measure_served_quality(
            server.grpc_url,
            demo.data,
            endpoints,
            {endpoint.recipe.ranker: demo.ranker(endpoint.recipe.ranker) for endpoint in endpoints},
            source=demo.source,
            limit=queries if stored is None else min(queries, LIVE_QUERIES),
            workspace=demo.workspace,
            console=demo.console,
        )
    if stored is None:
        write_quality(found, demo.workspace)
    return found


def _what_else(demo: Demo) -> str:
    """What the demo left out, and how to come by it."""
    others = ", ".join(name for name in demo.recipes if name not in SHOWN)
    stored, items = len(with_own_items(demo.test).products), len(demo.judged.products)
    unstored = "" if demo.has_all else f"; items that no test query ranks ({items - stored:,} of {items:,})"
    return (
        f"The demo does not build: {others}{unstored}. 'make repository' builds and gates all (minutes); 'make serve' "
        "serves what is built"
    )


def _show_quality(found: ServedQuality, console: Console) -> None:
    console.print(quality_table(found), differences_table(found))
    if found.generated:
        console.print("The data is generated: these figures mean nothing.", style="bold red")


def _show_checks(found: ServedQuality, stored: ServedQuality | None, console: Console) -> None:
    if stored is not None:
        console.print(
            f"Stored figures: nothing has changed since. Served again now: {found.limit} queries; "
            "`make demo FRESH=1` serves all."
        )
    console.print(check_lines(found.checks))
