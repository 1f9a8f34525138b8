"""Bi-encoders with random weights in folders that sentence-transformers itself wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from builders.data.beir import Product
from tests.support.library_checkpoints import SIZES, drawn_wide, write_encoder

WIDTH = SIZES["hidden_size"]
ITEM = "{title}. {text}"
"""Template of items' texts."""
QUERY = "red running shoe, men's!"
LONG_QUERY = "waterproof camping tent " * 40


def text_of(product: Product) -> str:
    """What the template makes of a product of the shop."""
    return f"{product.title}. {product.text}" if product.text else product.title


def write_bi_encoder(
    folder: Path,
    kind: str = "bert",
    pooling: str | tuple[str, ...] = "mean",
    after: Sequence[nn.Module] = (),
    include_prompt: bool = True,
    **settings: Any,
) -> Path:
    """A folder of sentence-transformers.

    Args:
        after: modules behind Pooling.
        settings: of SentenceTransformer: prompts, similarity_fn_name, truncate_dim.
    """
    tokenizer = {"padding_side": "left"} if kind == "qwen3" else None
    network = Transformer(str(write_encoder(folder / "network", kind, tokenizer)))
    pooled = Pooling(WIDTH, pooling, include_prompt=include_prompt)  # type: ignore[arg-type]
    modules = [network, pooled, *map(drawn_wide, after)]
    SentenceTransformer(modules=modules, device="cpu", **settings).save_pretrained(str(folder / "saved"))
    return folder / "saved"
