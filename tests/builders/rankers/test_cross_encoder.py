"""The cross-encoder's scores: independent of padding and neighbours, the same in ONNX, an adapter merged or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from builders.features.text import encode_pairs, load_tokenizer
from builders.rankers.backbone import CheckpointError, packaged_backbone
from builders.rankers.cross_encoder import ADAPTER_CONFIG, ADAPTER_FILE, HEAD_FILE, CrossEncoder
from tests.support.tiny_bert import write_tiny_bert

CHECKPOINT = Path(__file__).resolve().parents[3] / "checkpoints" / "cross_encoder"
LARGEST_CHECKPOINT_BYTES = 4 * 2**20
TITLES = [
    "red trail shoe for men",
    "garden tent",
    "",
    "blue running shoes, women's size 9, breathable mesh upper",
    "mug",
]


@pytest.fixture(scope="module")
def model() -> CrossEncoder:
    return CrossEncoder.from_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def untrained() -> CrossEncoder:
    return CrossEncoder.from_checkpoint()


def scores(model: CrossEncoder, tokens: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        return model(*map(torch.from_numpy, tokens.values())).numpy()


def pairs(query: str = "red shoe", titles: list[str] = TITLES) -> dict[str, np.ndarray]:
    return encode_pairs(load_tokenizer(packaged_backbone()), query, titles)


def test_one_finite_score_a_row(model: CrossEncoder) -> None:
    found = scores(model, pairs())
    assert found.shape == (len(TITLES), 1) and found.dtype == np.float32
    assert np.isfinite(found).all()


@pytest.mark.parametrize("form", ["model", "untrained"])
def test_a_fitting_title_scores_above_others(form: str, request: pytest.FixtureRequest) -> None:
    assert scores(request.getfixturevalue(form), pairs()).argmax() == 0


def test_padding_and_neighbours_change_nothing(model: CrossEncoder) -> None:
    together = pairs()
    longer = {name: np.pad(array, ((0, 0), (0, 24))) for name, array in together.items()}
    alone = [scores(model, pairs(titles=[title])) for title in TITLES]
    np.testing.assert_allclose(scores(model, together), scores(model, longer), atol=1e-4)
    np.testing.assert_allclose(scores(model, together), np.concatenate(alone), atol=1e-4)


def test_a_query_without_tokens_is_scored(model: CrossEncoder) -> None:
    assert np.isfinite(scores(model, pairs(query="\u200b"))).all()


def test_adapter_changes_the_scores_and_leaves_a_plain_network(model: CrossEncoder, untrained: CrossEncoder) -> None:
    assert list(model.state_dict()) == list(untrained.state_dict())
    assert np.abs(scores(model, pairs()) - scores(untrained, pairs())).max() > 1e-3


def test_checkpoint_is_small() -> None:
    files = [CHECKPOINT / ADAPTER_FILE, CHECKPOINT / HEAD_FILE]
    assert sum(path.stat().st_size for path in files) <= LARGEST_CHECKPOINT_BYTES


@pytest.mark.parametrize(("rows", "length"), [(1, 16), (40, 64), pytest.param(128, 128, marks=pytest.mark.slow)])
def test_onnx_agrees_with_torch(model: CrossEncoder, exported: Path, rows: int, length: int) -> None:
    tokens = random_pairs(rows, length)
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, tokens)[0], scores(model, tokens), atol=1e-4)


def test_onnx_takes_int32_of_any_shape(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    assert [tensor.name for tensor in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert {tensor.type for tensor in session.get_inputs()} == {"tensor(int32)"}
    assert all(isinstance(size, str) for tensor in session.get_inputs() for size in tensor.shape)


@pytest.fixture(scope="module")
def exported(model: CrossEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    tokens = random_pairs(4, 16)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        tuple(map(torch.from_numpy, tokens.values())),
        path,
        input_names=list(tokens),
        output_names=["score"],
        dynamic_shapes=(free,) * len(tokens),
        opset_version=20,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return path


def random_pairs(rows: int, length: int) -> dict[str, np.ndarray]:
    """Rows of unequal lengths, the first without padding, each with its separators."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 29_000, (rows, length), dtype=np.int32)
    ends = length - np.arange(rows) % (length // 2)
    query_ends = 3 + np.arange(rows) % 3
    positions = np.arange(length)
    ids[:, 0] = 101
    ids[(positions == query_ends[:, None]) | (positions == ends[:, None] - 1)] = 102
    inside = positions < ends[:, None]
    types = inside & (positions > query_ends[:, None])
    return {
        "input_ids": np.where(inside, ids, 0).astype(np.int32),
        "attention_mask": inside.astype(np.int32),
        "token_type_ids": types.astype(np.int32),
    }


def test_missing_adapter_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json; run 'make train'"):
        CrossEncoder.from_checkpoint(tmp_path)


def test_adapter_of_another_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit the backbone.*lora_A.*run 'make train' for this backbone"):
        CrossEncoder.from_checkpoint(CHECKPOINT, write_tiny_bert(tmp_path))


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        CrossEncoder.from_checkpoint(None, tmp_path)


def test_an_adapter_configuration_that_is_no_json_is_refused(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "broken")
    (tmp_path / "broken" / ADAPTER_CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match=r"its adapter \(adapter_config\.json is not JSON\)"):
        CrossEncoder.from_checkpoint(tmp_path / "broken")


@pytest.mark.parametrize(("file", "content"), [("config.json", "{"), ("model.safetensors", "no weights")])
def test_a_backbone_that_transformers_cannot_load_is_refused(tmp_path: Path, file: str, content: str) -> None:
    write_tiny_bert(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(CheckpointError, match=r"transformers cannot load it .*copy it anew"):
        CrossEncoder.from_checkpoint(None, tmp_path)
