"""Text in, token ids out: what an item says, and a query joined with items in one sequence.

The tokenizer is the checkpoint's own ``tokenizer.json`` with its own special tokens (``[CLS] q [SEP] t [SEP]`` for
BERT, ``<s> q </s></s> t </s>`` for XLM-R). Knows nothing of torch or of any ranker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from builders.core.contract import LENGTH_BUCKET, MAX_LENGTH, MAX_QUERY_TOKENS
from builders.core.errors import BuilderError
from builders.data.beir import Product

ITEM_TEXT_FORM = "title and brand 1"
"""Changes when :func:`item_text` does: features stored from another form do not belong to the ranker."""


class TokenizerError(BuilderError):
    """A tokenizer that cannot be used; the message says what was found, what was wanted and what to do."""


def item_text(title: str, brand: str) -> str:
    """What a ranker reads of an item: its title, and its brand where the title does not name it."""
    if brand and brand.casefold() not in title.casefold():
        return f"{title} {brand}".strip()
    return title


def item_texts(products: Iterable[Product]) -> list[str]:
    """:func:`item_text` of each product."""
    return [item_text(product.title, product.brand) for product in products]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face checkpoint folder, without the padding and truncation stored in it.

    Raises:
        TokenizerError: no ``tokenizer.json``, one that does not parse, or one that puts no separator between two texts.
    """
    tokenizer = load_tokenizer_file(Path(folder) / "tokenizer.json")
    separator_id(tokenizer)
    return tokenizer


def load_tokenizer_file(path: Path) -> Tokenizer:
    """One ``tokenizer.json``, without padding and truncation. Raises: TokenizerError: not there, or not one."""
    if not path.is_file():
        raise TokenizerError(
            f"{path}: not there; wanted a fast tokenizer. "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes one"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise TokenizerError(
            f"{path}: not a tokenizer ({error}); copy it anew from where the checkpoint is from"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that the tokenizer's template puts around a pair of texts, each once, in order: BERT (101, 102)."""
    query, item = tokenizer.encode_batch(["a", "b"], add_special_tokens=False)
    pair = tokenizer.post_process(query, item)
    marked = zip(pair.ids, pair.special_tokens_mask, strict=True)
    return tuple(dict.fromkeys(token for token, special in marked if special))


def separator_id(tokenizer: Tokenizer) -> int:
    """The id that ends the query in a pair: ``[SEP]``, ``</s>``. Raises: TokenizerError where there is none."""
    query, item = tokenizer.encode_batch(["a", "b"], add_special_tokens=False)
    pair = tokenizer.post_process(query, item)
    after_query = _leading_specials(pair) + len(query.ids)
    if after_query >= len(pair.ids) or not pair.special_tokens_mask[after_query]:
        raise TokenizerError(
            f"tokenizer joins two texts as {pair.tokens}, wanted a special token between them; "
            "give its post-processor a template for pairs"
        )
    return pair.ids[after_query]


def encode_pairs(
    tokenizer: Tokenizer,
    query: str,
    item_texts: Sequence[str],
    *,
    max_query_tokens: int = MAX_QUERY_TOKENS,
    max_length: int = MAX_LENGTH,
    bucket: int = LENGTH_BUCKET,
) -> dict[str, np.ndarray]:
    """One query with each item, as a cross-encoder reads them.

    The query keeps its first ``max_query_tokens`` tokens (special ones not counted), each item what is left of
    ``max_length``. All rows are padded on the right to the longest, rounded up to a multiple of ``bucket``.

    Returns:
        ``input_ids``, ``attention_mask`` (1 = token) and ``token_type_ids`` (the template's: BERT 0 query, 1 item):
        int32 [items, length], in the order of ``item_texts``.

    Raises:
        TokenizerError: ``max_length`` leaves no room for an item.
    """
    query_part, *item_parts = tokenizer.encode_batch([query, *item_texts], add_special_tokens=False)
    query_part.truncate(max_query_tokens)
    room = max_length - len(query_part.ids) - tokenizer.num_special_tokens_to_add(is_pair=True)
    if room < 1:
        raise TokenizerError(
            f"max_length {max_length} leaves no token for an item beside a query of {len(query_part.ids)}; "
            f"wanted at least {max_length + 1 - room}"
        )
    return _padded(tokenizer, [_joined(tokenizer, query_part, part, room) for part in item_parts], max_length, bucket)


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], *, max_length: int = MAX_LENGTH, bucket: int = LENGTH_BUCKET
) -> dict[str, np.ndarray]:
    """Each text alone, as a two-tower reads it: ``input_ids`` and ``attention_mask``, int32 [texts, length].

    Texts keep what fits into ``max_length`` with the special tokens; rows are padded as in :func:`encode_pairs`.
    """
    room = max_length - tokenizer.num_special_tokens_to_add(is_pair=False)
    rows = []
    for row in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        row.truncate(room)
        rows.append(tokenizer.post_process(row))
    arrays = _padded(tokenizer, rows, max_length, bucket)
    return {name: arrays[name] for name in ("input_ids", "attention_mask")}


def _joined(tokenizer: Tokenizer, query: Encoding, item: Encoding, item_room: int) -> Encoding:
    item.truncate(item_room)
    return tokenizer.post_process(query, item)


def _leading_specials(pair: Encoding) -> int:
    return pair.special_tokens_mask.index(0)


def _padded(tokenizer: Tokenizer, rows: Sequence[Encoding], max_length: int, bucket: int) -> dict[str, np.ndarray]:
    longest = max((len(row.ids) for row in rows), default=1)
    length = min(-(-longest // bucket) * bucket, max_length)  # positions of the backbone may end at max_length
    for row in rows:
        row.pad(length, pad_id=padding_id(tokenizer))
    arrays = {
        "input_ids": [row.ids for row in rows],
        "attention_mask": [row.attention_mask for row in rows],
        "token_type_ids": [row.type_ids for row in rows],
    }
    return {name: np.array(values, dtype=np.int32).reshape(len(rows), length) for name, values in arrays.items()}


def padding_id(tokenizer: Tokenizer) -> int:
    known = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
    return next((token for token in known if token is not None), 0)  # masked, so any id of the vocabulary serves


_WORD_STARTS = "▁Ġ"


def token_text(tokenizer: Tokenizer, token: int) -> str:
    return (tokenizer.id_to_token(token) or str(token)).lstrip(_WORD_STARTS)
