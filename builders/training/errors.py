"""What can go wrong before and while a ranker is trained."""

from __future__ import annotations

from builders.core.errors import BuilderError


class TrainingError(BuilderError):
    """Training cannot start, or diverged; the message says what was found, what was wanted and what to run next."""
