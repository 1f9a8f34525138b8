"""What a peer is, and how clients keep it busy. Standard library only: peers import this in their own environments."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Score = Callable[[int], Sequence[float]]
"""Number of a request => scores of its candidates, in their order."""
Connect = Callable[[int, Sequence[Mapping[str, Any]]], contextlib.AbstractContextManager[Score]]
"""(port, bodies of the requests) => a client of its own."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where a peer's packages lie.

    Attributes:
        name: of ``requirements/<name>.txt``; "" = nothing is installed.
        base: whose packages it sees: "" none, "kit" those of this process, "server" those of Triton's environment.
        torch: whether it has torch, the kit's version.
    """

    name: str = ""
    base: str = ""
    torch: bool = False


@dataclasses.dataclass(frozen=True)
class Peer:
    """One row of the comparison.

    Attributes:
        module: is run with ``python -m``, with the inputs' folder, a port and ``arguments``; one that runs in process
            is imported by :mod:`perf.peers.in_process`, which asks its ``opened(folder, *arguments)``.
        connect: to its port; None = in process.
        exact: whether it computes the reference's weights in FP32.
        note: the settings, for the page.
    """

    name: str
    module: str
    environment: Environment
    connect: Connect | None
    arguments: tuple[str, ...] = ()
    exact: bool = True
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Answers:
    """To some requests, in the order in which they were asked.

    Attributes:
        scores: of each request's candidates.
        wall_s: from the first request to the last answer.
    """

    latencies_ms: list[float]
    scores: list[list[float]]
    wall_s: float


def drive(clients: Sequence[Score], numbers: Sequence[int]) -> Answers:
    """Closed loop: each client asks the next request as soon as it has the answer to its last one."""
    latencies_ms, scores = [0.0] * len(numbers), [[0.0]] * len(numbers)
    places, lock = itertools.count(), threading.Lock()

    def run(client: Score) -> None:
        while True:
            with lock:
                place = next(places)
            if place >= len(numbers):
                return
            start_s = time.perf_counter()
            found = client(numbers[place])
            latencies_ms[place] = (time.perf_counter() - start_s) * 1e3
            scores[place] = [float(score) for score in found]

    start_s = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(run, clients))
    return Answers(latencies_ms, scores, time.perf_counter() - start_s)


def parts(*names: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Of a request's body, what a peer is sent."""
    return lambda body: {name: body[name] for name in names}


def posts_json(
    path: str, to_body: Callable[[Mapping[str, Any]], object], to_scores: Callable[[Any, Mapping[str, Any]], Any]
) -> Connect:
    """Connects by HTTP, the connection kept open.

    Args:
        path: such as ``/rerank``.
        to_body: a request's body as this server wants it, made before it is timed.
        to_scores: its JSON answer, the request's body => scores in the candidates' order.
    """

    @contextlib.contextmanager
    def connect(port: int, bodies: Sequence[Mapping[str, Any]]) -> Iterator[Score]:
        wanted = [to_body(body) for body in bodies]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        connection.connect()

        def score(number: int) -> Sequence[float]:
            connection.request("POST", path, json.dumps(wanted[number]), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != http.client.OK:
                found = text[:500].decode(errors="replace")
                raise http.client.HTTPException(f"POST {path}: {answer.status} {found}, wanted 200")
            return list(to_scores(json.loads(text), bodies[number]))

        with contextlib.closing(connection):
            yield score

    return connect


def bodies_in(folder: Path) -> list[dict[str, Any]]:
    """What the runner wrote: the requests."""
    found: list[dict[str, Any]] = json.loads((folder / "requests.json").read_text(encoding="utf-8"))
    return found


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
