"""The one place for versions: Triton's release, the ONNX opset, and what each release that reads our files accepts.

Standard library only, so that a Dockerfile's test or a server's script may import it. Knows nothing of how a file is
exported or built.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

from builders.core.errors import BuilderError

TRITON_RELEASE = "26.11"
"""Tag of the container, ``nvcr.io/nvidia/tritonserver:<release>-py3``; it mends a use-after-free in the dynamic
batcher."""

OPSET = 18
"""What every graph is exported with: the lowest that torch's exporter writes without converting down."""


class VersionError(BuilderError):
    """An ONNX file that a supported release would not read."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """A release that reads our ONNX files.

    Attributes:
        name: release, as its maker spells it.
        max_opset: highest version of the default ONNX domain that it takes.
        max_ir_version: IR version of the ONNX package that this opset, or the release's own, came with.
        source: page that says so.
    """

    name: str
    max_opset: int
    max_ir_version: int
    source: str


TRITON_CONTAINER = Reader(
    f"Triton {TRITON_RELEASE} (ONNX Runtime 1.27 or later)",
    23,
    11,
    "https://onnxruntime.ai/docs/reference/compatibility.html (a floor: ONNX Runtime 1.23's)",
)
PIP_ONLY_TRITON = Reader(
    "pip-only Triton 24.10 (ONNX Runtime 1.32)", 23, 11, "https://onnxruntime.ai/docs/reference/compatibility.html"
)
TENSORRT_8 = Reader(
    "TensorRT 8.5", 17, 8, "https://github.com/onnx/onnx-tensorrt/blob/release/8.5-GA/docs/operators.md"
)
TENSORRT_10 = Reader(
    "TensorRT 10", 20, 10, "https://github.com/onnx/onnx-tensorrt/blob/release/10.0-GA/docs/operators.md"
)
TENSORRT_11 = Reader(
    "TensorRT 11",
    24,
    12,
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/onnx-opset-guide.html (a floor: 11.5 reads 25)",
)

SERVING = (PIP_ONLY_TRITON, TRITON_CONTAINER, TENSORRT_10, TENSORRT_11)
"""Every variant is written for all of these. TensorRT 8.5 is apart: its engines are built from a copy that
``builders.engines.build`` converts down."""


def tensorrt_reader(tensorrt_version: str) -> Reader:
    """What the ONNX parser of a TensorRT release reads, ``8.5.3.1`` or ``11.4.0.106``.

    Raises:
        VersionError: a major release that is not supported.
    """
    by_major = {"8": TENSORRT_8, "9": TENSORRT_8, "10": TENSORRT_10, "11": TENSORRT_11}
    major = tensorrt_version.split(".")[0]
    if major not in by_major:
        raise VersionError(
            f"TensorRT {tensorrt_version} is not known here; wanted 8.5 to 11. Add it to builders/core/versions.py "
            "with the page that names its opset"
        )
    return by_major[major]


def check_versions(name: str, opset: int, ir_version: int, readers: Sequence[Reader] = SERVING) -> None:
    """Raises: VersionError, naming every reader that would not take the opset or the IR version."""
    faults = [
        f"{reader.name} reads {what} up to {highest} ({reader.source})"
        for reader in readers
        for what, found, highest in (
            ("opset", opset, reader.max_opset),
            ("IR version", ir_version, reader.max_ir_version),
        )
        if found > highest
    ]
    if faults:
        raise VersionError(
            f"{name}: opset {opset}, IR version {ir_version}; " + "; ".join(faults) + f". Export with opset {OPSET}, "
            "or drop the release from builders/core/versions.py"
        )


def check_onnx_versions(path: Path, readers: Sequence[Reader] = SERVING) -> None:
    """The same of a file, its weights left unread where they lie apart. Raises: VersionError, also where it is none."""
    import onnx  # not at the top: this module is the standard library's
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise VersionError(f"{path}: not an ONNX file ({error}); remove it and run 'make export'") from error
    check_versions(path.name, opset_of(model), model.ir_version, readers)


def opset_of(model: object) -> int:
    """Version of the default domain that an ``onnx.ModelProto`` imports; 0 where it imports none."""
    imports = {one.domain or "ai.onnx": one.version for one in model.opset_import}  # type: ignore[attr-defined]
    return int(imports.get("ai.onnx", 0))


LIBRARIES = (
    "torch", "transformers", "peft", "onnx", "onnxscript", "onnxruntime", "numpy", "tokenizers",
    "nvidia-modelopt", "nncf", "openvino",
)  # fmt: skip
"""Whose versions what is built depends on."""


@functools.cache
def libraries() -> dict[str, str]:
    """Name => version of what a build depends on, for keys and the manifest."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}
