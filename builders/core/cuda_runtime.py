"""The CUDA runtime library for Polygraphy, which looks for it by its plain name where packages from PyPI do not put it.

Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from builders.core.errors import BuilderError

PATTERN = "libcudart.so*"
_LINKER_NAME = "libcudart.so"
_VARIABLE = "LD_LIBRARY_PATH"
_SYSTEM = ("/usr/local/cuda/lib64", "/usr/lib", "/lib")
"""Where Polygraphy looks besides LD_LIBRARY_PATH (``polygraphy/cuda/cuda.py``)."""


class CudaRuntimeMissing(BuilderError):
    """No ``libcudart`` that Polygraphy could load."""


def offer_cuda_runtime(
    packages: Iterable[str | Path] | None = None, system: Iterable[str | Path] = _SYSTEM
) -> Path | None:
    """Let Polygraphy find the CUDA runtime that came with a package of PyPI; call it before Polygraphy runs an engine.

    Polygraphy reads LD_LIBRARY_PATH when it first calls CUDA, so the package's folder is put at the end of this
    process's. Of several runtimes the oldest is taken: a driver runs those older than itself, not the newer ones.

    Args:
        packages: folders with packages; ``sys.path`` where not given. ``nvidia-cuda-runtime-cu12`` has it in
            ``nvidia/cuda_runtime/lib``, ``nvidia-cuda-runtime`` of CUDA 13 in ``nvidia/cu13/lib``.
        system: folders where Polygraphy looks in any case.

    Returns:
        The folder that was added; None where Polygraphy or the dynamic linker finds a runtime without it.

    Raises:
        CudaRuntimeMissing: there is none anywhere.
    """
    named = [Path(folder) for folder in os.environ.get(_VARIABLE, "").split(os.pathsep) if folder]
    if any(any(folder.glob(PATTERN)) for folder in [*named, *map(Path, system)]):
        return None
    places = [Path(folder) for folder in (sys.path if packages is None else packages) if folder]
    found = sorted((path for place in places for path in place.glob(f"nvidia/*/lib/{PATTERN}")), key=_major)
    if found:
        os.environ[_VARIABLE] = os.pathsep.join([*map(str, named), str(found[0].parent)])
        return found[0].parent
    if _linker_finds_one():
        return None
    raise CudaRuntimeMissing(
        f"no CUDA runtime: looked for {PATTERN} in {_VARIABLE}, in {', '.join(map(str, system))} and in nvidia/*/lib "
        "of the installed packages; an engine runs through it. Run 'pip install nvidia-cuda-runtime-cu12' (or the one "
        f"of your CUDA release), or name CUDA's library folder in {_VARIABLE}"
    )


def _major(library: Path) -> int:
    """``libcudart.so.12`` => 12."""
    digits = library.name.partition(".so.")[2].partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def _linker_finds_one() -> bool:
    try:
        ctypes.CDLL(_LINKER_NAME)
    except OSError:
        return False
    return True
