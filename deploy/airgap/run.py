"""On the GPU machine, with the machine's own Python, in TARGET/project: `python3 -m deploy.airgap.run TARGET OUT`.

Runs the stages one after the other, each in a process and a process group of its own and for its own time at most;
after each one OUT/results.json holds everything found so far, OUT/log.txt what was printed. A stage that fails or runs
too long is noted, and the next one runs. Ends with a summary. A second run waits for the first, so that nothing is
timed beside something else. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

NO_GPU = 3
"""As stages/common.py."""
ORDER = ("machine", "smoke", "references", "engines", "parity", "latency", "torch", "serve", "again")
KEPT = ("references", "torch")
"""Stages that an earlier run has finished once for all."""
MACHINE_PACKAGES = "machine"
"""Folder of the packages that come before the machine's own, since they are of one release."""
LEAST_S = 5
MACHINE = "nvidia-smi; python3 -V; ldd --version | head -1; nproc; free -g | head -2; df -h /tmp | tail -1"
PRECISIONS = ("fp16", "int8", "fp32")
COLUMNS = {
    **{f"TensorRT {precision}": ("latency", f"{{graph}}_{precision}_trt {{shape}}") for precision in PRECISIONS},
    "eager fp16": ("torch", "{graph} eager fp16 {shape}"),
    "compiled fp16": ("torch", "{graph} compiled fp16 {shape}"),
}
"""Of the summary => stage and key of its results."""


class Command(NamedTuple):
    """One process of a stage.

    Attributes:
        limit_s: after so long it is stopped.
        python: "trt" is the carried Python 3.10, "own" the one that runs this, "sh" a shell.
        arguments: a module of deploy.airgap.stages and what it is told, or what the shell is told.
    """

    limit_s: float
    python: str
    arguments: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, whatever the stages found: results.json says it."""
    options = parse(arguments)
    target, out = options.target.absolute(), options.out.absolute()
    (target / "results").mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    with alone(target):
        stages = stages_of(json.loads((target / "workload" / "workload.json").read_text()))
        end_s = time.monotonic() + options.seconds
        for stage in options.stages:
            run_stage(stage, stages[stage], target, out, end_s)
    found = json.loads((out / "results.json").read_text())
    print(summary(found), flush=True)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("stages", nargs="*", default=list(ORDER), metavar="STAGE", help=", ".join(ORDER))
    parser.add_argument("--seconds", type=float, default=1200, help="for all of them; no stage starts later")
    options = parser.parse_intermixed_args(arguments)
    if unknown := [stage for stage in options.stages if stage not in ORDER]:
        parser.error(f"no stage named {', '.join(unknown)}; wanted some of {', '.join(ORDER)}")
    return options


def stages_of(networks: Sequence[dict[str, Any]]) -> dict[str, list[Command]]:
    """Stage => its processes; engines in the order of PRECISIONS."""
    engines = [
        Command(100, "trt", ["engine", facts["recipe"], precision])
        for precision in PRECISIONS
        for facts in networks
        if precision in facts["files"]
    ]
    return {
        "machine": [Command(10, "sh", ["-c", MACHINE])],
        "smoke": [Command(60, "trt", ["smoke"])],
        "references": [Command(120, "own", ["references"])],
        "engines": engines,
        "parity": [Command(45, "trt", ["parity"])],
        "latency": [Command(60, "trt", ["latency"])],
        "torch": [Command(150, "own", ["torch_baseline"])],
        "serve": [Command(90, "trt", ["serve"])],
        "again": [Command(100, "trt", [*engines[0].arguments, "again"])],
    }


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """Wait for another run; the system drops the lock of one that is killed."""
    with (target / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------- a stage
def run_stage(stage: str, commands: Sequence[Command], target: Path, out: Path, end_s: float) -> None:
    """Run its processes in turn; put down how each ended."""
    ran: list[dict[str, Any]] = []
    for command in commands:
        limit_s = min(command.limit_s, end_s - time.monotonic())
        if done(target, stage):
            ran.append({"command": command.arguments, "ended": "done before"})
        elif limit_s < LEAST_S:
            ran.append({"command": command.arguments, "ended": "not started, no time left"})
        else:
            ran.append(run(command, limit_s, target, out / "log.txt"))
        note(target, stage, ran)
        gather(target, out)
        print(f"{stage}: {' '.join(command.arguments)[:60]}: {ran[-1]['ended']}", flush=True)


def done(target: Path, stage: str) -> bool:
    """Whether an earlier run has finished it."""
    path = target / "results" / f"{stage}.json"
    return stage in KEPT and path.is_file() and bool(json.loads(path.read_text()).get("done"))


def run(command: Command, limit_s: float, target: Path, log: Path) -> dict[str, Any]:
    """One process, and everything that it starts."""
    project = target / "project"
    environ = {**os.environ, "AIRGAP_TARGET": str(target), "AIRGAP_PROJECT": str(project)}
    carried = [str(target / MACHINE_PACKAGES)] if command.python == "own" else []
    environ.update(PYTHONUNBUFFERED="1", PYTHONPATH=os.pathsep.join([str(project), *carried]))
    start_s = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n===== {' '.join(command.arguments)}\n".encode())
        file.flush()
        try:
            process = subprocess.Popen(
                program(command, target),
                env=environ,
                cwd=project,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return {"command": command.arguments, "ended": f"not started: {error}", "seconds": 0}
        try:
            code = process.wait(limit_s)
            ended = "no GPU" if code == NO_GPU else f"code {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit_s:.0f} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {"command": command.arguments, "ended": ended, "seconds": round(time.monotonic() - start_s, 1)}


def program(command: Command, target: Path) -> list[str]:
    """The command line of a stage's process."""
    if command.python == "sh":
        return ["sh", *command.arguments]
    python = {"trt": str(target / "trtpy"), "own": sys.executable}[command.python]
    module, *told = command.arguments
    return [python, "-m", f"deploy.airgap.stages.{module}", *told]


# ---------------------------------------------------------------- what was found
def note(target: Path, stage: str, ran: Sequence[dict[str, Any]]) -> None:
    """Keep how a stage's processes ended."""
    path = target / "results" / "stages.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, stage: ran}, indent=1))


def gather(target: Path, out: Path) -> None:
    """Every stage's results => OUT/results.json, by rename."""
    found: dict[str, Any] = {}
    for path in sorted((target / "results").glob("*.json")):
        with contextlib.suppress(ValueError):
            found[path.stem] = json.loads(path.read_text())
    with contextlib.suppress(OSError, ValueError):
        found["kit"] = json.loads((target / "kit.json").read_text())
    missing = sorted({facts["no GPU"] for facts in found.values() if isinstance(facts, dict) and "no GPU" in facts})
    if missing:
        found["no GPU"] = "; ".join(missing)
    fresh = out / "results.json.new"
    fresh.write_text(json.dumps(found, indent=1))
    fresh.rename(out / "results.json")


def summary(found: dict[str, Any]) -> str:
    """What ended how, what reported an error, and the medians side by side."""
    lines = ["", "stage      seconds  ended"]
    for stage, ran in found.get("stages", {}).items():
        lines += [f"{stage:10s} {one.get('seconds', 0):7.1f}  {one['ended']:24s} {' '.join(one['command'])[:50]}"
                  for one in ran]  # fmt: skip
    errors = [f"{stage}: {key}: {value[:160]}" for stage, facts in found.items() if isinstance(facts, dict)
              for key, value in facts.items() if key.endswith("error") and isinstance(value, str)]  # fmt: skip
    lines += ["", "errors:", *errors] if errors else ["", "no part reported an error"]
    if "no GPU" in found:
        return "\n".join([*lines, "", f"no GPU, so no figure of one: {found['no GPU']}"])
    lines += ["", "p50 ms, host to host", f"{'':28s}" + "".join(f"{column:>16s}" for column in COLUMNS)]
    for graph, shape in shapes(found):
        cells = "".join(f"{cell(found, graph, shape, column):>16s}" for column in COLUMNS)
        lines.append(f"{graph + ' ' + shape:28s}{cells}")
    return "\n".join(lines)


def shapes(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(graph, rows x length) of everything measured, in the order in which it was."""
    keys = [key.removesuffix(" seconds") for stage in ("latency", "torch") for key in found.get(stage, {})]
    measured = [(key.split(" ")[0], key.rsplit(" ", 1)[-1]) for key in keys if key.rsplit(" ", 1)[-1].count("x") == 1]
    names = {name: name.rsplit("_", 2)[0] if name.endswith("_trt") else name for name, _ in measured}
    return list(dict.fromkeys((names[name], shape) for name, shape in measured if shape[0].isdigit()))


def cell(found: dict[str, Any], graph: str, shape: str, column: str) -> str:
    """One median; a dash where there is none."""
    stage, key = COLUMNS[column]
    value = found.get(stage, {}).get(key.format(graph=graph, shape=shape))
    return f"{value['p50_ms']:.3f}" if isinstance(value, dict) else "-"


if __name__ == "__main__":
    sys.exit(main())
