"""A cross-encoder split between two layers, so that most of the work on an item is done before anybody asks for it.

Below the split, query and item are encoded apart: an item's token states do not depend on the query, and lie in the
item store. Above it, the two are joined and every token sees every other. That is PreTTR (MacAvaney et al., SIGIR 2020,
arXiv:2004.14255); here an item's positions begin at the same one whatever the query's length, and its states are stored
in the precision that the recipe says.

The network has one form for training (:meth:`SplitCrossEncoder.forward`, of joined sequences, with a mask that keeps
the two apart below the split) and one for serving (:class:`QueryStates` and :class:`JoinedLayers`); they give the same
scores.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from builders.core.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    SCORE,
    Contract,
    length_buckets,
)
from builders.core.contract import Tensor as ContractTensor
from builders.core.recipe import Recipe
from builders.data.beir import Product, Request
from builders.features.batches import batched
from builders.features.preprocessing import tokens_version
from builders.features.text import (
    FORM_TEXT,
    KIT_FORM,
    TextForm,
    cut_texts,
    encode_pairs,
    encode_texts,
    form_of_queries,
    load_tokenizer,
    padded,
    special_ids,
    truncated_apart,
)
from builders.features.token_vectors import (
    ITEM_MASK,
    QueryForm,
    query_vectors,
)
from builders.rankers.backbone import MASKED, CheckpointError, check_positions, packaged_backbone, weight_files
from builders.rankers.base import Graph, Sample, folders_of
from builders.rankers.cross_encoder import CrossEncoder
from builders.rankers.token_vector_ranker import TokenVectorRanker

SPLIT_FILE = "split_config.json"
"""In the checkpoint's folder: :class:`Split`."""
ITEM_POSITION = 8
"""Of an item's first token: about where it is behind a query of usual length, as the cross-encoder was trained."""
ITEM_TYPE = 1
"""Token type of an item in a pair, of backbones that take types."""
BATCH = 32


class Split(pydantic.BaseModel):
    """Where a network is split.

    Attributes:
        after: layers that encode query and item apart; the others join them.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    after: int = pydantic.Field(ge=1)

    @classmethod
    def of_checkpoint(cls, folder: Path) -> Self:
        """As the trainer wrote it. Raises: CheckpointError."""
        file = folder / SPLIT_FILE
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, pydantic.ValidationError) as error:
            raise CheckpointError(
                f'{file}: not there or not {{"after": layers}} ({type(error).__name__}); run "builders train" for it'
            ) from error


# ---------------------------------------------------------------- networks
class SplitCrossEncoder(CrossEncoder):
    """A cross-encoder whose first layers keep query and item apart.

    Args:
        whole: whose backbone and head it takes; the backbone is BERT's kind, with ``embeddings`` and ``encoder.layer``.
        split: after how many layers.
    """

    backbone: Any

    def __init__(self, whole: CrossEncoder, split: Split) -> None:
        super().__init__(whole.backbone, whole.config, whole.specials, whole.separator)
        self.head = whole.head
        self.split = split
        layers = getattr(getattr(whole.backbone, "encoder", None), "layer", None)
        if layers is None or not hasattr(whole.backbone, "embeddings"):
            raise CheckpointError(
                f"{type(whole.backbone).__name__} has no embeddings and encoder.layer; wanted a backbone of BERT's kind"
            )
        if split.after >= len(layers):
            raise CheckpointError(
                f"split after layer {split.after} of {len(layers)}, which leaves none to join query and item; wanted "
                f"at most {len(layers) - 1}"
            )

    @classmethod
    def split_checkpoint(cls, checkpoint: Path, backbone: Path | None = None) -> Self:
        """In eval mode, as its trainer wrote it. Raises: as :meth:`CrossEncoder.from_checkpoint`."""
        whole = CrossEncoder.from_checkpoint(checkpoint, backbone)
        return cls(whole, Split.of_checkpoint(checkpoint)).eval()

    def _encode(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """float32 [rows, length, hidden] of joined sequences: the form that is trained."""
        of_item, place = self._items_part(input_ids)
        positions = torch.where(of_item, place + ITEM_POSITION, torch.arange(input_ids.shape[1]).expand_as(input_ids))
        valid = attention_mask[:, None, None, :].float()
        alike = (of_item[:, None, :, None] == of_item[:, None, None, :]).float()
        states = self._embedded(input_ids, positions, of_item.to(torch.long))
        states = self.apart(states, (1 - valid * alike) * MASKED)
        return self.joined(states, (1 - valid) * MASKED)

    def _items_part(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """bool [rows, length]: behind the first separator; int64 [rows, length]: how far."""
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        ends = torch.where(input_ids == self.separator, places, input_ids.shape[1]).amin(dim=1, keepdim=True)
        return places > ends, (places - ends - 1).clamp(min=0)

    def _embedded(self, input_ids: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        given = {"token_type_ids": types} if self.takes_token_types else {}
        embedded: Tensor = self.backbone.embeddings(input_ids=input_ids, position_ids=positions, **given)
        return embedded

    def apart(self, states: Tensor, additive: Tensor) -> Tensor:
        """Through the layers below the split: float32 [rows, length, hidden]; additive: as attention adds it."""
        for layer in self.backbone.encoder.layer[: self.split.after]:
            states = layer(states, additive)
        return states

    def joined(self, states: Tensor, additive: Tensor) -> Tensor:
        """Through the layers above the split."""
        for layer in self.backbone.encoder.layer[self.split.after :]:
            states = layer(states, additive)
        return states.float()

    def states_apart(self, input_ids: Tensor, attention_mask: Tensor, *, item: bool) -> Tensor:
        """float32 [rows, length, hidden] of texts of one kind. input_ids, attention_mask: int32 [rows, length]."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        types = torch.full_like(input_ids, ITEM_TYPE if item else 0)
        embedded = self._embedded(input_ids, places + (ITEM_POSITION if item else 0), types)
        return self.apart(embedded, (1 - attention_mask[:, None, None, :].float()) * MASKED)


class QueryStates(nn.Module):
    """The layers below the split, on a query."""

    def __init__(self, network: SplitCrossEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int32 [rows, length] twice, ``[CLS] query [SEP]`` => float32 [rows, length, hidden]."""
        return self.network.states_apart(input_ids, attention_mask, item=False)


class JoinedLayers(nn.Module):
    """The layers above the split and the head, on one query's states with those of every candidate."""

    def __init__(self, network: SplitCrossEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        query_vectors: Tensor,
        attention_mask: Tensor,
        item_vectors: Tensor,
        item_tokens: Tensor,
        item_mask: Tensor,
        item_scales: Tensor | None = None,
    ) -> Tensor:
        """Score.

        Args:
            query_vectors: float32 [1, query length, hidden].
            attention_mask: int32 [1, query length], 1 = token of the query.
            item_vectors: float32, float16 or int8 [tokens, hidden]: states of all candidates, ``item [SEP]`` each.
            item_tokens: int32 [candidates, longest]: rows of ``item_vectors``.
            item_mask: int32 [candidates, longest], 1 = token of the item.
            item_scales: float32 [tokens]: what an int8 row is multiplied with.

        Returns:
            float32 [candidates, 1].
        """
        of_items = item_vectors.index_select(0, item_tokens.reshape(-1)).float()
        if item_scales is not None:
            of_items = of_items * item_scales.index_select(0, item_tokens.reshape(-1)).unsqueeze(1)
        of_items = of_items.unflatten(0, item_tokens.shape)
        rows = item_tokens.shape[0]
        states = torch.cat([query_vectors.expand(rows, -1, -1), of_items], dim=1)
        query_mask, mask = attention_mask.float().expand(rows, -1), item_mask.float()
        valid = torch.cat([query_mask, mask], dim=1)
        states = self.network.joined(states, (1 - valid[:, None, None, :]) * MASKED)
        nothing = torch.zeros_like(valid)
        in_query = torch.cat([_but_last(query_mask, first=True), nothing[:, query_mask.shape[1] :]], dim=1)
        in_item = torch.cat([nothing[:, : query_mask.shape[1]], _but_last(mask, first=False)], dim=1)
        return self.network.head(states, in_query, in_item)


def _but_last(mask: Tensor, *, first: bool) -> Tensor:
    """Without the separator that ends it and, of a query, the token that begins it: what the head counts as text."""
    kept = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return torch.cat([torch.zeros_like(kept[:, :1]), kept[:, 1:]], dim=1) if first else kept


# ---------------------------------------------------------------- the ranker
class SplitCrossEncoderRanker(TokenVectorRanker):
    """Two graphs: the query's states once a request, and the layers that join them with every candidate's."""

    name = "split_cross_encoder"
    reads_text = (*FORM_TEXT, "vectors")

    def __init__(
        self,
        checkpoint: Path,
        backbone: Path | None = None,
        form: TextForm = KIT_FORM,
        vectors: str = "int8",
    ) -> None:
        """Load; see :meth:`SplitCrossEncoder.split_checkpoint` for the folders and the errors.

        Args:
            form: how query and items become tokens; an item has what the longest query leaves of ``max_length``.
            vectors: how items' states are stored: "fp32", "fp16" or "int8".
        """
        self._backbone = backbone or packaged_backbone()
        self._checkpoint = checkpoint
        self._network = SplitCrossEncoder.split_checkpoint(checkpoint, self._backbone)
        self._stored_by = self._network
        self._tokenizer = load_tokenizer(self._backbone)
        self._form, self._vectors = form, vectors
        self._check_form()
        self._query = QueryForm(self._query_form.max_length)
        self._width = int(self._network.config.hidden_size)
        self._stored_of_text = {}

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> SplitCrossEncoderRanker:
        """With the recipe's [text]. Raises: CheckpointError: it names no checkpoint."""
        folders = folders_of(recipe)
        if folders["checkpoint"] is None:
            raise CheckpointError(f'{recipe.ranker}: no checkpoint in the recipe; add checkpoint = "checkpoints/..."')
        form = KIT_FORM.with_recipe(recipe.text)
        ranker = cls(folders["checkpoint"], folders["backbone"], form, recipe.text.vectors)
        ranker.name = recipe.ranker
        return ranker

    def _check_form(self) -> None:
        if len(special_ids(self._tokenizer)) != 2 or self._tokenizer.num_special_tokens_to_add(is_pair=True) != 3:
            raise CheckpointError(
                f"{self._backbone}: its tokenizer joins two texts with other than one token before, between and after; "
                "wanted BERT's [CLS] query [SEP] item [SEP]"
            )
        if self._form.max_query_tokens is None or self._item_form.max_length < 2:
            raise CheckpointError(
                f"[text] max_length {self._form.max_length} with max_query_tokens {self._form.max_query_tokens} leaves "
                "no room for an item; wanted a longest query, and more for both together"
            )
        check_positions(self._item_form.max_length + ITEM_POSITION, self._network.backbone, self._backbone)

    # ------------------------------------------------------------ lengths
    @property
    def _query_form(self) -> TextForm:
        return form_of_queries(self._tokenizer, self._form)

    @property
    def _item_form(self) -> TextForm:
        """Of ``[CLS] item [SEP]``, whose first token is not stored."""
        return dataclasses.replace(
            self._form, max_length=self._form.max_length - (self._form.max_query_tokens or 0) - 1
        )

    @property
    def _items(self) -> tuple[ContractTensor, ...]:
        """With a mask: an item is not read beyond its own tokens."""
        vectors, tokens, *scales = super()._items
        return vectors, tokens, ITEM_MASK, *scales

    # ------------------------------------------------------------ what the kit asks of a ranker
    @property
    def settings(self) -> Mapping[str, object]:
        """How it reads text, and how states are stored."""
        return {"text": self._form, "vectors": self._vectors}

    @property
    def network(self) -> SplitCrossEncoder:
        """All layers and the head. Items' states are stored by the network as it was."""
        return self._network

    def with_network(self, network: nn.Module) -> SplitCrossEncoderRanker:
        """Around another network, which joins the same items' states."""
        other = copy.copy(self)
        other._network = network.eval()  # type: ignore[assignment]
        return other

    @property
    def graphs(self) -> list[Graph]:
        """``<name>_query`` (a row a request) and ``<name>`` (its states with every candidate's)."""
        of_query = ContractTensor(ATTENTION_MASK.name, ATTENTION_MASK.dtype, (1, "length"), ATTENTION_MASK.meaning)
        joined = Contract(
            self.name,
            (query_vectors(self._width), of_query, *self._items),
            (SCORE,),
            score="relevance of the item to the query, comparable within one query only; higher is better",
        )
        return [
            self._query_graph(QueryStates(self._network)),
            Graph(
                joined.name,
                JoinedLayers(self._network),
                joined,
                batches=False,
                splits=True,
                lengths=length_buckets(self._item_form.max_length),
                padding_mask=ITEM_MASK.name,
            ),
        ]

    @property
    def checkpoint_files(self) -> list[Path]:
        """Backbone, adapter, head and split."""
        return [*weight_files(self._backbone), *weight_files(self._checkpoint)]

    def sample(self, request: Request, products: Sequence[Product]) -> dict[str, Sample]:
        """The query's tokens; its states with the items'."""
        encoder, joined = self.graphs
        tokens = encode_texts(self._tokenizer, [self._form.query(request.query)], self._query_form)
        given = {tensor.name: tokens[tensor.name] for tensor in encoder.contract.inputs}
        with torch.inference_mode():
            states = encoder.module(*map(torch.from_numpy, given.values())).numpy()
        tensors = {"query_vectors": states, ATTENTION_MASK.name: given[ATTENTION_MASK.name], **self._packed(products)}
        return {encoder.name: given, joined.name: {one.name: tensors[one.name] for one in joined.contract.inputs}}

    def score_joined(self, request: Request, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates] by the form that was trained, on joined sequences: what :meth:`score` gives of states that
        are not rounded."""
        texts = self._form.items(products)
        rows = encode_pairs(self._tokenizer, self._form.query(request.query), texts, self._form)
        with torch.inference_mode():
            scores = self._network(*(torch.from_numpy(rows[name]) for name in (INPUT_IDS.name, ATTENTION_MASK.name)))
        return np.asarray(scores[:, 0].numpy())

    def truncated(self, request: Request, products: Sequence[Product]) -> int:
        """Of its texts."""
        query = self._form.query(request.query)
        cut = dataclasses.replace(self._item_form, max_query_tokens=self._form.max_query_tokens)
        return truncated_apart(self._tokenizer, query, self._form.items(products), cut)

    # ------------------------------------------------------------ texts => states
    @property
    def _encoded_by(self) -> Mapping[str, Any]:
        tokens = tokens_version(self._item_form, self._tokenizer_file)
        return {"tokens": tokens, "position": ITEM_POSITION}

    @property
    def _tokenizer_file(self) -> Path:
        return self._backbone / "tokenizer.json"

    def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        """FP32 [tokens, hidden] of each item's text; those of like length together."""
        rows = cut_texts(self._tokenizer, texts, self._item_form)
        found = [np.empty(0, dtype=np.float32)] * len(rows)
        for chosen in batched(sorted(range(len(rows)), key=lambda place: len(rows[place].ids)), BATCH):
            tokens = padded(self._tokenizer, [rows[place] for place in chosen], self._item_form)
            for place, states in zip(chosen, self._states(tokens), strict=True):
                found[place] = states
        return found

    def _states(self, tokens: Sample) -> Iterator[np.ndarray]:
        """FP32 [tokens, hidden] of each row of ``[CLS] item [SEP]``, without its first token."""
        input_ids, mask = (torch.from_numpy(tokens[tensor.name][:, 1:]) for tensor in (INPUT_IDS, ATTENTION_MASK))
        with torch.inference_mode():
            states = self._stored_by.states_apart(input_ids, mask, item=True).numpy()
        for row, count in zip(states, mask.sum(dim=1).tolist(), strict=True):
            yield row[:count]
