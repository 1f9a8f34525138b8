"""Fine-tunes a sentence-transformers CrossEncoder with that library's own trainer, as a team would.

The result is a folder as ``CrossEncoder.save_pretrained`` writes it: nothing of it knows this kit, and it is served by
``format = "cross_encoder"`` like any other. Test queries are never read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from builders.core.files import replaced_folder
from builders.core.quiet import quiet
from builders.core.recipe import Recipe
from builders.core.training_settings import StCrossEncoderSettings
from builders.data.beir import GAINS, JudgedQueries, load_judged
from builders.features.text import KIT_FORM, TextForm
from builders.rankers.backbone import packaged_backbone
from builders.training.errors import TrainingError
from builders.training.finite import check_loss, check_weights

console = Console()

TITLE = "fine-tuning"


def train_from_recipe(recipe: Recipe, data: Path) -> Path:
    """Writes the recipe's checkpoint, in place of one that is there.

    Raises:
        TrainingError: no checkpoint in the recipe, or no training queries in ``data``.
        DatasetError: ``data`` cannot be read.
    """
    if recipe.checkpoint is None:
        raise TrainingError(f'{recipe.ranker}: no checkpoint in the recipe; add checkpoint = "build/checkpoints/..."')
    settings = StCrossEncoderSettings.of(recipe.training)
    judged = load_judged(data).subset("train")
    if not judged.queries:
        raise TrainingError(f"{data}: no training query, wanted judged queries whose SHA-1 is not of the test set")
    backbone = recipe.path(recipe.backbone) if recipe.backbone else packaged_backbone()
    target = recipe.path(recipe.checkpoint)
    console.print(f"fine-tuning with sentence-transformers on {len(judged.queries)} judged queries: {settings}")
    with replaced_folder(target) as fresh:
        fine_tune(judged, KIT_FORM.with_recipe(recipe.text), backbone, settings).save_pretrained(str(fresh))
    return target


def fine_tune(judged: JudgedQueries, form: TextForm, backbone: Path, settings: StCrossEncoderSettings) -> Any:
    """A trained ``CrossEncoder`` of one label: binary cross-entropy of each judged pair with its grade's gain.

    Args:
        judged: training queries.
        form: how an item's text is made; its tokens are the library's.
        backbone: Hugging Face checkpoint folder; a head is put on it.

    Raises:
        TrainingError: the loss or the weights are NaN or infinite.
    """
    import datasets
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)  # of the head
    with tempfile.TemporaryDirectory() as logs, quiet():
        model = CrossEncoder(
            str(backbone), num_labels=1, max_length=settings.max_length, device="cpu", local_files_only=True
        )
        arguments = CrossEncoderTrainingArguments(
            output_dir=logs, num_train_epochs=settings.epochs, per_device_train_batch_size=settings.batch,
            learning_rate=settings.learning_rate, warmup_ratio=settings.warm_up, seed=settings.seed,
            data_seed=settings.seed, save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True,
            use_cpu=True,
        )  # fmt: skip
        pairs = datasets.Dataset.from_dict(_pairs(judged, form))
        loss = BinaryCrossEntropyLoss(model)
        _checked(CrossEncoderTrainer)(model=model, args=arguments, train_dataset=pairs, loss=loss).train()
    check_weights(model, TITLE)
    return model


def _checked(trainer: Any) -> Any:
    """The library's trainer, stopped at a loss that is no number: by itself it would go on and write the rest."""

    class Checked(trainer):
        def training_step(self, *given: Any, **named: Any) -> Any:
            loss = super().training_step(*given, **named)
            state = self.state
            check_loss(loss, TITLE, state.global_step + 1, state.max_steps, round(state.num_train_epochs))
            return loss

    return Checked


def _pairs(judged: JudgedQueries, form: TextForm) -> dict[str, list[Any]]:
    """Columns as the library's loss reads them: two texts and a label."""
    rows = [
        (form.query(judged.queries[query_id]), text, GAINS[grade])
        for query_id, grades in judged.judgements.items()
        for text, grade in zip(form.items(judged.products[item] for item in grades), grades.values(), strict=True)
    ]
    queries, texts, labels = zip(*rows, strict=True)
    return {"query": list(queries), "item": list(texts), "label": list(labels)}
