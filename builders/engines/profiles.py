"""Contract => optimisation profiles: which shapes a TensorRT engine takes, and which it is tuned for.

Their order is that of Triton's ``instance_group.profile``. Standard library only; knows nothing of TensorRT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from builders.core.contract import (
    LENGTH_BUCKET,
    MAX_CANDIDATES,
    MAX_LENGTH,
    MAX_ROWS_PER_RUN,
    USUAL_CANDIDATES,
    ContractError,
    Tensor,
)

if TYPE_CHECKING:
    from builders.rankers.base import Graph

Shape = tuple[int, ...]
Range = tuple[int, int, int]
"""Smallest, usual and largest size of a dimension."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """One optimisation profile: input name => shapes (min, opt, max)."""

    shapes: Mapping[str, tuple[Shape, Shape, Shape]]

    def to_json(self) -> dict[str, dict[str, list[int]]]:
        """As in the manifest: input name => ``min``, ``opt``, ``max`` => shape."""
        return {
            name: {kind: list(shape) for kind, shape in zip(("min", "opt", "max"), shapes, strict=True)}
            for name, shapes in self.shapes.items()
        }


def profiles_of(graph: Graph) -> list[Profile]:
    """One profile for each length bucket, shortest first; a single one for a graph without lengths.

    A bucket's length is fixed within its profile, so that TensorRT picks kernels for it. Rows go from 1 to
    the largest request, since the container's backend runs a request whole; they are tuned for a usual request's
    candidates, or for one row where rows are requests.

    Raises:
        ContractError: a free dimension that is neither rows, nor candidates, nor a length.
    """
    lengths: list[Range] = [(length, length, length) for length in graph.lengths]
    return [_profile(graph, length) for length in lengths or [(LENGTH_BUCKET, MAX_LENGTH // 2, MAX_LENGTH)]]


def _profile(graph: Graph, length: Range) -> Profile:
    inputs = graph.contract.inputs
    ranges = {dim: _range(graph, dim, length) for tensor in inputs for dim in tensor.dims if isinstance(dim, str)}
    return Profile({tensor.name: _shapes(tensor, ranges) for tensor in inputs})


def _range(graph: Graph, dim: str, length: Range) -> Range:
    if dim == "rows":
        candidates = any(tensor.scope == "per_candidate" for tensor in graph.contract.inputs)
        largest = graph.max_batch_size or MAX_ROWS_PER_RUN  # the C++ backend runs a request whole
        return 1, min(USUAL_CANDIDATES if candidates else 1, largest), largest
    if dim == "candidates":
        return 1, USUAL_CANDIDATES, MAX_CANDIDATES
    if dim.endswith("length"):
        return length
    raise ContractError(
        f"{graph.name}: free dimension '{dim}' has no range for TensorRT; wanted rows, candidates or one ending in "
        "'length'. Name it so in the contract, or give it a range in builders/engines/profiles.py"
    )


def _shapes(tensor: Tensor, ranges: Mapping[str, Range]) -> tuple[Shape, Shape, Shape]:
    smallest, usual, largest = (
        tuple(ranges[dim][place] if isinstance(dim, str) else dim for dim in tensor.dims) for place in range(3)
    )
    return smallest, usual, largest
