"""Small checkpoints with random weights, each written by the library whose format it is; and a shop to rank with them.

Tokenizers are trained on the shop's own texts. Weights are drawn wide, so that scores differ.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from builders.data.beir import JudgedQueries, Product

COLORS = ("red", "blue", "white", "black", "green", "grey")
THINGS = ("running shoe", "garden hose", "wireless mouse", "camping tent", "desk lamp", "tea mug", "wool sock!")
KINDS = ("", "men's", "20 m", "waterproof, size 9", "set of 4", "for kids", "x1-200", "kitchen & home")
BRANDS = ("Acme", "", "Nord & Sons")
QUERIES = ("red running shoe", "mug", "waterproof tent for kids", "!", "set of 4 wool socks, grey")
LENGTH = 64
"""Positions of every network here."""
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip


def shop() -> JudgedQueries:
    """1,100 products, every fifth with a description far longer than a sequence; each query judged on 44."""
    generator = random.Random(7)
    titles = itertools.islice(itertools.cycle(itertools.product(COLORS, THINGS, KINDS)), 1100)
    products = {}
    for number, parts in enumerate(titles):
        title = " ".join(filter(None, parts)) + (f" {number}" if number >= 336 else "")
        text = " ".join(generator.choices([*COLORS, *THINGS], k=60)) if number % 5 == 0 else ""
        products[f"p{number}"] = Product(f"p{number}", title, text, BRANDS[number % 3])
    queries = {f"q{number}": text for number, text in enumerate(QUERIES)}
    judgements = {
        query_id: {item_id: generator.choice([0, 1, 2, 3]) for item_id in generator.sample(sorted(products), 44)}
        for query_id in queries
    }
    return JudgedQueries(queries, products, judgements)


def texts() -> list[str]:
    """What the tokenizers are trained on."""
    judged = shop()
    return [*judged.queries.values(), *(f"{one.title}. {one.brand}. {one.text}" for one in judged.products.values())]


# ---------------------------------------------------------------- tokenizers
def wordpiece(**settings: Any) -> PreTrainedTokenizerFast:
    """As BERT's: ``[CLS] a [SEP] b [SEP]``, token types 0 and 1."""
    tokenizer = Tokenizer.from_str(_wordpiece_json())
    given: dict[str, Any] = {
        "model_max_length": LENGTH, "model_input_names": ["input_ids", "token_type_ids", "attention_mask"], **settings,
    }  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", **given,
    )  # fmt: skip


@functools.cache  # training twice does not give one vocabulary
def _wordpiece_json() -> str:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return str(tokenizer.to_str())


def byte_level(**settings: Any) -> PreTrainedTokenizerFast:
    """As RoBERTa's: byte-level BPE, ``<s> a </s></s> b </s>``, no token types."""
    specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    tokenizer = Tokenizer.from_str(_byte_level_json(specials))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    given: dict[str, Any] = {
        "model_max_length": LENGTH, "model_input_names": ["input_ids", "attention_mask"], **settings,
    }  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", **given,
    )  # fmt: skip


def plain_byte_level(**settings: Any) -> PreTrainedTokenizerFast:
    """As Qwen's: no special token around a text, a pair is one text behind the other; id 0 is "!"."""
    tokenizer = Tokenizer.from_str(_byte_level_json(()))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    given: dict[str, Any] = {
        "model_max_length": LENGTH, "model_input_names": ["input_ids", "attention_mask"], **settings,
    }  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|endoftext|>", **given
    )


@functools.cache
def _byte_level_json(specials: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(specials),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts(), trainer)
    return str(tokenizer.to_str())


# ---------------------------------------------------------------- classifiers of transformers
def _classifier(kind: str, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> PreTrainedModel:
    words = len(tokenizer)
    padding = tokenizer.pad_token_id
    common: dict[str, Any] = {"vocab_size": words, "max_position_embeddings": LENGTH, "num_labels": 1, **SIZES}
    behind = {"max_position_embeddings": LENGTH + padding + 1, "pad_token_id": padding}
    made: dict[str, Callable[[], PreTrainedModel]] = {
        "bert": lambda: BertForSequenceClassification(BertConfig(**common | settings)),
        "roberta": lambda: RobertaForSequenceClassification(
            RobertaConfig(**common | behind | {"type_vocab_size": 1} | settings)
        ),
        "xlm_roberta": lambda: XLMRobertaForSequenceClassification(
            XLMRobertaConfig(**common | behind | {"type_vocab_size": 1} | settings)
        ),
        "mpnet": lambda: MPNetForSequenceClassification(MPNetConfig(**common | behind | settings)),
        "electra": lambda: ElectraForSequenceClassification(
            ElectraConfig(**common | {"embedding_size": 16} | settings)
        ),
        "albert": lambda: AlbertForSequenceClassification(AlbertConfig(**common | {"embedding_size": 16} | settings)),
        "distilbert": lambda: DistilBertForSequenceClassification(
            DistilBertConfig(
                vocab_size=words,
                max_position_embeddings=LENGTH,
                dim=32,
                n_layers=2,
                n_heads=4,
                hidden_dim=48,
                num_labels=1,
                **settings,
            )
        ),
        "deberta_v2": lambda: DebertaV2ForSequenceClassification(
            DebertaV2Config(
                **common
                | {
                    "relative_attention": True,
                    "pos_att_type": ["p2c", "c2p"],
                    "position_buckets": 16,
                    "norm_rel_ebd": "layer_norm",
                    "share_att_key": True,
                    "type_vocab_size": 0,
                    "pooler_hidden_size": 32,
                }
                | settings
            )
        ),
        "modernbert": lambda: ModernBertForSequenceClassification(
            ModernBertConfig(
                **common
                | {
                    "local_attention": 16,
                    "global_attn_every_n_layers": 2,
                    "pad_token_id": padding,
                    "bos_token_id": 2,
                    "eos_token_id": 3,
                    "cls_token_id": 2,
                    "sep_token_id": 3,
                }
                | settings
            )
        ),
        "qwen3": lambda: Qwen3ForSequenceClassification(
            Qwen3Config(**common | {"pad_token_id": padding, "head_dim": 8, "num_key_value_heads": 2} | settings)
        ),
    }
    return drawn_wide(made[kind]())


TOKENIZER_OF: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    "bert": wordpiece, "electra": wordpiece, "albert": wordpiece, "distilbert": wordpiece, "deberta_v2": wordpiece,
    "modernbert": wordpiece, "roberta": byte_level, "xlm_roberta": byte_level, "mpnet": byte_level,
    "qwen3": plain_byte_level,
}  # fmt: skip
ARCHITECTURES = tuple(TOKENIZER_OF)


def drawn_wide(network: Any, seed: int = 0) -> Any:
    """The same network with seeded weights, wide enough that scores differ."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return network.eval()


def write_classifier(folder: Path, kind: str, tokenizer: dict[str, Any] | None = None, **settings: Any) -> Path:
    """``*ForSequenceClassification`` as transformers saves it. settings: of its configuration."""
    made = TOKENIZER_OF[kind](**tokenizer or {})
    _classifier(kind, made, **settings).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def write_encoder(folder: Path, kind: str, tokenizer: dict[str, Any] | None = None) -> Path:
    """``*Model``, without a head, as transformers saves it."""
    made = TOKENIZER_OF[kind](**tokenizer or {})
    _classifier(kind, made).base_model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- CrossEncoders of sentence-transformers
def write_cross_encoder(folder: Path, **settings: Any) -> Path:
    """The old form: a classifier alone, with what the library says of it. settings: of ``CrossEncoder``."""
    from sentence_transformers import CrossEncoder

    write_classifier(folder / "classifier", "bert", num_hidden_layers=1)
    CrossEncoder(str(folder / "classifier"), device="cpu", **settings).save_pretrained(str(folder / "saved"))
    return folder / "saved"


def write_modular_cross_encoder(folder: Path, pooling: str = "cls", **settings: Any) -> Path:
    """Transformer => Pooling => Dense => LayerNorm => Dense. settings: of ``CrossEncoder``."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    tokenizer = wordpiece()
    sizes = {**SIZES, "num_hidden_layers": 1}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, **sizes)).save_pretrained(
        folder / "encoder"
    )
    tokenizer.save_pretrained(folder / "encoder")
    modules = [
        Transformer(str(folder / "encoder")),
        Pooling(32, pooling),
        Dense(32, 16, activation_function=nn.GELU()),
        LayerNorm(16),
        Dense(16, 1, activation_function=nn.Identity(), module_output_name="scores"),
    ]
    model = drawn_wide(CrossEncoder(modules=modules, device="cpu", **settings))
    model.save_pretrained(str(folder / "saved"))
    return folder / "saved"
