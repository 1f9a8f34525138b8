"""Trains the cross-encoder's adapter and head: distilled from the two-tower, then tuned on judged training queries.

1. Distilling: pseudo-queries with hard candidates, targets are the two-tower's cosines (ListNet's top-one
   cross-entropy, Cao et al., ICML 2007).
2. Tuning: judged training queries, every better-worse pair weighed by its difference in gain (RankNet's logistic
   loss, Burges et al., ICML 2005).

Only LoRA matrices (arXiv:2106.09685) and the head learn. Test queries are never read. One seed, one machine and one
number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.progress import track
from sklearn.metrics import ndcg_score
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from builders.compress.distill import WARM_UP
from builders.core.errors import told_in_one_line
from builders.core.processor import has_bf16
from builders.core.recipe import Recipe, load_recipe
from builders.core.training_settings import CrossEncoderSettings, PairSettings, TrainerSettings
from builders.data.beir import GAINS, JudgedQueries, Product, load_judged
from builders.features.text import KIT_FORM, Tokenizer, encode_pairs, item_texts, load_tokenizer
from builders.rankers.backbone import packaged_backbone
from builders.rankers.cross_encoder import ADAPTER_CONFIG, CrossEncoder, save_head
from builders.rankers.losses import listnet, pairwise
from builders.rankers.two_tower import TwoTower
from builders.training.errors import TrainingError
from builders.training.finite import check_loss, check_weights
from builders.training.pseudo_queries import pseudo_queries

console = Console()

PACKAGED_NAME = "sentence-transformers/all-MiniLM-L6-v2"
"""What the packaged backbone is called in the adapter's configuration, in place of a folder of this machine."""
TEACHER_SCALE = 20.0
"""Cosine => logit, the same as the student's initial scale."""
SOURCE_BONUS = 1.0
"""Added to the teacher's logit of the product that a pseudo-query was made from."""
ROWS_PER_PASS = 32


@dataclasses.dataclass(frozen=True)
class CandidateList:
    """A query, its candidates' texts, and what each should score: teacher logits or gains, float32 [candidates]."""

    query: str
    item_texts: tuple[str, ...]
    targets: Tensor


Loss = Callable[[Tensor, Tensor], Tensor]
"""float32 [candidates] scores and targets of one list => scalar."""


def train_from_recipe(recipe: Recipe, data: Path) -> Path:
    """The trainer of ``recipes/cross_encoder.toml``. Raises: as :func:`train_cross_encoder`."""
    if recipe.checkpoint is None:
        raise TrainingError(f'{recipe.ranker}: no checkpoint in the recipe; add checkpoint = "checkpoints/..."')
    if KIT_FORM.with_recipe(recipe.text) != KIT_FORM:
        raise TrainingError(
            f"{recipe.ranker}: this trainer reads items as the kit does, [text] says other; leave it out"
        )
    backbone = recipe.path(recipe.backbone) if recipe.backbone else None
    return train_cross_encoder(data, recipe.path(recipe.checkpoint), recipe.training, backbone)


def train_cross_encoder(
    data: Path, out: Path, recipe: Mapping[str, Any] | TrainerSettings, backbone: Path | None = None
) -> Path:
    """Trains on ``data``'s training queries and writes adapter and head into ``out``.

    Args:
        data: folder with judged queries in BEIR's layout.
        out: written file by file; a model card that lies there stays.
        recipe: a recipe's ``[training]`` table.
        backbone: Hugging Face checkpoint folder; None = the packaged all-MiniLM-L6-v2.

    Returns:
        ``out``.

    Raises:
        DatasetError, TrainingError, CheckpointError, TokenizerError.
    """
    settings = CrossEncoderSettings.of(recipe)
    folder = backbone or packaged_backbone()
    judged = training_queries(data)
    console.print(f"training on {len(judged.queries)} judged queries: {settings}")
    model = _seeded_model(folder, settings)
    _distill(model, _teacher_lists(judged, folder, settings), folder, settings)
    tune(model, judged, folder, settings)
    return save(model, out, backbone)


def cross_validate(
    data: Path, recipe: Mapping[str, Any] | TrainerSettings, backbone: Path | None = None
) -> dict[str, float]:
    """NDCG@10 of each training query under a model tuned without its fold; how hyper-parameters were chosen.

    Distilling reads no judgements, so it is done once and every fold starts from it.
    """
    settings = CrossEncoderSettings.of(recipe)
    folder = backbone or packaged_backbone()
    judged = training_queries(data)
    model = _seeded_model(folder, settings)
    _distill(model, _teacher_lists(judged, folder, settings), folder, settings)
    distilled = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    found: dict[str, float] = {}
    for held_out in _folds(judged, settings.folds):
        model.load_state_dict(distilled)
        tune(model, _without(judged, held_out), folder, settings)
        found |= {query_id: _ndcg(model, judged, query_id, folder) for query_id in held_out}
    console.print(f"cross-validated NDCG@10 {np.mean(list(found.values())):.4f} over {len(found)} training queries")
    return found


# ---------------------------------------------------------------- model
def _seeded_model(folder: Path, settings: CrossEncoderSettings) -> CrossEncoder:
    """The zero-shot cross-encoder with a LoRA adapter that changes nothing yet; the rest of the backbone is frozen."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    model = CrossEncoder.untrained(folder)
    rank = settings.lora_rank
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", base_model_name_or_path=None)
    model.backbone = get_peft_model(model.backbone, lora)
    return model


def save(model: CrossEncoder, out: Path, backbone: Path | None) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    adapted = model.backbone
    assert isinstance(adapted, PeftModel)
    adapted.peft_config["default"].base_model_name_or_path = backbone.name if backbone else PACKAGED_NAME
    card = (out / "README.md").read_bytes() if (out / "README.md").is_file() else None
    adapted.save_pretrained(str(out), save_embedding_layers=False)  # they are frozen; "auto" asks the network
    if card is None:
        (out / "README.md").unlink(missing_ok=True)  # peft writes a form to fill in
    else:
        (out / "README.md").write_bytes(card)
    _sort_sets(out / ADAPTER_CONFIG)
    save_head(model.head, out)
    console.print(f"wrote {out}")
    return out


def _sort_sets(config: Path) -> None:
    """peft writes its target modules from a set, in another order each run."""
    fields = json.loads(config.read_text())
    fields["target_modules"] = sorted(fields["target_modules"])
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


# ---------------------------------------------------------------- what is learned from
def training_queries(data: Path) -> JudgedQueries:
    judged = load_judged(data).subset("train")
    if not judged.queries:
        raise TrainingError(f"{data}: no training query (all fall into the test set); wanted more judged queries")
    return judged


def _teacher_lists(judged: JudgedQueries, folder: Path, settings: CrossEncoderSettings) -> list[CandidateList]:
    """Pseudo-queries over the whole corpus, with the two-tower's opinion as targets."""
    if not settings.pseudo_queries:
        return []
    products = list(judged.products.values())
    console.print(f"encoding {len(products)} products with the two-tower")
    teacher, tokenizer = TwoTower.from_checkpoint(folder), load_tokenizer(folder)
    lists = []
    for made in pseudo_queries(products, teacher, tokenizer, settings.pseudo_queries, settings.seed):
        logits = TEACHER_SCALE * torch.tensor(made.cosines)
        logits[0] += SOURCE_BONUS
        lists.append(CandidateList(made.text, tuple(item_text(products[row]) for row in made.candidates), logits))
    return lists


def _drawn_lists(judged: JudgedQueries, candidates: int, rng: random.Random) -> list[CandidateList]:
    """One list a judged query, in a new order; queries whose drawn candidates are all alike teach nothing."""
    lists = []
    for query_id in rng.sample(list(judged.queries), len(judged.queries)):
        grades = judged.judgements[query_id]
        drawn = _drawn(grades, candidates, rng)
        gains = torch.tensor([GAINS[grades[item_id]] for item_id in drawn])
        if gains.max() > gains.min():
            texts = tuple(item_text(judged.products[item_id]) for item_id in drawn)
            lists.append(CandidateList(judged.queries[query_id], texts, gains))
    return lists


def _drawn(grades: Mapping[str, int], count: int, rng: random.Random) -> list[str]:
    """At most ``count`` candidates, half of them Exact where there are enough of both kinds."""
    exact = [item_id for item_id, grade in grades.items() if GAINS[grade] == 1]
    others = [item_id for item_id, grade in grades.items() if GAINS[grade] < 1]
    from_others = min(len(others), count - min(len(exact), count // 2))
    from_exact = min(len(exact), count - from_others)
    return rng.sample(exact, from_exact) + rng.sample(others, from_others)


def item_text(product: Product) -> str:
    return item_texts([product])[0]


# ---------------------------------------------------------------- the two stages
def _distill(model: CrossEncoder, lists: list[CandidateList], folder: Path, settings: CrossEncoderSettings) -> None:
    order = random.Random(settings.seed).sample(lists, len(lists))
    fit(
        model,
        list(batches(order, settings.distill_batch)),
        listnet,
        folder,
        settings,
        settings.distill_learning_rate,
        "distilling",
    )


def tune(model: CrossEncoder, judged: JudgedQueries, folder: Path, settings: PairSettings) -> None:
    """Seeded anew, so that every fold and the whole start alike from the same distilled weights."""
    torch.manual_seed(settings.seed)  # dropout
    rng = random.Random(settings.seed)
    epochs = [_drawn_lists(judged, settings.candidates, rng) for _ in range(settings.tune_epochs)]
    steps = [batch for lists in epochs for batch in batches(lists, settings.tune_batch)]
    fit(model, steps, pairwise, folder, settings, settings.tune_learning_rate, "tuning")


def fit(
    model: CrossEncoder,
    steps: Sequence[Sequence[CandidateList]],
    loss: Loss,
    folder: Path,
    settings: PairSettings,
    learning_rate: float,
    title: str,
) -> None:
    """One optimizer step for each batch of lists: AdamW, linear warm-up and decay, gradients clipped to norm 1."""
    if not steps:
        return
    tokenizer = load_tokenizer(folder)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _optimizer(model, learning_rate, learning_rate * settings.head_rate_factor)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARM_UP * len(steps)), len(steps))
    model.train()
    for step, lists in enumerate(track(steps, title, console=console, transient=True), start=1):
        scores = scores_of_lists(model, tokenizer, lists)
        mean_loss = torch.stack([loss(found, one.targets) for found, one in zip(scores, lists, strict=True)]).mean()
        check_loss(mean_loss, title, step, len(steps))
        optimizer.zero_grad()
        mean_loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
    check_weights(model, title)
    model.eval()


def _optimizer(model: CrossEncoder, lora_rate: float, head_rate: float) -> torch.optim.Optimizer:
    lora = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    scalars = [parameter for parameter in model.head.parameters() if parameter.ndim == 0]
    matrices = [parameter for parameter in model.head.parameters() if parameter.ndim > 0]
    return torch.optim.AdamW(
        [
            {"params": lora, "lr": lora_rate},
            {"params": matrices, "lr": head_rate},
            {
                "params": scalars,
                "lr": 10 * head_rate,
                "weight_decay": 0.0,
            },  # the scale starts at 20: Adam's steps are lr
        ],
        weight_decay=0.01,
    )


# ---------------------------------------------------------------- scoring while learning
def scores_of_lists(model: CrossEncoder, tokenizer: Tokenizer, lists: Sequence[CandidateList]) -> list[Tensor]:
    """Scores of each list, float32 [candidates] each, in order, rows of like length together; in bfloat16 where the
    processor computes it, which takes many times as long elsewhere."""
    rows = [row for one in lists for row in _rows(tokenizer, one)]
    order = sorted(range(len(rows)), key=lambda position: rows[position]["input_ids"].size)
    passes = [_pass(model, [rows[position] for position in chosen]) for chosen in batches(order, ROWS_PER_PASS)]
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return list(torch.cat(passes)[back].split([len(one.item_texts) for one in lists]))


def _rows(tokenizer: Tokenizer, one: CandidateList) -> list[dict[str, np.ndarray]]:
    """A row a candidate, each padded by itself: tensors [length] with length a multiple of 8."""
    pairs = encode_pairs(tokenizer, one.query, one.item_texts)
    lengths = -(-pairs["attention_mask"].sum(axis=1) // 8) * 8
    return [{name: pairs[name][row, :length] for name in pairs} for row, length in enumerate(lengths)]


def _pass(model: CrossEncoder, rows: Sequence[dict[str, np.ndarray]]) -> Tensor:
    longest = max(row["input_ids"].size for row in rows)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if model.takes_token_types else [])]
    inputs = [np.stack([np.pad(row[name], (0, longest - row[name].size)) for row in rows]) for name in names]
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
        return model(*(torch.from_numpy(array) for array in inputs))[:, 0].float()


# ---------------------------------------------------------------- cross-validation
def _folds(judged: JudgedQueries, folds: int) -> list[list[str]]:
    """Query ids of each fold, whole queries, in the order of their ids."""
    ordered = sorted(judged.queries)
    return [ordered[fold::folds] for fold in range(folds)]


def _without(judged: JudgedQueries, held_out: Sequence[str]) -> JudgedQueries:
    kept = {query_id: text for query_id, text in judged.queries.items() if query_id not in held_out}
    return JudgedQueries(kept, judged.products, {query_id: judged.judgements[query_id] for query_id in kept})


def _ndcg(model: CrossEncoder, judged: JudgedQueries, query_id: str, folder: Path) -> float:
    grades = judged.judgements[query_id]
    texts = tuple(item_text(judged.products[item_id]) for item_id in grades)
    one = CandidateList(judged.queries[query_id], texts, torch.zeros(len(texts)))
    with torch.inference_mode():
        [scores] = scores_of_lists(model, load_tokenizer(folder), [one])
    return float(ndcg_score([[GAINS[grade] for grade in grades.values()]], [scores.numpy()], k=10))


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def main() -> None:
    """``python -m builders.training.cross_encoder``: the recipe's training, or its cross-validation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with judged queries in BEIR's layout")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/cross_encoder"))
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cross_encoder.toml"))
    parser.add_argument("--seed", type=int, help="in place of the recipe's")
    parser.add_argument("--cross-validate", action="store_true", help="judge the hyper-parameters, write nothing")
    options = parser.parse_args()
    settings = CrossEncoderSettings.of(load_recipe(options.recipe).training)
    if options.seed is not None:
        settings = CrossEncoderSettings.of({**settings.model_dump(), "seed": options.seed})
    if options.cross_validate:
        cross_validate(options.data, settings)
    else:
        train_cross_encoder(options.data, options.out, settings)


if __name__ == "__main__":
    with told_in_one_line():
        main()
