"""Trains the small text networks: rankers distilled from the two-tower, and the classifier of a query's category.

Rankers (:class:`builders.rankers.layers.text_matcher.TextMatcher`):

1. Distilling: pseudo-queries over the whole corpus, targets are the two-tower's cosines (ListNet's top-one
   cross-entropy, Cao et al., ICML 2007) with each query's own hard candidates, and with all the step's products.
2. Tuning: judged training queries, every better-worse pair weighed by its difference in gain (RankNet's logistic loss,
   Burges et al., ICML 2005).

The classifier learns titles with their own category, and judged training queries with the commonest one among their
Exact products. Test queries are never read. One seed, one machine and one number of threads give the same weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import get_linear_schedule_with_warmup

from builders.compress.distill import WARM_UP
from builders.core.recipe import Recipe
from builders.core.training_settings import IntentSettings, MatcherSettings, TextSettings
from builders.data.beir import GAINS, JudgedQueries, Product, load_judged
from builders.data.categories import category_lists, labels_of, titled_categories
from builders.features.encoder import FeatureEncoder
from builders.features.text import KIT_FORM, TextForm, item_texts, load_tokenizer
from builders.rankers.backbone import packaged_backbone
from builders.rankers.checkpoint import save_checkpoint
from builders.rankers.intent import Intent, intent_features
from builders.rankers.layers.text_matcher import TextMatcher
from builders.rankers.layers.word_embeddings import FROZEN
from builders.rankers.load import import_from
from builders.rankers.losses import listnet, pairwise
from builders.rankers.two_tower import BATCH, TwoTower
from builders.training.errors import TrainingError, network_made_of
from builders.training.finite import check_loss, check_weights
from builders.training.pseudo_queries import PseudoQuery, pseudo_queries

console = Console()

TEACHER_SCALE = 20.0
"""Cosine => logit, the same as the student's initial scale."""
SOURCE_BONUS = 1.0
"""Added to the teacher's logit of the product that a pseudo-query was made from."""
LEAST_IMPORTANCE = 0.1


# ---------------------------------------------------------------- rankers
def train_text_ranker(recipe: Recipe, data: Path) -> Path:
    """Train the recipe's :class:`TextMatcher` on ``data``'s corpus and training queries; write its checkpoint.

    Raises:
        DatasetError, TrainingError, CheckpointError, RecipeError.
    """
    settings = MatcherSettings.of(recipe.training)
    judged = _training_queries(data)
    network = seeded_matcher(recipe, judged, settings)
    if settings.distill_epochs:
        distill(network, Teacher(list(judged.products.values()), _backbone(recipe)), settings)
    tune(network, judged, settings)
    return _save(network, recipe, settings)


def seeded_matcher(recipe: Recipe, judged: JudgedQueries, settings: MatcherSettings) -> TextMatcher:
    """Untrained, but each token weighed by how few products it is in (inverse document frequency).

    Raises: TrainingError where the recipe's module is no :class:`TextMatcher`.
    """
    made = import_from(recipe, recipe.module)
    if not (isinstance(made, type) and issubclass(made, TextMatcher)):
        raise TrainingError(f"recipe of {recipe.ranker}: '{recipe.module}' is no TextMatcher; name another trainer")
    _seed(settings)
    with network_made_of(recipe):
        network = made.untrained(dict(settings.network), _backbone(recipe))
    _weigh_words(network.words.importance, network.encoder(), judged.products.values())
    return network


class Teacher:
    """The two-tower's opinion of pseudo-queries and products; each text is encoded once."""

    def __init__(self, products: Sequence[Product], backbone: Path | None = None) -> None:
        """backbone: Hugging Face checkpoint folder, None = the packaged one."""
        self.products = products
        self._tower = _Remembering.from_checkpoint(backbone)
        self._tokenizer = load_tokenizer(backbone or packaged_backbone())

    def queries(self, seed: int) -> list[PseudoQuery]:
        """One a product."""
        console.print(f"pseudo-queries of {len(self.products)} products, seed {seed}; the two-tower encodes them")
        return pseudo_queries(self.products, self._tower, self._tokenizer, len(self.products), seed)

    def logits(self, made: Sequence[PseudoQuery], rows: Sequence[int]) -> Tensor:
        """float32 [queries, products]: scaled cosine of each query with each product, named by row number."""
        queries = self._tower.encode_texts(self._tokenizer, [one.text for one in made])
        items = self._tower.encode_texts(self._tokenizer, item_texts(self.products[row] for row in rows))
        return TEACHER_SCALE * torch.from_numpy(queries @ items.T)


class _Remembering(TwoTower):
    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__(backbone, width)
        self._known: dict[str, np.ndarray] = {}

    def encode_texts(
        self, tokenizer: Tokenizer, texts: Sequence[str], batch: int = BATCH, form: TextForm = KIT_FORM
    ) -> np.ndarray:
        unseen = sorted({text for text in texts if text not in self._known})
        self._known.update(zip(unseen, super().encode_texts(tokenizer, unseen, batch, form), strict=True))
        return np.stack([self._known[text] for text in texts])


def distill(network: TextMatcher, teacher: Teacher, settings: MatcherSettings) -> None:
    """Stage 1; reads no judgement."""
    rng = random.Random(settings.seed)
    sets = [teacher.queries(settings.seed + number) for number in range(settings.pseudo_query_sets)]
    in_turn = itertools.islice(itertools.cycle(sets), settings.distill_epochs)
    steps = [batch for made in in_turn for batch in _batches(rng.sample(made, len(made)), settings.distill_batch)]
    encoder = network.encoder()
    records = [encoder.item_record(product.raw_fields) for product in teacher.products]

    def loss(made: Sequence[PseudoQuery]) -> Tensor:
        rows = [row for one in made for row in one.candidates]
        scores = _scores(network, encoder, [one.text for one in made], [records[row] for row in rows])
        wanted = teacher.logits(made, rows)  # [queries, products of all of them]
        return _own_candidates_loss(scores, wanted, made) + _all_products_loss(scores, wanted)

    _fit(network, steps, loss, settings.distill_learning_rate, settings.weight_decay, "distilling")


def _own_candidates_loss(scores: Tensor, wanted: Tensor, made: Sequence[PseudoQuery]) -> Tensor:
    """ListNet over each query's own candidates, the first of which is its source."""
    losses, start = [], 0
    for row, one in enumerate(made):
        own = slice(start, start + len(one.candidates))
        targets = wanted[row, own].clone()
        targets[0] += SOURCE_BONUS
        losses.append(listnet(scores[row, own], targets))
        start = own.stop
    return torch.stack(losses).mean()


def _all_products_loss(scores: Tensor, wanted: Tensor) -> Tensor:
    found, targets = torch.log_softmax(scores, dim=1), torch.log_softmax(wanted, dim=1)
    return functional.kl_div(found, targets, log_target=True, reduction="batchmean")


def tune(network: TextMatcher, judged: JudgedQueries, settings: MatcherSettings) -> None:
    """Stage 2; seeded anew, so that it starts alike from the same distilled weights."""
    torch.manual_seed(settings.seed)  # dropout
    rng = random.Random(settings.seed)
    encoder = network.encoder()
    records = {item_id: encoder.item_record(product.raw_fields) for item_id, product in judged.products.items()}
    epochs = [_drawn_lists(judged, settings.candidates, rng) for _ in range(settings.tune_epochs)]
    steps = [batch for lists in epochs for batch in _batches(lists, settings.tune_batch)]

    def loss(lists: Sequence[_DrawnList]) -> Tensor:
        return torch.stack([pairwise(scores_of(one), one.gains) for one in lists]).mean()

    def scores_of(one: _DrawnList) -> Tensor:
        return _scores(network, encoder, [one.query], [records[item_id] for item_id in one.item_ids])[0]

    _fit(network, steps, loss, settings.tune_learning_rate, settings.weight_decay, "tuning")


@dataclasses.dataclass(frozen=True)
class _DrawnList:
    query: str
    item_ids: tuple[str, ...]
    gains: Tensor


def _drawn_lists(judged: JudgedQueries, candidates: int, rng: random.Random) -> list[_DrawnList]:
    """One list a judged query, in a new order; queries whose drawn candidates are all alike teach nothing."""
    lists = []
    for query_id in rng.sample(list(judged.queries), len(judged.queries)):
        grades = judged.judgements[query_id]
        item_ids = rng.sample(list(grades), min(candidates, len(grades)))
        gains = torch.tensor([GAINS[grades[item_id]] for item_id in item_ids])
        if gains.max() > gains.min():
            lists.append(_DrawnList(judged.queries[query_id], tuple(item_ids), gains))
    return lists


def _scores(network: TextMatcher, encoder: FeatureEncoder, queries: Sequence[str], records: Sequence[bytes]) -> Tensor:
    """float32 [queries, items]."""
    vectors = network.encode_request(query_tokens(encoder, queries))
    items = [torch.from_numpy(array) for array in encoder.candidate_tensors(records).values()]
    return network.score_candidates(vectors, *items).T


def query_tokens(encoder: FeatureEncoder, queries: Sequence[str]) -> Tensor:
    """int32 [queries, length], cut to the longest."""
    [feature] = encoder.of("query")
    ids = torch.from_numpy(np.stack([encoder.encoded(feature, {"query": text}) for text in queries]))
    return ids[:, : max(int((ids != encoder.padding_id).sum(dim=1).max()), 1)]


# ---------------------------------------------------------------- intent
def train_intent(recipe: Recipe, data: Path) -> Path:
    """Train the classifier of a query's top-level category; write its checkpoint.

    Raises:
        DatasetError, TrainingError, CheckpointError.
    """
    settings = IntentSettings.of(recipe.training)
    judged = _training_queries(data)
    with network_made_of(recipe):
        network = fit_intent(judged, settings, _backbone(recipe))
    return _save(network, recipe, settings)


def fit_intent(judged: JudgedQueries, settings: IntentSettings, backbone: Path | None = None) -> Intent:
    """In eval mode, embeddings not multiplied out. judged: with the whole corpus, but only queries to learn from."""
    lists = category_lists(judged)
    categories = list(lists.products)
    _seed(settings)
    network = Intent.untrained(dict(settings.network), intent_features(categories), backbone)
    encoder = network.encoder()
    _weigh_words(network.words.importance, encoder, judged.products.values())
    labelled = [(lists.queries[query_id], label) for query_id, label in labels_of(lists).items()]
    row_of = {category: row for row, category in enumerate(categories)}

    def loss(examples: Sequence[tuple[str, str]]) -> Tensor:
        logits = network.encode_request(query_tokens(encoder, [text for text, _ in examples]))
        return functional.cross_entropy(logits, torch.tensor([row_of[label] for _, label in examples]))

    steps = _intent_steps(titled_categories(judged), labelled, settings)
    _fit(network, steps, loss, settings.learning_rate, settings.weight_decay, "intent")
    return network


def _intent_steps(
    titles: Sequence[tuple[str, str]], queries: Sequence[tuple[str, str]], settings: IntentSettings
) -> list[Sequence[tuple[str, str]]]:
    rng = random.Random(settings.seed)
    steps: list[Sequence[tuple[str, str]]] = []
    for _ in range(settings.epochs):
        cut = [(_first_words(title, rng.randint(2, settings.title_words)), label) for title, label in titles]
        examples = [*cut, *(list(queries) * settings.query_repeats)]
        steps += _batches(rng.sample(examples, len(examples)), settings.batch)
    return steps


def _first_words(title: str, count: int) -> str:
    return " ".join(title.split()[:count])


# ---------------------------------------------------------------- both
def _training_queries(data: Path) -> JudgedQueries:
    judged = load_judged(data).subset("train")
    if not judged.queries:
        raise TrainingError(f"{data}: no training query (all fall into the test set); wanted more judged queries")
    return judged


def _backbone(recipe: Recipe) -> Path | None:
    return recipe.path(recipe.backbone) if recipe.backbone else None


def _seed(settings: TextSettings) -> None:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)


def _weigh_words(importance: nn.Embedding, encoder: FeatureEncoder, products: Iterable[Product]) -> None:
    """Inverse document frequency of each token over titles and brands, mean 1; where learning starts from."""
    texts = [f"{product.title} {product.brand}" for product in products]
    found = [sorted(set(one.ids)) for one in encoder.tokenizer.encode_batch(texts, add_special_tokens=False)]
    counts = torch.bincount(
        torch.tensor([token for ids in found for token in ids], dtype=torch.int64), minlength=len(importance.weight)
    )
    weights = torch.log(len(texts) / (1 + counts)).clamp(min=LEAST_IMPORTANCE)
    with torch.no_grad():
        importance.weight.copy_((weights / weights.mean()).unsqueeze(1))


def _fit(
    network: nn.Module,
    steps: Sequence[Any],
    loss: Callable[[Any], Tensor],
    learning_rate: float,
    weight_decay: float,
    title: str,
) -> None:
    """One optimizer step each: AdamW, linear warm-up and decay, gradients clipped to norm 1."""
    if not steps:
        return
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARM_UP * len(steps)), len(steps))
    network.train()
    for step, batch in enumerate(track(steps, title, console=console, transient=True), start=1):
        optimizer.zero_grad()
        found = loss(batch)
        check_loss(found, title, step, len(steps))
        found.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    check_weights(network, title, torch.float16)
    network.eval()


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _save(network: TextMatcher | Intent, recipe: Recipe, settings: TextSettings) -> Path:
    if recipe.checkpoint is None:
        raise TrainingError(f"recipe of {recipe.ranker}: no checkpoint, wanted the folder to write into")
    out = recipe.path(recipe.checkpoint)
    save_checkpoint(out, network, settings.network, network.encoder(), skip=FROZEN)
    console.print(f"wrote {out}")
    return out
