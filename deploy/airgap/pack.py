"""Packs what a GPU machine without a network needs into folders to carry there: `make gpu-pack`, or

    PYTHONPATH=. .venv/bin/python -m deploy.airgap.pack build/airgap

Writes OUT/1, OUT/2, ... Each holds the scripts that take it over and pieces of the whole; any number of folders of any
size. Needs a Python 3.10, a C compiler with binutils, PyPI, and the project's ONNX files (`make export`).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from deploy.airgap.environment import (
    CUBLAS,
    SERVED_BY,
    TENSORRT_RELEASES,
    ToolMissing,
    make_environment,
    make_machine_packages,
)
from deploy.airgap.interpreter import PythonMissing, find_python
from deploy.airgap.run import MACHINE_PACKAGES

PROJECT = Path(__file__).resolve().parents[2]
PROJECT_FOLDERS = ("backends", "builders", "checkpoints", "deploy", "perf", "recipes", "server")
SCRIPTS = ("unpack.py", "blobs.py", "weights.py")
"""Carried in every folder: what takes it over."""
LARGE_FILE = 2**24
"""Bytes from which a library, or the weights, travel in blobs and not in a tree."""
LIBRARIES = ("trt/tensorrt/*.so*", "trt/cublas/*.so*")
UNPACK = "for n in {numbers}; do PYTHONPATH=$n python3 -m deploy.airgap.unpack $n /tmp/kit; done"
GROWTH = 1.02
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Piece:
    """One compressed file of the kit.

    Attributes:
        name: of the file.
        size: its bytes.
        tree: where a tar of files is unpacked, below the target: "project", "workload" or "."; empty for a blob.
        blob: what a blob holds of one large file, as ``blobs.Blob``; None for a tree.
    """

    name: str
    size: int
    tree: str
    blob: dict[str, Any] | None

    @property
    def comes_first(self) -> bool:
        """Whether stages that need no TensorRT wait for it: trees and weights."""
        return self.blob is None or self.blob.get("kind") == "workload"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 with one line of reason where this machine cannot pack."""
    options = parse(arguments)
    try:
        pack(options)
    except (PythonMissing, ToolMissing, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="pack", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--python", help="a Python 3.10 to carry (pyenv's newest, else the one on PATH)")
    parser.add_argument("--tensorrt", default=TENSORRT_RELEASES[0], choices=TENSORRT_RELEASES)
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument("--folder-mib", type=int, default=48, help="largest size of a folder (%(default)s)")
    limits.add_argument("--folders", type=int, help="how many folders, in place of their size")
    parser.add_argument("--recipes", nargs="+", default=["cross_encoder", "dcn_v2"], help="what is measured there")
    parser.add_argument("--build", type=Path, default=PROJECT / "build", help="where 'make export' built it (build/)")
    parser.add_argument("--preset", type=int, default=1, choices=range(10), metavar="N",
                        help="xz's, 0 to 9; kernels hardly compress, so more costs minutes (%(default)s)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(arguments)


def pack(options: argparse.Namespace) -> None:
    """Everything. Raises: PythonMissing, ToolMissing, ValueError."""
    from builders.core.workspace import Workspace
    from deploy.airgap.workload import write_workload

    python = find_python(options.python)
    print(contents_line(python, options), flush=True)
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".work-") as name:
        work = Path(name)
        write_workload(work / "workload", options.recipes, Workspace(build=options.build.absolute()))
        make_environment(work, python, options.tensorrt)
        make_machine_packages(work / MACHINE_PACKAGES)
        pieces, facts = compress_all(work, work / "pieces", options)
        folders = write_folders(pieces, work / "pieces", out, folder_limit(pieces, options), facts)
    print(last_lines(folders, sum(piece.size for piece in pieces)), flush=True)


def contents_line(python: str, options: argparse.Namespace) -> str:
    """What will be carried, before the slow part."""
    return (
        f"carries, byte for byte: TensorRT {options.tensorrt} and {CUBLAS[options.tensorrt]}; Triton; the Python 3.10 "
        f"{python}; this project; files and samples of {', '.join(options.recipes)}"
    )


def last_lines(folders: Sequence[Path], size: int) -> str:
    """How many folders there are, and the command for the GPU machine."""
    command = UNPACK.format(numbers=" ".join(folder.name for folder in folders))
    return f"{len(folders)} folders, {size / MIB:.0f} MiB; on the GPU machine, where they lie side by side:\n{command}"


# ---------------------------------------------------------------- pieces
def compress_all(work: Path, target: Path, options: argparse.Namespace) -> tuple[list[Piece], dict[str, Any]]:
    """Compress every tree and large file, on all cores; and the facts that unpacking needs."""
    from deploy.airgap import blobs

    target.mkdir()
    libraries, weights = large_files(work, *LIBRARIES), large_files(work, "workload/*")
    facts = {
        "tensorrt": options.tensorrt,
        "cublas": CUBLAS[options.tensorrt],
        "libraries": {file: blobs.digest(work / file) for file in libraries},
        "weights": {file: blobs.digest(work / file) for file in weights},
    }

    def contents() -> Iterator[tuple[str, dict[str, Any] | None, str, bytes]]:
        for name, content in trees(work, {work / file for file in (*libraries, *weights)}):
            yield name, None, "workload" if name == "workload" else "code", content
            for file in weights if name == "workload" else ():
                for blob, part in blobs.chunks(work, file, "workload"):
                    yield "", blobs.to_json(blob), blob.kind, part
        for file in libraries:
            for blob, part in blobs.chunks(work, file, "code"):
                yield "", blobs.to_json(blob), blob.kind, part

    pieces: list[Piece] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        running: list[tuple[str, dict[str, Any] | None, Future[bytes]]] = []
        for tree, blob, kind, content in contents():
            running.append((tree, blob, pool.submit(blobs.compressed, kind, content, options.preset)))
            if len(running) > 2 * options.jobs:  # so that not all of them are held in memory
                pieces.append(_kept(len(pieces), target, options, *running.pop(0)))
        while running:
            pieces.append(_kept(len(pieces), target, options, *running.pop(0)))
    return pieces, facts


def _kept(
    number: int, target: Path, options: argparse.Namespace, tree: str, blob: dict[str, Any] | None,
    packed: Future[bytes],
) -> Piece:  # fmt: skip
    content = packed.result()
    name = f"{number:03d}.{tree or Path(blob['file']).name}.xz"  # type: ignore[index]
    (target / name).write_bytes(content)
    print(f"{name}: {len(content) / MIB:.1f} MiB", flush=True)
    piece = Piece(name, len(content), tree, blob)
    if not options.folders:
        check_fits(piece, options.folder_mib * MIB)  # at once, and not when all the rest has been packed too
    return piece


def large_files(work: Path, *patterns: str) -> list[str]:
    """Paths below ``work`` of the files of more than LARGE_FILE bytes."""
    found = sorted(path for pattern in patterns for path in work.glob(pattern))
    return [str(path.relative_to(work)) for path in found if path.is_file() and path.stat().st_size > LARGE_FILE]


def trees(work: Path, large: AbstractSet[Path]) -> Iterator[tuple[str, bytes]]:
    """Name => tar without the ``large`` files, in the order in which they are needed."""
    yield "project", tar_of(PROJECT, PROJECT_FOLDERS, lambda path: "__pycache__" in path.parts)
    if (work / MACHINE_PACKAGES).is_dir():
        yield MACHINE_PACKAGES, tar_of(work, [MACHINE_PACKAGES])
    if (work / "workload").is_dir():
        names = [path.name for path in sorted((work / "workload").iterdir())]
        yield "workload", tar_of(work / "workload", names, lambda path: path in large)
    served = [work / path for path in SERVED_BY]
    yield "python", tar_of(work, ["env", "stubs", "trtpy"], lambda path: path in served)
    yield "tensorrt", tar_of(work, ["trt"], lambda path: path in large)
    yield "server", tar_of(work, SERVED_BY)


def tar_of(root: Path, names: Sequence[str], left_out: Callable[[Path], bool] = lambda path: False) -> bytes:
    """A tar without owners and times."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return None if left_out(root / member.name) else member

    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name in names:
            archive.add(root / name, name, filter=plain)
    return target.getvalue()


# ---------------------------------------------------------------- folders
def folder_limit(pieces: Sequence[Piece], options: argparse.Namespace) -> int:
    """Bytes of a folder: as asked for, or the least that makes no more folders than asked for."""
    if not options.folders:
        return int(options.folder_mib) * MIB
    limit = max(sum(piece.size for piece in pieces) // options.folders, *(piece.size for piece in pieces))
    while len(spread(pieces, limit)) > options.folders:
        limit = int(limit * GROWTH) + 1
    return limit


def spread(pieces: Sequence[Piece], limit: int) -> list[list[Piece]]:
    """Pieces => folders of at most ``limit`` bytes: trees and weights first and in order, then the largest blob that
    still fits.

    Raises:
        ValueError: a piece is larger than a folder.
    """
    for piece in pieces:
        check_fits(piece, limit)
    first = [piece for piece in pieces if piece.comes_first]
    rest = sorted((piece for piece in pieces if not piece.comes_first), key=lambda piece: -piece.size)
    folders: list[list[Piece]] = []
    while first or rest:
        folder: list[Piece] = []
        room = limit
        while first and first[0].size <= room:
            room -= first[0].size
            folder.append(first.pop(0))
        for piece in list(rest) if not first else []:
            if piece.size <= room:
                room -= piece.size
                folder.append(piece)
                rest.remove(piece)
        folders.append(folder)
    return folders


def check_fits(piece: Piece, limit: int) -> None:
    """Raises: ValueError: the piece is larger than a folder."""
    if piece.size > limit:
        raise ValueError(
            f"piece {piece.name} has {piece.size / MIB:.0f} MiB, a folder takes {limit / MIB:.0f}; give a larger "
            "--folder-mib, --folders in its place, or fewer --recipes"
        )


def write_folders(pieces: Sequence[Piece], source: Path, out: Path, limit: int, facts: dict[str, Any]) -> list[Path]:
    """Write OUT/1, OUT/2, ..., each with the scripts that take it over."""
    for old in out.glob("[0-9]*"):
        shutil.rmtree(old)
    written = []
    folders = spread(pieces, limit)
    facts = {**facts, "folders": len(folders), "pieces": len(pieces)}
    for number, folder in enumerate(folders, 1):
        target = out / str(number)
        scripts = target / "deploy" / "airgap"
        scripts.mkdir(parents=True)
        for name in SCRIPTS:
            shutil.copy(Path(__file__).with_name(name), scripts)
        for piece in folder:
            (source / piece.name).rename(target / piece.name)
        index = {piece.name: {"tree": piece.tree, "blob": piece.blob} for piece in folder}
        (target / "index.json").write_text(json.dumps({"kit": facts, "pieces": index}, indent=1))
        print(f"{target}: {len(folder)} pieces, {sum(piece.size for piece in folder) / MIB:.1f} MiB", flush=True)
        written.append(target)
    return written


if __name__ == "__main__":
    sys.exit(main())
