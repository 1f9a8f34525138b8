"""Products that are made once: looked up by what they are made from, written beside and renamed, marked when whole.

Beside every product lies its mark, ``<file>.made``: what it was made from, how long that took, what its maker told, and
which files it wrote beside the product.
Knows nothing of what a product is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from builders.core.files import write_atomically
from builders.core.keys import Inputs, changed, digests

MARK = ".made"
SCRATCH = ".new-"
SECONDS_PER_DAY = 86_400


class Timed(Protocol):
    """Anything that took a while to make."""

    @property
    def seconds(self) -> float:
        """From the start of its chain on."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """A product on disk.

    Attributes:
        seconds: that making it took, with what it was made from, whenever that was.
        told: by its maker; JSON.
    """

    path: Path
    seconds: float
    told: Mapping[str, Any]


Make = Callable[[Path, Any], Mapping[str, Any] | None]
"""(where to write, source) => what to tell of it. Files that it writes beside the given one are kept with it."""


def keep(
    target: Path,
    inputs: Inputs,
    make: Make,
    *,
    source: Callable[[], Timed | None] = lambda: None,
    beside: Iterable[Path] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Kept:
    """The product at ``target``, made where it is not there or was made from something else.

    Args:
        inputs: everything that ``make`` reads.
        make: writes the file, whole, and what belongs beside it.
        source: what it is made from; asked for only where it is made.
        beside: files that belong to the product; without one of them, or one that ``make`` wrote beside it, it counts
            as not there.
        say: told why a product that is there is made anew.

    Raises:
        whatever ``make`` raises; what was there before is then as it was.
    """
    now = digests(inputs)
    mark = _read_mark(target)
    before = {target.with_name(name) for name in (mark or {}).get("beside", ())}
    if mark is not None and mark["made_from"] == now and all(map(Path.is_file, (target, *beside, *before))):
        with contextlib.suppress(PermissionError):  # of a build that may only be read
            _mark_of(target).touch()  # used now, see drop_unused
        return Kept(target, mark["seconds"], mark["told"])
    _tell_reason(target.name, mark, now, "made", say)
    made_of = source()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=SCRATCH) as scratch:
        start_s = time.monotonic()
        told = dict(make(Path(scratch) / target.name, made_of) or {})
        seconds = round((made_of.seconds if made_of else 0.0) + time.monotonic() - start_s, 2)
        _mark_of(target).unlink(missing_ok=True)  # it must not stand for the files that come now
        written = sorted(Path(scratch).iterdir(), key=lambda file: file.name == target.name)
        for file in written:
            file.chmod(0o644)
            file.replace(target.with_name(file.name))
    others = [file.name for file in written if file.name != target.name]
    for stale in before - {target.with_name(name) for name in others}:
        stale.unlink(missing_ok=True)
    _write_mark(target, {"made_from": now, "seconds": seconds, "told": told, "beside": others})
    return Kept(target, seconds, told)


def drop_unused(folder: Path, days: float) -> tuple[int, int]:
    """Remove products that were neither made nor asked for in so many days, and what a killed maker left.

    Returns:
        (products, bytes).
    """
    oldest_s = time.time() - days * SECONDS_PER_DAY
    dropped = freed = 0
    for mark in folder.glob(f"*{MARK}"):
        if mark.stat().st_mtime < oldest_s:
            target = mark.with_name(mark.name.removesuffix(MARK))
            beside = (_read_mark(target) or {}).get("beside", ())
            files = [path for path in (target, *map(target.with_name, beside)) if path.is_file()]
            freed += sum(path.stat().st_size for path in files)
            mark.unlink()  # first: without it the others count as not made
            for path in files:
                path.unlink()
            dropped += 1
    for left in folder.glob(f"{SCRATCH}*"):
        if left.stat().st_mtime < oldest_s:
            shutil.rmtree(left)
    return dropped, freed


def keep_figures(
    target: Path,
    inputs: Inputs,
    compute: Callable[[], Mapping[str, Any]],
    *,
    valid: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Figures as JSON at ``target``, computed where they are not there or were computed from something else.

    Args:
        inputs: everything that ``compute`` reads.
        valid: whether stored figures can still be read as figures.
        say: as for :func:`keep`.
    """
    now = digests(inputs)
    stored = _read_json(target)
    if stored is not None and stored.get("made_from") == now and valid(stored):
        return _without_origin(stored)
    _tell_reason(target.stem, stored, now, "measured", say)
    text = json.dumps({"made_from": now, **compute()})
    write_atomically(target, text + "\n")
    return _without_origin(json.loads(text))  # as the next build reads them


def _without_origin(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stored.items() if name != "made_from"}


def _tell_reason(
    what: str, stored: Mapping[str, Any] | None, now: Mapping[str, str], done: str, say: Callable[[str], None]
) -> None:
    before = (stored or {}).get("made_from")
    if isinstance(before, dict) and (reasons := changed(before, now)):
        say(f"{what}: {done} anew, as {', '.join(reasons)} changed")


def _mark_of(target: Path) -> Path:
    return target.with_name(target.name + MARK)


def _write_mark(target: Path, mark: Mapping[str, Any]) -> None:
    """Written last: without it the target counts as not made."""
    write_atomically(_mark_of(target), json.dumps(mark) + "\n")


def _read_mark(target: Path) -> dict[str, Any] | None:
    mark = _read_json(_mark_of(target))
    return mark if mark is not None and {"made_from", "seconds", "told"} <= mark.keys() else None


def _read_json(path: Path) -> dict[str, Any] | None:
    """None where there is none, or none that a version of ours wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None
