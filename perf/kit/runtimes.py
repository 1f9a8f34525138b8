"""The runtimes that score, OpenVINO's reader of both their files, and what the processor computes with."""

from __future__ import annotations

from builders.core.processor import instruction_sets
from builders.core.runtimes import RUNTIMES, Precision, Runtime, open_session
from builders.core.untracked import openvino

__all__ = ["RUNTIMES", "Precision", "Runtime", "instruction_sets", "open_session", "openvino"]
