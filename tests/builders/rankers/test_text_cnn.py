"""The convolutional text ranker: the same scores in torch and ONNX Runtime, whatever the padding; clear refusals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from builders.core.workspace import REPOSITORY_ROOT
from builders.data.beir import JudgedQueries, Request
from builders.rankers.backbone import CheckpointError
from builders.rankers.checkpoint import load_checkpoint, save_checkpoint
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.layers.word_embeddings import FROZEN
from builders.rankers.text_cnn import TextCnn
from tests.support.text_networks import check_parity_at_all_sizes, many_products, padded
from tests.support.tiny_bert import write_tiny_bert

CHECKPOINT = REPOSITORY_ROOT / "checkpoints" / "text_cnn"
SMALL = {"width": 16, "channels": 8, "vector": 16}
QUERY = torch.tensor([[5, 7]], dtype=torch.int32)
TITLES = torch.tensor([[5, 7, 12, 4], [6, 9, 0, 0], [0, 0, 0, 0]], dtype=torch.int32)
BRANDS = torch.tensor([[11], [0], [11]], dtype=torch.int32)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def network(backbone: Path) -> TextCnn:
    """Seeded, and with a dense layer strong enough that what it reads shows in the scores."""
    torch.manual_seed(0)
    made = TextCnn.untrained(dict(SMALL), backbone).eval()
    torch.nn.init.normal_(made.dense.weight)
    return made


def test_onnx_scores_equal_torch_at_1_40_and_1024_candidates(judged: JudgedQueries, tmp_path: Path) -> None:
    ranker = FeatureRanker.load("text_cnn", TextCnn, CHECKPOINT, None)
    check_parity_at_all_sizes(ranker, Request("coffee mug"), many_products(judged), tmp_path)


@torch.inference_mode()
def test_padding_does_not_change_a_score(network: TextCnn) -> None:
    found = network.score_candidates(network.encode_request(QUERY), TITLES, BRANDS)
    longer = network.score_candidates(network.encode_request(padded(QUERY, 6)), padded(TITLES, 5), padded(BRANDS, 3))
    torch.testing.assert_close(longer, found)


@torch.inference_mode()
def test_order_of_words_changes_a_score(network: TextCnn) -> None:
    vector = network.encode_request(QUERY)
    forward, backward = (
        network.score_candidates(vector, titles, BRANDS[:1]) for titles in (TITLES[:1], TITLES[:1].flip(1))
    )
    assert (forward - backward).abs().item() > 1e-3


@torch.inference_mode()
def test_a_candidate_scores_the_same_alone_as_among_others(network: TextCnn) -> None:
    vector = network.encode_request(QUERY)
    together = network.score_candidates(vector, TITLES, BRANDS)
    alone = [network.score_candidates(vector, TITLES[[row]], BRANDS[[row]]) for row in range(len(TITLES))]
    torch.testing.assert_close(together, torch.cat(alone))
    assert together.isfinite().all()


@torch.inference_mode()
def test_multiplied_out_embeddings_score_alike(network: TextCnn) -> None:
    before = network.score_candidates(network.encode_request(QUERY), TITLES, BRANDS)
    network.words.bake()
    torch.testing.assert_close(network.score_candidates(network.encode_request(QUERY), TITLES, BRANDS), before)


def test_a_checkpoint_keeps_the_trained_part_alone_and_loads(network: TextCnn, backbone: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, network, SMALL, network.encoder(), skip=FROZEN)
    assert FROZEN not in load_checkpoint(tmp_path, "text_cnn").weights
    loaded = TextCnn.from_checkpoint(tmp_path, backbone)
    with torch.inference_mode():
        wanted, found = (one.score_candidates(one.encode_request(QUERY), TITLES, BRANDS) for one in (network, loaded))
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=1e-2)  # kept as FP16


def test_the_committed_checkpoint_is_at_most_one_mebibyte() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 2**20


def test_no_checkpoint_is_refused_with_the_next_step() -> None:
    with pytest.raises(CheckpointError, match=re.escape("python -m builders train")):
        TextCnn.from_checkpoint(None)
