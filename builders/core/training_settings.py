"""The ``[training]`` table of each of the kit's trainers: a recipe is checked when it is read, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from builders.core.faults import RecipeError, faults_of
from builders.core.steps import Settings
from builders.core.workspace import REPOSITORY_ROOT


class TrainerSettings(Settings):
    """What every trainer has.

    Attributes:
        seed: of every random number; one seed, one machine and one number of threads give the same weights.
        threads: of torch; the weights depend on it in their last digits.
    """

    seed: int = pydantic.Field(0, ge=0)
    threads: int = pydantic.Field(2, ge=1)

    @classmethod
    def of(cls, table: Mapping[str, Any] | TrainerSettings) -> Self:
        """A recipe's ``training``, typed. Raises: RecipeError; all faults at once."""
        if isinstance(table, cls):
            return table
        fields = table.model_dump() if isinstance(table, TrainerSettings) else dict(table)
        try:
            return cls.model_validate(fields)
        except pydantic.ValidationError as error:
            raise RecipeError("; ".join(faults_of(error, cls, "training"))) from error


class RecommenderSettings(TrainerSettings):
    """Rankers of items for a user, from purchases: ``builders/training/recommenders.py:train_interactions``.

    Choose them by ``python -m builders.training.recommenders RECIPE``, on the validation cut.

    Attributes:
        epochs: how often ``examples`` examples are drawn.
        examples: drawn in one epoch.
        half_life_days: days; an example so much older is drawn half as often.
        batch: examples a step.
        learning_rate: AdamW's highest; rises over the first tenth of the steps, then falls to 0.
        weight_decay: decay of AdamW.
        loss: "softmax": cross-entropy of each positive among the candidates, divided by the root of the number of
            positives; "logistic": of each candidate by itself.
        negatives: items drawn uniformly, anew for each step; 0 = all items known before the cut.
        user_dropout: probability that an example's user is hidden, so that an unknown user's row is trained.
        network: what the network's ``for_log`` takes.
    """

    epochs: int = pydantic.Field(10, ge=1)
    examples: int = pydantic.Field(3000, ge=1)
    half_life_days: float = pydantic.Field(21.0, gt=0)
    batch: int = pydantic.Field(128, ge=1)
    learning_rate: float = pydantic.Field(2e-3, gt=0)
    weight_decay: float = pydantic.Field(0.01, ge=0)
    loss: Literal["softmax", "logistic"] = "softmax"
    negatives: int = pydantic.Field(0, ge=0)
    user_dropout: float = pydantic.Field(0.1, ge=0, le=1)
    network: dict[str, Any] = pydantic.Field({})


class TextSettings(TrainerSettings):
    """What both trainers of small text networks have.

    Attributes:
        weight_decay: decay of AdamW.
        network: arguments of the network's constructor that are not its defaults.
    """

    weight_decay: float = pydantic.Field(0.01, ge=0)
    network: dict[str, Any] = pydantic.Field({})


class MatcherSettings(TextSettings):
    """Small text rankers: ``builders/training/text.py:train_text_ranker``; distilled from the two-tower, then tuned.

    Attributes:
        pseudo_query_sets: each makes one query a product, with a seed of its own.
        distill_epochs: passes, each over one set, in turn; 0 skips distilling.
        distill_batch: lists a step while distilling.
        distill_learning_rate: AdamW's highest while distilling.
        tune_epochs: passes over the judged training queries; 0 skips tuning.
        tune_batch: lists a step while tuning.
        tune_learning_rate: AdamW's highest while tuning.
        candidates: judged candidates drawn a query and pass.
    """

    pseudo_query_sets: int = pydantic.Field(2, ge=1)
    distill_epochs: int = pydantic.Field(5, ge=0)
    distill_batch: int = pydantic.Field(32, ge=1)
    distill_learning_rate: float = pydantic.Field(2e-3, gt=0)
    tune_epochs: int = pydantic.Field(2, ge=0)
    tune_batch: int = pydantic.Field(4, ge=1)
    tune_learning_rate: float = pydantic.Field(3e-4, gt=0)
    candidates: int = pydantic.Field(16, ge=2)


class IntentSettings(TextSettings):
    """The classifier of a query's category: ``builders/training/text.py:train_intent``.

    Attributes:
        epochs: passes over the titles; the judged training queries come ``query_repeats`` times in each.
        batch: titles and queries a step.
        learning_rate: AdamW's highest.
        query_repeats: of the judged training queries, in each pass over the titles.
        title_words: a title is cut to so many of its first words at most, a new number each time, as queries are short.
    """

    epochs: int = pydantic.Field(12, ge=1)
    batch: int = pydantic.Field(64, ge=1)
    learning_rate: float = pydantic.Field(4e-3, gt=0)
    query_repeats: int = pydantic.Field(10, ge=0)
    title_words: int = pydantic.Field(8, ge=2)


class PairSettings(TrainerSettings):
    """What both trainers of the kit's cross-encoders have: distilling, then tuning.

    Attributes:
        pseudo_queries: made-up queries to distill from; 0 skips distilling.
        distill_batch: lists a step while distilling.
        tune_batch: lists a step while tuning.
        distill_learning_rate: highest learning rate of the LoRA matrices while distilling.
        tune_learning_rate: highest learning rate of the LoRA matrices while tuning.
        head_rate_factor: the head's learning rate is so many times the matrices'.
        tune_epochs: passes over the judged training queries; 0 skips tuning.
        candidates: judged candidates drawn a query and pass, at most half of them Exact if others are there.
    """

    pseudo_queries: int = pydantic.Field(1200, ge=0)
    distill_batch: int = pydantic.Field(12, ge=1)
    tune_batch: int = pydantic.Field(4, ge=1)
    distill_learning_rate: float = pydantic.Field(5e-4, gt=0)
    tune_learning_rate: float = pydantic.Field(3e-4, gt=0)
    head_rate_factor: float = pydantic.Field(4.0, gt=0)
    tune_epochs: int = pydantic.Field(2, ge=0)
    candidates: int = pydantic.Field(16, ge=2)


class CrossEncoderSettings(PairSettings):
    """The cross-encoder's adapter and head: ``builders/training/cross_encoder.py:train_from_recipe``.

    Judge them by cross-validation over training queries (``--cross-validate``).

    Attributes:
        lora_rank: of every linear layer's update; its scale (alpha) is twice the rank.
        folds: of cross-validation over training queries.
    """

    lora_rank: int = pydantic.Field(16, ge=1)
    folds: int = pydantic.Field(4, ge=2)


class SplitCrossEncoderSettings(PairSettings):
    """A cross-encoder split between two layers, taught by the whole one, whose adapter and head go on learning:
    ``builders/training/split_cross_encoder.py:train_from_recipe``.

    Attributes:
        teacher: checkpoint of the whole cross-encoder.
        split_after: layers that encode query and item apart.
    """

    teacher: str = "checkpoints/cross_encoder"
    split_after: int = pydantic.Field(5, ge=1)


class StCrossEncoderSettings(TrainerSettings):
    """A CrossEncoder of sentence-transformers: ``builders/training/st_cross_encoder.py:train_from_recipe``.

    Attributes:
        epochs: passes over the judged pairs of training queries.
        batch: pairs a step.
        learning_rate: AdamW's highest; rises over ``warm_up`` of the steps, then falls to 0.
        warm_up: share of the steps.
        max_length: tokens of a pair, as the checkpoint then says of itself.
    """

    epochs: int = pydantic.Field(2, ge=1)
    batch: int = pydantic.Field(16, ge=1)
    learning_rate: float = pydantic.Field(5e-5, gt=0)
    warm_up: float = pydantic.Field(0.1, ge=0, lt=1)
    max_length: int = pydantic.Field(128, ge=8)


TRAINERS: Mapping[str, type[TrainerSettings]] = {
    "builders/training/st_cross_encoder.py:train_from_recipe": StCrossEncoderSettings,
    "builders/training/recommenders.py:train_interactions": RecommenderSettings,
    "builders/training/text.py:train_text_ranker": MatcherSettings,
    "builders/training/text.py:train_intent": IntentSettings,
    "builders/training/cross_encoder.py:train_from_recipe": CrossEncoderSettings,
    "builders/training/split_cross_encoder.py:train_from_recipe": SplitCrossEncoderSettings,
}
"""Trainer of the kit, as a recipe names it => its table."""


def settings_of(trainer: Any, root: Path) -> type[TrainerSettings] | None:
    """The table of a recipe's ``trainer``; None for a user's own, whose table is free. root: see :class:`Recipe`."""
    file, separator, name = str(trainer or "").rpartition(":")
    path = (root / file).resolve()
    if not separator or not path.is_relative_to(REPOSITORY_ROOT):
        return None
    return TRAINERS.get(f"{path.relative_to(REPOSITORY_ROOT).as_posix()}:{name}")
