"""Trains a cross-encoder that is split between two layers: taught by the whole one, from whose weights it starts.

1. Distilling: pseudo-queries with hard candidates, targets are the whole cross-encoder's scores (ListNet's top-one
   cross-entropy, Cao et al., ICML 2007).
2. Tuning: judged training queries, as the whole one was tuned.

Only its adapter and head learn. Test queries are never read. One seed, one machine and one number of threads give the
same weights.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from peft import PeftModel
from rich.progress import track

from builders.core.files import write_atomically
from builders.core.recipe import Recipe
from builders.core.training_settings import SplitCrossEncoderSettings
from builders.data.beir import JudgedQueries
from builders.features.text import KIT_FORM, load_tokenizer
from builders.rankers.backbone import packaged_backbone
from builders.rankers.cross_encoder import CrossEncoder, load_head
from builders.rankers.losses import listnet
from builders.rankers.split_cross_encoder import SPLIT_FILE, Split, SplitCrossEncoder
from builders.rankers.two_tower import TwoTower
from builders.training.cross_encoder import (
    CandidateList,
    batches,
    console,
    fit,
    item_text,
    save,
    scores_of_lists,
    training_queries,
    tune,
)
from builders.training.errors import TrainingError
from builders.training.pseudo_queries import pseudo_queries


def train_from_recipe(recipe: Recipe, data: Path) -> Path:
    """The trainer of ``recipes/split_cross_encoder.toml``.

    Args:
        data: folder with judged queries in BEIR's layout.

    Returns:
        The checkpoint's folder: adapter, head, and where it is split; a model card that lies there stays.

    Raises:
        DatasetError, TrainingError, CheckpointError, TokenizerError.
    """
    if recipe.checkpoint is None:
        raise TrainingError(f'{recipe.ranker}: no checkpoint in the recipe; add checkpoint = "checkpoints/..."')
    settings = SplitCrossEncoderSettings.of(recipe.training)
    if KIT_FORM.with_recipe(recipe.text) != KIT_FORM:
        raise TrainingError(
            f"{recipe.ranker}: this trainer reads items as the kit does, [text] says other; leave all but vectors out"
        )
    backbone = recipe.path(recipe.backbone) if recipe.backbone else None
    teacher, out = recipe.path(settings.teacher), recipe.path(recipe.checkpoint)
    train_split_cross_encoder(data, out, settings, teacher, backbone)
    return out


def train_split_cross_encoder(
    data: Path, out: Path, settings: SplitCrossEncoderSettings, teacher: Path, backbone: Path | None = None
) -> SplitCrossEncoder:
    """As :func:`train_from_recipe`; the network as it was written, its adapter not merged."""
    folder = backbone or packaged_backbone()
    judged = training_queries(data)
    model = _student(teacher, folder, settings)
    whole = CrossEncoder.from_checkpoint(teacher, folder)
    lists = _taught_lists(judged, whole, folder, settings)
    console.print(f"{len(lists)} lists scored by {teacher}")
    fit(
        model,
        list(batches(random.Random(settings.seed).sample(lists, len(lists)), settings.distill_batch)),
        listnet,
        folder,
        settings,
        settings.distill_learning_rate,
        "distilling",
    )
    tune(model, judged, folder, settings)
    save(model, out, backbone)
    write_atomically(out / SPLIT_FILE, model.split.model_dump_json() + "\n")
    return model


def _student(teacher: Path, folder: Path, settings: SplitCrossEncoderSettings) -> SplitCrossEncoder:
    """The teacher's weights, split; its adapter and head go on learning."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    model = SplitCrossEncoder(CrossEncoder.untrained(folder), Split(after=settings.split_after))
    model.backbone = PeftModel.from_pretrained(model.backbone, str(teacher), is_trainable=True)
    load_head(model.head, teacher)
    return model


def _taught_lists(
    judged: JudgedQueries, teacher: CrossEncoder, folder: Path, settings: SplitCrossEncoderSettings
) -> list[CandidateList]:
    """Pseudo-queries over the whole corpus, with the whole cross-encoder's scores as targets."""
    if not settings.pseudo_queries:
        return []
    products, tokenizer = list(judged.products.values()), load_tokenizer(folder)
    console.print(f"encoding {len(products)} products with the two-tower, for hard candidates")
    made = pseudo_queries(products, TwoTower.from_checkpoint(folder), tokenizer, settings.pseudo_queries, settings.seed)
    untaught = [
        CandidateList(one.text, tuple(item_text(products[row]) for row in one.candidates), torch.zeros(0))
        for one in made
    ]
    taught = []
    with torch.inference_mode():
        for some in track(list(batches(untaught, settings.distill_batch)), "teaching", console=console, transient=True):
            taught += [
                CandidateList(one.query, one.item_texts, scores.clone())
                for one, scores in zip(some, scores_of_lists(teacher, tokenizer, some), strict=True)
            ]
    return taught
