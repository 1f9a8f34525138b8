"""OpenVINO and NNCF without their telemetry: import either from here.

Their import sends usage data unless the package ``openvino_telemetry`` is missing; then they go on without.
"""

from __future__ import annotations

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import nncf  # noqa: E402
import openvino  # noqa: E402

__all__ = ["nncf", "openvino"]
