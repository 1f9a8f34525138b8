"""ONNX => TensorRT engines: not yet. Says plainly what a machine without TensorRT skips.

The engines come with a later release; until then every variant is served by ONNX Runtime.
"""

from __future__ import annotations

import importlib.util


class TensorRTMissing(ValueError):
    """TensorRT was required and is not there."""


def skipped_engines(require: bool) -> str:
    """A line that says which engines were not built and why.

    Raises:
        TensorRTMissing: ``require``, and this machine cannot build engines.
    """
    found = importlib.util.find_spec("tensorrt") is not None
    reason = "this release builds none" if found else "package 'tensorrt' is not installed here"
    line = f"TensorRT engines skipped: {reason}; the ONNX variants are built and serve instead"
    if require:
        raise TensorRTMissing(f"{line}. Unset REQUIRE_TENSORRT, or build on a machine that has it")
    return line
