"""A peer that is up: its process, and how it is asked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.bench_dcn import processor_s
from perf.endpoints import EndpointClient, serving
from perf.errors import PerfError
from perf.kit.data import REPOSITORY_ROOT
from perf.peers.inputs import Inputs, Ours
from perf.peers.peer import Answers, Connect, Peer, Score, drive, free_port

CLIENTS = 2
START_S, STOP_S, TRY_EVERY_S = 300.0, 20.0, 0.25
LOG_LINES = 8

Ask = Callable[[Sequence[int]], Answers]
"""Numbers of requests => the answers."""


class PeerFailed(PerfError):
    """A peer does not start, or does not answer; the message has the end of its log."""


@dataclasses.dataclass
class Running:
    """One of those that are compared.

    Attributes:
        pid: of its process, of which the others are children.
    """

    name: str
    pid: int
    ask: Ask

    def cpu_s(self) -> float:
        """Of all its processes so far."""
        return processor_s(self.pid)


@contextlib.contextmanager
def running(peer: Peer, python: Path, folder: Path, bodies: Sequence[Mapping[str, Any]]) -> Iterator[Running]:
    """Starts it, waits until it answered the first request, and ends it with all its processes.

    Args:
        python: of its environment.
        folder: of the inputs; its log lies there.

    Raises:
        PeerFailed: see there.
    """
    port = free_port()
    place = [peer.module, str(folder)]
    arguments = ["perf.peers.in_process", *place] if peer.connect is None else [*place, str(port)]
    log = folder / f"{peer.name.replace(' ', '_').replace(',', '')}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [python, "-m", *arguments, *peer.arguments],
            cwd=REPOSITORY_ROOT,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY_ROOT), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if peer.connect is None else output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        if peer.connect is None:
            ask = _by_lines(process, peer, log)
            ask([0])
            yield Running(peer.name, process.pid, ask)
        else:
            connect = peer.connect
            _wait_until_it_answers(connect, process, peer, port, bodies, log)
            yield Running(peer.name, process.pid, lambda numbers: _driven(connect, port, bodies, numbers, peer, log))
    finally:
        _end(process)


@contextlib.contextmanager
def running_ours(inputs: Inputs, ours: Ours) -> Iterator[Running]:
    """An endpoint on a Triton of its own, asked by the kit's client."""
    name = ours.endpoint.name
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving([name], ours.workspace))
        clients = [stack.enter_context(EndpointClient(server.grpc_url, name)) for _ in range(CLIENTS)]

        def score_by(client: EndpointClient) -> Score:
            def score(number: int) -> list[float]:
                request, item_ids = inputs.requests[number]
                found = dict(client.ask(request, item_ids))
                return [found[item_id] for item_id in item_ids]

            return score

        asked = [score_by(client) for client in clients]
        yield Running(name, server.pid, lambda numbers: drive(asked, numbers))


def _by_lines(process: subprocess.Popen[str], peer: Peer, log: Path) -> Ask:
    """Asks :mod:`perf.peers.in_process`."""

    def ask(numbers: Sequence[int]) -> Answers:
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"numbers": list(numbers), "clients": CLIENTS}) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise PeerFailed(f"{peer.name}: ended, wanted an answer; {_end_of(log)}")
        return Answers(**json.loads(line))

    return ask


def _wait_until_it_answers(
    connect: Connect,
    process: subprocess.Popen[str],
    peer: Peer,
    port: int,
    bodies: Sequence[Mapping[str, Any]],
    log: Path,
) -> None:
    end_s = time.monotonic() + START_S
    while True:
        try:
            with connect(port, bodies[:1]) as score:
                score(0)
            return
        except Exception as error:
            if process.poll() is not None:
                raise PeerFailed(
                    f"{peer.name}: ended with {process.returncode} at its start; {_end_of(log)}"
                ) from error
            if time.monotonic() > end_s:
                raise PeerFailed(f"{peer.name}: no answer within {START_S:.0f} s: {error}; {_end_of(log)}") from error
        time.sleep(TRY_EVERY_S)


def _driven(
    connect: Connect, port: int, bodies: Sequence[Mapping[str, Any]], numbers: Sequence[int], peer: Peer, log: Path
) -> Answers:
    """By clients that connect anew: servers close what was idle while the others were asked."""
    try:
        with contextlib.ExitStack() as stack:
            return drive([stack.enter_context(connect(port, bodies)) for _ in range(CLIENTS)], numbers)
    except Exception as error:  # whatever its client raises
        raise PeerFailed(f"{peer.name}: {error}; {_end_of(log)}") from error


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return f"the end of {log.name}: " + " | ".join(line.strip() for line in lines if line.strip())


def _end(process: subprocess.Popen[str]) -> None:
    """And all that it started: they are of its session."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
