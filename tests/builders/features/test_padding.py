"""Padding has an id of its own: a byte-level BPE tokenizer's token at id 0 is a token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from builders.data.beir import Product, Request
from builders.features import FeatureEncoder, dense, tokens
from builders.features.padding import padding_id_of
from builders.features.text import TokenizerError, load_tokenizer_file
from builders.rankers.backbone import packaged_backbone
from builders.rankers.bilstm import BiLstm
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.text_cnn import TextCnn
from tests.support.byte_level_bpe import PADDING, write_byte_level_bpe

QUERY = "red shoe"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_level_bpe(tmp_path_factory.mktemp("bpe"))


def encoder_of(file: Path) -> FeatureEncoder:
    features = (tokens("asked", "query", 12), tokens("title", "item", 12, field="title"))
    return FeatureEncoder(features, load_tokenizer_file(file), padding_id=padding_id_of(file))


def test_the_token_at_id_0_is_real_and_padding_is_another(bpe: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bpe))
    assert tokenizer.id_to_token(0) == "!"
    assert padding_id_of(bpe) == tokenizer.token_to_id(PADDING) > 0


def test_a_text_that_ends_in_the_token_at_id_0_keeps_it(bpe: Path) -> None:
    encoder = encoder_of(bpe)
    text = "tea of red wool and a blue mug!"
    ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids[-9:]  # one more than a length bucket
    stored = encoder.candidate_tensors([encoder.item_record({"title": encoder.tokenizer.decode(ids)}), None])["title"]
    assert ids[-1] == 0
    assert stored.tolist() == [ids + [encoder.padding_id] * 7, [encoder.padding_id] * 16]


def test_the_padding_id_survives_the_file_that_is_served(bpe: Path) -> None:
    encoder = encoder_of(bpe)
    served = FeatureEncoder.from_json(encoder.to_json(), encoder.tokenizer)
    assert served.padding_id == encoder.padding_id
    assert served.request_tensors(query="!")["asked"].tolist() == [[0] + [encoder.padding_id] * 7]


def test_padding_0_leaves_no_trace_in_the_file() -> None:
    assert "padding" not in FeatureEncoder([dense("price", ["price"])]).to_json()


@pytest.mark.parametrize("config", [{"pad_token": "!!"}, {"pad_token": {"content": "!!"}}])
def test_a_tokenizers_config_names_the_padding_token(tmp_path: Path, config: dict[str, Any]) -> None:
    file = write_byte_level_bpe(tmp_path, padding=None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert padding_id_of(file) == Tokenizer.from_file(str(file)).token_to_id("!!")


def test_a_tokenizer_without_padding_is_refused_and_not_given_id_0(tmp_path: Path) -> None:
    file = write_byte_level_bpe(tmp_path, padding=None)
    with pytest.raises(TokenizerError, match=r"no padding token: .* whose id 0 is '!'"):
        padding_id_of(file)


def test_the_packaged_tokenizers_padding_is_0() -> None:
    assert padding_id_of(packaged_backbone() / "tokenizer.json") == 0


# ---------------------------------------------------------------- the kit's small text rankers
@pytest.mark.parametrize("kind", [BiLstm, TextCnn])
def test_a_trailing_token_at_id_0_changes_the_score_and_more_padding_does_not(kind: Any, bpe: Path) -> None:
    torch.manual_seed(0)
    network = kind(torch.randn(Tokenizer.from_file(str(bpe)).get_vocab_size(), 16), width=8, vector=16)
    network.tokenizer_file, network.words.padding_id = bpe, padding_id_of(bpe)
    network.words.bake()
    ranker = FeatureRanker("small", network)
    plain, loud, long = (Product(title, title) for title in ("blue shoe", "blue shoe!", "a blue mug for tea of wool!!"))
    alone = ranker.score(Request(QUERY), [plain])[0]
    beside = ranker.score(Request(QUERY), [plain, loud, long])
    assert alone == pytest.approx(beside[0], abs=1e-5)
    assert abs(beside[0] - beside[1]) > 1e-3


class Counting(nn.Module):
    """Scores an item by its title's tokens that are no padding."""

    features = (tokens("title", "item", 12, field="title"),)

    def __init__(self, tokenizer_file: Path) -> None:
        super().__init__()
        self.tokenizer_file = tokenizer_file
        self.padding_id = padding_id_of(tokenizer_file)

    def forward(self, title: torch.Tensor) -> torch.Tensor:
        return (title != self.padding_id).sum(dim=1, keepdim=True).float()


def test_a_module_of_ones_own_sees_every_token(bpe: Path) -> None:
    ranker = FeatureRanker("counting", Counting(bpe))
    scores = ranker.score(Request(), [Product("a", "!"), Product("b", "!!!"), Product("c", "")])
    wanted = [len(Tokenizer.from_file(str(bpe)).encode(text, add_special_tokens=False).ids) for text in ("!", "!!!")]
    assert np.array_equal(scores, [*map(float, wanted), 0.0])
