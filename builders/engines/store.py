"""Where plans are kept between builds: found by what they were built from, never half written, one build at a time.

Knows nothing of TensorRT; what is kept is whatever the given function builds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from builders.core.errors import BuilderError
from builders.core.files import fingerprint, folder_beside
from builders.engines.gpu import Gpu
from builders.engines.profiles import Profile
from builders.export.plan_manifest import EngineManifest, read_manifest

if TYPE_CHECKING:
    from builders.engines.build import BuildOptions

PLAN = "model.plan"
LOCK_TIMEOUT_S = 3600.0
"""How long to wait for another build; a cold one of every engine takes minutes."""


class StoreLocked(BuilderError):
    """Another process builds engines here."""


@dataclasses.dataclass(frozen=True)
class StoredEngine:
    """A plan of the store; ``built`` says whether this call built it."""

    plan: Path
    manifest: EngineManifest
    built: bool


@dataclasses.dataclass(frozen=True)
class EngineStore:
    """A folder with one folder a plan, timing caches and a lock.

    Attributes:
        folder: made where it is not there.
        tensorrt: version of the TensorRT at hand.
        gpu: the GPU at hand.
    """

    folder: Path
    tensorrt: str
    gpu: Gpu

    def key(self, onnx_sha256: str, profiles: Sequence[Profile], options: BuildOptions, fallback: str = "") -> str:
        """Changes with the ONNX file, TensorRT, the GPU, the profiles, every option and the manifest's fallback; not
        with the driver."""
        return fingerprint(
            [
                onnx_sha256,
                fallback,
                self.tensorrt,
                self.gpu.compute_capability,
                self.gpu.name,
                *(str(profile.to_json()) for profile in profiles),
                str(dataclasses.asdict(options)),
            ]
        )

    def engine(self, key: str, build: Callable[[Path], EngineManifest]) -> StoredEngine:
        """The plan of ``key``; built only where it is not there.

        A build fills a folder of another name, which becomes the plan's by rename: killed, it leaves no part of one.
        Call it within :meth:`locked`.

        Args:
            build: writes the plan that it is given the path of, and its manifest.
        """
        folder = self.folder / key
        built = not folder.is_dir()
        if built:
            with folder_beside(folder) as fresh:
                build(fresh / PLAN)
        return StoredEngine(folder / PLAN, read_manifest(folder / PLAN), built)

    @property
    def timing_cache(self) -> Path:
        """Measured kernels of this TensorRT, GPU and driver; a cache of another one is refused or wrong."""
        parts = (self.tensorrt, self.gpu.name, self.gpu.driver or "unknown-driver")
        return self.folder / "timing" / ("_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part) for part in parts) + ".cache")

    @contextlib.contextmanager
    def locked(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Keep other builds out: two at once would spoil each other's timings and write the same files. The system
        drops the lock of a process that is killed.

        Raises:
            StoreLocked: another process still builds after ``timeout_s``.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout as error:
            raise StoreLocked(
                f"{self.folder}: another process has built engines there for {timeout_s:.0f} s; wait for it, or end it"
            ) from error
        try:
            yield
        finally:
            lock.release()
