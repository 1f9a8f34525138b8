"""Which queries to show of two orders: not the first ones, but where the later order gains and loses."""

from __future__ import annotations

from collections.abc import Mapping


def telling_queries(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, str]:
    """Query id => why it is shown: the greatest gain in NDCG@10, the median difference, the greatest loss.

    Of fewer than three queries each is shown once.

    Args:
        before, after: query id => NDCG@10; only queries that both have count.
    """
    gains = {query_id: after[query_id] - before[query_id] for query_id in after if query_id in before}
    order = sorted(gains, key=lambda query_id: (-gains[query_id], query_id))
    if not order:
        return {}
    best, middle, worst = order[0], order[len(order) // 2], order[-1]
    found = {
        best: "the greatest gain" if gains[best] > 0 else "no gain anywhere: the smallest loss",
        worst: "the greatest loss" if gains[worst] < 0 else "no loss anywhere, the smallest gain",
    }
    if middle not in found:
        found = {best: found[best], middle: "the median difference", worst: found[worst]}
    return {query_id: f"{gains[query_id]:+.3f}: {why}" for query_id, why in found.items()}


def tally(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """On how many queries the later order is better, equal and worse by NDCG@10."""
    gains = [after[query_id] - before[query_id] for query_id in after if query_id in before]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return f"better on {better}, equal on {len(gains) - better - worse}, worse on {worse} of {len(gains)} test queries"
