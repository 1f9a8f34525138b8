"""tritonserver's Python stubs, the processes that run the models' code, and which of them run no more.

This Triton never starts a stub again: one that was killed leaves its model failing for as long as the server runs,
while every ready endpoint goes on saying 200, and one that was paused for a second ends the server when it comes back.
"""

from __future__ import annotations

from pathlib import Path

ENDED, STOPPED = "Z", "T"  # man 5 proc, the state in /proc/PID/stat
WHAT_HAPPENED = {ENDED: "has ended", STOPPED: "is stopped by a signal"}
LOOKS = {ENDED: 3, STOPPED: 2}  # in a row: one that Triton has ended itself is collected soon
STARTED = 2  # looks at which it ran: one that ends before that belongs to a model that cannot be loaded later
LISTED = 5  # looks from one listing of the processes, which costs most, to the next ...
LISTED_EACH_TIME = 50  # ... after so many, while models are loaded
INSTANCE = 8  # of a stub's command line: the instance of the model, "two_tower_preprocess_0_0"


class StubWatch:
    """Looks at the processes of one tritonserver; call `look` again and again."""

    def __init__(self, server: int):
        self._server = server
        self._looks = 0
        self._children: list[int] = []
        self._names: dict[int, str] = {}
        self._ran: dict[int, int] = {}  # process id => looks at which it ran
        self._suspects: dict[int, int] = {}  # process id => looks in a row at which it did not

    def look(self) -> str | None:
        """Return what is wrong and with which process, after as many looks as LOOKS says; None where all run."""
        if self._looks < LISTED_EACH_TIME or self._looks % LISTED == 0:
            self._children = _children(self._server)
        self._looks += 1
        states = {pid: state for pid in (self._server, *self._children) if (state := _stat(pid)[0])}
        self._names = {pid: self._names.get(pid) or _instance(pid) for pid in states if pid != self._server}
        self._ran = {pid: self._ran.get(pid, 0) + (state not in LOOKS) for pid, state in states.items()}
        at_rest = {pid: state for pid, state in states.items() if self._is_fault(pid, state)}
        self._suspects = {pid: self._suspects.get(pid, 0) + 1 for pid in at_rest}
        faults = [pid for pid, looks in sorted(self._suspects.items()) if looks >= LOOKS[at_rest[pid]]]
        return "; ".join(f"{self._name(pid)} {WHAT_HAPPENED[at_rest[pid]]}" for pid in faults) or None

    def _is_fault(self, pid: int, state: str) -> bool:
        if pid == self._server:
            return state == STOPPED  # its end is its parent's business
        return state == STOPPED or (state == ENDED and self._ran[pid] >= STARTED)

    def count_as_loaded(self) -> None:
        """Say that what was to be loaded at the start is loaded: from now on no stub that lives dies in loading."""
        self._children = _children(self._server)
        self._ran = dict.fromkeys(self._children, STARTED)

    @property
    def suspects(self) -> bool:
        """Whether the last look found any that does not run."""
        return bool(self._suspects)

    def _name(self, pid: int) -> str:
        if pid == self._server:
            return f"tritonserver (process {pid})"
        return f"the stub of {self._names[pid] or 'a model'} (process {pid})"


def _children(server: int) -> list[int]:
    """By their parent: Triton's own list has a file for each of its threads, of which there are hundreds."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if _stat(pid)[1] == str(server)]


def _stat(pid: int) -> tuple[str, str]:
    """State and parent of a process; empty where there is none."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (OSError, ValueError):
        return "", ""
    return state, parent


def _instance(pid: int) -> str:
    """The instance that a stub runs; empty where it has ended, or is no stub."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return words[INSTANCE] if len(words) > INSTANCE else ""
