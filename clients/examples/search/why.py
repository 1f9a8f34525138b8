"""Why an item got its score: what each word, field or item of the history adds, as `builders explain` computes it."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from builders.core.recipe import Recipe, RecipeError
from builders.data.beir import Product, Request
from clients.examples.search.answers import Part, Why

if TYPE_CHECKING:  # torch comes with them; the page starts without
    from builders.evaluate.explain.explanation import ItemExplanation
    from builders.rankers.base import Ranker

SHOWN_PARTS = 9
WORD_PIECE = "##"
"""Begins a token that goes on with the word before it."""


class Explainer:
    """Computes on demand, in this process, by the torch network before it was compressed. The first explanation of a
    ranker takes seconds: the network is read then.

    Args:
        recipes: by name.
    """

    def __init__(self, recipes: Mapping[str, Recipe]) -> None:
        self._recipes = recipes
        self._one_at_a_time = threading.Lock()

    def __call__(self, recipe: str, request: Request, product: Product, titles: Mapping[str, str]) -> Why:
        """Why the product is scored so.

        Args:
            recipe: name of the one that the ranker was built from.
            titles: item id => title, to name the items of a history.

        Raises:
            ExplainError: this ranker's scores cannot be taken apart.
            RecipeError: it was built from a recipe that lies elsewhere.
        """
        if recipe not in self._recipes:
            raise RecipeError(
                f"no recipe '{recipe}' in recipes/, wanted that of the ranker, to read its network; "
                "'python -m builders status' lists what was built from what"
            )
        from builders.evaluate.explain.run import explain

        with self._one_at_a_time:
            weights = self._recipes[recipe].postprocess.head_weights
            found = explain(self._ranker(recipe), request, [product], titles=titles, head_weights=weights)
        return why(found.ranker, found.items[0])

    @functools.cache  # noqa: B019 - lives as long as the page
    def _ranker(self, recipe: str) -> Ranker:
        from builders.rankers.load import load_ranker

        return load_ranker(self._recipes[recipe])


def why(ranker: str, item: ItemExplanation) -> Why:
    """The strongest parts first, the rest of them as one."""
    whole = dataclasses.replace(item, contributions=tuple(whole_words(item.contributions)))
    parts = [
        Part(label=label, adds=value, rest=place == SHOWN_PARTS)
        for place, (label, value) in enumerate(whole.strongest(SHOWN_PARTS))
    ]
    return Why(ranker=ranker, score=item.score, baseline=item.baseline_score, parts=parts)


def whole_words(contributions: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """With each word's pieces joined, and what they add summed."""
    words: list[tuple[str, float]] = []
    for label, value in contributions:
        side, _, piece = label.partition(": ")
        if words and piece.startswith(WORD_PIECE) and words[-1][0].startswith(f"{side}: "):
            before, added = words.pop()
            words.append((before + piece.removeprefix(WORD_PIECE), added + value))
        else:
            words.append((label, value))
    return words
