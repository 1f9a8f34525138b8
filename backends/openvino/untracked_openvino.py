"""OpenVINO without its telemetry: `import openvino` sends an event to Google Analytics, unless that package is missing.

Every file of this drop-in imports `ov` from here.
"""

from __future__ import annotations

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes its import fail; OpenVINO provides for that

import openvino as ov  # noqa: E402
import openvino.preprocess  # noqa: E402, F401

__all__ = ["ov"]
