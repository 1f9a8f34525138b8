"""What can go wrong before and while a ranker is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from builders.core.errors import BuilderError
from builders.core.recipe import Recipe


class TrainingError(BuilderError):
    """Training cannot start, or diverged; the message says what was found, what was wanted and what to run next."""


@contextlib.contextmanager
def network_made_of(recipe: Recipe) -> Iterator[None]:
    """Around the making of the network. Raises: TrainingError: it does not take ``[training.network]``."""
    try:
        yield
    except TypeError as error:
        raise TrainingError(
            f"recipe of {recipe.ranker}: [training.network] does not fit '{recipe.module}' ({error}); wanted arguments "
            "of its constructor"
        ) from error
