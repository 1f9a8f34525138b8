"""A cross-encoder on a tiny XLM-R-like backbone (random weights, no token types, its own tokenizer), with Chinese data.

Built once a test session: recipe => ONNX, FP32 and INT8 => item store => repository.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import XLMRobertaConfig, XLMRobertaModel

from builders.build import build_variants
from builders.core.recipe import Gate, Recipe, Text, Variant, load_recipes
from builders.core.steps import Int8
from builders.core.workspace import Workspace
from builders.data.find import JudgedQueries, Product
from builders.evaluate.judge import BuiltRanker, BuiltVariant
from builders.publish.catalogue import fill_item_store
from builders.publish.endpoints import publish_rankers
from builders.rankers.base import Ranker
from builders.rankers.load import load_ranker

COLORS = ("红色", "蓝色", "白色", "黑色", "绿色")
THINGS = ("咖啡杯", "茶壶", "帐篷", "跑步鞋", "台灯", "毛巾")
KINDS = ("", "家用", "户外 防水 加厚 大号 便携 双人 四季 通用")
MAX_LENGTH = 32
"""Of a pair: four length buckets, each of which a plan has a profile for."""
QUERIES = ("红色咖啡杯", "防水帐篷", "家用台灯 白色", "跑步鞋", "绿色毛巾", "茶壶", "户外 黑色", "mug 蓝色")


@dataclasses.dataclass(frozen=True)
class Built:
    """Everything that a build makes of the tiny ranker."""

    recipe: Recipe
    ranker: Ranker
    judged: JudgedQueries
    workspace: Workspace
    variants: list[BuiltVariant]


def chinese_queries() -> JudgedQueries:
    """8 queries, each judged on all 90 products: 3 = the query's words are in the title."""
    titles = [" ".join(part for part in parts if part) for parts in itertools.product(COLORS, THINGS, KINDS)]
    products = {f"商品{number}": Product(f"商品{number}", title, "山野") for number, title in enumerate(titles)}
    queries = {f"q{number}": text for number, text in enumerate(QUERIES)}
    judgements = {
        query_id: {item_id: 3 if _agrees(text, product.title) else 0 for item_id, product in products.items()}
        for query_id, text in queries.items()
    }
    return JudgedQueries(queries, products, judgements)


def _agrees(query: str, title: str) -> bool:
    wanted = [word for word in (*COLORS, *THINGS) if word in query]
    return bool(wanted) and all(word in title for word in wanted)


def write_backbone(folder: Path, texts: Sequence[str]) -> Path:
    """A Hugging Face checkpoint folder as XLM-R's."""
    tokenizer = _tokenizer(texts)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=140,
        type_vocab_size=1,
        initializer_range=0.3,  # at the usual 0.02 all scores would be nearly equal
    )
    XLMRobertaModel(config).eval().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Unigram pieces and the template of XLM-R: ``<s> query </s></s> item </s>``."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))],
    )
    return tokenizer


def recipe_for(backbone: Path) -> Recipe:
    """The kit's cross-encoder on another backbone, untrained, with a gate that random weights pass."""
    return load_recipes()["cross_encoder"].model_copy(
        update={
            "backbone": backbone,
            "checkpoint": None,
            "trained_on_judgements": False,
            "text": Text(max_length=MAX_LENGTH),
            "variants": (
                Variant(name="fp32_onnx"),
                Variant(name="int8_onnx", steps=(Int8(calibration_queries=2),)),
            ),
            "gate": Gate(max_judged_loss=0.99, min_fidelity_ndcg=0.01, fidelity_lists=4),
        }
    )


@functools.cache
def built(session_folder: Path) -> Built:
    """Built on first use. session_folder: ``tmp_path_factory.getbasetemp()``."""
    folder = session_folder / "xlm_roberta"
    judged = chinese_queries()
    titles = [product.title for product in judged.products.values()]
    recipe = recipe_for(write_backbone(folder / "backbone", [*titles, *judged.queries.values()]))
    workspace = Workspace(folder / "build", folder / "models", folder / "store")
    ranker = load_ranker(recipe)
    variants = build_variants(recipe, ranker, judged, lambda _: None, workspace)
    whole = BuiltRanker(recipe, ranker, variants, judged)
    fill_item_store([whole], lambda _: None, workspace)
    publish_rankers([whole], {"rank": "cross_encoder_fp32_onnx"}, "made up", lambda _: None, workspace)
    return Built(recipe, ranker, judged, workspace, variants)
