"""A model with its weights beside it is read, hashed, copied and moved as one thing; without them it is none."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from builders.compress.fp16 import tensor_types
from builders.core import onnx_files
from builders.core.onnx_files import (
    OnnxFileError,
    copy_model,
    external_files,
    is_large,
    load_model,
    model_files,
    model_sha256,
    refuse_large,
    save_model,
    without_weights,
)
from tests.support.small_graphs import masked_attention_model, sample


@pytest.fixture
def two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is large, and all but single numbers are weights."""
    monkeypatch.setattr(onnx_files, "ONE_FILE_BYTES", 0)
    monkeypatch.setattr(onnx_files, "_SMALL_BYTES", 64)


@pytest.fixture
def model(tmp_path: Path, two_files: None) -> Path:
    path = tmp_path / "model" / "scorer.onnx"
    save_model(masked_attention_model(), path)
    return path


def content(model: onnx.ModelProto) -> tuple[list[onnx.NodeProto], dict[str, list[float]]]:
    """Nodes, and every weight's values."""
    arrays = {tensor.name: numpy_helper.to_array(tensor).ravel().tolist() for tensor in model.graph.initializer}
    return list(model.graph.node), arrays


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    save_model(masked_attention_model(), tmp_path / "scorer.onnx")
    assert model_files(tmp_path / "scorer.onnx") == list(tmp_path.iterdir()) == [tmp_path / "scorer.onnx"]
    assert not is_large(tmp_path / "scorer.onnx")


def test_a_large_model_has_its_weights_beside_it(model: Path) -> None:
    assert external_files(model) == {"scorer.onnx.data": model.with_name("scorer.onnx.data")}
    assert sorted(path.name for path in model.parent.iterdir()) == ["scorer.onnx", "scorer.onnx.data"]
    assert is_large(model)
    assert content(load_model(model)) == content(masked_attention_model())


def test_saving_leaves_the_model_in_memory_whole(tmp_path: Path, two_files: None) -> None:
    held = masked_attention_model()
    save_model(held, tmp_path / "scorer.onnx")
    assert content(held) == content(masked_attention_model())


def test_a_copy_has_weights_of_its_own(model: Path, tmp_path: Path) -> None:
    copy_model(model, tmp_path / "copy.onnx")
    model.with_name("scorer.onnx.data").unlink()
    assert content(load_model(tmp_path / "copy.onnx")) == content(masked_attention_model())
    onnxruntime.InferenceSession(tmp_path / "copy.onnx").run(None, sample())


def test_a_copy_of_what_became_small_is_one_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    copy_model(model, tmp_path / "copy.onnx")
    assert external_files(tmp_path / "copy.onnx") == {}
    assert content(load_model(tmp_path / "copy.onnx")) == content(masked_attention_model())


@pytest.mark.parametrize("read", [load_model, external_files, model_sha256, is_large])
def test_a_model_without_its_weights_is_refused_by_name(model: Path, read: object) -> None:
    model.with_name("scorer.onnx.data").unlink()
    with pytest.raises(OnnxFileError, match=r"its weights lie in scorer\.onnx\.data, which is not beside it"):
        read(model)  # type: ignore[operator]
    assert load_model(model, weights=False).graph.node[0].name == "first"


def test_the_digest_changes_with_either_file(model: Path) -> None:
    digests = {model_sha256(model)}
    data = model.with_name("scorer.onnx.data")
    data.write_bytes(data.read_bytes()[:-1] + b"!")
    digests.add(model_sha256(model))
    renamed = load_model(model, weights=False)
    renamed.producer_name = "another"
    model.write_bytes(renamed.SerializeToString())
    assert len({*digests, model_sha256(model)}) == 3


def test_types_are_inferred_without_the_weights(two_files: None) -> None:
    bare = without_weights(masked_attention_model())
    assert not any(tensor.raw_data for tensor in bare.graph.initializer if list(tensor.dims) == [8, 8])
    assert tensor_types(bare)["normed"] == onnx.TensorProto.FLOAT
    assert tensor_types(masked_attention_model()).keys() >= {"normed", "weights", "w1"}


def test_what_cannot_be_done_in_pieces_is_refused_with_the_limit(two_files: None) -> None:
    with pytest.raises(
        OnnxFileError, match=r"^A conversion takes a model as one protobuf message, whose limit is 2 GiB"
    ):
        refuse_large(masked_attention_model(), "A conversion")
