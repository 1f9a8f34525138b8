"""On the GPU machine, once a folder, folder 1 first: `PYTHONPATH=FOLDER python3 -m deploy.airgap.unpack FOLDER TARGET`.

Standard library alone. Large files are put together on all cores; with the last folder they are compared with the
originals by SHA-256, TensorRT is loaded and its version printed.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

OWN_FOLDER = ("project", "workload")
"""Trees that are unpacked into a folder of their name below the target; the others into the target."""
WEIGHTS = "workload/weights.json"
"""There as long as the weights lie apart from their graphs; see weights.py."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 1 where a file came out otherwise than it was packed, or TensorRT does not load."""
    if len(arguments) < 2:
        print("wanted: python3 -m deploy.airgap.unpack FOLDER TARGET", file=sys.stderr)
        return 2
    folder, target = (Path(argument).absolute() for argument in arguments[:2])
    index = json.loads((folder / "index.json").read_text())
    start_s = time.monotonic()
    take_over(folder, target, index)
    print(f"{folder.name}: {len(index['pieces'])} pieces in {time.monotonic() - start_s:.1f} s", flush=True)
    return report(target, index["kit"])


def take_over(folder: Path, target: Path, index: dict[str, Any]) -> None:
    """Unpack a folder's trees and blobs into ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    for name, facts in index["pieces"].items():
        if facts["tree"]:
            extract(folder / name, target / facts["tree"] if facts["tree"] in OWN_FOLDER else target)
    (target / "kit.json").write_text(json.dumps(index["kit"], indent=1))
    put_together(folder, target, index)
    join_weights(folder, target, index["kit"])
    (target / "unpacked").mkdir(exist_ok=True)
    for name in index["pieces"]:
        (target / "unpacked" / name).touch()


def extract(packed: Path, target: Path) -> None:
    """One tree."""
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(packed.read_bytes()))) as archive:
        archive.extractall(target)


def put_together(folder: Path, target: Path, index: dict[str, Any]) -> None:
    """The folder's blobs => their places in the large files, on all cores: xz lets other threads run."""
    from deploy.airgap import blobs

    files = {**index["kit"]["libraries"], **index["kit"]["weights"]}

    def restore(name: str, blob: blobs.Blob) -> None:
        blobs.restore(blob, (folder / name).read_bytes(), target, files[blob.file]["size"])

    found = {name: blobs.Blob(**facts["blob"]) for name, facts in index["pieces"].items() if facts["blob"]}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(restore, found, found.values()):  # asked for, so that an error is raised here
            pass


def join_weights(folder: Path, target: Path, kit: dict[str, Any]) -> None:
    """Once all of the weights are there and a Python that has onnx: this machine's, else the one that was carried."""
    if not (target / WEIGHTS).is_file() or any(differences(target, kit["weights"])):
        return
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    for python in (sys.executable, str(target / "trtpy")):
        try:
            has_onnx = subprocess.run([python, "-c", "import onnx, numpy"], capture_output=True).returncode == 0
        except OSError:
            continue
        if has_onnx:
            subprocess.run([python, "-m", "deploy.airgap.weights", str(target / "workload")], check=True, env=environ)
            print("weights are joined: the stages machine, references and torch can run", flush=True)
            return
    print("weights are joined when a Python with onnx has come: take over the next folder", flush=True)


def report(target: Path, kit: dict[str, Any]) -> int:
    """What is still to come; with the last folder, whether every large file is the original and TensorRT loads."""
    missing = kit["pieces"] - len(list((target / "unpacked").iterdir()))
    if missing:
        print(f"{missing} of {kit['pieces']} pieces still to come", flush=True)
        return 0
    files = {**kit["libraries"], **(kit["weights"] if (target / WEIGHTS).is_file() else {})}
    found = list(differences(target, files))
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    if found:
        print("copy the folders anew, and unpack all of them into an empty folder", file=sys.stderr)
        return 1
    program = "import tensorrt; print('TensorRT', tensorrt.__version__, 'loads')"
    return subprocess.run([str(target / "trtpy"), "-c", program]).returncode


def differences(target: Path, files: dict[str, dict[str, Any]]) -> Iterator[str]:
    """One line of each file that is not the one that was packed."""
    from deploy.airgap import blobs

    for name, wanted in files.items():
        path = target / name
        found = blobs.digest(path) if path.is_file() else {"size": 0, "sha256": "none"}
        if found != wanted:
            yield (
                f"{path} has {found['size']} bytes with SHA-256 {found['sha256']}, packed were {wanted['size']} with "
                f"{wanted['sha256']}"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
