"""A split cross-encoder: its layers are transformers' own, both of its forms agree, what cannot be split is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from builders.data.beir import Product, Request
from builders.features.text import KIT_FORM
from builders.rankers.backbone import CheckpointError
from builders.rankers.cross_encoder import CrossEncoder
from builders.rankers.split_cross_encoder import (
    ITEM_POSITION,
    SPLIT_FILE,
    Split,
    SplitCrossEncoder,
    SplitCrossEncoderRanker,
)
from tests.support.split_checkpoint import write_split_checkpoint
from tests.support.tiny_bert import write_tiny_bert
from tests.support.tiny_xlm_roberta import write_backbone

TITLES = ["red shoe", "blue tent set acme", "", "green mug " * 20, "lamp"]
PRODUCTS = [Product(str(row), title) for row, title in enumerate(TITLES)]
LONG_QUERY = "red blue green shoe tent mug lamp acme set " * 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_split_checkpoint(tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def ranker(folders: tuple[Path, Path]) -> SplitCrossEncoderRanker:
    return SplitCrossEncoderRanker(*folders, vectors="fp32")


@pytest.mark.parametrize("query", ["red shoe", "", LONG_QUERY])
def test_the_served_form_scores_as_the_trained_one(ranker: SplitCrossEncoderRanker, query: str) -> None:
    found = ranker.score(Request(query), PRODUCTS)
    np.testing.assert_allclose(found, ranker.score_joined(Request(query), PRODUCTS), atol=2e-5)
    alone = [ranker.score(Request(query), [product])[0] for product in PRODUCTS]
    np.testing.assert_allclose(found, alone, atol=2e-5)


def test_states_apart_are_the_hidden_states_of_transformers(folders: tuple[Path, Path]) -> None:
    checkpoint, backbone = folders
    network = SplitCrossEncoder.split_checkpoint(checkpoint, backbone)
    library = AutoModel.from_pretrained(backbone).eval()
    library.load_state_dict(network.backbone.state_dict(), strict=False)
    ids = torch.tensor([[4, 7, 3, 0], [5, 8, 9, 3]], dtype=torch.int32)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.int32)
    for item, position in ((False, 0), (True, ITEM_POSITION)):
        with torch.inference_mode():
            found = network.states_apart(ids, mask, item=item)
            wanted = library(
                input_ids=ids.long(),
                attention_mask=mask.long(),
                token_type_ids=torch.full_like(ids, int(item)).long(),
                position_ids=torch.arange(4).expand(2, -1) + position,
                output_hidden_states=True,
            ).hidden_states[network.split.after]
        assert torch.allclose(found[mask == 1], wanted[mask == 1], atol=1e-5)


def test_an_items_states_do_not_depend_on_the_query_and_the_score_does(ranker: SplitCrossEncoderRanker) -> None:
    samples = [ranker.sample(Request(query), PRODUCTS)[ranker.name] for query in ("red shoe", "blue tent")]
    np.testing.assert_array_equal(samples[0]["item_vectors"], samples[1]["item_vectors"])
    scores = [ranker.score(Request(query), PRODUCTS) for query in ("red shoe", "blue tent")]
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


@pytest.mark.parametrize(("vectors", "a_token", "largest"), [("fp16", 64, 0.01), ("int8", 36, 0.2)])
def test_smaller_states_take_fewer_bytes_and_score_alike(
    folders: tuple[Path, Path], ranker: SplitCrossEncoderRanker, vectors: str, a_token: int, largest: float
) -> None:
    small = SplitCrossEncoderRanker(*folders, vectors=vectors)
    [(_, stored)] = small.item_features(PRODUCTS[:1])
    assert len(stored) == 3 * a_token  # red shoe [SEP]
    assert ranker.unrounded is None and small.unrounded is not None
    np.testing.assert_array_equal(
        small.unrounded.score(Request("mug"), PRODUCTS), ranker.score(Request("mug"), PRODUCTS)
    )
    np.testing.assert_allclose(
        small.score(Request("mug"), PRODUCTS), ranker.score(Request("mug"), PRODUCTS), atol=largest
    )


def test_what_is_not_read_to_its_end_is_counted(ranker: SplitCrossEncoderRanker) -> None:
    longer = [*PRODUCTS, Product("long", "mug " * 200)]
    assert ranker.truncated(Request("red"), longer) == 1
    assert ranker.truncated(Request(LONG_QUERY), longer) == len(longer)


def test_other_text_or_another_split_gets_other_stored_states(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    checkpoint, backbone = folders
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    (other / SPLIT_FILE).write_text('{"after": 1 }')
    form = dataclasses.replace(KIT_FORM, max_length=64)
    rankers = [
        SplitCrossEncoderRanker(checkpoint, backbone),
        SplitCrossEncoderRanker(checkpoint, backbone, vectors="fp16"),
        SplitCrossEncoderRanker(checkpoint, backbone, form=form),
        SplitCrossEncoderRanker(other, backbone),
    ]
    assert len({one.preprocess.parameters["item_features_version"] for one in rankers}) == len(rankers)


# ---------------------------------------------------------------- refused
def test_a_split_that_leaves_no_layer_to_join(folders: tuple[Path, Path]) -> None:
    whole = CrossEncoder.untrained(folders[1])
    with pytest.raises(CheckpointError, match=r"split after layer 2 of 2, .* wanted at most 1"):
        SplitCrossEncoder(whole, Split(after=2))


@pytest.mark.parametrize("content", [None, "", '{"after": 0}', '{"before": 1}'])
def test_a_checkpoint_that_does_not_say_where(tmp_path: Path, folders: tuple[Path, Path], content: str | None) -> None:
    checkpoint = Path(shutil.copytree(folders[0], tmp_path / "checkpoint"))
    (checkpoint / SPLIT_FILE).unlink()
    if content is not None:
        (checkpoint / SPLIT_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=f'{SPLIT_FILE}: not there or not .* run "builders train"'):
        SplitCrossEncoderRanker(checkpoint, folders[1])


def test_a_tokenizer_that_joins_otherwise(tmp_path: Path) -> None:
    checkpoint, _ = write_split_checkpoint(tmp_path / "bert")
    backbone = write_backbone(tmp_path / "xlm", TITLES)
    with pytest.raises(CheckpointError):
        SplitCrossEncoderRanker(checkpoint, backbone)


def test_lengths_that_leave_no_room(folders: tuple[Path, Path]) -> None:
    for changed in ({"max_length": 34}, {"max_query_tokens": None}):
        form = dataclasses.replace(KIT_FORM, **changed)
        with pytest.raises(CheckpointError, match="leaves no room for an item"):
            SplitCrossEncoderRanker(*folders, form=form)


def test_a_backbone_without_layers_of_berts_kind(tmp_path: Path) -> None:
    whole = CrossEncoder.untrained(write_tiny_bert(tmp_path))
    whole.backbone = torch.nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"Linear has no embeddings and encoder\.layer"):
        SplitCrossEncoder(whole, Split(after=1))
