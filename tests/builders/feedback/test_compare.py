"""Two variants compared by users' clicks: known effects are found, none is found where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from builders.__main__ import app
from builders.data.beir import DatasetError
from builders.feedback.compare import MISMATCH, Difference, Report, compare
from builders.feedback.compare_report import as_json, told
from builders.feedback.events import Click, Purchase, Shown
from builders.feedback.log import FeedbackLog, ShownList, joined
from tests.support.feedback import START, click, purchase, shown

Events = list[Shown | Click | Purchase]
LIST = shown("r", "abc")


def ab_log(seed: int, users: int, effect: float = 0.0, share: float = 0.5) -> FeedbackLog:
    """Users click with a rate of their own, most over several lists. effect: added for those of "new"."""
    generator = np.random.default_rng(seed)
    lists = []
    for user in range(users):
        new = generator.random() < share
        rate = generator.beta(1, 3) + effect * new
        fields = {"user": f"u{user}", "variant": "new@2" if new else "base@1"}
        for number in range(1 + generator.geometric(0.3)):
            seen = LIST.model_copy(update={**fields, "request_id": f"{user}-{number}"})
            clicked = [item for item in "abc" if generator.random() < rate / 2]
            bought = {item: generator.exponential(20.0) for item in clicked if generator.random() < 0.3}
            lists.append(ShownList(seen, dict.fromkeys(clicked, START), bought))
    return FeedbackLog(lists, {})


def differences(report: Report) -> dict[str, Difference]:
    assert report.ab_test
    return {each.figure: each for each in report.ab_test.differences}


def test_a_known_effect_is_found_with_its_size() -> None:
    found = differences(compare(ab_log(1, 3000, effect=0.15), "base", "new"))
    assert set(found) == {"click-through rate", "conversion", "revenue", "first click's reciprocal rank"}
    assert {each.verdict for each in found.values()} == {"the candidate is higher"}
    again = differences(compare(ab_log(2, 3000, effect=0.15), "base@1", "new@2"))
    clicks = found["click-through rate"]
    assert clicks.low < again["click-through rate"].difference < clicks.high
    turned = differences(compare(ab_log(1, 3000, effect=0.15), "new", "base"))
    assert turned["conversion"].verdict == "the candidate is lower"
    assert turned["conversion"].difference == -found["conversion"].difference


def test_intervals_hold_0_in_about_95_of_100_logs_without_an_effect() -> None:
    held: dict[str, int] = {}
    for seed in range(100):
        for name, each in differences(compare(ab_log(seed, 150), "base", "new")).items():
            held[name] = held.get(name, 0) + (each.low <= 0 <= each.high)
    assert all(88 <= count <= 100 for count in held.values()), held
    assert sum(held.values()) < 400  # an interval that always holds 0 tells nothing


def test_a_difference_that_does_not_tell_says_how_many_more_users_would() -> None:
    each = differences(compare(ab_log(4, 300, effect=0.01), "base", "new"))["click-through rate"]
    assert each.low < 0 < each.high
    assert each.more_users == pytest.approx(300 * (((each.high - each.low) / 2 / each.difference) ** 2 - 1), abs=1)
    assert each.verdict == f"no telling yet; about {each.more_users} more users might tell"


def test_no_purchases_at_all_are_no_telling() -> None:
    lists = [shown(f"{arm}{user}", "abc", user=f"{arm}{user}", variant=arm) for arm in "ab" for user in range(50)]
    each = differences(compare(joined(lists), "a", "b"))["conversion"]
    assert (each.low, each.high, each.verdict) == (0, 0, "no telling yet")


def test_users_who_came_otherwise_than_planned_are_nothing_to_conclude_from() -> None:
    log = ab_log(5, 1000, effect=0.3, share=0.4)
    test = compare(log, "base", "new").ab_test
    assert test
    assert test.sample_ratio.p < MISMATCH
    assert "nothing is concluded" in test.refusal
    assert "--expected-share" in test.refusal
    printed = as_json(compare(log, "base", "new"))
    assert {row["verdict"] for row in printed["ab_test"]["differences"]} == {"not concluded"}  # type: ignore[index]
    planned = compare(log, "base", "new", expected_share=0.4).ab_test
    assert planned
    assert planned.refusal == ""


def test_users_who_saw_both_are_left_out_and_guests_count_one_by_one() -> None:
    events: Events = []
    for user in range(40):
        arm = "ab"[user % 2]
        events += [shown(f"u{user}", "xy", user=f"u{user}", variant=arm), shown(f"g{user}", "xy", variant=arm)]
    for number in range(6):
        events += [shown(f"both{number}", "xy", user="both", variant="ab"[number % 2]), click(f"both{number}", "x")]
    events += [shown("other", "xy", variant="c@1")]
    report = compare(joined(events), "a", "b")
    assert report.ab_test
    test = report.ab_test
    assert (test.lists, test.users, test.without_user) == ((40, 40), (40, 40), 40)
    assert (test.saw_both, test.saw_both_lists, report.other_lists) == (1, 6, 1)
    assert (test.sample_ratio.units, test.sample_ratio.baseline, test.sample_ratio.candidate) == ("users", 20, 20)
    assert differences(report)["click-through rate"].baseline == 0
    assert len([line for line in told(report) if "left out" in line or "of its own" in line]) == 2


def test_lists_of_one_user_are_no_independent_evidence() -> None:
    """A user who clicks always, a hundred times over, makes the interval wider than a hundred users would."""

    def log(users: int) -> FeedbackLog:
        events: Events = []
        for number in range(4000):
            user, arm = number % users, "ab"[number % 2]
            events += [shown(f"r{number}", "xy", user=f"u{user}", variant=arm)]
            events += [click(f"r{number}", "x")] if user % 4 < 2 else []
        return joined(events)

    few, many = (differences(compare(log(users), "a", "b"))["click-through rate"] for users in (80, 4000))
    assert few.baseline == many.baseline == 0.5
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(50**0.5, rel=0.05)


def test_few_users_are_nothing_to_conclude_from() -> None:
    lists = [shown(f"{arm}{number}", "xy", user=arm, variant=arm) for arm in "ab" for number in range(100)]
    test = compare(joined(lists), "a", "b").ab_test
    assert test
    assert test.refusal == "nothing is concluded: 1 and 1 users, wanted 30 of each"


def interleaved(wins: int, losses: int, ties: int, **fields: Any) -> FeedbackLog:
    events: Events = []
    for number in range(wins + losses + ties):
        teams = {"1": "baseline", "2": "candidate"} if number % 2 else {"a": "baseline", "b": "candidate"}
        events += [shown(f"r{number}", "abc", teams=teams, **fields)]
        clicked = "b" if number < wins else "a" if number < wins + losses else "c"
        events += [click(f"r{number}", clicked)]
    return joined(events)


def test_interleaving_finds_a_known_winner_with_the_exact_interval() -> None:
    found = compare(interleaved(70, 30, 25, variant="base+new@2"), "base", "new").interleaving
    assert found
    assert (found.baseline_wins, found.candidate_wins, found.ties, found.lists) == (30, 70, 25, 125)
    assert (found.low, found.high) == pytest.approx((0.600, 0.788), abs=0.001)  # Clopper-Pearson
    assert found.verdict == "the candidate is higher"


def test_interleaving_that_does_not_tell_says_so() -> None:
    found = compare(interleaved(11, 9, 0, variant="new"), "base", "new").interleaving
    assert found
    assert found.more_lists
    assert found.verdict == f"no telling yet; about {found.more_lists} more won lists might tell"
    nothing = compare(interleaved(0, 0, 5, variant="new"), "base", "new").interleaving
    assert nothing
    assert nothing.verdict == "no telling yet"


def test_interleaved_lists_whose_teams_are_named_the_other_way_round_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"holds lists of 'base\+new@2' \(10\)"):
        compare(interleaved(7, 3, 0, variant="base+new@2"), "new", "base")


@pytest.mark.parametrize(
    ("baseline", "candidate", "share", "fault"),
    [
        pytest.param(
            "base", "old", 0.5, r"0 of 'old', .*the log holds lists of 'base@1' \(\d+\), 'new@2'", id="absent"
        ),
        pytest.param("base", "new@3", 0.5, "0 of 'new@3'", id="another generation"),
        pytest.param("base", "base@1", 0.5, "are one variant", id="the same"),
        pytest.param("base", "new", 1.0, "expected share of 1", id="share"),
    ],
)
def test_what_cannot_be_compared_is_refused(baseline: str, candidate: str, share: float, fault: str) -> None:
    with pytest.raises(DatasetError, match=fault):
        compare(ab_log(1, 20), baseline, candidate, share)


def test_a_log_whose_users_all_saw_both_is_refused() -> None:
    lists = [shown(f"{arm}{user}", "xy", user=f"u{user}", variant=arm) for arm in "ab" for user in range(3)]
    with pytest.raises(DatasetError, match="3 users saw both"):
        compare(joined(lists), "a", "b")


def test_the_verb_prints_a_table_and_a_line_of_json(tmp_path: Path) -> None:
    events: Events = []
    for user in range(80):
        events += [shown(f"r{user}", "abc", user=f"u{user}", variant="ab"[user % 2]), click(f"r{user}", "a")]
    events += [purchase("r1", "a", 5.0), purchase("r3", "a"), click("r1", "z")]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(event.model_dump_json() + "\n" for event in events), encoding="utf-8")
    arguments = ["compare-online", str(log), "--baseline", "a", "--candidate", "b"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "A/B by user" in result.stdout
    assert "1 bought items do not say what was paid" in result.stdout
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["log"] == {"clicks left out: their item was not in the list": 1}
    assert [row["figure"] for row in report["ab_test"]["differences"]][2] == "revenue"
    assert report["ab_test"]["users"] == [40, 40]
