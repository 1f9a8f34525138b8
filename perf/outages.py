"""Outages under steady load: a fault every twenty seconds, no wrong answer, and for how long each was felt.

The shop, its clients and the comparison with torch are those of :mod:`perf.soak`; the server is ``python -m server``,
as an operator runs it. Faults: a stub killed or paused, tritonserver killed, SIGTERM and a new start, a full disk under
a refresh, more callers than the server holds, a flood of malformed requests.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil
import tritonclient.grpc as grpc
from rich.console import Console
from rich.table import Table
from tritonclient.utils import InferenceServerException
from tritonrank_client import RankClient, TritonRankError

from perf.errors import PerfError
from perf.kit.data import REPOSITORY_ROOT
from perf.process_memory import tree_memory
from perf.soak import CANDIDATES, RANKERS, RATE_PER_S, Answer, Found, Shop, Soak
from server import control
from server.admin_key import read_or_make_key
from server.ports import port_to_bind

EVERY_S = 20.0
FLOOD_S = 5.0
CALLERS = 24
CALLERS_TIMEOUT_S = 0.2
LIMIT_S, RESTART_LIMIT_S = 3.0, 5.0
SETTLED_S = 300.0
"""From when on memory and store shall not grow ..."""
GROWTH = 0.05
"""... by more than this share."""
RESTARTS = 1000
DISK_BYTES = 64 << 20
START_TIMEOUT_S = 120.0
HOST = "127.0.0.1"
READY = b"ready: gRPC"
"""What the launcher prints once it is."""
SERVER, STUB = "tritonserver", "triton_python"
"""How the names of the processes begin."""


class Launched:
    """``python -m server`` on fixed ports; what it and Triton write is in ``log``, ``<name>.log`` of the shop."""

    def __init__(self, shop: Shop, name: str = "server") -> None:
        self.shop, self.log = shop, shop.folder / f"{name}.log"
        self.ports = {name: port_to_bind(HOST, 0, "") for name in ("grpc", "http", "metrics")}
        self.grpc_url, self.http_host, self.http_port = f"{HOST}:{self.ports['grpc']}", HOST, self.ports["http"]
        self._key_file = shop.folder / "admin.key"
        self.admin_key = read_or_make_key(self._key_file)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it is ready. Raises: PerfError: it is not, in time."""
        workspace = self.shop.workspace
        command = [sys.executable, "-m", "server", "--repository", str(workspace.repository)]
        command += ["--store", str(workspace.item_store), "--restarts", str(RESTARTS)]
        command += ["--admin-key-file", str(self._key_file)]
        command += [word for endpoint in RANKERS for word in ("--load", endpoint)]
        command += [word for name, port in self.ports.items() for word in (f"--{name}-port", str(port))]
        with self.log.open("ab") as log:
            written = log.tell()
            self._process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdout=log, stderr=log)
        until_s = time.monotonic() + START_TIMEOUT_S
        while READY not in self.log.read_bytes()[written:]:
            if self._process.poll() is not None or time.monotonic() > until_s:
                raise PerfError(f"the server did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """By SIGTERM, as an orchestrator does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def starts(self) -> int:
        """How often it has been ready, by itself or by `start`."""
        return self.log.read_bytes().count(READY)

    def reload(self) -> None:
        """Have it load what ``rank`` names now. Raises: ServerError."""
        control.ask("load", "rank", self.http_host, self.http_port, self.admin_key)

    @property
    def pid(self) -> int:
        """Of the launcher."""
        assert self._process is not None
        return self._process.pid

    def processes(self, name: str) -> list[psutil.Process]:
        """Its descendants whose name begins so."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith(name) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@dataclasses.dataclass(frozen=True)
class Fault:
    """One that was made. felt_s: the longest time without a good answer until the next one, of the worse endpoint."""

    name: str
    start_s: float
    felt_s: float = 0.0


@dataclasses.dataclass
class Outages:
    """What was found."""

    soak: Found
    faults: Sequence[Fault]
    rss_bytes: Sequence[int]
    left_out: Sequence[str]

    @property
    def missed(self) -> list[str]:
        """Limits that were not held."""
        found = [f"{len(self.soak.wrong)} wrong answers"] if self.soak.wrong else []
        for name, felt in self.felt_s().items():
            if max(felt) > (limit := _limit_s(name)):
                found.append(f"{name}: felt for {max(felt):.1f} s, limit {limit:g} s")
        for name, values in (("RSS", self.rss_bytes), ("item store", self.soak.sizes["item_store, bytes"])):
            if (grown := _growth(values)) > GROWTH:
                found.append(
                    f"{name} grew by {grown:.1%} after the first {SETTLED_S / 60:g} minutes, limit {GROWTH:.0%}"
                )
        return found

    def felt_s(self) -> Mapping[str, list[float]]:
        """Fault => for how long each was felt."""
        names = dict.fromkeys(fault.name for fault in self.faults)
        return {name: [fault.felt_s for fault in self.faults if fault.name == name] for name in names}

    def to_json(self) -> str:
        """One line."""
        figures = {
            "minutes": self.soak.minutes, "answers": self.soak.answers, "scores": self.soak.scores,
            "wrong": self.soak.wrong[:20], "felt_s": self.felt_s(), "rss_bytes": list(self.rss_bytes),
            "item_store_bytes": list(self.soak.sizes["item_store, bytes"]), "left_out": list(self.left_out),
            "missed": self.missed,
        }  # fmt: skip
        return json.dumps(figures)

    def table(self) -> Table:
        """Fault, count, median and longest time without a good answer, limit."""
        title = f"A fault every {EVERY_S:g} s for {self.soak.minutes:g} minutes"
        table = Table("fault", "times", "median s", "longest s", "limit s", title=title, title_justify="left")
        for name, felt in sorted(self.felt_s().items()):
            median = f"{statistics.median(felt):.2f}"
            table.add_row(name, str(len(felt)), median, f"{max(felt):.2f}", f"{_limit_s(name):g}")
        return table


def _limit_s(name: str) -> float:
    return RESTART_LIMIT_S if name in ("kill the server", "SIGTERM and restart") else LIMIT_S


def _growth(values: Sequence[int]) -> float:
    """Median of the last third against that of the first one, after SETTLED_S; 0 where nothing is that late. A flood
    leaves a tenth more memory behind until the next start: the largest value would say no more than that one came."""
    settled = values[int(SETTLED_S / EVERY_S) :]
    third = len(settled) // 3
    return statistics.median(settled[-third:]) / statistics.median(settled[:third]) - 1 if third else 0.0


def run_outages(minutes: float, console: Console, seed: int = 0) -> Outages:
    """Build, serve, make faults for so long, compare. Raises: PerfError."""
    with tempfile.TemporaryDirectory(prefix="tritonrank_outages_") as folder, contextlib.ExitStack() as stack:
        shop = Shop(Path(folder), seed)
        shop.workspace.item_store.mkdir(parents=True)
        has_disk = _small_disk(shop.workspace.item_store, stack)
        console.print("building two small rankers in a copy of this checkout", style="dim")
        shop.open()
        server = Launched(shop)
        stack.callback(server.stop)
        server.start()
        return OutageSoak(shop, server, minutes, console, seed, has_disk).outages()


def _small_disk(folder: Path, stack: contextlib.ExitStack) -> bool:
    """A disk of its own that can be full; False where this user may mount none."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], capture_output=True
    ).returncode:
        return False
    stack.callback(lambda: subprocess.run(["umount", "--lazy", folder], check=True))
    return True


class OutageSoak(Soak):
    """Faults in place of jobs."""

    timeout_s = 0.5

    def __init__(
        self, shop: Shop, server: Launched, minutes: float, console: Console, seed: int, has_disk: bool
    ) -> None:
        super().__init__(shop, server, minutes, console, seed)
        self.launched, self.has_disk = server, has_disk
        self.faults: list[Fault] = []
        self.rss_bytes: list[int] = []
        kinds = {
            "kill a stub": lambda: self._signal(STUB, signal.SIGKILL),
            "pause a stub": lambda: self._signal(STUB, signal.SIGSTOP),
            "kill the server": lambda: self._signal(SERVER, signal.SIGKILL),
            "SIGTERM and restart": self._restart,
            "overload": self._overload,
            "malformed flood": self._flood,
        }
        self.kinds = kinds | ({"disk full": self._full_disk} if has_disk else {})

    def outages(self) -> Outages:
        """The run and what it found."""
        found = self.run()
        ends = [*(fault.start_s for fault in self.faults[1:]), max(answer.end_s for answer in self.answers)]
        felt = [
            dataclasses.replace(fault, felt_s=max(self._felt_s(name, fault.start_s, end) for name in RANKERS))
            for fault, end in zip(self.faults, ends, strict=True)
        ]
        return Outages(
            found, felt, self.rss_bytes, [] if self.has_disk else ["disk full: a tmpfs cannot be mounted here"]
        )

    def _next_job(self) -> None:
        next_s = time.monotonic() + EVERY_S
        self.rss_bytes.append(tree_memory(self.launched.pid).rss_bytes)
        name = self.draw.choice(list(self.kinds))
        self.faults.append(Fault(name, time.monotonic()))
        self.kinds[name]()
        self.jobs[name] += 1
        time.sleep(max(0.0, min(next_s, self.until_s) - time.monotonic()))

    def _felt_s(self, endpoint: str, start_s: float, end_s: float) -> float:
        """The longest time between two good answers, less the pause that a client makes."""
        good = [each.end_s for each in self._good(endpoint) if start_s <= each.end_s < end_s]
        longest = max(after - before for before, after in itertools.pairwise([start_s, *good, end_s]))
        return max(0.0, longest - 1 / RATE_PER_S)

    def _good(self, endpoint: str) -> Iterator[Answer]:
        return (answer for answer in self.answers if answer.endpoint == endpoint and not answer.error)

    # ------------------------------------------------------------ faults
    def _signal(self, name: str, number: signal.Signals) -> None:
        found = self.launched.processes(name)
        if found:  # none while it starts again
            self.draw.choice(found).send_signal(number)

    def _restart(self) -> None:
        self.launched.stop()
        self.launched.start()

    def _overload(self) -> None:
        def call(seed: int) -> None:
            draw, until_s = random.Random(seed), time.monotonic() + FLOOD_S
            with RankClient(self.launched.grpc_url, timeout_s=CALLERS_TIMEOUT_S) as client:
                while time.monotonic() < until_s:
                    with contextlib.suppress(TritonRankError):
                        client.rank(draw.choice(self.asked["rank"]), self._items(draw))

        with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(call, range(CALLERS)))

    def _items(self, draw: random.Random) -> list[str]:
        return draw.sample(self.contents["rank"].keys(), CANDIDATES)

    def _flood(self) -> None:
        draw, until_s = random.Random(self.draw.random()), time.monotonic() + FLOOD_S
        with grpc.InferenceServerClient(self.launched.grpc_url) as client:
            while time.monotonic() < until_s:
                with contextlib.suppress(InferenceServerException):
                    client.infer(draw.choice(list(RANKERS)), _malformed(draw), client_timeout=CALLERS_TIMEOUT_S)
                _send_noise(draw, draw.choice(list(self.launched.ports.values())))

    def _full_disk(self) -> None:
        """A refresh that finds no room, and one that does."""
        filler = self.shop.workspace.item_store / "filler"
        self.shop.codes.add(1)
        try:
            _fill(filler)
            if self._refresh(None) == 0:
                self.jobs["disk full: the refresh found room"] += 1
        finally:
            filler.unlink(missing_ok=True)
            self.shop.codes.discard(1)
        self._refresh(None)


def _fill(path: Path) -> None:
    """Write until no room is left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(os.urandom(size)):
                    pass


def _malformed(draw: random.Random) -> list[grpc.InferInput]:
    """Tensors that no endpoint takes."""
    strings = [b"", b"\xff\xfe", b"a" * 3000, b"same", b"same", bytes(draw.randrange(256) for _ in range(40))]
    wrong: list[tuple[str, np.ndarray, str]] = [
        ("query", np.array(draw.sample(strings, draw.randrange(1, 4)), dtype=object), "BYTES"),
        ("item_ids", np.array(draw.choices(strings, k=draw.choice([1, 3, 2000])), dtype=object), "BYTES"),
        ("top_k", np.array([draw.choice([-1, 2**31 - 1])], dtype=np.int32), "INT32"),
        ("item_ids", np.array([[1.0]], dtype=np.float32), "FP32"),
        (f"input_{draw.randrange(10)}", np.array([1], dtype=np.int64), "INT64"),
    ]
    inputs = []
    for name, array, dtype in draw.sample(wrong, draw.randrange(1, len(wrong))):
        inputs.append(grpc.InferInput(name, list(array.shape), dtype))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def _send_noise(draw: random.Random, port: int) -> None:
    """Bytes that are neither HTTP nor gRPC."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1.0) as connection:
        connection.sendall(draw.randbytes(draw.randrange(1, 4096)))
