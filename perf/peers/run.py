"""``make peers``: what else serves these weights, asked for the same in turn: latency, rate, processor time, scores.

All are up at once, one is asked at a time; a round goes through all of them before the next begins, so that whatever
changes on the machine meets all of them alike, and a ratio is over the reference of the same round. What the others
burn meanwhile is told. Each has all cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Table

from perf.errors import PerfError
from perf.forms import ENSEMBLE
from perf.kit.data import PROJECT, Workspace, write_atomically
from perf.machine import this_machine
from perf.peers import (
    fastapi_items,
    fastembed_in_process,
    flashrank_in_process,
    infinity_server,
    litserve_onnx,
    onnxruntime_in_process,
    pytriton_onnx,
    sentence_transformers_fastapi,
)
from perf.peers.environments import python_of
from perf.peers.figures import Bout, PeersReport, Row, row_of
from perf.peers.inputs import RECIPES, REQUESTS, Inputs, Ours, prepare
from perf.peers.peer import Answers, Peer
from perf.peers.running import CLIENTS, PeerFailed, Running, running, running_ours
from perf.progress import track
from perf.tables import print_whole
from server.errors import ServerError

TEMPLATES = Path(__file__).parents[1] / "templates"
ROUNDS = 10
PASSES = {"cross_encoder": 1, "interactions": 20}
"""Kind => how often a turn goes over the requests: processor time is counted in steps of 10 ms."""
SETTLE_S = 0.3
"""Between two turns: threads of ONNX Runtime and OpenMP spin on for a while after a run."""
PEERS: Mapping[str, Sequence[Peer]] = {
    "cross_encoder": (
        *sentence_transformers_fastapi.PEERS,
        *infinity_server.PEERS,
        *litserve_onnx.PEERS,
        *pytriton_onnx.PEERS,
        *fastembed_in_process.PEERS,
        *flashrank_in_process.PEERS,
    ),
    "interactions": (
        *onnxruntime_in_process.PEERS,
        *fastapi_items.PEERS,
        *litserve_onnx.PEERS_OF_ITEMS,
        *pytriton_onnx.PEERS_OF_ITEMS,
    ),
}
"""Kind => who is compared; the first one is the reference."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row: how it is started, and what is known of it.

    Attributes:
        start: gives it up and running.
    """

    name: str
    start: Callable[[], contextlib.AbstractContextManager[Running]]
    exact: bool = True
    note: str = ""


def run_peers(
    kinds: Sequence[str] = (),
    *,
    rounds: int = ROUNDS,
    requests: int = REQUESTS,
    only: Sequence[str] = (),
    data: Path | None = None,
    workspace: Workspace = PROJECT,
    console: Console | None = None,
) -> list[PeersReport]:
    """Compare, print, and write ``build/report/peers/<kind>.json`` and ``.html``.

    Args:
        kinds: of :data:`RECIPES`; none = all.
        requests: only the first so many.
        only: peers whose names hold one of these, and the reference; none = all.

    Raises:
        PerfError: a kind is not known, or the reference cannot be measured.
    """
    console = console or Console()
    if strangers := [kind for kind in kinds if kind not in RECIPES]:
        raise PerfError(f"kind {', '.join(strangers)} is not known; wanted of {', '.join(RECIPES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends what was started
    reports = []
    for kind in kinds or RECIPES:
        inputs = prepare(kind, console, data=data, workspace=workspace)
        reference, *others = contenders_of(inputs, workspace.build / "peers", console)
        asked = [reference, *_of_names(others, only)]
        numbers = list(range(len(inputs.requests)))[:requests] * PASSES[kind]
        report = compare(kind, RECIPES[kind].name, asked, numbers, inputs.candidates, rounds, console)
        reports.append(report)
        show(report, console)
        for path in write_report(report, workspace):
            console.print(f"written: {path}", soft_wrap=True)
    return reports


def _of_names(contenders: Sequence[Contender], only: Sequence[str]) -> list[Contender]:
    """Those whose names hold one of these; none = all. Raises: PerfError: there is no such."""
    found = [each for each in contenders if not only or any(part in each.name for part in only)]
    if not found:
        names = "; ".join(each.name for each in contenders)
        raise PerfError(f"--only {', '.join(only)}: no peer of that name; wanted a part of one of: {names}")
    return found


def contenders_of(inputs: Inputs, environments: Path, console: Console) -> list[Contender]:
    """The peers of a kind, and our own endpoints."""

    @contextlib.contextmanager
    def started(peer: Peer) -> Iterator[Running]:
        python = python_of(peer.environment, environments, console.print)
        with running(peer, python, inputs.folder, inputs.bodies) as one:
            yield one

    def starter(peer: Peer) -> Callable[[], contextlib.AbstractContextManager[Running]]:
        return lambda: started(peer)

    def started_ours(ours: Ours) -> Callable[[], contextlib.AbstractContextManager[Running]]:
        return lambda: running_ours(inputs, ours)

    peers = [Contender(peer.name, starter(peer), peer.exact, peer.note) for peer in PEERS[inputs.kind]]
    own = [
        Contender(
            f"tritonrank {ours.endpoint.variant.name}{'' if ours.form == ENSEMBLE else ', ' + ours.form}",
            started_ours(ours),
            ours.endpoint.is_fp32,
            f"{ours.endpoint.name}, {ours.form}, the kit's client over gRPC; items by id from its store",
        )
        for ours in inputs.ours
    ]
    return [*peers, *own]


# ---------------------------------------------------------------- measuring
def compare(
    kind: str,
    weights: str,
    contenders: Sequence[Contender],
    numbers: Sequence[int],
    candidates: Sequence[int],
    rounds: int,
    console: Console,
) -> PeersReport:
    """Start all, warm them up, and ask them in turn.

    Args:
        weights: what they serve, for the page.
        contenders: the reference first.
        numbers: of the requests in one turn.
        candidates: of each request, by its number.

    Raises:
        PerfError: the reference cannot be measured.
    """
    machine = dataclasses.asdict(this_machine())  # its load of before
    failures: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        up = _started(contenders, stack, failures, console)
        asked = _Asked(up, failures)
        for name in list(up):
            asked.warm_up(name, numbers)
        asked.begin()
        for round_ in track(range(rounds), "rounds", console):
            order = list(up) if round_ % 2 == 0 else [*reversed(up)]
            for name in order:
                asked.turn(name, round_, numbers)
        idle = asked.idle_cpu()
    reference = contenders[0].name
    if reference in failures:
        raise PerfError(f"the reference {reference} cannot be measured, so nothing can: {failures[reference]}")
    in_turn = sum(candidates[number] for number in numbers)
    rows = [
        row_of(
            each.name, each.note, each.exact, asked.bouts[each.name], asked.bouts[reference], in_turn, idle[each.name]
        )
        for each in contenders
        if each.name not in failures
    ]
    return PeersReport(
        kind=kind,
        weights=weights,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        machine=machine,
        rounds=rounds,
        clients=CLIENTS,
        requests=len(numbers),
        candidates=in_turn / len(numbers),
        reference=reference,
        rows=rows,
        not_measured=failures,
    )


def _started(
    contenders: Sequence[Contender], stack: contextlib.ExitStack, failures: dict[str, str], console: Console
) -> dict[str, Running]:
    """Those that start; why the others do not is put into ``failures``."""
    up: dict[str, Running] = {}
    for each in contenders:
        try:
            up[each.name] = stack.enter_context(each.start())
            console.print(f"up: {each.name}", style="dim", markup=False)
        except (PerfError, ServerError) as error:
            failures[each.name] = str(error)
            console.print(f"not measured: {each.name}: {error}", style="bold red", markup=False, soft_wrap=True)
    return up


class _Asked:
    """Who was asked, and what all burnt meanwhile. One that fails is asked no more."""

    def __init__(self, up: Mapping[str, Running], failures: dict[str, str]) -> None:
        self.bouts: dict[str, dict[int, Bout]] = {name: {} for name in up}
        self._up, self._failures = up, failures
        self._start_s, self._start_cpu_s = time.perf_counter(), dict.fromkeys(up, 0.0)

    def warm_up(self, name: str, numbers: Sequence[int]) -> None:
        """Every request once."""
        self._answers(name, sorted(set(numbers)))

    def begin(self) -> None:
        """From now on it is counted what each burns."""
        self._start_s = time.perf_counter()
        self._start_cpu_s = {name: one.cpu_s() for name, one in self._up.items() if name not in self._failures}

    def turn(self, name: str, round_: int, numbers: Sequence[int]) -> None:
        """One peer is asked all requests."""
        time.sleep(SETTLE_S)
        before_s = self._up[name].cpu_s() if name not in self._failures else 0.0
        if found := self._answers(name, numbers):
            self.bouts[name][round_] = Bout(found, self._up[name].cpu_s() - before_s)

    def idle_cpu(self) -> dict[str, float]:
        """Of each, share of a core outside its own turns."""
        whole_s = time.perf_counter() - self._start_s
        shares = {}
        for name, one in self._up.items():
            if name not in self._failures:
                own = self.bouts[name].values()
                idle_s = whole_s - sum(bout.answers.wall_s for bout in own)
                burnt_s = one.cpu_s() - self._start_cpu_s[name] - sum(bout.cpu_s for bout in own)
                shares[name] = burnt_s / idle_s
        return shares

    def _answers(self, name: str, numbers: Sequence[int]) -> Answers | None:
        if name in self._failures:
            return None
        try:
            return self._up[name].ask(numbers)
        except PeerFailed as error:
            self._failures[name] = str(error)
            return None


# ---------------------------------------------------------------- telling
HEADINGS = ("", "p50 ms", "n", "candidates/s", "x reference", "CPU ms", "CPU x", "idle CPU", "scores")


def cells(row: Row) -> tuple[str, ...]:
    """In the order of :data:`HEADINGS`."""
    return (
        row.name, f"{row.p50_ms:.1f}", str(row.requests), f"{row.candidates_per_s:,.0f}", str(row.speedup),
        f"{row.cpu_ms:.1f}", str(row.cpu_ratio or ""), f"{row.idle_cpu:.1%}", row.scores,
    )  # fmt: skip


def title(report: PeersReport) -> str:
    """What was asked of whom."""
    return (
        f"{report.weights}: {report.rounds} rounds in turn of {report.requests} requests of {report.candidates:.0f} "
        f"candidates on average, {report.clients} clients; x reference: candidates/s over {report.reference} of the "
        "same round, median (10th to 90th percentile)"
    )


def show(report: PeersReport, console: Console) -> None:
    """The table, and who is not in it."""
    table = Table(title=title(report), title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("", "scores") else "right", overflow="fold")
    for row in report.rows:
        table.add_row(*cells(row))
    print_whole(table, console)
    for name, reason in report.not_measured.items():
        console.print(f"not measured: {name}: {reason}", style="bold red", markup=False, soft_wrap=True)


def write_report(report: PeersReport, workspace: Workspace = PROJECT) -> list[Path]:
    """``<kind>.json`` and ``.html``."""
    folder = workspace.build / "report" / "peers"
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    page = environment.get_template("peers.html.j2").render(
        report=report, title=title(report), headings=HEADINGS, rows=[(row, cells(row)) for row in report.rows]
    )
    paths = [folder / f"{report.kind}.{suffix}" for suffix in ("json", "html")]
    for path, text in zip(paths, (report.model_dump_json(indent=2), page), strict=True):
        write_atomically(path, text)
    return paths
