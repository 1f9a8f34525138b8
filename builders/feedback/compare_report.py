"""The comparison of two variants as tables, lines and JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rich.table import Table

from builders.feedback.compare import AbTest, Interleaving, Report


def tables(report: Report) -> list[Table]:
    """For a terminal."""
    found = []
    if report.ab_test:
        found.append(_by_user(report, report.ab_test))
    if report.interleaving:
        found.append(_interleaved(report, report.interleaving))
    return found


def _by_user(report: Report, test: AbTest) -> Table:
    table = Table("a list", report.baseline, report.candidate, "difference", "95 % interval", "", title="A/B by user")
    for each in test.differences:
        verdict = "not concluded" if test.refusal else each.verdict
        numbers = (f"{each.baseline:.4f}", f"{each.candidate:.4f}", f"{each.difference:+.4f}")
        table.add_row(each.figure, *numbers, f"{each.low:+.4f} to {each.high:+.4f}", verdict)
    return table


def _interleaved(report: Report, found: Interleaving) -> Table:
    names = (report.baseline, report.candidate)
    table = Table("lists", *names, "ties", "candidate's share", "95 % interval", "", title="Lists won, interleaved")
    wins = (str(found.baseline_wins), str(found.candidate_wins), str(found.ties))
    share = "none" if math.isnan(found.share) else f"{found.share:.1%}"
    table.add_row(str(found.lists), *wins, share, f"{found.low:.1%} to {found.high:.1%}", found.verdict)
    return table


def told(report: Report) -> list[str]:
    """Lines for a reader: what was counted, and why nothing is concluded where nothing is."""
    others = [f"{report.other_lists} lists of other variants, not looked at"] if report.other_lists else []
    return others + (_told_of_users(report.ab_test) if report.ab_test else [])


def _told_of_users(test: AbTest) -> list[str]:
    ratio = test.sample_ratio
    share = ratio.candidate / max(ratio.baseline + ratio.candidate, 1)
    lines = [
        f"{test.lists[0]} and {test.lists[1]} lists of {test.users[0]} and {test.users[1]} users",
        f"{test.without_user} lists name no user: each counts as a user of its own" if test.without_user else "",
        f"{test.saw_both} users saw both variants: left out, with {test.saw_both_lists} lists" if test.saw_both else "",
        f"{test.without_revenue} bought items do not say what was paid: counted as 0" if test.without_revenue else "",
        f"sample ratio: the candidate has {share:.1%} of the {ratio.units}, {ratio.expected:.1%} expected "
        f"(p = {ratio.p:.2g})",
        test.refusal,
    ]
    return [line for line in lines if line]


def as_json(report: Report) -> dict[str, object]:
    """The whole report as JSON's types, with verdicts; NaN as None."""
    fields = dataclasses.asdict(report)
    if test := report.ab_test:
        fields["ab_test"]["refusal"] = test.refusal
        for row, each in zip(fields["ab_test"]["differences"], test.differences, strict=True):
            row |= {"difference": each.difference, "verdict": "not concluded" if test.refusal else each.verdict}
        fields["ab_test"]["sample_ratio"]["mismatch"] = test.sample_ratio.mismatch
    if report.interleaving:
        fields["interleaving"]["verdict"] = report.interleaving.verdict
    cleaned: dict[str, object] = _without_nan(fields)
    return cleaned


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
