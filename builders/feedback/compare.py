"""Two variants compared online, from a feedback log: lists of an A/B test, or interleaved ones.

In an A/B test the user is the unit: the difference of a figure's mean over lists has its interval by the delta method
over users (Deng et al., 2018, "Applying the Delta Method in Metric Analytics"), since the lists of one user are alike.
Interleaved lists (team draft: Radlinski et al., 2008, "How Does Clickthrough Data Reflect Retrieval Quality?") are won
by the team with more clicked items, and the share of wins has its exact binomial interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.stats

from builders.data.beir import DatasetError
from builders.feedback.log import FeedbackLog, ShownList

CONFIDENCE = 0.95
MISMATCH = 0.001
"""Probability of the users' split, below which the groups are not what was planned and nothing is concluded."""
LEAST_USERS = 30
"""Of each variant; the intervals rest on the means of this many being normally distributed."""
BASELINE, CANDIDATE = "baseline", "candidate"

FIGURES: dict[str, Callable[[ShownList], float]] = {
    "click-through rate": lambda each: float(bool(each.clicks)),
    "conversion": lambda each: float(bool(each.purchases)),
    "revenue": lambda each: sum(paid or 0.0 for paid in each.purchases.values()),
    "first click's reciprocal rank": lambda each: each.first_click_reciprocal_rank,
}
"""Of one list: share of lists with a click, with a purchase, revenue a list, 1 / position of the first click."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """One figure of both variants, a mean over lists.

    Attributes:
        low, high: of the 95 % interval of ``candidate`` minus ``baseline``.
        more_users: about how many more would make the interval's half-width the observed difference; None where the
            interval does not hold 0, or no difference was observed.
    """

    figure: str
    baseline: float
    candidate: float
    low: float
    high: float
    more_users: int | None

    @property
    def difference(self) -> float:
        """candidate minus baseline."""
        return self.candidate - self.baseline

    @property
    def verdict(self) -> str:
        """In words."""
        return _verdict(self.low, self.high, 0.0, self.more_users, "users")


@dataclasses.dataclass(frozen=True)
class SampleRatio:
    """Whether users came to the variants as planned.

    Attributes:
        units: what was counted, "users"; "lists" in a log without users.
        expected: share of the candidate.
        p: probability of a split as uneven as this or more.
    """

    units: str
    baseline: int
    candidate: int
    expected: float
    p: float

    @property
    def mismatch(self) -> bool:
        """Whether nothing should be concluded."""
        return self.p < MISMATCH


@dataclasses.dataclass(frozen=True)
class AbTest:
    """Lists that one of two variants ranked.

    Attributes:
        lists, users: of baseline and candidate; a list without user counts as a user of its own.
        without_user: lists.
        saw_both: users left out, and ``saw_both_lists`` their lists.
        without_revenue: bought items of which the log does not say what was paid; 0 where it never does.
        too_few_users: whether a variant has fewer than :data:`LEAST_USERS`.
    """

    lists: tuple[int, int]
    users: tuple[int, int]
    without_user: int
    saw_both: int
    saw_both_lists: int
    without_revenue: int
    sample_ratio: SampleRatio
    too_few_users: bool
    differences: tuple[Difference, ...]

    @property
    def refusal(self) -> str:
        """Why nothing is concluded; empty where something is."""
        ratio = self.sample_ratio
        if ratio.mismatch:
            return (
                f"nothing is concluded: {ratio.baseline} {ratio.units} saw the baseline and {ratio.candidate} the "
                f"candidate, {ratio.expected:.0%} of them expected (p = {ratio.p:.1e}, below {MISMATCH}); look for "
                "what loses users or sends them elsewhere, or name the share that was planned with --expected-share"
            )
        if self.too_few_users:
            return f"nothing is concluded: {self.users[0]} and {self.users[1]} users, wanted {LEAST_USERS} of each"
        return ""


@dataclasses.dataclass(frozen=True)
class Interleaving:
    """Lists of both teams.

    Attributes:
        share: of the candidate's wins among the lists that one team won; ``low`` and ``high`` its 95 % interval.
        more_lists: won ones that would make the interval's half-width the observed distance from one half; None as in
            :class:`Difference`.
    """

    lists: int
    baseline_wins: int
    candidate_wins: int
    ties: int
    share: float
    low: float
    high: float
    more_lists: int | None

    @property
    def verdict(self) -> str:
        """In words."""
        return _verdict(self.low, self.high, 0.5, self.more_lists, "won lists")


@dataclasses.dataclass(frozen=True)
class Report:
    """What a log says of two variants.

    Attributes:
        other_lists: of other variants, not looked at.
    """

    baseline: str
    candidate: str
    other_lists: int
    ab_test: AbTest | None
    interleaving: Interleaving | None


def compare(log: FeedbackLog, baseline: str, candidate: str, expected_share: float = 0.5) -> Report:
    """Compares two variants.

    Args:
        baseline, candidate: as the log names them; without ``@`` all generations of a variant are meant. Interleaved
            lists name one of them, or both as ``BASELINE+CANDIDATE``.
        expected_share: of the candidate among the users, between 0 and 1.

    Raises:
        DatasetError: the two are the same, or the log has no list of one of them and no interleaved list of both.
    """
    if _is(baseline, candidate) or _is(candidate, baseline):
        raise DatasetError(f"'{baseline}' and '{candidate}' are one variant, wanted two")
    if not 0 < expected_share < 1:
        raise DatasetError(f"an expected share of {expected_share:g}, wanted one between 0 and 1")
    arms: dict[str, list[ShownList]] = {BASELINE: [], CANDIDATE: []}
    interleaved, others = [], []
    for each in log.lists:
        arm = _arm(each.shown.variant, baseline, candidate)
        if each.shown.teams and (arm or _is_both(each.shown.variant, baseline, candidate)):
            interleaved.append(each)
        elif arm and not each.shown.teams:
            arms[arm].append(each)
        else:
            others.append(each)
    if not interleaved and not all(arms.values()):
        raise DatasetError(_none_of(log, baseline, candidate, arms))
    return Report(
        baseline,
        candidate,
        len(others),
        _ab_test(arms[BASELINE], arms[CANDIDATE], expected_share) if all(arms.values()) else None,
        _interleaving(interleaved) if interleaved else None,
    )


def _is(variant: str, wanted: str) -> bool:
    return variant == wanted or variant.partition("@")[0] == wanted


def _is_both(variant: str, baseline: str, candidate: str) -> bool:
    first, _, second = variant.partition("+")
    return _is(first, baseline) and _is(second, candidate)


def _arm(variant: str, baseline: str, candidate: str) -> str:
    """Empty for another variant."""
    return BASELINE if _is(variant, baseline) else CANDIDATE if _is(variant, candidate) else ""


def _none_of(log: FeedbackLog, baseline: str, candidate: str, arms: Mapping[str, Sequence[ShownList]]) -> str:
    counts: dict[str, int] = {}
    for each in log.lists:
        counts[each.shown.variant] = counts.get(each.shown.variant, 0) + 1
    held = ", ".join(f"'{name}' ({count})" for name, count in sorted(counts.items()))
    return (
        f"{len(arms[BASELINE])} lists of '{baseline}' and {len(arms[CANDIDATE])} of '{candidate}', wanted some of "
        f"each, or interleaved ones with teams; the log holds lists of {held}"
    )


# ---------------------------------------------------------------- by user
def _ab_test(baseline: list[ShownList], candidate: list[ShownList], expected_share: float) -> AbTest:
    both = _users(baseline) & _users(candidate)
    arms = [[each for each in arm if each.shown.user not in both] for arm in (baseline, candidate)]
    if not all(arms):
        raise DatasetError(f"{len(both)} users saw both variants, and nobody else saw one of them; wanted other users")
    units = [_by_user(arm) for arm in arms]
    paid = [paid for arm in arms for each in arm for paid in each.purchases.values()]
    tells_revenue = any(each is not None for each in paid)
    figures = [name for name in FIGURES if name != "revenue" or tells_revenue]
    return AbTest(
        lists=(len(arms[0]), len(arms[1])),
        users=(len(units[0]), len(units[1])),
        without_user=sum(each.shown.user is None for arm in arms for each in arm),
        saw_both=len(both),
        saw_both_lists=len(baseline) + len(candidate) - sum(map(len, arms)),
        without_revenue=paid.count(None) if tells_revenue else 0,
        sample_ratio=_sample_ratio(arms, expected_share),
        too_few_users=min(map(len, units)) < LEAST_USERS,
        differences=tuple(_difference(name, units[0], units[1]) for name in figures),
    )


def _users(lists: Sequence[ShownList]) -> set[str]:
    return {each.shown.user for each in lists if each.shown.user is not None}


def _by_user(lists: Sequence[ShownList]) -> list[list[ShownList]]:
    """A list without user stands alone."""
    groups: dict[tuple[str, str], list[ShownList]] = {}
    for each in lists:
        key = ("list", each.shown.request_id) if each.shown.user is None else ("user", each.shown.user)
        groups.setdefault(key, []).append(each)
    return list(groups.values())


def _sample_ratio(arms: Sequence[Sequence[ShownList]], expected_share: float) -> SampleRatio:
    """Of named users; of lists in a log that names none, since guests' lists are not independent of each other."""
    users = [len(_users(arm)) for arm in arms]
    units, (baseline, candidate) = ("users", users) if any(users) else ("lists", [len(arm) for arm in arms])
    p = scipy.stats.binomtest(candidate, baseline + candidate, expected_share).pvalue
    return SampleRatio(units, baseline, candidate, expected_share, float(p))


def _difference(figure: str, baseline: list[list[ShownList]], candidate: list[list[ShownList]]) -> Difference:
    """Interval by the delta method."""
    (mean_before, error_before), (mean_after, error_after) = (
        _mean_over_lists(FIGURES[figure], units) for units in (baseline, candidate)
    )
    half = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.hypot(error_before, error_after)
    found = mean_after - mean_before
    users = len(baseline) + len(candidate)
    more = _more(users, half, found) if abs(found) <= half else None
    return Difference(figure, mean_before, mean_after, found - half, found + half, more)


def _mean_over_lists(figure: Callable[[ShownList], float], units: list[list[ShownList]]) -> tuple[float, float]:
    """The mean over lists and its standard error over users; NaN of a single user."""
    sums = np.array([sum(map(figure, unit)) for unit in units])
    lists = np.array([len(unit) for unit in units])
    mean = float(sums.sum() / lists.sum())
    if len(units) == 1:
        return mean, math.nan
    residuals = (sums - mean * lists) / lists.mean()
    return mean, float(residuals.std(ddof=1) / math.sqrt(len(units)))


def _more(units: int, half_width: float, distance: float) -> int | None:
    """A half-width falls with the root of the number of units."""
    return max(math.ceil(units * (half_width / distance) ** 2 - units), 1) if distance else None


def _verdict(low: float, high: float, none: float, more: int | None, units: str) -> str:
    if low > none:
        return "the candidate is higher"
    if high < none:
        return "the candidate is lower"
    return f"no telling yet; about {more} more {units} might tell" if more is not None else "no telling yet"


# ---------------------------------------------------------------- interleaving
def _interleaving(lists: Sequence[ShownList]) -> Interleaving:
    leads = [_lead(each) for each in lists]
    baseline, candidate = sum(lead < 0 for lead in leads), sum(lead > 0 for lead in leads)
    won = baseline + candidate
    if not won:
        return Interleaving(len(lists), 0, 0, len(lists), math.nan, 0.0, 1.0, None)
    interval = scipy.stats.binomtest(candidate, won).proportion_ci(CONFIDENCE, method="exact")
    share, low, high = candidate / won, float(interval.low), float(interval.high)
    more = _more(won, (high - low) / 2, share - 0.5) if low <= 0.5 <= high else None
    return Interleaving(len(lists), baseline, candidate, len(lists) - won, share, low, high, more)


def _lead(each: ShownList) -> int:
    """Clicked items of the candidate, less those of the baseline."""
    teams = each.shown.team_of_item()
    return sum({CANDIDATE: 1, BASELINE: -1}.get(teams.get(item_id, ""), 0) for item_id in each.clicks)
