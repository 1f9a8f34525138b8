"""Lines of a purchase log => what was bought and kept: returns are netted, what is no purchase is left out and counted.

A return is a line with a negative quantity. It takes back the latest units of the item that the same customer had
bought until then, whatever the invoice. Two passes over the lines, however they are spread over customers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd


@dataclasses.dataclass(frozen=True)
class Returns:
    """What became of returns, in lines.

    Attributes:
        returns: in all.
        undone: purchases that were taken back whole.
        lessened: purchases that were taken back in part.
        unmatched: returns of more than what was bought before; what is beyond is dropped.
    """

    returns: int = 0
    undone: int = 0
    lessened: int = 0
    unmatched: int = 0

    def __add__(self, other: Returns) -> Returns:
        """Of two parts of a log."""
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Returns(*(one + another for one, another in zip(mine, theirs, strict=True)))

    def told(self) -> Iterator[str]:
        """A line for a reader, none where there were no returns."""
        if self.returns:
            yield (
                f"{self.returns} returns are netted: {self.undone} purchases taken back whole are left out, "
                f"{self.lessened} taken back in part are lessened; {self.unmatched} returns of more than the customer "
                "had bought on their side of the cut are dropped"
            )


def without_no_purchases(lines: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Lines with a quantity and a price that a purchase or a return can have; and how many were left out."""
    none, negative = lines.quantity == 0, lines.price < 0
    repeated = int(lines.duplicated().sum())
    told = {
        f"{none.sum()} of {len(lines)} lines with quantity 0 are left out": none.any(),
        f"{(negative & ~none).sum()} of {len(lines)} lines with a negative price are left out": (
            negative & ~none
        ).any(),
        f"{repeated} of {len(lines)} lines repeat another one in every column: their units are added": repeated,
    }
    return lines[~(none | negative)], [text for text, holds in told.items() if holds]


def net_returns(lines: pd.DataFrame) -> tuple[pd.DataFrame, Returns]:
    """What was kept of purchases.

    Args:
        lines: user_id (missing for a guest, whose returns match nothing), item_id, time, quantity (not 0).

    Returns:
        Purchases in time's order, with the quantity that was kept, at least 1; and counts.
    """
    returned = lines.quantity < 0
    lines = lines.assign(returned=returned).sort_values(["time", "returned"], kind="stable", ignore_index=True)
    returned = lines.pop("returned").to_numpy(dtype=bool)
    bought = lines.quantity.to_numpy(dtype=np.int64)
    kept, unmatched = _netted(lines, bought, returned)
    purchases = ~returned
    counts = Returns(
        returns=int(returned.sum()),
        undone=int((purchases & (kept == 0)).sum()),
        lessened=int((purchases & (kept > 0) & (kept < bought)).sum()),
        unmatched=unmatched,
    )
    stays = purchases & (kept > 0)
    return lines.assign(quantity=kept)[stays].reset_index(drop=True), counts


def _netted(lines: pd.DataFrame, bought: np.ndarray, returned: np.ndarray) -> tuple[np.ndarray, int]:
    """int64 [lines] units kept; and how many returns were of more than there was."""
    kept = bought.copy()
    of_pair = (
        lines.groupby(["user_id", "item_id"], sort=False).ngroup().fillna(-1).to_numpy(dtype=np.int64)
    )  # guests: -1
    touched = np.isin(of_pair, of_pair[returned & (of_pair >= 0)])
    unmatched = int((returned & (of_pair < 0)).sum())
    open_purchases: dict[int, list[int]] = {}
    for row in np.flatnonzero(touched).tolist():
        rows = open_purchases.setdefault(int(of_pair[row]), [])
        if returned[row]:
            unmatched += _take_back(-int(bought[row]), rows, kept) > 0
        else:
            rows.append(row)
    return kept, unmatched


def _take_back(units: int, rows: list[int], kept: np.ndarray) -> int:
    """From the latest of the purchases in ``rows`` on; those used up leave it. Returns the units that are left over."""
    while units and rows:
        taken = min(units, int(kept[rows[-1]]))
        units -= taken
        kept[rows[-1]] -= taken
        if not kept[rows[-1]]:
            rows.pop()
    return units
