"""Scores from outside against those of the reference variant: from the library that made the checkpoint, or from a file
that the user's own training code wrote. Parity with the kit's own torch network proves nothing where both are wrong.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from builders.compress.chain import Artifact
from builders.compress.context import BuildContext, Say, ranker_inputs
from builders.core.errors import BuilderError
from builders.core.keeper import keep_figures
from builders.core.recipe import Recipe, RecipeError, Variant
from builders.core.runtimes import Session
from builders.data.beir import JudgedQueries, Product, Request
from builders.evaluate.judge import as_served, open_sessions, score_in_process
from builders.rankers.base import Ranker, Sample

SEED = 104
"""Of the lists that the library scores."""
LONG_LISTS = 1
"""Of these lists, one is of the corpus's longest texts."""
LIST_CANDIDATES = 40


class ReferenceMismatch(BuilderError):
    """The reference variant gives other scores than those from outside; the worst pair is in the message."""


@dataclasses.dataclass(frozen=True)
class Golden:
    """One request's scores from outside.

    Attributes:
        source: whose scores they are, for messages.
        scores: FP32 [products] or [products, heads].
    """

    source: str
    request: Request
    products: Sequence[Product]
    scores: np.ndarray


class _Line(pydantic.BaseModel):
    """A line of a golden file."""

    model_config = pydantic.ConfigDict(extra="forbid")
    query: str = ""
    history: tuple[str, ...] = ()
    user_id: str = ""
    context: dict[str, Any] = pydantic.Field({})
    scores: dict[str, float] = pydantic.Field(min_length=1)


def check_against_outside(
    context: BuildContext, variant: Variant, made: Mapping[str, Artifact], data: JudgedQueries
) -> None:
    """Compare the reference variant's scores with those from outside, once for what they depend on.

    Raises:
        ReferenceMismatch: a score differs by more than the recipe's tolerance.
        RecipeError: the recipe's file of scores is not there, or a line of it is not what it should be.
    """
    recipe, ranker = context.recipe, context.ranker

    def compute() -> dict[str, Any]:
        golden = [*_from_file(recipe, data), *_from_library(recipe, ranker, data, context.say)]
        if not golden:
            return {"pairs": 0, "max_abs_difference": 0.0}
        models = {name: (one.model, one.path) for name, one in made.items()}
        sessions = open_sessions(recipe, variant, models, ranker.graphs)
        found = [_as_given(recipe, ranker, one, sessions) for one in golden]
        worst = compare(recipe, ranker, golden, found, context.say)
        return {"pairs": sum(len(one.products) for one in golden), "max_abs_difference": worst}

    scores = recipe.reference.scores
    inputs = {
        **ranker_inputs(ranker),
        "files": [one.content for one in made.values()],
        "golden": recipe.path(scores) if scores and recipe.path(scores).is_file() else str(scores),
        "reference": recipe.reference.model_dump(mode="json"),
        "head_weights": recipe.postprocess.head_weights,
        "data": data.digest,
    }
    keep_figures(context.folder / "reference.json", inputs, compute, say=context.say)


def _as_given(recipe: Recipe, ranker: Ranker, golden: Golden, sessions: Mapping[str, Session]) -> np.ndarray:
    """Of the same request: one score an item where the golden ones are so, else one a head."""
    scores = score_in_process(ranker, sessions, golden.request, golden.products)
    if golden.scores.ndim == 1:
        return as_served(recipe, ranker, golden.request, golden.products, scores)
    return scores


def compare(
    recipe: Recipe, ranker: Ranker, golden: Sequence[Golden], found: Sequence[np.ndarray], say: Say = print
) -> float:
    """Largest difference of the scores that the reference variant gives, a list of ``golden`` each.

    Raises:
        ReferenceMismatch: it is beyond the recipe's tolerance, or a score is NaN or infinite.
    """
    worst, at, row = 0.0, golden[0], 0
    for one, scores in zip(golden, found, strict=True):
        difference = np.abs(scores.astype(np.float64) - one.scores.astype(np.float64))
        difference = np.where(np.isfinite(difference), difference, np.inf).reshape(len(one.products), -1).max(axis=1)
        if difference.max() > worst:
            worst, at, row = float(difference.max()), one, int(difference.argmax())
    pairs = sum(len(one.products) for one in golden)
    if worst <= recipe.reference.tolerance:
        say(f"{recipe.ranker}: {pairs} scores equal those from outside, largest difference {worst:.1e}")
        return worst
    place = next(place for place, one in enumerate(golden) if one is at)
    product = at.products[row]
    raise ReferenceMismatch(
        f"{recipe.ranker}: of {pairs} scores the worst differs by {worst:.3g}, tolerance "
        f"{recipe.reference.tolerance:g}: {at.source} gives {_shown(at.scores[row])}, the reference variant "
        f"{_shown(found[place][row])} for {_asked(at.request)} and item '{product.item_id}' ({product.title[:80]!r}); "
        f"as served it reads {_inputs(ranker, at.request, product)}. Mend [text] in the recipe so that the texts are "
        "those of training, or the scores' file"
    )


def _shown(score: Any) -> str:
    return ", ".join(f"{value:.6g}" for value in np.atleast_1d(score))


def _asked(request: Request) -> str:
    return f"query {request.query!r}" if request.query else f"a history of {len(request.history)} items"


def _inputs(ranker: Ranker, request: Request, product: Product) -> str:
    """What the ranker's graphs are fed for this pair, tokens as tokens where it reads text."""
    samples: Mapping[str, Sample] = ranker.sample(request, [product])
    if tokens := ranker.tokens(samples):
        return " ".join(tokens)
    [sample] = [samples[graph.name] for graph in ranker.graphs[-1:]]
    return "; ".join(f"{name} {array[:1].reshape(-1)[:12].tolist()}" for name, array in sample.items())


# ---------------------------------------------------------------- where they are from
def _from_file(recipe: Recipe, data: JudgedQueries) -> Iterator[Golden]:
    if recipe.reference.scores is None:
        return
    path = recipe.path(recipe.reference.scores)
    if not path.is_file():
        raise RecipeError(f"[reference] scores: no file {path}; wanted JSON lines with 'query' and 'scores'")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield _golden(path, number, line, data)


def _golden(path: Path, number: int, line: str, data: JudgedQueries) -> Golden:
    try:
        given = _Line.model_validate(json.loads(line))
    except (ValueError, pydantic.ValidationError) as error:
        told = str(error).splitlines()
        raise RecipeError(
            f'{path}:{number}: {" ".join(told[:3])}; wanted {{"query": "red shoes", "scores": {{"<item id>": 1.5}}}}'
        ) from None
    unknown = [item_id for item_id in given.scores if item_id not in data.products]
    if unknown:
        raise RecipeError(f"{path}:{number}: item '{unknown[0]}' is not in the corpus ({len(unknown)} such items)")
    request = Request(given.query, given.history, given.user_id, data.users.get(given.user_id), given.context)
    products = [data.products[item_id] for item_id in given.scores]
    return Golden(f"{path.name}:{number}", request, products, np.array([*given.scores.values()], dtype=np.float32))


def _from_library(recipe: Recipe, ranker: Ranker, data: JudgedQueries, say: Say) -> Iterator[Golden]:
    """Judged lists, one of the longest texts among them."""
    chosen = random.Random(SEED).sample(list(data.queries), k=min(recipe.reference.lists, len(data.queries)))
    longest = sorted(data.products.values(), key=lambda product: len(product.title) + len(product.text))
    for place, query_id in enumerate(chosen):
        products = [data.products[item_id] for item_id in data.judgements[query_id]][:LIST_CANDIDATES]
        request = data.request(query_id)
        of = products if place >= LONG_LISTS else longest[-LIST_CANDIDATES:]
        scores = ranker.library_scores(request, of)
        if scores is None:
            return
        if place == 0:
            say(f"{recipe.ranker}: {len(chosen)} lists scored by the library that made the checkpoint")
        yield Golden("the library", request, of, scores)
