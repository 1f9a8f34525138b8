"""Why an item got its score, offline: what each token, field or item of the history adds to it.

Knows nothing of serving, and of no ranker by name: a :class:`builders.rankers.feature_ranker.FeatureRanker`, or a
ranker whose first graph reads token ids with a Hugging Face backbone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from builders.core.recipe import Recipe, RecipeError, load_recipe, load_recipes
from builders.data.beir import JudgedQueries, Product, Request
from builders.data.evaluation import evaluation_data
from builders.data.find import find_data
from builders.evaluate.explain.explanation import ExplainError, Explanation
from builders.evaluate.explain.fields import explain_features
from builders.evaluate.explain.page import print_explanation, write_explanation_html
from builders.evaluate.explain.text import explain_text
from builders.rankers.base import Ranker
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.load import load_ranker

SHOWN_ITEMS = 5


def explain(
    ranker: Ranker,
    request: Request,
    products: Sequence[Product],
    *,
    titles: Mapping[str, str] | None = None,
    head_weights: Sequence[float] = (),
) -> Explanation:
    """:func:`explain_features` or :func:`explain_text`, by what the ranker is. Raises: ExplainError."""
    if isinstance(ranker, FeatureRanker):
        return explain_features(ranker, request, products, titles=titles, head_weights=head_weights)
    return explain_text(ranker, request, products)


def run_explain(
    ranker: str | Path,
    console: Console,
    *,
    query: str = "",
    history: Sequence[str] = (),
    items: Sequence[str] = (),
    out: Path | None = None,
    data: Path | None = None,
) -> Explanation:
    """Explain, print, and write the page where ``out`` names one.

    Args:
        ranker: name of a recipe of the kit, or the path of one.
        query, history: of the request; a judged query brings its user and context along, and with neither of the two
            the first judged request is taken.
        items: ids of the corpus; none = the first judged candidates of the request.
        data: as :func:`builders.data.find.find_data` takes it.

    Raises:
        ExplainError: an item that the corpus does not hold, or no items for a query that is not judged.
        RecipeError: no such recipe.
    """
    recipe = _recipe(ranker)
    judged = evaluation_data(recipe.data, find_data(data).folder)
    request, candidates = _request(judged, query, history)
    products = _products(judged, items or candidates[:SHOWN_ITEMS])
    titles = {item_id: judged.products[item_id].title for item_id in request.history if item_id in judged.products}
    weights = recipe.postprocess.head_weights
    explanation = explain(load_ranker(recipe), request, products, titles=titles, head_weights=weights)
    print_explanation(console, explanation)
    if out is not None:
        write_explanation_html(out, explanation)
        console.print(f"plotted in {out}")
    return explanation


def _recipe(ranker: str | Path) -> Recipe:
    if Path(ranker).suffix == ".toml":
        return load_recipe(Path(ranker))
    recipes = load_recipes()
    if str(ranker) not in recipes:
        raise RecipeError(f"no recipe of a ranker '{ranker}'; wanted one of {', '.join(recipes)}, or a recipe's path")
    return recipes[str(ranker)]


def _request(judged: JudgedQueries, query: str, history: Sequence[str]) -> tuple[Request, list[str]]:
    """The request, and its judged candidates where it has some."""
    if history:
        return Request(query, tuple(history)), []
    query_id = next((found for found, text in judged.queries.items() if query in ("", text)), None)
    if query_id is None:
        return Request(query), []
    return judged.request(query_id), list(judged.judgements[query_id])


def _products(judged: JudgedQueries, items: Sequence[str]) -> list[Product]:
    if not items:
        raise ExplainError("no items, and the request is not a judged one; name items of the corpus with --items")
    unknown = [item_id for item_id in items if item_id not in judged.products]
    if unknown:
        raise ExplainError(f"items {', '.join(unknown)} are not in the corpus, wanted ids that corpus.jsonl holds")
    return [judged.products[item_id] for item_id in items]
