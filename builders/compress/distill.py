"""Trains a ranker's network on the scores (and hidden states) of teachers: distillation, and recovery after pruning.

Hinton et al., arXiv:1503.02531; the loss is ListNet's (Cao et al., ICML 2007) between softmaxes over a list's
candidates; hidden states as in TinyBERT (arXiv:1909.10351); judged training lists by RankNet's pairwise loss (Burges et
al., ICML 2005). One seed, one machine and one number of threads give the same weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import get_linear_schedule_with_warmup

from builders.compress.lists import blended, scores_of, tensors_of
from builders.core.errors import BuilderError
from builders.core.steps import Distill
from builders.data.beir import GAINS, JudgedQueries
from builders.data.unlabeled import UnlabeledList, unlabeled_lists
from builders.rankers.base import Ranker, Sample
from builders.rankers.losses import listnet, pairwise

WARM_UP = 0.1
"""Share of the steps of a training in which the learning rate rises; after it falls to 0, both linearly."""
MOSTLY = 0.99
"""A layer with a smaller share of weights that are not zero was pruned."""
SEEDS_APART = 7919
"""Between the seed of a recipe and that of its lists, so that they are not those of the gate."""


class DistillationError(BuilderError):
    """Teachers, students and data that do not fit together."""


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A list as the student reads it, and what its candidates should score, float32 [candidates]."""

    sample: dict[str, Sample]
    targets: Tensor


def distill(
    student: Ranker,
    teachers: Sequence[tuple[Ranker, float]],
    data: JudgedQueries,
    settings: Distill,
    say: Callable[[str], None] = print,
) -> nn.Module:
    """Train the student's network in place.

    Args:
        student: whose network is changed: hand it a copy.
        teachers: (ranker, weight); all answer the same requests.
        data: lists are made of its corpus; judged ones are its training queries.

    Returns:
        The network, in eval mode; what was frozen may be learned by a later step.

    Raises:
        DistillationError: a submodule of ``hidden`` is not there, or of another shape; or nothing is left to learn.
    """
    torch.manual_seed(settings.seed)
    lists = unlabeled_lists(data, settings.lists, settings.candidates, settings.seed + SEEDS_APART)
    say(f"{student.name}: scores of {len(lists)} lists by {', '.join(teacher.name for teacher, _ in teachers)}")
    lessons = [
        Lesson(sample, targets)
        for sample, targets in zip(tensors_of(student, lists), targets_of(teachers, lists), strict=True)
    ]
    judged = _judged_lessons(student, data, settings) if settings.judged_weight else []
    hidden = _HiddenStates(student.network, teachers[0][0], settings.hidden)
    say(f"{student.name}: learning from {len(lessons)} lists, {settings.epochs} epochs, and {len(judged)} judged ones")
    with hidden:
        _fit(student, lessons, judged, hidden, lists, settings)
    return student.network.requires_grad_(True).eval()


def targets_of(teachers: Sequence[tuple[Ranker, float]], lists: Sequence[UnlabeledList]) -> list[Tensor]:
    """float32 [candidates] a list: one teacher's own scores, or several teachers' blend with the first one's spread."""
    found = []
    for one in lists:
        scores = [_scores_by(teacher, one) for teacher, _ in teachers]
        if len(scores) == 1:
            found.append(scores[0])
        else:
            blend = blended(scores, [weight for _, weight in teachers])
            found.append(blend * scores[0].std(correction=0) / blend.std(correction=0).clamp(min=1e-6))
    return found


def _scores_by(teacher: Ranker, one: UnlabeledList) -> Tensor:
    scores = torch.from_numpy(teacher.score(one.request, one.products))
    return scores if scores.ndim == 1 else scores.sum(dim=1)


def _judged_lessons(student: Ranker, data: JudgedQueries, settings: Distill) -> list[Lesson]:
    """Training queries' candidates with their gains; one whose gains are all alike teaches nothing."""
    train = data.subset("train")
    rng = random.Random(settings.seed)
    lessons = []
    for query_id, grades in train.judgements.items():
        drawn = rng.sample(list(grades), min(len(grades), settings.candidates))
        gains = torch.tensor([GAINS[grades[item_id]] for item_id in drawn])
        if gains.max() > gains.min():
            products = [data.products[item_id] for item_id in drawn]
            lessons.append(Lesson(student.sample(train.request(query_id), products), gains))
    if not lessons:
        raise DistillationError("judged_weight is set, but no training query has judgements to learn from; set it to 0")
    return lessons


def _fit(
    student: Ranker,
    lessons: Sequence[Lesson],
    judged: Sequence[Lesson],
    hidden: _HiddenStates,
    lists: Sequence[UnlabeledList],
    settings: Distill,
) -> None:
    """One optimizer step for each batch of lists: AdamW, gradients clipped to norm 1."""
    learned = _learned(student.network, settings.freeze)
    rng = random.Random(settings.seed)
    orders = [rng.sample(range(len(lessons)), len(lessons)) for _ in range(settings.epochs)]
    steps = [
        order[start : start + settings.batch] for order in orders for start in range(0, len(order), settings.batch)
    ]
    pruned = _pruned_weights(student.network)
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARM_UP * len(steps)), len(steps))
    student.network.train()
    for step in steps:
        optimizer.zero_grad()
        for place in step:  # list by list: no padding to the longest, little memory
            lesson = lessons[place]
            loss = _soft_loss(scores_of(student, lesson.sample), lesson.targets, settings.sharpness)
            loss = loss + settings.hidden_weight * hidden.loss(lists[place])
            (loss / len(step)).backward()
        if judged:
            lesson = rng.choice(judged)
            (settings.judged_weight * pairwise(scores_of(student, lesson.sample), lesson.targets)).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for weight, kept in pruned:
                weight.mul_(kept)


def _soft_loss(scores: Tensor, targets: Tensor, sharpness: float) -> Tensor:
    """ListNet at a sharpness that does not depend on the teacher's scale, which the student learns all the same."""
    scale = sharpness / targets.std(correction=0).clamp(min=1e-6)
    return listnet(scores * scale, targets * scale)


def _pruned_weights(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Linear weights with many exact zeros, and where they are not zero: what was pruned away stays so. All zeros are a
    layer that starts silent, and learns."""
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Linear)]
    kept = [(weight, (weight != 0).float()) for weight in weights]
    return [(weight, mask) for weight, mask in kept if 0 < mask.mean() < MOSTLY]


def _learned(network: nn.Module, freeze: Sequence[str]) -> list[nn.Parameter]:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not any(fnmatch.fnmatch(name, pattern) for pattern in freeze))
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not learned:
        raise DistillationError(f"freeze {', '.join(freeze)} leaves nothing to learn; freeze less")
    return learned


class _HiddenStates(contextlib.AbstractContextManager["_HiddenStates"]):
    """While entered, keeps what the named submodules put out last."""

    def __init__(self, network: nn.Module, teacher: Ranker, pairs: Mapping[str, str]) -> None:
        self._teacher = teacher
        self._pairs = [
            (_submodule(network, mine), _submodule(teacher.network, theirs)) for mine, theirs in pairs.items()
        ]
        self._outputs: dict[int, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _HiddenStates:
        modules = [module for pair in self._pairs for module in pair]
        self._hooks = [module.register_forward_hook(self._keep) for module in modules]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def loss(self, one: UnlabeledList) -> Tensor:
        """Mean squared difference of the states of the student's last forward pass and the teacher's of this list."""
        if not self._pairs:
            return torch.zeros(())
        with torch.no_grad():
            self._teacher.score(one.request, one.products)
        return torch.stack([self._difference(mine, theirs) for mine, theirs in self._pairs]).mean()

    def _difference(self, mine: nn.Module, theirs: nn.Module) -> Tensor:
        found, wanted = self._outputs[id(mine)], self._outputs[id(theirs)]
        if found.shape != wanted.shape:
            raise DistillationError(
                f"hidden states of {list(found.shape)} and {list(wanted.shape)}, wanted equal shapes; pair others"
            )
        return functional.mse_loss(found, wanted.clone())  # the teacher's come from inference mode

    def _keep(self, module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        self._outputs[id(module)] = output if isinstance(output, Tensor) else output[0]


def _submodule(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        names = ", ".join(known for known, _ in network.named_modules() if known.count(".") == name.count("."))
        raise DistillationError(f"hidden: no submodule '{name}'; there are {names}") from error
