"""How well rankers find what a customer buys next: offline over the whole catalogue, beside what needs no network.

Candidates are all items that the customer had not bought before the log's cut; those bought on or after it are
relevant, gain 1 each. NDCG@10 is scikit-learn's (equal scores share their places), per customer, and the mean over
customers; cold customers, without any purchase before the cut, are told apart. Beside it the served protocol, one
positive among 99 sampled items (:func:`builders.data.purchase_log.evaluation_lists`): NDCG@10, hit rate at 10 and AUC.

Baselines: random; popularity, of all customers before the cut and of the last 30 days; item-kNN of ``implicit``, whose
kind and number of neighbours are chosen on the validation cut. For a cold customer item-kNN gives popularity, and a
ranker what it gives in serving: its fallback field.

Knows nothing of any network.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import sklearn.metrics
import torch
from rich.progress import track
from rich.table import Table

from builders.core.contract import Tensor
from builders.core.recipe import Recipe, RecipeError, load_recipes
from builders.data.beir import DatasetError, JudgedQueries
from builders.data.purchase_log import SEED, PurchaseLog, evaluation_lists, purchase_log, request_of, validation_log
from builders.evaluate.metrics import (
    TOP_K,
    Interval,
    mean_of,
    ndcg_of_rankings,
    paired_interval,
    rankings_from_scores,
)
from builders.rankers.base import Graph
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.load import load_ranker

Scorer = Callable[[PurchaseLog, Sequence[str]], np.ndarray]
"""(log, user ids) => float [users, items], items in the log's order, higher is better."""

ITEM_KNN = "item_knn"
ROWS_AT_ONCE = 256
"""Candidates that a network scores at once: what it holds of them then stays in a processor's cache."""
NEIGHBOURS = (20, 100, 500, 1000, 2000)
"""Numbers of neighbours that the baseline is chosen among."""


# ---------------------------------------------------------------- what needs no network
def random_scores(log: PurchaseLog, user_ids: Sequence[str]) -> np.ndarray:
    """Seeded."""
    return np.random.default_rng(SEED).random((len(user_ids), len(log.items)))


def popularity_scores(log: PurchaseLog, user_ids: Sequence[str], field: str = "popularity") -> np.ndarray:
    """The same for every customer: ``popularity``, or ``recent_popularity``."""
    popularity = np.array([product.fields[field] for product in log.items.values()], dtype=np.float64)
    return np.tile(popularity, (len(user_ids), 1))


@dataclasses.dataclass(frozen=True)
class ItemKNN:
    """Neighbours of the items bought before the cut, as ``implicit`` finds them; popularity for a cold customer.

    Attributes:
        kind: "Cosine", "TFIDF" or "BM25", the weights of purchases.
        neighbours: kept for each item.
    """

    kind: str = "BM25"
    neighbours: int = 1000

    def __call__(self, log: PurchaseLog, user_ids: Sequence[str]) -> np.ndarray:
        """float64 [users, items]: the sum of similarities to what the customer bought."""
        scores: np.ndarray = (_purchases(log, user_ids) @ _similarity(self, log)).toarray()
        cold = [row for row, user_id in enumerate(user_ids) if not log.is_warm(user_id)]
        scores[cold] = popularity_scores(log, [user_ids[row] for row in cold])
        return scores


def tuned_item_knn(log: PurchaseLog) -> ItemKNN:
    """The kind and number of neighbours with the highest NDCG@10 over the log's warm customers.

    Args:
        log: :func:`builders.data.purchase_log.validation_log`, never the one that is judged.
    """
    choices = [ItemKNN(kind, neighbours) for kind in ("Cosine", "TFIDF", "BM25") for neighbours in NEIGHBOURS]
    warm = _warm_customers(log, 1, "to choose item-kNN by")
    means = {
        choice: mean_of(catalogue_ndcg(log, choice, warm))
        for choice in track(choices, "choosing item-kNN", transient=True)
    }
    return max(means, key=means.__getitem__)


def _similarity(knn: ItemKNN, log: PurchaseLog) -> scipy.sparse.csr_matrix:
    """float64 [items, items]."""
    from implicit import nearest_neighbours  # here and not above: it warns of BLAS threads when imported
    from implicit.utils import ParameterWarning

    recommender = getattr(nearest_neighbours, f"{knn.kind}Recommender")(K=knn.neighbours, num_threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterWarning)  # its own weights are in a form that it warns of
        recommender.fit(_purchases(log, list(log.histories)), show_progress=False)
    return recommender.similarity


def _purchases(log: PurchaseLog, user_ids: Sequence[str]) -> scipy.sparse.csr_matrix:
    """float64 [users, items]: 1 where the customer bought the item before the cut."""
    row_of = _rows(log)
    columns = [[row_of[item_id] for item_id in log.histories.get(user_id, ())] for user_id in user_ids]
    starts = np.cumsum([0, *map(len, columns)])
    flat = np.array([column for row in columns for column in row], dtype=np.int64)
    return scipy.sparse.csr_matrix((np.ones(len(flat)), flat, starts), shape=(len(user_ids), len(row_of)))


# ---------------------------------------------------------------- rankers
def ranker_scores(
    ranker: FeatureRanker, log: PurchaseLog, user_ids: Sequence[str], head_weights: Sequence[float] = ()
) -> np.ndarray:
    """What the served graphs compute, in torch: items encoded once, then the whole catalogue scored for each customer.

    Args:
        head_weights: of a network with several heads: the recipe's.

    Returns:
        float32 [users, items].
    """
    encoder = ranker.encoder
    records = [encoder.item_record(product.raw_fields) for product in log.items.values()]
    candidates = encoder.candidate_tensors(records)
    graphs = ranker.graphs
    scores = np.empty((len(user_ids), len(records)), dtype=np.float32)
    for row, user_id in enumerate(track(user_ids, f"scoring with {ranker.name}", transient=True)):
        request = request_of(log, user_id)
        user = encoder.user_record(request.user) if request.user else None
        tensors = encoder.request_tensors(history=request.history, user=user, context=request.context)
        heads = _run(graphs, {**tensors, **candidates})
        fallback = encoder.fallback_scores(records, request.history)
        scores[row] = np.where(np.isnan(fallback), _combined(heads, head_weights), fallback)
    return scores


def _run(graphs: Sequence[Graph], tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 [candidates, heads]: the request's graph once, where there is one, then the scorer."""
    given = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    *of_request, scorer = graphs
    with torch.inference_mode():
        for graph in of_request:
            given[graph.contract.outputs[0].name] = graph.module(*(given[each.name] for each in graph.contract.inputs))
        parts = [scorer.module(*part) for part in _parts([(each, given[each.name]) for each in scorer.contract.inputs])]
    scores: np.ndarray = torch.cat(parts).numpy()
    return scores


def _parts(given: Sequence[tuple[Tensor, torch.Tensor]]) -> Iterator[list[torch.Tensor]]:
    """A scorer's inputs for :data:`ROWS_AT_ONCE` candidates after the other."""
    candidates = max(len(rows) for tensor, rows in given if tensor.scope == "per_candidate")
    for start in range(0, candidates, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        yield [rows[part] if tensor.scope == "per_candidate" else rows for tensor, rows in given]


def _combined(heads: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    return heads @ np.asarray(weights, np.float32) if weights else heads[:, 0]


# ---------------------------------------------------------------- figures
@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one ranker, by customer: user id to figure; the lists' only for the customers drawn for them.

    Attributes:
        ndcg: NDCG@10 over the whole catalogue.
        list_ndcg, hit, auc: of one positive among 99 sampled items: NDCG@10, 1 if it is among the first ten, and the
            share of the others that it is ranked above.
    """

    ndcg: Mapping[str, float]
    list_ndcg: Mapping[str, float]
    hit: Mapping[str, float]
    auc: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class RecommendReport:
    """Rankers and baselines over one log.

    Attributes:
        log: parted as it was judged.
        figures: name to figures, baselines first.
        knn: the item-kNN that the others are compared with.
    """

    log: PurchaseLog
    figures: Mapping[str, Figures]
    knn: ItemKNN

    def mean(self, name: str, figure: str, *, warm: bool) -> float | None:
        """Over the warm or the cold customers; None if there are none."""
        values = self._of_group(getattr(self.figures[name], figure), warm)
        return mean_of(values) if values else None

    def minus_knn(self, name: str) -> Interval:
        """NDCG@10 over the whole catalogue, of warm customers, minus item-kNN's; paired bootstrap over customers."""
        found, reference = (self._of_group(self.figures[each].ndcg, True) for each in (name, ITEM_KNN))
        return paired_interval(found, reference)

    def customers(self, figure: str, *, warm: bool) -> int:
        """How many of the group have the figure."""
        return len(self._of_group(getattr(self.figures[ITEM_KNN], figure), warm))

    def table(self) -> Table:
        """For a terminal: warm customers, then cold ones."""
        table = Table(title=self._title(), caption=self._caption(), title_justify="left", caption_justify="left")
        table.add_column("customers")
        table.add_column("ranker", overflow="fold")
        for heading in ("NDCG@10", "minus item-kNN [95%]", "NDCG@10, 1+99", "hit@10, 1+99", "AUC, 1+99"):
            table.add_column(heading, justify="right")
        for warm in (True, False):
            for row in self._group_rows(warm):
                table.add_row(*row)
            table.add_section()
        return table

    def to_dict(self) -> dict[str, Any]:
        """What the table holds, for JSON."""
        return {
            "cut": self.log.cut.isoformat(),
            "item_knn": dataclasses.asdict(self.knn),
            "groups": {
                group: {
                    "customers": self.customers("ndcg", warm=warm),
                    "list_customers": self.customers("list_ndcg", warm=warm),
                    "rankers": {name: self._means(name, warm) for name in self.figures},
                }
                for group, warm in (("warm", True), ("cold", False))
            },
        }

    def _means(self, name: str, warm: bool) -> dict[str, Any]:
        means: dict[str, Any] = {
            field.name: self.mean(name, field.name, warm=warm) for field in dataclasses.fields(Figures)
        }
        return {**means, "minus_item_knn": dataclasses.asdict(self.minus_knn(name))} if warm else means

    def _group_rows(self, warm: bool) -> Iterator[list[str]]:
        group = f"{'warm' if warm else 'cold'} ({self.customers('ndcg', warm=warm)})"
        for name in self.figures:
            interval = self.minus_knn(name) if warm and name != ITEM_KNN else None
            yield [
                group,
                name,
                _cell(self.mean(name, "ndcg", warm=warm), 4),
                f"{interval.mean_difference:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]" if interval else "",
                *(_cell(self.mean(name, figure, warm=warm), 3) for figure in ("list_ndcg", "hit", "auc")),
            ]
            group = ""

    def _title(self) -> str:
        return f"First-time purchases from {self.log.cut:%Y-%m-%d} on"

    def _caption(self) -> str:
        drawn = [self.customers("list_ndcg", warm=warm) for warm in (True, False)]
        return (
            f"NDCG@10: all items not bought before, binary gain. 1+99: one positive among 99 items drawn uniformly, "
            f"{drawn[0]} warm and {drawn[1]} cold customers. item-kNN: {self.knn.kind}, {self.knn.neighbours} "
            "neighbours, chosen on the validation cut"
        )

    def _of_group(self, values: Mapping[str, float], warm: bool) -> dict[str, float]:
        return {user_id: value for user_id, value in values.items() if self.log.is_warm(user_id) == warm}


def _cell(figure: float | None, digits: int) -> str:
    return "-" if figure is None else f"{figure:.{digits}f}"


def _warm_customers(log: PurchaseLog, least: int, purpose: str) -> list[str]:
    """Judged customers with a history. Raises: DatasetError: there are fewer than ``least``."""
    warm = [user_id for user_id in log.positives if log.is_warm(user_id)]
    if len(warm) < least:
        raise DatasetError(
            f"{len(warm)} customers with purchases before {log.cut} buy something for the first time from then on "
            f"({len(log.histories)} before, {len(log.positives)} from then on), wanted at least {least} {purpose}; "
            "give a longer log of purchases"
        )
    return warm


def catalogue_ndcg(log: PurchaseLog, scorer: Scorer, user_ids: Sequence[str]) -> dict[str, float]:
    """User id to NDCG@10 over all items that the customer had not bought before the cut."""
    return _catalogue_ndcg(log, scorer(log, user_ids), user_ids)


def judge(log: PurchaseLog, rankers: Mapping[str, Scorer], knn: ItemKNN) -> RecommendReport:
    """Baselines and rankers over every test customer of the log.

    Args:
        rankers: name to scorer, such as a partial :func:`ranker_scores`.
        knn: see :func:`tuned_item_knn`.

    Raises:
        DatasetError: fewer than two warm customers, which an interval needs.
    """
    _warm_customers(log, 2, "to judge by")
    lists = evaluation_lists(log)
    scorers: dict[str, Scorer] = {
        "random": random_scores,
        "popularity": popularity_scores,
        "recent_popularity": functools.partial(popularity_scores, field="recent_popularity"),
        ITEM_KNN: knn,
        **rankers,
    }
    return RecommendReport(log, {name: _figures(log, lists, scorer) for name, scorer in scorers.items()}, knn)


def _figures(log: PurchaseLog, lists: JudgedQueries, scorer: Scorer) -> Figures:
    user_ids = list(log.positives)
    scores = scorer(log, user_ids)
    ndcg = _catalogue_ndcg(log, scores, user_ids)
    row_of, user_row = _rows(log), {user_id: row for row, user_id in enumerate(user_ids)}
    by_query = {
        query_id: {item_id: float(scores[user_row[query_id[1:]], row_of[item_id]]) for item_id in grades}
        for query_id, grades in lists.judgements.items()
    }
    rankings = rankings_from_scores({query_id: list(grades) for query_id, grades in lists.judgements.items()}, by_query)
    positives = {query_id: max(grades, key=grades.__getitem__) for query_id, grades in lists.judgements.items()}
    list_ndcg = ndcg_of_rankings(lists, rankings)
    return Figures(
        ndcg=ndcg,
        list_ndcg={query_id[1:]: value for query_id, value in list_ndcg.items()},
        hit={query_id[1:]: float(positives[query_id] in ranked[:TOP_K]) for query_id, ranked in rankings.items()},
        auc={query_id[1:]: _auc(by_query[query_id], positives[query_id]) for query_id in lists.judgements},
    )


def _catalogue_ndcg(log: PurchaseLog, scores: np.ndarray, user_ids: Sequence[str]) -> dict[str, float]:
    row_of = _rows(log)
    return {
        user_id: _ndcg(
            scores[row],
            [row_of[item_id] for item_id in log.histories.get(user_id, ())],
            [row_of[item_id] for item_id in log.positives[user_id]],
        )
        for row, user_id in enumerate(user_ids)
    }


def _ndcg(scores: np.ndarray, bought: Sequence[int], relevant: Sequence[int]) -> float:
    """scores: float [items]. What was bought before is no candidate: last, without gain, it changes no place."""
    gains = np.zeros(len(scores))
    gains[relevant] = 1
    scores = scores.astype(np.float64)
    scores[bought] = scores.min() - 1
    return float(sklearn.metrics.ndcg_score([gains], [scores], k=TOP_K))


def _auc(scores: Mapping[str, float], positive: str) -> float:
    labels = [item_id == positive for item_id in scores]
    return float(sklearn.metrics.roc_auc_score(labels, list(scores.values())))


def _rows(log: PurchaseLog) -> dict[str, int]:
    return {item_id: row for row, item_id in enumerate(log.items)}


# ---------------------------------------------------------------- all that the kit ships
def run(data: Path, recipes: Sequence[Recipe] = ()) -> RecommendReport:
    """Judge the trained rankers of ``recipes`` on the purchases below ``data``.

    Args:
        recipes: those with ``data = "purchases"``; none = all of the kit's.

    Raises:
        DatasetError, CheckpointError, RecipeError.
    """
    chosen = [recipe for recipe in (recipes or load_recipes().values()) if recipe.data == "purchases"]
    scorers = {recipe.ranker: recipe_scorer(recipe) for recipe in chosen}
    log = purchase_log(data)
    _warm_customers(log, 2, "to judge by")
    return judge(log, scorers, tuned_item_knn(validation_log(data)))


def recipe_scorer(recipe: Recipe) -> Scorer:
    """The recipe's trained ranker. Raises: CheckpointError, RecipeError."""
    ranker = load_ranker(recipe)
    if not isinstance(ranker, FeatureRanker):
        raise RecipeError(f"recipe of {recipe.ranker}: judged on purchases, wanted a module that declares its features")
    return scorer_of(ranker, recipe)


def scorer_of(ranker: FeatureRanker, recipe: Recipe) -> Scorer:
    """Its heads weighed as the recipe says."""

    def scorer(log: PurchaseLog, user_ids: Sequence[str]) -> np.ndarray:
        return ranker_scores(ranker, log, user_ids, recipe.postprocess.head_weights)

    return scorer
