"""The server's Python environment: where it is, what it holds, and whether Triton can run in it.

Apart from the builders' environment, because the Python-backend stub of this Triton needs numpy < 2.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from server.errors import EnvironmentUnfit

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT_VARIABLE = "TRITONRANK_SERVER_ENV"
TENSORRT_VARIABLE = "TRITONRANK_TENSORRT"
TENSORRT_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11")
CUDA_RUNTIME = "libcudart.so"
DEFAULT_ENVIRONMENT = REPOSITORY_ROOT / ".venv-server"
HOW_TO_BUILD = "run 'make setup' to build it, or point --server-env or TRITONRANK_SERVER_ENV at one"


@dataclass(frozen=True)
class ServerEnvironment:
    """A virtual environment that carries nvidia-pytriton's tritonserver."""

    root: Path
    site_packages: Path
    python_minor: str  # "3.11"

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def libraries(self) -> Path:
        return self.site_packages / "nvidia_pytriton.libs"

    @property
    def triton(self) -> Path:
        return self.site_packages / "pytriton" / "tritonserver"

    @property
    def tritonserver(self) -> Path:
        return self.triton / "bin" / "tritonserver"

    @property
    def python_backend(self) -> Path:
        return self.triton / "backends" / "python"

    @property
    def stub(self) -> Path:
        return self.triton / "python_backend_stubs" / self.python_minor / "triton_python_backend_stub"

    @property
    def caches(self) -> Path:
        return self.triton / "caches"

    def version_of(self, package: str) -> str | None:
        """Return the installed version of a package of this environment, None where it is missing."""
        return _version_in(self.site_packages, package)

    def tensorrt_version(self) -> str | None:
        """Return the version of the TensorRT that would load plans, None where there is none.

        That of the folder $TRITONRANK_TENSORRT where it names one, as the drop-in imports it from there, else that of
        this environment. Raises EnvironmentUnfit where the folder holds no TensorRT.
        """
        named = os.environ.get(TENSORRT_VARIABLE)
        folder = Path(named) if named else self.site_packages
        version = next(filter(None, (_version_in(folder, package) for package in TENSORRT_PACKAGES)), None)
        if named and version is None:
            raise EnvironmentUnfit(
                f"{TENSORRT_VARIABLE} names {named}, where no package tensorrt is installed; fill it with "
                f"'{self.bin}/pip install --target {named} tensorrt polygraphy', or unset it."
            )
        return version

    def link_cuda_runtime(self, folder: Path) -> Path:
        """Link this environment's CUDA runtime into `folder` under the name that Polygraphy looks for; return it.

        nvidia-pytriton brings it under a longer name. Left empty where it brings none.
        """
        folder.mkdir(exist_ok=True)
        for library in sorted(self.libraries.glob("libcudart-*.so.*"))[:1]:
            (folder / CUDA_RUNTIME).symlink_to(library)
        return folder


def find_environment(root: str | os.PathLike[str] | None = None) -> ServerEnvironment:
    """Return the server's environment: `root`, else $TRITONRANK_SERVER_ENV, else .venv-server of this checkout.

    Raises EnvironmentUnfit where it is missing or cannot run Triton.
    """
    folder = Path(root or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_ENVIRONMENT).absolute()
    site_packages = _site_packages(folder)
    environment = ServerEnvironment(folder, site_packages, site_packages.parent.name.removeprefix("python"))
    _check_triton(environment)
    _check_numpy(environment)
    return environment


def _version_in(folder: Path, package: str) -> str | None:
    found = metadata.distributions(name=package, path=[str(folder)])
    return next((distribution.version for distribution in found), None)


def _site_packages(folder: Path) -> Path:
    found = sorted(folder.glob("lib/python3.*/site-packages"))
    if len(found) != 1:
        raise EnvironmentUnfit(
            f"server environment {folder}: found {len(found)} lib/python3.*/site-packages folders, wanted 1; "
            f"{HOW_TO_BUILD}."
        )
    return found[0]


def _check_triton(environment: ServerEnvironment) -> None:
    if not environment.tritonserver.is_file():
        raise EnvironmentUnfit(
            f"server environment {environment.root}: no tritonserver in it, wanted the package nvidia-pytriton==0.7.0; "
            f"{HOW_TO_BUILD}."
        )
    if not environment.stub.is_file():
        stubs = sorted(path.name for path in environment.stub.parent.parent.glob("3.*"))
        raise EnvironmentUnfit(
            f"server environment {environment.root}: has Python {environment.python_minor}, this Triton's Python "
            f"backend has stubs for {', '.join(stubs)} only; rebuild the environment with one of these."
        )


def _check_numpy(environment: ServerEnvironment) -> None:
    version = environment.version_of("numpy")
    if version is None or int(version.split(".")[0]) >= 2:
        raise EnvironmentUnfit(
            f"server environment {environment.root}: numpy is {version or 'missing'}, wanted < 2 (with numpy 2 this "
            f"Triton's stub hands over empty tensors); {HOW_TO_BUILD}."
        )
