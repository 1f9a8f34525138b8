"""An explanation: items, their scores, and what each part of the request adds to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from builders.data.beir import Product, Request
from builders.data.find import DatasetError
from builders.rankers.base import Ranker

SHOWN_CONTRIBUTIONS = 12


class ExplainError(DatasetError):
    """A score cannot be explained; the message says what was found and what was wanted."""


@dataclasses.dataclass(frozen=True)
class ItemExplanation:
    """One candidate's score in parts.

    Attributes:
        score, baseline_score: the network's, of the request and of the baseline.
        contributions: (label, what it adds to the score), in the order of the network's inputs.
    """

    item_id: str
    title: str
    score: float
    baseline_score: float
    contributions: tuple[tuple[str, float], ...]

    @property
    def completeness_error(self) -> float:
        """The contributions' sum minus the score difference: what the integral missed (Captum's convergence delta)."""
        return sum(value for _, value in self.contributions) - (self.score - self.baseline_score)

    def strongest(self, count: int = SHOWN_CONTRIBUTIONS) -> list[tuple[str, float]]:
        """At most ``count``, the largest absolute value first; the rest of them as one more, so that all add up."""
        ordered = sorted(self.contributions, key=lambda part: -abs(part[1]))
        rest = ordered[count:]
        return ordered[:count] + ([(f"{len(rest)} others", sum(value for _, value in rest))] if rest else [])


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Candidates of one request, the best first.

    Attributes:
        asked: the request for a reader, such as "query 'coffee mug'".
        kept: features whose ids pass no embedding layer (they choose one of several scores, say), so that they stay as
            they are in the baseline too.
    """

    ranker: str
    asked: str
    items: tuple[ItemExplanation, ...]
    kept: tuple[str, ...] = ()

    @property
    def completeness_error(self) -> float:
        """The largest of any item, absolute."""
        return max(abs(item.completeness_error) for item in self.items)


def check_products(products: Sequence[Product]) -> None:
    if not products:
        raise ExplainError("no items to explain, wanted at least one")


def explanation_of(ranker: Ranker, request: Request, items: Sequence[ItemExplanation]) -> Explanation:
    return Explanation(ranker.name, _asked(request), tuple(sorted(items, key=lambda item: -item.score)))


def _asked(request: Request) -> str:
    told = {
        "query": f"'{request.query}'" if request.query else "",
        "history": f"of {len(request.history)} items" if request.history else "",
        "user": request.user_id,
        "context": ", ".join(f"{name}={value}" for name, value in request.context.items()),
    }
    return ", ".join(f"{name} {value}" for name, value in told.items() if value) or "nothing told"
