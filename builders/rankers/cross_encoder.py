"""A cross-encoder: query and item in one sequence, every token sees every other, one score a pair.

The head compares tokens as ColBERT does (MaxSim, arXiv:2004.12832), but after they have seen each other: each query
token is matched with the item token most like it, and a learned weight says how much that token matters. Beside it
stand the cosine of the two segments' means and a small network on the first token, both silent before training. So
the pretrained weights rank sensibly as they are, and a few thousand judgements only have to correct them: a linear
layer on the first token, the usual head, starts from nothing.

The trained part is a LoRA adapter (arXiv:2106.09685) and the head. Knows nothing of training or of ONNX.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from builders.core.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    SCORE,
    TOKEN_TYPE_IDS,
    Contract,
)
from builders.core.recipe import Recipe
from builders.data.beir import Product, Request
from builders.features.text import KIT_FORM, TextForm, load_tokenizer, separator_id, special_ids
from builders.rankers.backbone import (
    MASKED,
    CheckpointError,
    check_positions,
    load_backbone,
    packaged_backbone,
    weight_files,
)
from builders.rankers.base import Graph, Ranker, Sample, folders_of
from builders.rankers.token_pairs import PAIR_TEXT, TokenPairs

HEAD_FILE = "head.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

NO_SEPARATOR = 60_000
"""Past every position, and inside FP16's range."""
INITIAL_SCALE = 20.0
"""Turns similarities of -1 to 1 into logits, as sentence-transformers' ranking losses do."""
HEAD_WIDTH = 32


class InteractionHead(nn.Module):
    """Token states of a joint encoding in, one score a row out."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(INITIAL_SCALE))
        self.mean_weight = nn.Parameter(torch.tensor(0.0))
        self.importance = nn.Linear(hidden_size, 1, bias=False)  # a bias would cancel in the softmax
        self.first_token = nn.Sequential(nn.Linear(hidden_size, HEAD_WIDTH), nn.GELU(), nn.Linear(HEAD_WIDTH, 1))
        for silent in (self.importance, self.first_token[-1]):
            for parameter in silent.parameters():
                nn.init.zeros_(parameter)

    def forward(self, states: Tensor, in_query: Tensor, in_item: Tensor) -> Tensor:
        """Scores each row.

        Args:
            states: float32 [rows, length, hidden], the backbone's last layer.
            in_query, in_item: float32 [rows, length], 1 where a token is the query's or the item's own text, else 0.

        Returns:
            float32 [rows, 1].
        """
        matched = self._best_match(states, in_item)  # [rows, length]
        importance = self._importance(states, in_query)  # [rows, length]
        token_match = (matched * importance).sum(dim=1, keepdim=True)
        mean_match = functional.cosine_similarity(_sum(states, in_query), _sum(states, in_item)).unsqueeze(1)
        return self.scale * (token_match + self.mean_weight * mean_match) + self.first_token(states[:, 0])

    def _best_match(self, states: Tensor, in_item: Tensor) -> Tensor:
        """[rows, length]: cosine of each token with the item token most like it; -1 for an item without tokens."""
        directions = functional.normalize(states, dim=-1)
        similarity = directions @ directions.transpose(1, 2)  # [rows, length, length]
        among_item = in_item.unsqueeze(1)
        return (similarity * among_item + (among_item - 1)).amax(dim=2)

    def _importance(self, states: Tensor, in_query: Tensor) -> Tensor:
        """[rows, length]: weights of the query's tokens, sum 1 (0 for a query without tokens)."""
        logits = self.importance(states).squeeze(-1) + (1 - in_query) * MASKED
        return torch.softmax(logits, dim=1) * in_query


def _sum(states: Tensor, chosen: Tensor) -> Tensor:
    """[rows, hidden]: the sum of the chosen tokens' states."""
    return (chosen.unsqueeze(1) @ states).squeeze(1)


class CrossEncoder(nn.Module):
    """Scores rows of one query joined with one item each.

    Args:
        backbone: any Hugging Face encoder.
        config: its configuration; says the hidden size and whether it takes token types.
        specials: ids that the tokenizer puts around the two texts.
        separator: the one of them that ends the query.
    """

    def __init__(self, backbone: nn.Module, config: Any, specials: tuple[int, ...], separator: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = InteractionHead(config.hidden_size)
        self.config = config
        self.specials = specials
        self.separator = separator

    @classmethod
    def from_checkpoint(cls, checkpoint: Path | None = None, backbone: Path | None = None) -> CrossEncoder:
        """The cross-encoder in eval mode, its adapter merged into the weights.

        Args:
            checkpoint: folder with the adapter and the head; None for the untrained (zero-shot) form.
            backbone: Hugging Face checkpoint folder with a fast tokenizer; None for the packaged all-MiniLM-L6-v2.

        Raises:
            CheckpointError: a file is missing or does not fit the backbone.
            TokenizerError: the backbone's tokenizer cannot join two texts.
        """
        folder = backbone or packaged_backbone()
        model = cls.untrained(folder)
        if checkpoint is not None:
            model.backbone = _merged(model.backbone, Path(checkpoint), folder)
            load_head(model.head, Path(checkpoint))
        return model.eval()

    @classmethod
    def untrained(cls, folder: Path) -> CrossEncoder:
        """The zero-shot form of the backbone in ``folder``. Raises: CheckpointError, TokenizerError."""
        tokenizer = load_tokenizer(folder)
        network = load_backbone(folder)
        return cls(network, network.config, special_ids(tokenizer), separator_id(tokenizer)).eval()

    @property
    def takes_token_types(self) -> bool:
        """Whether ``forward`` wants ``token_type_ids`` (BERT does, XLM-R does not)."""
        return getattr(self.config, "type_vocab_size", 0) > 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Scores each row; a row's score does not depend on its neighbours or on padding to its right.

        Args:
            input_ids: int32 [rows, length], ``query, separator(s), item, separator`` as the tokenizer joins them.
            attention_mask: int32 [rows, length], 1 = token, 0 = padding.
            token_type_ids: int32 [rows, length], only for a backbone that takes them.

        Returns:
            float32 [rows, 1], a logit; higher is better; comparable among items of one query.
        """
        states = self._encode(input_ids, attention_mask, token_type_ids)
        in_query, in_item = self._segments(input_ids, attention_mask)
        return self.head(states, in_query, in_item)

    def _encode(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """float32 [rows, length, hidden]."""
        types = {"token_type_ids": token_type_ids} if self.takes_token_types else {}
        # A ready-made additive mask [rows, 1, 1, length] is taken as it is. The library's own holds float32's minimum,
        # which FP16 has not.
        additive = (1.0 - attention_mask[:, None, None, :].float()) * MASKED
        return self.backbone(input_ids=input_ids, attention_mask=additive, **types).last_hidden_state.float()

    def _segments(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of the query's and the item's own tokens, float32 [rows, length] each.

        From the first separator's position rather than token types, which XLM-R-like backbones do not have.
        """
        own = attention_mask.float()
        for special in self.specials:
            own = own * (input_ids != special).float()
        # The least position that holds a separator, as a minimum: TensorRT 8 has no cumulative sum, and its argmax does
        # not promise the first of equals.
        positions = torch.arange(input_ids.shape[1], device=input_ids.device, dtype=torch.float32).unsqueeze(0)
        query_end = torch.where(input_ids == self.separator, positions, float(NO_SEPARATOR)).amin(dim=1, keepdim=True)
        after_query = (positions > query_end).float()
        return own * (1 - after_query), own * after_query


def save_head(head: InteractionHead, folder: Path) -> None:
    """Writes the head's weights, float32, as ``head.safetensors`` into ``folder``, which exists."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, str(folder / HEAD_FILE))


def _merged(network: nn.Module, checkpoint: Path, backbone: Path) -> nn.Module:
    """``network`` with the adapter of ``checkpoint`` added into its weights."""
    from peft import PeftModel

    for wanted in (ADAPTER_CONFIG, ADAPTER_FILE, HEAD_FILE):
        if not (checkpoint / wanted).is_file():
            raise CheckpointError(f"{checkpoint}: no {wanted}; run 'make train', or leave the checkpoint out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers about its own attributes
            return PeftModel.from_pretrained(network, str(checkpoint)).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{checkpoint}: its adapter ({_rank(checkpoint)}) does not fit the backbone {backbone} "
            f"({_first_fault(error)}); "
            "run 'make train' for this backbone, or leave the checkpoint out"
        ) from error


def _rank(checkpoint: Path) -> str:
    try:
        return f"rank {json.loads((checkpoint / ADAPTER_CONFIG).read_text()).get('r')}"
    except ValueError:
        return f"{ADAPTER_CONFIG} is not JSON"


def _first_fault(error: Exception) -> str:
    """torch lists every tensor that does not fit; the first tells enough."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[1 if len(lines) > 1 else 0].strip()


def load_head(head: InteractionHead, checkpoint: Path) -> None:
    """Of the checkpoint's folder. Raises: CheckpointError: it does not fit the backbone."""
    try:
        head.load_state_dict(load_file(str(checkpoint / HEAD_FILE)))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{checkpoint / HEAD_FILE}: does not fit the backbone ({_first_fault(error)}); "
            "run 'make train' for this backbone"
        ) from error


class CrossEncoderRanker(Ranker):
    """One graph; query and item in one sequence, a row a candidate."""

    name = "cross_encoder"
    reads_text = PAIR_TEXT
    preprocess_code = "pair_preprocess"

    def __init__(
        self,
        checkpoint: Path | None = None,
        backbone: Path | None = None,
        form: TextForm = KIT_FORM,
        store: bool = True,
    ) -> None:
        """Load; see :meth:`CrossEncoder.from_checkpoint` for the folders and the errors.

        Args:
            form: how query and items become tokens.
            store: whether items' tokens lie in the item store.
        """
        self._backbone = backbone or packaged_backbone()
        self._checkpoint = checkpoint
        self._network = CrossEncoder.from_checkpoint(checkpoint, self._backbone).eval()
        self._tokenizer = load_tokenizer(self._backbone)
        self._pairs = TokenPairs(self._tokenizer, self._backbone / "tokenizer.json", form, store)
        check_positions(form.max_length, self._network.backbone, self._backbone)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> CrossEncoderRanker:
        """With the recipe's [text]."""
        ranker = cls(**folders_of(recipe), form=KIT_FORM.with_recipe(recipe.text), store=recipe.text.store)
        ranker.name = recipe.ranker
        return ranker

    @property
    def settings(self) -> Mapping[str, object]:
        """How it reads text."""
        return {"text": self._pairs.form}

    @property
    def network(self) -> CrossEncoder:
        """Backbone and head."""
        return self._network

    def with_network(self, network: nn.Module) -> CrossEncoderRanker:
        """Around another network that takes the same token sequences."""
        other = copy.copy(self)
        other._network = network.eval()  # type: ignore[assignment]
        return other

    @property
    def graphs(self) -> list[Graph]:
        """One: rows of requests of equal padded length may be joined."""
        token_types = (TOKEN_TYPE_IDS,) if self._network.takes_token_types else ()
        contract = Contract(
            name=self.name,
            inputs=(INPUT_IDS, ATTENTION_MASK, *token_types),
            outputs=(SCORE,),
            score="relevance of the item to the query, comparable within one query only; higher is better",
        )
        return [self._pairs.graph(self._network, contract)]

    @property
    def preprocess(self) -> Contract:
        """Token sequences of query and item."""
        return self._pairs.preprocess(self.name, self.graphs[0].contract.inputs)

    @property
    def preprocess_files(self) -> Mapping[str, Path | str]:
        """The backbone's tokenizer, and what makes items' texts."""
        return self._pairs.files

    @property
    def checkpoint_files(self) -> list[Path]:
        """Backbone and, where trained, adapter and head."""
        return [*weight_files(self._backbone), *(weight_files(self._checkpoint) if self._checkpoint else [])]

    def item_features(self, products: Iterable[Product]) -> Iterator[tuple[str, bytes]]:
        """Tokens of each item's text, see :func:`builders.features.text.stored_tokens`."""
        return self._pairs.item_features(products)

    def sample(self, request: Request, products: Sequence[Product]) -> dict[str, Sample]:
        """Token sequences from the tokenizer's own template for pairs."""
        return {self.name: self._pairs.sample(request, products, self.graphs[0].contract)}

    def score(self, request: Request, products: Sequence[Product]) -> np.ndarray:
        """FP32 [candidates]."""
        sample = self.sample(request, products)[self.name]
        with torch.inference_mode():
            return self._network(*(torch.from_numpy(array) for array in sample.values())).numpy()[:, 0]

    def tokens(self, sample: Mapping[str, Sample]) -> list[str]:
        """Of the first pair."""
        return self._pairs.tokens(sample[self.name])

    def truncated(self, request: Request, products: Sequence[Product]) -> int:
        """Of its pairs."""
        return self._pairs.truncated(request, products)
