"""Optimization profiles of a plan: which one a run takes, how many rows it may have, how large its buffers are.

Mirrors InitOptimizationProfiles, GetMostOptimizedProfile and MaximumDims of the C++ backend (src/instance_state.cc,
src/tensorrt_utils.cc of https://github.com/triton-inference-server/tensorrt_backend). Knows nothing of running a plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batching import RunFailed

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


class NoProfile(RunFailed):
    """No profile of the instance takes the shapes of a request."""


class BadProfile(ValueError):
    """The configuration names a profile that the plan does not have."""


@dataclass(frozen=True)
class Range:
    """What a profile takes of one input: each dimension from `minimum` to `maximum`, tuned for `optimum`."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def holds(self, shape: Shape) -> bool:
        return len(shape) == len(self.minimum) and all(
            low <= dim <= high for low, dim, high in zip(self.minimum, shape, self.maximum, strict=True)
        )


@dataclass(frozen=True)
class Profile:
    """One optimization profile; `inputs`: input name => its range."""

    index: int
    inputs: Mapping[str, Range]

    def takes(self, shapes: Shapes) -> bool:
        return all(self.inputs[name].holds(shape) for name, shape in shapes.items())

    def distance(self, shapes: Shapes) -> int:
        """Sum of the distances of all dimensions from those that the profile is tuned for."""
        return sum(
            abs(dim - best)
            for name, shape in shapes.items()
            for dim, best in zip(shape, self.inputs[name].optimum, strict=True)
        )

    @property
    def maximum(self) -> dict[str, Shape]:
        return {name: range_.maximum for name, range_ in self.inputs.items()}

    @property
    def max_rows(self) -> int:
        return min(range_.maximum[0] for range_ in self.inputs.values())


def profile_indices(config: dict[str, Any], instance: str, profiles_of_plan: int) -> list[int]:
    """Return the profiles that `instance_group.profile` gives an instance; the plan's first where it names none."""
    group = _group_of(config.get("instance_group", []), instance)
    names = group.get("profile", []) or ["0"]
    wrong = [name for name in names if not name.isdecimal() or int(name) >= profiles_of_plan]
    if wrong:
        raise BadProfile(
            f"instance_group.profile has {', '.join(map(repr, wrong))}, the plan has the profiles 0 to "
            f"{profiles_of_plan - 1}; fix config.pbtxt, or write it anew with 'make build-engines repository'"
        )
    return list(dict.fromkeys(int(name) for name in names))


def choose_profile(profiles: Iterable[Profile], shapes: Shapes) -> Profile:
    """Return the profile that takes `shapes` and is tuned for what is nearest to them. Raises NoProfile."""
    fitting = [profile for profile in profiles if profile.takes(shapes)]
    if not fitting:
        raise NoProfile(_refusal(profiles, shapes))
    return min(fitting, key=lambda profile: profile.distance(shapes))


def most_rows(profiles: Sequence[Profile], shapes: Shapes, cap: int | None) -> int:
    """Return how many rows one run of such inputs may have: the largest of the profiles that take them, or `cap`.

    shapes: of a request, rows first, of which only the other dimensions count. Raises NoProfile.
    """
    rows = [
        profile.max_rows
        for profile in profiles
        if profile.takes({name: (profile.max_rows, *shape[1:]) for name, shape in shapes.items()})
    ]
    if not rows:
        raise NoProfile(_refusal(profiles, shapes))
    return min(max(rows), cap or max(rows))


def buffer_bytes(shapes: Iterable[Shape], item_bytes: int) -> int:
    """Return the bytes of a buffer that holds a tensor in any of `shapes`."""
    return max(math.prod(shape) for shape in shapes) * item_bytes


def _group_of(groups: Sequence[dict[str, Any]], instance: str) -> dict[str, Any]:
    """Triton calls instances NAME or NAME_0, NAME_1, ... after their group."""
    named = [group for group in groups if f"{instance}_".startswith(f"{group['name']}_")]
    return max(named, key=lambda group: len(group["name"]), default={})


def _refusal(profiles: Iterable[Profile], shapes: Shapes) -> str:
    found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    taken = "; ".join(
        f"profile {profile.index}: "
        + ", ".join(f"{name} {list(r.minimum)} to {list(r.maximum)}" for name, r in profile.inputs.items())
        for profile in profiles
    )
    return f"no optimization profile takes {found}; the instance has {taken}. Pad to one of these, or build it anew"
