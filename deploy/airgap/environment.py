"""What the kit carries besides the project: a relocatable Python 3.10 with TensorRT 8 and cuBLAS, Triton, and a runner.

Made on the packing machine from PyPI by pip, with a Python 3.10 of this machine (``interpreter.py``). Needs gcc,
readelf, nm, strip and ldd, which come with a C compiler.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PACKAGES = (
    "polygraphy==0.53.6", "numpy==1.26.4", "nvidia-pytriton==0.7.0", "tritonclient==2.50.0", "protobuf==6.33.6",
    "grpcio==1.69.0", "python-rapidjson==1.25", "onnx==1.23.2", "ml_dtypes", "typing_extensions", "filelock",
    "packaging", "lmdb",
)  # fmt: skip
TENSORRT_RELEASES = ("8.6.0", "8.5.3.1")
"""Those whose package on PyPI holds the libraries themselves. 8.5 is of the generation that Jetson's JetPack 5 has; its
ONNX parser does not read the graphs of the project's rankers."""
CUBLAS = {"8.6.0": "nvidia-cublas-cu12==12.0.1.189", "8.5.3.1": "nvidia-cublas-cu11==11.11.3.6"}
"""TensorRT => the oldest, so smallest, cuBLAS of its CUDA that has kernels for Hopper. Engines with fused nodes need
it: with a stub an H200 finds no implementation for them."""
CUBLAS_LIBRARIES = ("libcublas.so", "libcublasLt.so")
CUBLAS_FOLDER = "trt/cublas"
TOOLS = ("gcc", "readelf", "nm", "strip", "ldd")
SITE = "env/lib/python3.10/site-packages"
SERVED_BY = (f"{SITE}/nvidia_pytriton.libs", f"{SITE}/pytriton", f"{SITE}/grpc", "env/bin/perf_analyzer")
"""What only serving needs."""
MACHINE_PACKAGES = ("pydantic", "pydantic_core", "annotated-types", "typing-inspection")
"""What the project's modules need that a machine with torch may lack, in the packing environment's versions."""
MACHINE_PYTHONS = ("3.11", "3.12", "3.13")
"""Of the machine itself; the extensions of each lie side by side in one folder."""
STANDARD_LIBRARY_LEFT_OUT = (
    "test", "tests", "idlelib", "ensurepip", "tkinter", "turtledemo", "lib2to3", "pydoc_data", "site-packages",
    "__pycache__", "sqlite3",
)  # fmt: skip
EXTENSIONS_LEFT_OUT = (
    "_tkinter", "_curses", "readline", "nis.", "_sqlite3", "_dbm", "_gdbm", "_test", "_ctypes_test", "xxlimited",
)  # fmt: skip
PACKAGES_LEFT_OUT = (
    "onnx/backend/test", "numpy/tests", "numpy/*/tests", "numpy/f2py", "nvidia_pytriton.libs/libpython3-*", "*.pyi",
    *(f"pytriton/tritonserver/python_backend_stubs/3.{minor}" for minor in (8, 9, 11, 12, 13)),
)  # fmt: skip
STRIPPED = (
    "env/lib/libpython3.10.so.1.0", f"{SITE}/rapidjson*.so", f"{SITE}/lmdb/*.so",
)  # fmt: skip
"""Of debugging symbols."""
PART_OF_EVERY_MACHINE = (
    "libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libutil.so", "ld-linux", "linux-vdso",
    "libresolv.so", "libgcc_s.so", "libstdc++.so",
)  # fmt: skip
STUBBED = ("libcudnn.so.8",)
"""The plugin library only has to be able to load it; engines are built without its kernels (stages/common.py)."""
RUNNER = """#!/bin/sh
# Python 3.10 with TensorRT, alone in its library path: the machine's own programs never see it
root=$(cd "$(dirname "$0")" && pwd)
libraries="$root/stubs:$root/trt/tensorrt:$root/trt/cublas:/usr/local/nvidia/lib64:/usr/local/nvidia/lib:$root/env/lib"
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PYTHONNOUSERSITE=1 TRITONRANK_SERVER_ENV="$root/env" TRITONRANK_TENSORRT="$root/trt"
unset PYTHONHOME
exec "$root/env/bin/python3.10" "$@"
"""


class ToolMissing(ValueError):
    """The packing machine lacks a program, or PyPI cannot be reached."""


def make_environment(work: Path, python: str, tensorrt: str) -> None:
    """Fill ``work`` with ``env``, ``trt``, ``stubs`` and the runner ``trtpy``.

    Args:
        python: a Python 3.10, see :func:`interpreter.find_python`.
        tensorrt: one of TENSORRT_RELEASES.

    Raises:
        ToolMissing: names what this machine lacks.
    """
    check_tools()
    _copy_python(work / "env", python)
    _install_packages(work, python, tensorrt)
    _leave_out(work)
    _make_stubs(work)
    _thin_icu(work)
    (work / "trtpy").write_text(RUNNER)
    (work / "trtpy").chmod(0o755)


def make_machine_packages(target: Path) -> None:
    """Fill ``target`` with what the machine's own Python lacks, whichever of MACHINE_PYTHONS it is.

    Raises:
        ToolMissing: pip could not install them.
    """
    packages = [f"{name}=={importlib.metadata.version(name)}" for name in MACHINE_PACKAGES]
    for version in MACHINE_PYTHONS:
        with tempfile.TemporaryDirectory() as folder:
            install(sys.executable, Path(folder), f"--python-version={version}", *packages)
            shutil.copytree(folder, target, dirs_exist_ok=True)


def check_tools() -> None:
    """Raises: ToolMissing."""
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing:
        raise ToolMissing(f"not found on PATH: {', '.join(missing)}; install a C compiler and binutils")


def install(python: str, target: Path, *packages: str) -> None:
    """By pip, packages alone, without what they depend on. Raises: ToolMissing with pip's own words."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile",
               "--no-cache-dir", "--only-binary=:all:", "--target", str(target), *packages]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise ToolMissing(f"pip could not install {' '.join(packages)}; is PyPI reachable? {ended.stderr[-500:]}")


# ---------------------------------------------------------------- Python
def _copy_python(env: Path, python: str) -> None:
    """Its program, its standard library and the libraries that this machine has and another may not."""
    home = Path(subprocess.check_output([python, "-c", "import sys; print(sys.base_prefix)"], text=True).strip())
    (env / "bin").mkdir(parents=True)
    shutil.copy(home / "bin/python3.10", env / "bin/python3.10")
    (env / "bin/python3").symlink_to("python3.10")
    left_out = shutil.ignore_patterns(*STANDARD_LIBRARY_LEFT_OUT, "*.a", "config-3*")
    shutil.copytree(home / "lib/python3.10", env / "lib/python3.10", ignore=left_out)
    library = home / "lib/libpython3.10.so.1.0"
    if library.is_file():  # a Python that holds it within itself needs none
        shutil.copy(library, env / "lib" / library.name)
    for extension in (env / "lib/python3.10/lib-dynload").glob("*.so"):
        if extension.name.startswith(EXTENSIONS_LEFT_OUT):
            extension.unlink()
        else:
            _copy_needed_libraries(extension, env / "lib")


def _copy_needed_libraries(extension: Path, target: Path) -> None:
    listed = subprocess.run(["ldd", str(extension)], capture_output=True, text=True).stdout
    for line in listed.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        path = rest.split(" ")[0]
        if arrow and path.startswith("/") and not name.startswith((*PART_OF_EVERY_MACHINE, "libpython")):
            shutil.copy(path, target / name)


# ---------------------------------------------------------------- packages
def _install_packages(work: Path, python: str, tensorrt: str) -> None:
    site = work / SITE
    site.mkdir()
    install(python, site, *PACKAGES)
    install(python, work / "trt", f"tensorrt=={tensorrt}")
    install_cublas(work, python, CUBLAS[tensorrt])
    (site / "tensorrt.pth").write_text("../../../../trt\n")
    shutil.move(site / "bin/perf_analyzer", work / "env/bin/perf_analyzer")
    shutil.rmtree(site / "bin")


def install_cublas(work: Path, python: str, package: str) -> None:
    """Its two libraries, and nothing else of the package."""
    target = work / CUBLAS_FOLDER
    target.mkdir()
    with tempfile.TemporaryDirectory(dir=work) as folder:
        install(python, Path(folder), package)
        libraries = Path(folder) / "nvidia/cublas/lib"
        for name in CUBLAS_LIBRARIES:
            found = sorted(libraries.glob(f"{name}.[0-9]*"))
            if len(found) != 1:
                raise ToolMissing(f"{package} holds {len(found)} files {name}.N in nvidia/cublas/lib, wanted one; "
                                  "name another version in deploy/airgap/environment.py")  # fmt: skip
            shutil.move(found[0], target / found[0].name)


def _leave_out(work: Path) -> None:
    site = work / SITE
    for pattern in PACKAGES_LEFT_OUT:
        for path in list(site.rglob(pattern) if pattern.startswith("*") else site.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (path for pattern in STRIPPED for path in work.glob(pattern)):
        subprocess.run(["strip", "--strip-unneeded", str(path)], check=False)


# ---------------------------------------------------------------- libraries that only have to be there
def _make_stubs(work: Path) -> None:
    """A library that exports what the plugin library wants of cuDNN; the CUDA runtime under its own name."""
    stubs, plugin = work / "stubs", work / "trt/tensorrt/libnvinfer_plugin.so.8"
    stubs.mkdir()
    needed = subprocess.check_output(["readelf", "-d", str(plugin)], text=True)
    undefined = subprocess.check_output(["nm", "-D", "--undefined-only", str(plugin)], text=True).splitlines()
    for library in (name for name in STUBBED if f"[{name}]" in needed):
        symbols = [line.split()[-1].split("@")[0] for line in undefined if line.endswith(f"@{library}")]
        script = work / "stub.map"
        script.write_text(f"{library} {{ global: *; }};\n")
        source = "".join(f"int {symbol}(void) {{ return 1; }}\n" for symbol in symbols)
        _shared_library(stubs / library, source, work, [f"-Wl,--version-script={script}"])
    [runtime] = (work / SITE).glob("nvidia_pytriton.libs/libcudart-*.so.12*")
    for name in ("libcudart.so.12", "libcudart.so"):
        (stubs / name).symlink_to(os.path.relpath(runtime, stubs))


def _thin_icu(work: Path) -> None:
    """Triton is linked, through libarchive and libxml2, to 29 MB of ICU's tables, which it never reads."""
    [library] = (work / SITE).glob("nvidia_pytriton.libs/libicudata-*.so.*")
    version = library.name.split(".so.")[1].split(".")[0]
    table = f"const unsigned char icudt{version}_dat[64] __attribute__((aligned(16))) = {{0}};\n"
    _shared_library(library, table, work)


def _shared_library(target: Path, source: str, work: Path, options: Sequence[str] = ()) -> None:
    (work / "source.c").write_text(source)
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{target.name}", *options, "-o", str(target)]
    subprocess.run([*command, str(work / "source.c")], check=True)
