"""Puts the FAKES of fake_tensorrt_runtime.py where the tensorrt drop-in looks for the real ones.

No GPU computes anything here.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import types
from pathlib import Path

import pytest

from server.backend_directory import DROP_INS
from tests.support import fake_tensorrt_runtime as fake_tensorrt

MODULES = ("batching", "cuda_engine", "model_configuration", "plan_signature", "profiles")
KIND = 'args["model_instance_kind"]'
POLYGRAPHY = {
    "__init__.py": "",
    "cuda.py": "from tensorrt import MemcpyKind, wrapper\n",
    "exception.py": "from tensorrt import FakeCudaError as PolygraphyException\n",
}


def import_drop_in(monkeypatch: pytest.MonkeyPatch, module: str, version: str = "11.4.0.106") -> types.ModuleType:
    """Import a module of backends/tensorrt anew, as Triton does, with the fakes of a TensorRT version."""
    for folder in ("common", "tensorrt"):
        monkeypatch.syspath_prepend(DROP_INS / folder)
    polygraphy_cuda, polygraphy_exception = (
        types.ModuleType("polygraphy.cuda"),
        types.ModuleType("polygraphy.exception"),
    )
    polygraphy_cuda.__dict__.update(MemcpyKind=fake_tensorrt.MemcpyKind, wrapper=fake_tensorrt.wrapper)
    polygraphy_exception.__dict__.update(PolygraphyException=fake_tensorrt.FakeCudaError)
    fakes = {
        "tensorrt": fake_of(version),
        "polygraphy.cuda": polygraphy_cuda,
        "polygraphy.exception": polygraphy_exception,
        "triton_python_backend_utils": types.ModuleType("triton_python_backend_utils"),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    for name in MODULES:  # at the end of the test they are as they were before
        monkeypatch.setitem(sys.modules, name, fakes["tensorrt"])
        del sys.modules[name]
    monkeypatch.setattr(fake_tensorrt, "CUDA", fake_tensorrt.FakeCuda())
    return importlib.import_module(module)


def fake_of(version: str) -> types.ModuleType:
    """The fake with the names of one version."""
    module = types.ModuleType("tensorrt")
    module.__dict__.update(vars(fake_tensorrt), __version__=version)
    if int(version.split(".")[0]) < 10:
        del module.__dict__["ExecutionContextAllocationStrategy"]
    return module


def write_drop_ins(folder: Path, packages: Path | None = None) -> Path:
    """The tensorrt drop-in, which takes its instance for one on a GPU; the fakes beside it or in ``packages``."""
    shutil.copytree(DROP_INS / "common", folder / "common")
    shutil.copytree(DROP_INS / "tensorrt", folder / "tensorrt")
    packages = packages or folder / "tensorrt"
    shutil.copy(Path(fake_tensorrt.__file__), packages / "tensorrt.py")
    model = folder / "tensorrt" / "model.py"
    assert KIND in model.read_text()
    model.write_text(model.read_text().replace(KIND, '"GPU"'))
    (packages / "polygraphy").mkdir()
    for name, text in POLYGRAPHY.items():
        (packages / "polygraphy" / name).write_text(text)
    return folder
