"""The comparison with other servers, on peers of a few lines: real processes, no package of anyone."""

import contextlib
import json
import os
import re
import subprocess
import sys
import sysconfig

import pytest
from rich.console import Console

from perf.errors import PerfError
from perf.kit.data import REPOSITORY_ROOT, JudgedQueries, Product, Request, Workspace
from perf.peers.environments import REQUIREMENTS, NotInstalled, python_of
from perf.peers.figures import compared_scores
from perf.peers.inputs import CANDIDATES as CANDIDATES_OF_ITEMS
from perf.peers.inputs import REQUESTS, requests_of
from perf.peers.peer import Answers, Environment, drive
from perf.peers.run import PEERS, Contender, _of_names, compare, write_report
from perf.peers.running import CLIENTS, PeerFailed, Running, running
from tests.support.small_peers import peer

BODIES = [{"query": str(number), "documents": ["a" * count for count in range(1, 4)]} for number in range(4)]
NUMBERS, CANDIDATES, ROUNDS = [0, 1, 2, 3], [3, 3, 3, 3], 2
LAST = "hangs up between turns"
MISSING = "./no_such_package-1.0-py3-none-any.whl\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "requests.json").write_text(json.dumps(BODIES))
    return folder


@pytest.fixture(scope="module")
def requirements(tmp_path_factory):
    folder = tmp_path_factory.mktemp("requirements")
    (folder / "not_there.txt").write_text(MISSING)
    return folder


def contender(one, folder, requirements):
    @contextlib.contextmanager
    def start():
        python = python_of(one.environment, folder / "environments", lambda line: None, requirements)
        with running(one, python, folder, BODIES) as up:
            yield up

    return Contender(one.name, start, one.exact, one.note)


@pytest.fixture(scope="module")
def report(folder, requirements):
    peers = [
        peer("served"),
        peer("in process", served=False),
        peer("other weights", "twice"),
        peer("quantized", "twice", served=False, exact=False),
        peer("cut", "short", served=False),
        peer("hangs up between turns", "hangs up"),
        peer("not to be installed", environment="not_there"),
        peer("not to be started", "dies"),
        peer("fails when asked", "fails"),
        peer("fails in process", "fails", served=False),
    ]
    contenders = [contender(one, folder, requirements) for one in peers]
    return compare("cross_encoder", "lengths", contenders, NUMBERS, CANDIDATES, ROUNDS, Console(quiet=True))


def row(report, name):
    [found] = [each for each in report.rows if each.name == name]
    return found


def test_each_peer_answers_every_request_of_every_round_and_is_set_against_the_reference(report):
    assert [each.name for each in report.rows] == ["served", "in process", "other weights", "quantized", "cut", LAST]
    for each in report.rows:
        assert each.requests == ROUNDS * len(NUMBERS)
        assert each.p50_ms > 0
        assert each.candidates_per_s > 0
    reference = row(report, "served").speedup
    assert reference.low == reference.median == reference.high == 1.0


def test_a_served_peer_and_one_in_process_that_compute_the_same_are_told_to(report):
    assert row(report, "in process").scores == "the same within 0.0e+00"


def test_other_scores_and_missing_ones_are_said(report):
    assert row(report, "other weights").scores == "OTHER: they differ by up to 3"
    assert row(report, "quantized").scores == "quantized: they differ by up to 3"
    assert row(report, "cut").scores == "OTHER: 8 of 8 answers have not a score a candidate, such as 2 of 3"


def test_scores_that_are_no_numbers_are_never_the_same():
    assert compared_scores([[[float("nan")]]], [[[1.0]]], exact=True).startswith("OTHER")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("not to be installed", "ERROR: .*no_such_package"),
        ("not to be started", "ended with 1 at its start; .*no such weights"),
        ("fails when asked", "500 .*request 2 is too much"),
        ("fails in process", "ended, wanted an answer; .*request 2 is too much"),
    ],
)
def test_a_peer_that_cannot_be_measured_is_reported_with_its_reason(report, name, reason):
    assert re.search(reason, report.not_measured[name], re.DOTALL)


def test_the_page_and_the_json_have_every_row_and_every_reason(report, tmp_path):
    data, page = write_report(report, Workspace(build=tmp_path))
    assert json.loads(data.read_text()) == report.model_dump()
    text = page.read_text()
    assert all(each.name in text and each.scores in text for each in report.rows)
    assert all(name in text for name in report.not_measured)


def test_no_peer_stays_behind(folder):
    one = peer("served")
    with running(one, python_of(one.environment, folder), folder, BODIES) as up:
        pid = up.pid
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


def recording(asked, name, fails=False):
    def ask(numbers):
        asked.append(name)
        if fails:
            raise PeerFailed("no answer")
        return Answers([1.0] * len(numbers), [[1.0]] * len(numbers), 1.0)

    return Contender(name, lambda: contextlib.nullcontext(Running(name, os.getpid(), ask)))


def test_peers_are_chosen_by_a_part_of_their_names():
    three = [Contender(name, lambda: None) for name in ("FastAPI, a", "FastAPI, b", "ours")]
    assert [one.name for one in _of_names(three, ["FastAPI", "our"])] == ["FastAPI, a", "FastAPI, b", "ours"]
    assert [one.name for one in _of_names(three, ["ours"])] == ["ours"]
    assert _of_names(three, []) == three
    with pytest.raises(PerfError, match=r"--only gone: no peer of that name; wanted .* FastAPI, a; FastAPI, b; ours"):
        _of_names(three, ["gone"])


def test_rounds_go_through_all_peers_forth_and_back():
    asked: list[str] = []
    compare("cross_encoder", "", [recording(asked, name) for name in "abc"], [0], [1], 2, Console(quiet=True))
    assert "".join(asked) == "abc" + "abc" + "cba"


def test_a_peer_that_failed_is_asked_no_more():
    asked: list[str] = []
    contenders = [recording(asked, "a"), recording(asked, "b", fails=True)]
    report = compare("cross_encoder", "", contenders, [0], [1], 2, Console(quiet=True))
    assert "".join(asked) == "ab" + "a" + "a"
    assert report.not_measured == {"b": "no answer"}


def test_without_its_reference_nothing_is_compared():
    with pytest.raises(PerfError, match="the reference a cannot be measured, so nothing can: no answer"):
        compare("interactions", "", [recording([], "a", fails=True)], [0], [1], 1, Console(quiet=True))


def test_clients_share_the_requests_and_answers_stay_in_order():
    found = drive([lambda number: [number], lambda number: [number]], [3, 1, 2, 0])
    assert found.scores == [[3.0], [1.0], [2.0], [0.0]]
    assert CLIENTS >= 2


def test_what_cannot_be_installed_is_tried_once_until_its_requirements_change(tmp_path):
    wanted = tmp_path / "requirements" / "other.txt"
    wanted.parent.mkdir()
    wanted.write_text(MISSING)
    said: list[str] = []
    for _ in range(2):
        with pytest.raises(NotInstalled, match="no_such_package"):
            python_of(Environment("other"), tmp_path, said.append, wanted.parent)
        assert not (tmp_path / "other").exists()
    assert len(said) == 1
    wanted.write_text("")
    python = python_of(Environment("other", base="kit"), tmp_path, said.append, wanted.parent)
    assert python == python_of(Environment("other", base="kit"), tmp_path, said.append, wanted.parent)
    assert len(said) == 2
    subprocess.run([python, "-c", "import numpy"], check=True)  # the kit's own packages are seen


@pytest.mark.parametrize("kind", ["cross_encoder", "interactions"])
def test_requests_bring_their_own_candidates_and_those_of_interactions_are_filled_up(kind):
    products = {str(number): Product(str(number), f"title {number}") for number in range(CANDIDATES_OF_ITEMS + 5)}
    queries = {f"q{number}": f"title {number}" for number in range(REQUESTS + 1)}
    requests = {query_id: Request(text, history=("2",)) for query_id, text in queries.items()}
    judgements = {query_id: {"514": 3, "1": 0} for query_id in queries}
    judged = JudgedQueries(queries, products, judgements, requests)
    lists = requests_of(kind, judged).judgements
    assert list(lists) == list(queries)[:REQUESTS]
    for grades in lists.values():
        assert len(grades) == (2 if kind == "cross_encoder" else CANDIDATES_OF_ITEMS)
        assert {item_id: grade for item_id, grade in grades.items() if grade} == {"514": 3}


def test_every_environment_has_its_requirements_pinned():
    names = {one.environment.name for peers in PEERS.values() for one in peers} - {""}
    assert {path.stem for path in REQUIREMENTS.glob("*.txt")} == names
    for name in names:
        lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
        assert all("==" in line for line in lines if line and not line.startswith("#")), name


def test_peers_files_need_nothing_but_the_standard_library_to_be_imported():
    modules = sorted({one.module for peers in PEERS.values() for one in peers} | {"perf.peers.in_process"})
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY_ROOT)!r}); import {', '.join(modules)}"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, cwd=sysconfig.get_path("stdlib"))
