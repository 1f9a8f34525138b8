"""On the GPU machine, once a folder, folder 1 first: `PYTHONPATH=FOLDER python3 -m deploy.airgap.unpack FOLDER TARGET`.

Standard library alone for the first step, which brings a Python 3.10 with lz4; that one puts the libraries together, on
all cores. With the last folder it loads TensorRT and prints its version.
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
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

OWN_FOLDER = ("project", "workload")
"""Trees that are unpacked into a folder of their name below the target; the others into the target."""
BLOBS_ALONE = "--blobs"


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    if len(arguments) < 2:
        print("wanted: python3 -m deploy.airgap.unpack FOLDER TARGET", file=sys.stderr)
        return 2
    folder, target = (Path(argument).absolute() for argument in arguments[:2])
    index = json.loads((folder / "index.json").read_text())
    if BLOBS_ALONE in arguments:
        put_together(folder, target, index)
        return 0
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
    if any(facts["blob"] for facts in index["pieces"].values()):
        command = [str(target / "trtpy"), "-m", "deploy.airgap.unpack", str(folder), str(target), BLOBS_ALONE]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(folder)})
    join_weights(folder, target)
    (target / "unpacked").mkdir(exist_ok=True)
    for name in index["pieces"]:
        (target / "unpacked" / name).touch()


def extract(packed: Path, target: Path) -> None:
    """One tree."""
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(packed.read_bytes()))) as archive:
        archive.extractall(target)


def put_together(folder: Path, target: Path, index: dict[str, Any]) -> None:
    """The folder's blobs => their places in the libraries, on all cores."""
    libraries = target / "trt" / "tensorrt"
    libraries.mkdir(parents=True, exist_ok=True)
    sizes = index["kit"]["libraries"]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        waiting = [
            pool.submit(restore, facts["blob"], folder / name, libraries, sizes[facts["blob"]["file"]])
            for name, facts in index["pieces"].items()
            if facts["blob"]
        ]
        for each in waiting:
            each.result()


def restore(blob: dict[str, Any], packed: Path, folder: Path, size: int) -> None:
    """One blob; apart, so that a worker can be handed it."""
    from deploy.airgap import blobs

    blobs.restore(blobs.Blob(**blob), packed.read_bytes(), folder, size)


def join_weights(folder: Path, target: Path) -> None:
    """Once the workload is there and a Python that has onnx: this machine's, else the one that was carried."""
    workload = target / "workload"
    if not (workload / "weights.json").is_file():
        return
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    for python in (sys.executable, str(target / "trtpy")):
        try:
            has_onnx = subprocess.run([python, "-c", "import onnx, numpy"], capture_output=True).returncode == 0
        except OSError:
            continue
        if has_onnx:
            subprocess.run([python, "-m", "deploy.airgap.weights", str(workload)], check=True, env=environ)
            return
    print("weights are joined when a Python with onnx has come: take over the next folder", flush=True)


def report(target: Path, kit: dict[str, Any]) -> int:
    """What is still to come; with the last folder, whether TensorRT loads."""
    missing = kit["pieces"] - len(list((target / "unpacked").iterdir()))
    if missing:
        print(f"{missing} of {kit['pieces']} pieces still to come", flush=True)
        return 0
    program = "import tensorrt; print('TensorRT', tensorrt.__version__, 'loads')"
    return subprocess.run([str(target / "trtpy"), "-c", program]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
