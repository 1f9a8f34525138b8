"""What it costs to tokenise the texts that a request brings: the call that the served pre-processing makes, timed here.

Documents of real products, each cut to just so many tokens, by the tokenizer that is published beside each text
ranker's pre-processing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from perf.bench_base import Bench, Figure
from perf.errors import PerfError
from perf.kit.data import Product
from perf.kit.rankers import Ranker

DOCUMENTS, TOKENS = 100, 128
LIMIT_MS = 5.0
BATCHES = 50
TAKES_TEXTS = "item_texts"


def bench_texts(bench: Bench) -> list[Figure]:
    """A figure a text ranker. Raises: PerfError: the corpus is too small for the documents."""
    takers = [ranker for ranker in bench.rankers.values() if _takes_texts(ranker)]
    if not takers:
        raise PerfError("no ranker here takes texts in the request; wanted one such as cross_encoder")
    return [_figure(ranker, list(bench.judged.products.values())) for ranker in takers]


def _takes_texts(ranker: Ranker) -> bool:
    return any(tensor.name == TAKES_TEXTS for tensor in ranker.preprocess.inputs)


def _figure(ranker: Ranker, products: Sequence[Product]) -> Figure:
    tokenizer = _tokenizer(ranker.preprocess_files["tokenizer.json"])
    batches = itertools.cycle(_batches(documents(tokenizer, products)))
    spans_ms = np.array([_tokenised_ms(tokenizer, next(batches)) for _ in range(BATCHES + 1)])[1:]  # the first warms up
    low, high = np.percentile(spans_ms, (10, 90))
    detail = f"10th to 90th percentile {low:.2f} to {high:.2f} ms, n {spans_ms.size}"
    name = f"{ranker.name}: tokenising {DOCUMENTS} documents of {TOKENS} tokens"
    return Figure(name, float(np.median(spans_ms)), "ms", LIMIT_MS, detail=detail)


def _tokenizer(json: Path | str) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(json)) if isinstance(json, Path) else Tokenizer.from_str(json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def documents(tokenizer: Tokenizer, products: Sequence[Product]) -> list[str]:
    """Texts of just TOKENS tokens, of neighbouring products' titles and descriptions."""
    words = " ".join(f"{product.title} {product.text}" for product in products).split()
    found = []
    for start in range(0, len(words), TOKENS):
        some = " ".join(words[start : start + TOKENS])
        encoding = tokenizer.encode(some, add_special_tokens=False)
        if len(encoding.ids) >= TOKENS:
            text = some[: encoding.offsets[TOKENS - 1][1]]
            if len(tokenizer.encode(text, add_special_tokens=False).ids) == TOKENS:
                found.append(text)
    return found


def _batches(texts: Sequence[str]) -> list[list[str]]:
    """Other documents each time, so that no word is in the tokenizer's cache because of the run before."""
    whole = [list(texts[start : start + DOCUMENTS]) for start in range(0, len(texts) - DOCUMENTS + 1, DOCUMENTS)]
    if not whole:
        raise PerfError(f"{len(texts)} documents of {TOKENS} tokens in the corpus, wanted at least {DOCUMENTS}")
    return whole


def _tokenised_ms(tokenizer: Tokenizer, texts: list[str]) -> float:
    start_s = time.perf_counter()
    tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return (time.perf_counter() - start_s) * 1e3
