"""TensorRT 11's real builder on a machine without a GPU: its Python package over the libraries of TensorRT-RTX.

PyPI's package of TensorRT 11 fetches its libraries from elsewhere. Those of TensorRT-RTX, which are of the same code,
are in a package of ONNX Runtime; under the names that TensorRT's Python package asks for they load, parse and build
without a driver. NVIDIA supports no such pairing: it is good for a test of calls, and loading a plan needs a GPU.

`make setup-tensorrt-cpu`, or: python -m tests.support.tensorrt_cpu
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "tensorrt-cpu"
PACKAGES = ("tensorrt-cu13-bindings==11.4.0.106", "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0")
LIBRARIES = {
    "libtensorrt_rtx.so.*": "libnvinfer.so.11",
    "libtensorrt_onnxparser_rtx.so.*": "libnvonnxparser.so.11",
}
"""Of TensorRT-RTX => as TensorRT's Python package asks for it."""
NO_PLUGINS = "int initLibNvInferPlugins(void *logger, const char *scope) { return 1; }\n"
"""TensorRT-RTX has no plugin library, and the graphs use none."""


class SetupFailed(RuntimeError):
    """It cannot be put together here; the message says why."""


def tensorrt_on_cpu() -> Path:
    """The folder, filled where it is not yet. Raises: SetupFailed, without PyPI or a C compiler."""
    if not (FOLDER / ".ready").is_file():
        shutil.rmtree(FOLDER, ignore_errors=True)
        with tempfile.TemporaryDirectory() as work:
            _install(Path(work))
            shutil.copytree(Path(work) / "tensorrt_bindings", FOLDER / "tensorrt")
            for pattern, name in LIBRARIES.items():
                [library] = (Path(work) / "onnxruntime_ep_nv_tensorrt_rtx").glob(pattern)
                shutil.copy(library, FOLDER / "tensorrt" / name)
            _compile_plugins(Path(work), FOLDER / "tensorrt")
        (FOLDER / ".ready").touch()
    return FOLDER


def run_with_it(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A module of the project in a process of its own that has this TensorRT."""
    folder = tensorrt_on_cpu()
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder / "tensorrt"), "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=environ, cwd=FOLDER.parents[1], capture_output=True, text=True)


def _install(work: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--target", str(work), *PACKAGES]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise SetupFailed(f"pip could not install {' and '.join(PACKAGES)}; is PyPI reachable? {ended.stderr[-300:]}")


def _compile_plugins(work: Path, target: Path) -> None:
    source, name = work / "plugins.c", "libnvinfer_plugin.so.11"
    source.write_text(NO_PLUGINS)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SetupFailed("no C compiler found (cc or gcc); install one")
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(target / name), str(source)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    try:
        print(f"{tensorrt_on_cpu()}: TensorRT {PACKAGES[0].rpartition('==')[2]}, builds plans and loads none")
    except SetupFailed as error:
        sys.exit(f"error: {error}")
