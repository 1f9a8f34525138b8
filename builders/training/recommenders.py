"""Trains the rankers of items for a user: from what a customer had bought, which items come new in the next basket?

Examples are baskets before the log's cut (:func:`builders.data.purchase_log.training_examples`), drawn again each pass,
the recent ones more often: what sells changes by the month. An example's positives are the items bought for the first
time, its negatives are other items that the customer had not bought or, where the log tells what was shown and not
taken, those alone. The same features and encoder as in serving.

A network that it trains is a class that :class:`builders.rankers.feature_ranker.FeatureRanker` takes, and has besides

``for_log(log, settings)``
    class method => an untrained network with ``features`` declared over the log: vocabularies, normalization. settings:
    the recipe's ``[training.network]``.
``config``
    what its constructor takes besides the features, JSON: kept in the checkpoint.
``training_loss(scores, bought, quantities) => scalar``
    optional: float32 [candidates, heads], bool [candidates], float32 [candidates] (0 where not bought). Without it the
    recipe's ``loss`` over head 0.

``forward`` sees one example as in serving, [1, ...] of the request and [candidates, ...]; ``torch.vmap`` makes a batch
of it. ``encode_request`` sees several, [rows, ...], and ``score_candidates`` then gives [candidates, rows]. In both, a
history is as long as the longest of the batch: padding is cut.

Knows nothing of any network, and never reads a purchase after the cut.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional
from transformers import get_linear_schedule_with_warmup

from builders.compress.distill import WARM_UP
from builders.core.contract import ContractError
from builders.core.errors import told_in_one_line
from builders.core.recipe import Recipe, load_recipe
from builders.core.training_settings import RecommenderSettings
from builders.data.purchase_log import Example, PurchaseLog, purchase_log, training_examples, validation_log
from builders.features.checks import feature_faults_as
from builders.rankers.checkpoint import save_checkpoint
from builders.rankers.feature_ranker import Broadcasting, FeatureRanker
from builders.rankers.load import import_from
from builders.rankers.losses import softmax_loss
from builders.training.errors import TrainingError, network_made_of
from builders.training.finite import check_loss, check_weights

console = Console()


def train_interactions(recipe: Recipe, data: Path) -> Path:
    """Train a recipe's network on the purchases before the cut, and write its checkpoint.

    Args:
        data: folder with purchases, as :func:`builders.data.purchases.load_purchases` takes it.

    Returns:
        The checkpoint's folder.

    Raises:
        TrainingError, DatasetError.
    """
    if recipe.checkpoint is None:
        raise TrainingError(f'{recipe.ranker}: no checkpoint in the recipe; add checkpoint = "checkpoints/..."')
    log = purchase_log(data)
    for note in log.notes:
        console.print(note)
    network = trained_network(recipe, log)
    folder = recipe.path(recipe.checkpoint)
    ranker = FeatureRanker(recipe.ranker, network)
    save_checkpoint(folder, network, network.config, ranker.encoder)  # type: ignore[arg-type]
    console.print(f"{recipe.ranker}: wrote {folder}")
    return folder


def trained_network(recipe: Recipe, log: PurchaseLog) -> nn.Module:
    """A recipe's network after training on what lies before the log's cut, in eval mode; the same from run to run."""
    settings = RecommenderSettings.of(recipe.training)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    with feature_faults_as(ContractError, f"recipe of {recipe.ranker}"):
        with network_made_of(recipe):
            network: nn.Module = import_from(recipe, recipe.module).for_log(log, settings.network)
        examples = encode_examples(FeatureRanker(recipe.ranker, network), log, settings)
    console.print(f"{recipe.ranker}: {_told_of_negatives(examples, settings)}")
    _fit(network, examples, settings, recipe.ranker)
    return network.eval()


def _told_of_negatives(examples: EncodedExamples, settings: RecommenderSettings) -> str:
    items = len(examples.candidates[0])
    drawn = settings.negatives if 0 < settings.negatives < items else items
    sampled = f"sampled, {drawn} of {items} items a step" if drawn < items else f"all of {items} items"
    given = [len(shown) for shown in examples.shown if len(shown)]
    if not given:
        return f"negatives {sampled}, less what the customer had bought"
    return (
        f"negatives given for {len(given)} of {len(examples.shown)} examples, {sum(given)} that were shown and not "
        f"taken; for the others {sampled}, less what the customer had bought"
    )


# ---------------------------------------------------------------- examples as tensors
@dataclasses.dataclass(frozen=True)
class EncodedExamples:
    """Training examples and the items known before the cut, as the network takes them.

    Attributes:
        candidates: of each per-candidate feature, [items, ...].
        requests: name of each per-request feature => [examples, ...].
        unknown_user: name of each feature of a user => [1, ...] of an unknown one.
        histories: names of the features whose padding may be cut => whether it stands in front.
        positives, quantities, had, shown: of each example: rows of ``candidates`` bought for the first time, units of
            them, rows bought before, and rows shown and not taken, as far as the log tells.
        weights: float32 [examples], how often to draw each.
    """

    candidates: list[Tensor]
    requests: dict[str, Tensor]
    unknown_user: dict[str, Tensor]
    histories: dict[str, bool]
    positives: list[Tensor]
    quantities: list[Tensor]
    had: list[Tensor]
    shown: list[Tensor]
    weights: Tensor

    @property
    def lengths(self) -> Tensor:
        """int64 [examples]: events of the history, 0 where no feature reads it."""
        if not self.histories:
            return torch.zeros(len(self.positives), dtype=torch.int64)
        return (self.requests[next(iter(self.histories))] != 0).sum(dim=1)


def encode_examples(ranker: FeatureRanker, log: PurchaseLog, settings: RecommenderSettings) -> EncodedExamples:
    """Every training example of the log by the ranker's own encoder. Raises: TrainingError if there is none."""
    examples = training_examples(log)
    if not examples:
        raise TrainingError(
            f"no customer has two baskets before {log.cut}, wanted some to learn from; give a longer log of purchases"
        )
    items = log.known_items
    row_of = {item_id: row for row, item_id in enumerate(items)}
    encoder = ranker.encoder
    columns = encoder.candidate_tensors([encoder.item_record(log.items[item_id].raw_fields) for item_id in items])
    unknown = encoder.request_tensors()
    ages = torch.tensor([example.age_days for example in examples])
    return EncodedExamples(
        candidates=[torch.from_numpy(columns[feature.name]) for feature in ranker.features if feature.per_candidate],
        requests=_stacked(ranker, examples),
        unknown_user={feature.name: torch.from_numpy(unknown[feature.name]) for feature in encoder.of("user")},
        histories={feature.name: feature.padding == "front" for feature in encoder.of("history")},
        positives=[_rows(example.positives, row_of) for example in examples],
        quantities=[torch.tensor(example.quantities, dtype=torch.float32) for example in examples],
        had=[_rows(example.history, row_of) for example in examples],
        shown=[_rows([each for each in example.shown if each in row_of], row_of) for example in examples],
        weights=0.5 ** (ages / settings.half_life_days),
    )


def _stacked(ranker: FeatureRanker, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Name of each per-request feature => [examples, ...], in declared order."""
    encoder = ranker.encoder
    rows = [
        encoder.request_tensors(
            history=example.history, user=encoder.user_record(example.user), context=example.context
        )
        for example in examples
    ]
    names = [feature.name for feature in ranker.features if not feature.per_candidate]
    return {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in names}


def _rows(item_ids: Sequence[str], row_of: Mapping[str, int]) -> Tensor:
    return torch.tensor([row_of[item_id] for item_id in item_ids], dtype=torch.int64)


# ---------------------------------------------------------------- learning
def _fit(network: nn.Module, examples: EncodedExamples, settings: RecommenderSettings, title: str) -> None:
    """AdamW, linear warm-up and decay, gradients clipped to norm 1."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-settings.examples // settings.batch)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARM_UP * steps), steps)
    network.train()
    with Progress(*Progress.get_default_columns(), "loss {task.fields[loss]:.3f}", console=console) as progress:
        task = progress.add_task(f"training {title}", total=steps, loss=float("nan"))
        for epoch in range(settings.epochs):
            for number, drawn in enumerate(_batches(examples, settings), start=1):
                optimizer.zero_grad()
                loss = _batch_loss(network, examples, drawn, settings)
                step = epoch * (steps // settings.epochs) + number
                found = check_loss(loss, title, step, steps, settings.epochs)
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                progress.update(task, advance=1, loss=found)
    check_weights(network, title, torch.float16)


def _batches(examples: EncodedExamples, settings: RecommenderSettings) -> Iterator[Tensor]:
    """int64 [batch] numbers of examples, those with histories of like length together."""
    drawn = torch.multinomial(examples.weights, settings.examples, replacement=True)
    batches = drawn[examples.lengths[drawn].argsort(stable=True)].split(settings.batch)
    for number in torch.randperm(len(batches)).tolist():
        yield batches[number]


def _batch_loss(network: nn.Module, examples: EncodedExamples, drawn: Tensor, settings: RecommenderSettings) -> Tensor:
    """Mean over the drawn examples."""
    candidates = _drawn_candidates(examples, drawn, settings)
    requests = _requests(examples, drawn, settings)
    scores = _scores(network, requests, [column[candidates] for column in examples.candidates])
    losses = []
    for row, number in zip(scores, drawn.tolist(), strict=True):
        kept, bought, quantities = _labels(examples, number, candidates)
        losses.append(_loss(network, row[kept], bought, quantities, settings))
    return torch.stack(losses).mean()


def _scores(network: Any, requests: Sequence[Tensor], candidates: Sequence[Tensor]) -> Tensor:
    """[examples, ...] of each per-request and [candidates, ...] of each per-candidate feature, in declared order =>
    float32 [examples, candidates, heads]."""
    if hasattr(network, "encode_request"):
        scores: Tensor = network.score_candidates(network.encode_request(*requests), *candidates)
        return scores.T.unsqueeze(2)
    given = [*requests], [*candidates]
    tensors = [given[feature.per_candidate].pop(0) for feature in network.features]
    tensors = [
        tensor if feature.per_candidate else tensor.unsqueeze(1)
        for tensor, feature in zip(tensors, network.features, strict=True)
    ]
    over = tuple(None if feature.per_candidate else 0 for feature in network.features)
    scorer = Broadcasting(network, network.features)
    vectorized: Tensor = torch.vmap(scorer, in_dims=over, randomness="different")(*tensors)
    return vectorized


def _requests(examples: EncodedExamples, drawn: Tensor, settings: RecommenderSettings) -> list[Tensor]:
    """[rows, ...] of each per-request feature, in declared order."""
    hidden = torch.rand(len(drawn)) < settings.user_dropout
    longest = max(int(examples.lengths[drawn].max()), 1)
    tensors = []
    for name, tensor in examples.requests.items():
        rows = tensor[drawn]
        if name in examples.unknown_user:
            rows = torch.where(hidden[:, None], examples.unknown_user[name], rows)
        if name in examples.histories:
            rows = rows[:, -longest:] if examples.histories[name] else rows[:, :longest]
        tensors.append(rows)
    return tensors


def _drawn_candidates(examples: EncodedExamples, drawn: Tensor, settings: RecommenderSettings) -> Tensor:
    """int64 [candidates] rows of items: every positive and given negative of the batch and the drawn negatives, or all
    items."""
    items = len(examples.candidates[0])
    if not settings.negatives or settings.negatives >= items:
        return torch.arange(items)
    told = [rows[number] for number in drawn.tolist() for rows in (examples.positives, examples.shown)]
    return torch.cat([*told, torch.randperm(items)[: settings.negatives]]).unique()


def _labels(examples: EncodedExamples, number: int, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which candidates the example's customer had not bought; of those, which came new, and how many units.

    Where it is known what was shown, only that and what came new.
    """
    items = len(examples.candidates[0])
    units = torch.zeros(items).index_put((examples.positives[number],), examples.quantities[number])
    apart = torch.zeros(items, dtype=torch.bool)
    apart[examples.had[number]] = True
    if len(examples.shown[number]):
        apart[:] = True
        apart[examples.shown[number]] = False
    apart[examples.positives[number]] = False
    kept = (~apart[candidates]).nonzero()[:, 0]
    quantities = units[candidates[kept]]
    return kept, quantities > 0, quantities


def _loss(network: Any, scores: Tensor, bought: Tensor, quantities: Tensor, settings: RecommenderSettings) -> Tensor:
    """Scalar of one example."""
    if hasattr(network, "training_loss"):
        own: Tensor = network.training_loss(scores, bought, quantities)
        return own
    if settings.loss == "logistic":
        return functional.binary_cross_entropy_with_logits(scores[:, 0], bought.float())
    return softmax_loss(scores[:, 0], bought)


def main() -> None:
    """``python -m builders.training.recommenders RECIPE``: judge hyper-parameters on the validation cut."""
    from builders.data.find import find_data
    from builders.evaluate.full_catalogue import ItemKNN, judge, scorer_of

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, help="folder with purchases")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    log = validation_log(find_data(options.data).folder)
    ranker = FeatureRanker(recipe.ranker, trained_network(recipe, log))
    console.print(judge(log, {recipe.ranker: scorer_of(ranker, recipe)}, ItemKNN()).table())


if __name__ == "__main__":
    with told_in_one_line():
        main()
