"""Fake plans for tests/support/fake_tensorrt_runtime.py, and the configuration of a model that serves one."""

from __future__ import annotations

import json
from typing import Any

CONFIG = """
backend: "tensorrt"
max_batch_size: 1024
input [{ name: "tokens" data_type: TYPE_INT32 dims: [-1] }]
output [
  { name: "score" data_type: TYPE_FP32 dims: [1] },
  { name: "profile" data_type: TYPE_INT32 dims: [1] },
  { name: "rows_in_run" data_type: TYPE_INT32 dims: [1] }
]
"""
TENSORS = [
    ["tokens", "INPUT", "INT32", [-1, -1]],
    ["score", "OUTPUT", "FLOAT", [-1, 1]],
    ["profile", "OUTPUT", "INT32", [-1, 1]],
    ["rows_in_run", "OUTPUT", "INT32", [-1, 1]],
]
ROWS = (1, 4, 8)
LENGTHS = (8, 16)


def fake_plan(tensors: list[list[Any]] = TENSORS, **further: Any) -> str:
    """A scorer with one profile for each of LENGTHS, each for 1 to 8 rows: tokens int32 [rows, length]."""
    profiles = [{"tokens": [[rows, length] for rows in ROWS]} for length in LENGTHS]
    return json.dumps({"tensors": tensors, "profiles": profiles, **further})
