"""What a student learns from teachers, from hidden states and from judgements, and what training leaves alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from builders.compress.distill import DistillationError, distill, targets_of
from builders.compress.lists import standardised
from builders.compress.prune import keep_rows, zero_smallest
from builders.core.steps import Distill
from builders.data.beir import GAINS, JudgedQueries
from builders.data.unlabeled import UnlabeledList, unlabeled_lists
from builders.rankers.base import Ranker
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.losses import pairwise
from tests.support.small_rankers import catalogue, priced_ranker

UNSEEN = unlabeled_lists(catalogue(), 20, 8, seed=77)


@pytest.fixture(scope="module")
def teacher() -> FeatureRanker:
    return priced_ranker(seed=0)


@pytest.fixture
def student() -> FeatureRanker:
    return priced_ranker(seed=1)


@pytest.fixture(scope="module")
def data() -> JudgedQueries:
    return catalogue()


def settings(**given: object) -> Distill:
    return Distill.model_validate(
        {"step": "distill", "lists": 40, "candidates": 8, "epochs": 4, "learning_rate": 0.01, "freeze": (), **given}
    )


def learn(
    student: Ranker, teachers: Sequence[tuple[Ranker, float]], data: JudgedQueries, **given: object
) -> dict[str, Tensor]:
    """The student's weights after training."""
    distill(student, teachers, data, settings(**given), lambda _: None)
    return {name: tensor.clone() for name, tensor in student.network.state_dict().items()}


def kendall(one: Ranker, other: Ranker, lists: Sequence[UnlabeledList] = UNSEEN) -> float:
    """Mean over lists, -1 to 1."""
    return float(
        np.mean(
            [
                scipy.stats.kendalltau(*(each.score(made.request, made.products) for each in (one, other))).statistic
                for made in lists
            ]
        )
    )


# ---------------------------------------------------------------- scores
def test_a_student_learns_its_teachers_order_of_lists_that_it_has_not_seen(
    student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries
) -> None:
    before = kendall(student, teacher)
    learn(student, [(teacher, 1.0)], data)
    assert before < 0.5
    assert kendall(student, teacher) > before + 0.3
    assert not student.network.training


def test_a_student_whose_rows_were_pruned_recovers(teacher: FeatureRanker, data: JudgedQueries) -> None:
    student = teacher.with_network(copy.deepcopy(teacher.network))
    keep_rows(student, [], 0.99, min_rows=100)
    zero_smallest(student.network, 0.6)
    before = kendall(student, teacher)
    learn(student, [(teacher, 1.0)], data)
    assert before < kendall(student, teacher)


def test_targets_of_one_teacher_are_its_scores(teacher: FeatureRanker) -> None:
    [target] = targets_of([(teacher, 5.0)], UNSEEN[:1])
    np.testing.assert_array_equal(target, teacher.score(UNSEEN[0].request, UNSEEN[0].products))


def test_targets_of_several_teachers_are_averaged_by_weight_and_spread_as_the_first(teacher: FeatureRanker) -> None:
    other = priced_ranker(seed=5)
    with torch.no_grad():
        other.network.mix[3].weight.mul_(1000)  # its scale must not matter
    [target] = targets_of([(teacher, 1.0), (other, 3.0)], UNSEEN[:1])
    first, second = (torch.from_numpy(each.score(UNSEEN[0].request, UNSEEN[0].products)) for each in (teacher, other))
    wanted = 0.25 * standardised(first) + 0.75 * standardised(second)
    np.testing.assert_allclose(standardised(target), standardised(wanted), atol=1e-5)
    assert target.std(correction=0).item() == pytest.approx(first.std(correction=0).item(), rel=1e-5)


def test_a_student_of_two_teachers_follows_the_heavier(
    student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries
) -> None:
    other = priced_ranker(seed=5)
    assert kendall(teacher, other) < 0.5
    learn(student, [(teacher, 1.0), (other, 9.0)], data)
    assert kendall(student, other) > kendall(student, teacher) + 0.2


# ---------------------------------------------------------------- hidden states
def differences(student: FeatureRanker, teacher: FeatureRanker) -> float:
    """Mean squared difference of what the second hidden layer puts out."""
    states: list[Tensor] = []
    hooks = [
        each.network.mix[1].register_forward_hook(lambda _, __, output: states.append(output.detach().clone()))
        for each in (student, teacher)
    ]
    for one in UNSEEN:
        for each in (student, teacher):
            each.score(one.request, one.products)
    for hook in hooks:
        hook.remove()
    return float(torch.stack([(states[i] - states[i + 1]).square().mean() for i in range(0, len(states), 2)]).mean())


def test_hidden_states_are_pulled_to_the_teachers(
    student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries
) -> None:
    before, alone = differences(student, teacher), priced_ranker(seed=1)
    learn(alone, [(teacher, 1.0)], data)
    learn(student, [(teacher, 1.0)], data, hidden={"mix.1": "mix.1"}, hidden_weight=10.0)
    assert differences(student, teacher) < 0.5 * before
    assert differences(student, teacher) < 0.5 * differences(alone, teacher)


def test_no_hook_is_left_on_student_or_teacher(
    student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries
) -> None:
    learn(student, [(teacher, 1.0)], data, lists=2, epochs=1, hidden={"mix.1": "mix.1"})
    assert not any(module._forward_hooks for each in (student, teacher) for module in each.network.modules())


# ---------------------------------------------------------------- judgements
def judged_loss(ranker: FeatureRanker, data: JudgedQueries) -> float:
    """RankNet's loss of the training queries."""
    losses = []
    for query_id, grades in data.subset("train").judgements.items():
        scores = ranker.score(data.request(query_id), [data.products[item] for item in grades])
        losses.append(pairwise(torch.from_numpy(scores), torch.tensor([GAINS[grade] for grade in grades.values()])))
    return float(torch.stack(losses).mean())


def test_judged_training_lists_are_learned_where_they_have_a_weight(
    student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries
) -> None:
    alone, many_steps = priced_ranker(seed=1), {"lists": 20, "batch": 1, "epochs": 8, "learning_rate": 0.02}
    learn(alone, [(teacher, 1.0)], data, judged_weight=0.0, **many_steps)
    learn(student, [(teacher, 1.0)], data, judged_weight=100.0, **many_steps)
    assert judged_loss(student, data) < 0.8 * judged_loss(alone, data)


def test_judgements_of_test_queries_are_not_read(teacher: FeatureRanker, data: JudgedQueries) -> None:
    test = data.subset("test").queries
    assert 0 < len(test) < len(data.queries)
    turned = {
        query_id: {item: 3 - grade for item, grade in grades.items()} if query_id in test else grades
        for query_id, grades in data.judgements.items()
    }
    found = [
        learn(priced_ranker(seed=1), [(teacher, 1.0)], each, judged_weight=5.0, lists=8, epochs=1)
        for each in (data, dataclasses.replace(data, judgements=turned))
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_weight_of_judgements_without_any_to_learn_from_is_refused(
    student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries, split: str
) -> None:
    alike = {query_id: dict.fromkeys(grades, 3) for query_id, grades in data.judgements.items()}
    given = data.subset("test") if split == "test" else dataclasses.replace(data, judgements=alike)
    with pytest.raises(DistillationError, match="no training query has judgements to learn from; set it to 0"):
        learn(student, [(teacher, 1.0)], given, judged_weight=1.0, lists=2)


# ---------------------------------------------------------------- what stays
def test_weights_that_were_pruned_stay_zero_and_the_others_learn(
    student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries
) -> None:
    zero_smallest(student.network, 0.5)
    before = student.network.mix[1].weight.detach().clone()
    after = learn(student, [(teacher, 1.0)], data)["mix.1.weight"]
    assert (before == 0).any()
    assert torch.equal(after == 0, before == 0)
    assert not torch.equal(after, before)


def test_a_layer_that_starts_silent_learns(student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries) -> None:
    with torch.no_grad():
        student.network.mix[3].weight.zero_()
    assert learn(student, [(teacher, 1.0)], data, lists=8, epochs=1)["mix.3.weight"].any()


def test_frozen_parameters_stay_as_they_are_and_a_later_step_may_learn_them(
    student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries
) -> None:
    before = copy.deepcopy(student.network.state_dict())
    after = learn(student, [(teacher, 1.0)], data, lists=8, epochs=1, freeze=("items*", "mix.0*"))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"mix.1.weight", "mix.1.bias", "mix.3.weight", "mix.3.bias"}
    assert all(parameter.requires_grad for parameter in student.network.parameters())


def test_a_teacher_is_not_changed(student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries) -> None:
    before = copy.deepcopy(teacher.network.state_dict())
    after = (learn(student, [(teacher, 1.0)], data, lists=8, hidden={"mix.1": "mix.1"}), teacher.network.state_dict())[
        1
    ]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_does_not(
    teacher: FeatureRanker, data: JudgedQueries
) -> None:
    first, second, third = (
        learn(priced_ranker(seed=1), [(teacher, 1.0)], data, lists=16, epochs=2, seed=seed) for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["mix.1.weight"], third["mix.1.weight"])


# ---------------------------------------------------------------- refusals
def test_nothing_to_learn_is_refused(student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries) -> None:
    with pytest.raises(DistillationError, match=r"freeze items\*, mix\* leaves nothing to learn; freeze less"):
        learn(student, [(teacher, 1.0)], data, lists=2, freeze=("items*", "mix*"))


@pytest.mark.parametrize("hidden", [{"mix.9": "mix.1"}, {"mix.1": "mix.9"}])
def test_a_submodule_that_is_not_there_is_refused_with_those_that_are(
    student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries, hidden: dict[str, str]
) -> None:
    with pytest.raises(DistillationError, match=r"hidden: no submodule 'mix\.9'; there are mix\.0, mix\.1, .*mix\.3"):
        learn(student, [(teacher, 1.0)], data, lists=2, hidden=hidden)


def test_hidden_states_of_different_shapes_are_refused(
    student: FeatureRanker, teacher: FeatureRanker, data: JudgedQueries
) -> None:
    with pytest.raises(DistillationError, match=r"hidden states of \[8, 5\] and \[8, 16\], wanted equal shapes"):
        learn(student, [(teacher, 1.0)], data, lists=2, hidden={"items": "mix.1"})
