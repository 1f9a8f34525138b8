"""Text in, token ids out: what an item says, and a query joined with items in one sequence.

The tokenizer is the checkpoint's own ``tokenizer.json`` with its own special tokens (``[CLS] q [SEP] t [SEP]`` for
BERT, ``<s> q </s></s> t </s>`` for XLM-R), and cuts sequences as its library does. Knows nothing of torch or of any
ranker.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

from builders.core.contract import MAX_LENGTH, MAX_QUERY_TOKENS, padded_length
from builders.core.errors import BuilderError
from builders.core.keys import key_of
from builders.core.recipe import Text
from builders.data.beir import Product
from builders.features.batches import batched
from builders.features.item_text import ItemTemplate, TemplateError

STORED_TOKENS_FORM = "length, then ids 2"
"""Changes when :func:`stored_tokens` does: tokens stored in another form do not belong to the ranker."""
Side = Literal["left", "right"]


class TokenizerError(BuilderError):
    """A tokenizer that cannot be used; the message says what was found, what was wanted and what to do."""


@dataclasses.dataclass(frozen=True)
class TextForm:
    """How query and items become tokens; whatever is stored of a text depends on all of it.

    Attributes:
        item: template of an item's text, see :class:`builders.features.item_text.ItemTemplate`; "" = its title, and its
            brand where the title does not name it.
        query_prompt, item_prompt: put before the text, as they are.
        max_length: tokens of one sequence, special ones counted.
        max_query_tokens: the query is cut to as many before it is joined with an item; None = the two are cut together,
            the longer one first.
        truncation_side: where tokens are cut off.
        pad_token_id: what rows are padded with; None = :func:`padding_id`.
    """

    item: str = ""
    query_prompt: str = ""
    item_prompt: str = ""
    max_length: int = MAX_LENGTH
    max_query_tokens: int | None = MAX_QUERY_TOKENS
    truncation_side: Side = "right"
    pad_token_id: int | None = None

    def query(self, query: str) -> str:
        """The query with its prompt."""
        return self.query_prompt + query

    def items(self, products: Iterable[Product]) -> list[str]:
        """Each product's text with its prompt. Raises: TokenizerError: a value does not go with its format."""
        template = ItemTemplate(self.item)
        try:
            return [self.item_prompt + template.text(product.raw_fields) for product in products]
        except TemplateError as error:
            raise TokenizerError(f"[text] item: {error}; mend the template or the corpus") from error

    @property
    def version(self) -> str:
        """Of an item's text and tokens; the tokenizer apart."""
        return key_of(dataclasses.asdict(self))

    def with_recipe(self, text: Text) -> TextForm:
        """With what the recipe's [text] sets. Raises: TokenizerError: a template that cannot be."""
        _template(text.item)
        given = {name: value for name, value in text.model_dump(exclude_unset=True).items() if name in FORM_TEXT}
        return dataclasses.replace(self, **given)


FORM_TEXT = ("item", "query_prompt", "item_prompt", "max_length", "max_query_tokens")
"""Fields of a recipe's [text] that a form is made of."""
KIT_FORM = TextForm()
"""Of the kit's own text rankers."""


def check_item_fields(template: str, products: Iterable[Product]) -> None:
    """Raises: TokenizerError: it is no template, or names a field that no item has."""
    wanted = set(_template(template).fields)
    known: set[str] = set()
    for product in products:
        known.update(product.raw_fields)
        if wanted <= known:
            return
    raise TokenizerError(
        f"[text] item: no item of the corpus has the field {', '.join(sorted(wanted - known))}; wanted some of "
        f"{', '.join(sorted(known))}"
    )


def _template(item: str) -> ItemTemplate:
    try:
        return ItemTemplate(item)
    except TemplateError as error:
        raise TokenizerError(f"[text] item: {error}") from error


def item_texts(products: Iterable[Product]) -> list[str]:
    """What the kit's own text rankers read of each product."""
    return KIT_FORM.items(products)


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
    return _plain(tokenizer)


def load_tokenizer_text(text: str) -> Tokenizer:
    """A ``tokenizer.json`` as text, without padding and truncation."""
    return _plain(Tokenizer.from_str(text))


def _plain(tokenizer: Tokenizer) -> Tokenizer:
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
    tokenizer: Tokenizer, query: str, item_texts: Sequence[str], form: TextForm = KIT_FORM
) -> dict[str, np.ndarray]:
    """One query with each item, as a cross-encoder reads them, cut and joined by the tokenizers library.

    The query keeps ``form.max_query_tokens`` tokens (special ones not counted); then each pair is cut to
    ``form.max_length``, the longer of the two first. All rows are padded on the right to the longest one's
    length bucket. Prompts are the caller's: ``form.query``, ``form.items``.

    Returns:
        ``input_ids``, ``attention_mask`` (1 = token) and ``token_type_ids`` (the template's: BERT 0 query, 1 item):
        int32 [items, length], in the order of ``item_texts``.

    Raises:
        TokenizerError: ``max_length`` leaves no room for a query and an item.
    """
    query_part, *item_parts = tokenizer.encode_batch([query, *item_texts], add_special_tokens=False)
    if form.max_query_tokens is not None:
        query_part.truncate(form.max_query_tokens, direction=form.truncation_side)
    _check_room(tokenizer, form.max_length)
    with _cutting(tokenizer, form) as cut:
        rows = [cut.post_process(query_part, part) for part in item_parts]
    return padded(tokenizer, rows, form)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], form: TextForm = KIT_FORM) -> dict[str, np.ndarray]:
    """Each text alone, as a two-tower reads it: int32 [texts, length] as of :func:`encode_pairs`.

    Texts keep what fits into ``form.max_length`` with the special tokens; rows are padded as in :func:`encode_pairs`.
    """
    return padded(tokenizer, cut_texts(tokenizer, texts, form), form)


def cut_texts(tokenizer: Tokenizer, texts: Sequence[str], form: TextForm) -> list[Encoding]:
    """The rows of :func:`encode_texts`, not padded."""
    with _cutting(tokenizer, form) as cut:
        return list(cut.encode_batch(list(texts)))


def form_of_queries(tokenizer: Tokenizer, form: TextForm) -> TextForm:
    """Of a query alone: cut to ``max_query_tokens`` besides its special tokens."""
    if form.max_query_tokens is None:
        return form
    longest = form.max_query_tokens + tokenizer.num_special_tokens_to_add(is_pair=False)
    return dataclasses.replace(form, max_length=min(longest, form.max_length))


def truncated_pairs(tokenizer: Tokenizer, query: str, item_texts: Sequence[str], form: TextForm) -> int:
    """How many of the pairs of :func:`encode_pairs` are not read to their end."""
    query_part, *item_parts = tokenizer.encode_batch([query, *item_texts], add_special_tokens=False)
    limit = len(query_part.ids) if form.max_query_tokens is None else form.max_query_tokens
    if len(query_part.ids) > limit:
        return len(item_parts)
    room = form.max_length - tokenizer.num_special_tokens_to_add(is_pair=True) - len(query_part.ids)
    return sum(len(part.ids) > room for part in item_parts)


def truncated_texts(tokenizer: Tokenizer, texts: Sequence[str], form: TextForm) -> int:
    """How many of the texts of :func:`encode_texts` are not read to their end."""
    room = form.max_length - tokenizer.num_special_tokens_to_add(is_pair=False)
    return sum(len(one.ids) > room for one in tokenizer.encode_batch(list(texts), add_special_tokens=False))


def truncated_apart(tokenizer: Tokenizer, query: str, item_texts: Sequence[str], form: TextForm) -> int:
    """How many items' texts are not read to their end; all where the query is not. Each is a sequence of its own."""
    if truncated_texts(tokenizer, [query], form_of_queries(tokenizer, form)):
        return len(item_texts)
    return truncated_texts(tokenizer, item_texts, form)


def stored_tokens(tokenizer: Tokenizer, texts: Iterable[str], form: TextForm) -> Iterator[bytes]:
    """Each text's tokens as the item store keeps them: little-endian INT32, first how many the text has, then the
    ``form.max_length`` that a sequence can take at most, without special tokens."""
    for some in batched(texts):
        for encoding in tokenizer.encode_batch(some, add_special_tokens=False):
            kept = encoding.ids[-form.max_length :] if form.truncation_side == "left" else encoding.ids
            yield np.array([len(encoding.ids), *kept[: form.max_length]], dtype="<i4").tobytes()


@contextlib.contextmanager
def _cutting(tokenizer: Tokenizer, form: TextForm) -> Iterator[Tokenizer]:
    tokenizer.enable_truncation(form.max_length, strategy="longest_first", direction=form.truncation_side)
    try:
        yield tokenizer
    finally:
        tokenizer.no_truncation()


def _check_room(tokenizer: Tokenizer, max_length: int) -> None:
    needed = tokenizer.num_special_tokens_to_add(is_pair=True) + 2
    if max_length < needed:
        raise TokenizerError(
            f"max_length {max_length} leaves no token for a query and an item beside the special tokens; wanted at "
            f"least {needed}"
        )


def _leading_specials(pair: Encoding) -> int:
    return pair.special_tokens_mask.index(0)


def padded(tokenizer: Tokenizer, rows: Sequence[Encoding], form: TextForm) -> dict[str, np.ndarray]:
    """INT32 [rows, length] each of ``input_ids``, ``attention_mask`` and ``token_type_ids``, padded on the right."""
    longest = max((len(row.ids) for row in rows), default=1)
    length = padded_length(longest, form.max_length)
    pad_id = padding_id(tokenizer) if form.pad_token_id is None else form.pad_token_id
    for row in rows:
        row.pad(length, pad_id=pad_id)
    arrays = {
        "input_ids": [row.ids for row in rows],
        "attention_mask": [row.attention_mask for row in rows],
        "token_type_ids": [row.type_ids for row in rows],
    }
    return {name: np.array(values, dtype=np.int32).reshape(len(rows), length) for name, values in arrays.items()}


def padding_id(tokenizer: Tokenizer) -> int:
    """Where the checkpoint names none: by its usual names; masked, so any id of the vocabulary serves else."""
    known = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
    return next((token for token in known if token is not None), 0)


_WORD_STARTS = "▁Ġ"


def token_text(tokenizer: Tokenizer, token: int) -> str:
    return (tokenizer.id_to_token(token) or str(token)).lstrip(_WORD_STARTS)


def row_tokens(tokenizer: Tokenizer, sample: Mapping[str, np.ndarray]) -> list[str]:
    """Of the first row of ``input_ids``, special ones included, without padding."""
    ids = sample["input_ids"][0][sample["attention_mask"][0] == 1]
    return [tokenizer.id_to_token(int(token)) or str(token) for token in ids]
