"""The road of a model that is too large for one file: each step, its key, its loss, its publishing.

The limit is lowered, so that a tiny model takes it; ``test_a_model_of_more_than_2_gib`` has a real one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from tritonclient.grpc import model_config_pb2 as triton

from builders.compress.chain import Artifact, variant_files
from builders.compress.context import BuildContext
from builders.compress.fp16 import fp16_from_onnx
from builders.compress.quantize_graph import dynamic_int8_from_onnx
from builders.core import contract, onnx_files
from builders.core.contract import Contract
from builders.core.recipe import Recipe, Variant
from builders.core.runtimes import open_session, runtime_of
from builders.core.runtimes.openvino import ir_from_onnx
from builders.core.steps import DynamicInt8, Fp16, Int8, Int8Embeddings, Int8Network
from builders.export.onnx import check_onnx, onnx_from_ranker
from builders.publish.manifest import read_manifest
from builders.publish.repository import ServedModel, publish_models
from builders.rankers.base import Graph
from tests.support.small_rankers import REQUEST, catalogue, priced_ranker, some_products

REFERENCE = Variant(name="fp32_onnx")
VARIANTS = [
    REFERENCE,
    Variant(name="int8_onnx", steps=(Int8(calibration_queries=4),)),
    Variant(name="sensitive_int8_onnx", steps=(Int8(calibration_queries=4, keep_most_sensitive=1),)),
    Variant(name="dynamic_int8_onnx", steps=(DynamicInt8(step="dynamic_int8"),)),
    Variant(name="table_int8_onnx", steps=(Int8Embeddings(step="int8_embeddings", min_rows=100),)),
    Variant(name="fp16_onnx", steps=(Fp16(step="fp16"),)),
    Variant(name="smooth_int8_onnx", steps=(Int8Network(step="int8_network", calibration_lists=2, lists=0),)),
    Variant(name="fp32_openvino"),
    Variant(name="int8_openvino", steps=(Int8(calibration_queries=4),)),
]


@pytest.fixture
def two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "ONE_FILE_BYTES", 0)
    monkeypatch.setattr(onnx_files, "_SMALL_BYTES", 64)


def made(folder: Path, variant: Variant, said: list[str] | None = None) -> Artifact:
    variants = (REFERENCE, *([variant] if variant != REFERENCE else []))
    recipe = Recipe(ranker="priced", module="tests/support/small_rankers.py:Priced", variants=variants)
    say = (said if said is not None else []).append
    context = BuildContext(recipe, priced_ranker(), catalogue(), folder, lambda _: priced_ranker(9), say)
    return variant_files(context, variant)["priced"]


def scores(path: Path) -> np.ndarray:
    sample = priced_ranker().sample(REQUEST, some_products())["priced"]
    return next(iter(open_session(path).run(sample).values()))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_scores_the_same_with_its_weights_beside_it(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(tmp_path / "whole", variant)
    monkeypatch.setattr(onnx_files, "ONE_FILE_BYTES", 0)
    monkeypatch.setattr(onnx_files, "_SMALL_BYTES", 64)
    parted = made(tmp_path / "parted", variant)
    files = runtime_of(parted.path).files(parted.path)
    beside = "model.bin" if variant.runtime.name == "openvino" else f"{parted.path.name}.data"
    assert list(files) == [f"model{parted.path.suffix}", beside]
    assert (tmp_path / "parted" / "priced_fp32_onnx.onnx.data").is_file() or variant.network_steps
    np.testing.assert_allclose(scores(parted.path), scores(whole.path), atol=1e-6)


def test_a_product_whose_weights_are_gone_is_made_anew(tmp_path: Path, two_files: None) -> None:
    said: list[str] = []
    path = made(tmp_path, REFERENCE).path
    path.with_name(f"{path.name}.data").unlink()
    again = made(tmp_path, REFERENCE, said)
    assert any("exporting" in line for line in said)
    scores(again.path)


def test_other_weights_alone_make_what_follows_anew(tmp_path: Path, two_files: None) -> None:
    int8, said = VARIANTS[1], list[str]()
    made(tmp_path, int8)
    data = tmp_path / "priced_fp32_onnx.onnx.data"
    data.write_bytes(data.read_bytes()[:-4] + np.float32(7).tobytes())
    made(tmp_path, int8, said)
    assert any("int8" in line and "made anew, as source changed" in line for line in said)


def served(path: Path) -> ServedModel:
    config = triton.ModelConfig(name="priced", backend="onnxruntime")
    return ServedModel(config, Contract("priced", (), ()), runtime_of(path).files(path))


def test_a_version_folder_holds_both_files_and_the_manifest_both_digests(tmp_path: Path, two_files: None) -> None:
    path, repository = made(tmp_path / "build", REFERENCE).path, tmp_path / "models"
    assert publish_models(repository, [served(path)], [], {}) == {"priced": 1}
    version = repository / "priced" / "1"
    assert {"model.onnx", "priced_fp32_onnx.onnx.data"} < {file.name for file in version.iterdir()}
    onnxruntime.InferenceSession(version / "model.onnx")
    files = read_manifest(repository).files
    assert {"priced/1/model.onnx", "priced/1/priced_fp32_onnx.onnx.data"} < files.keys()


def test_other_weights_alone_are_another_version(tmp_path: Path, two_files: None) -> None:
    path, repository = made(tmp_path / "build", REFERENCE).path, tmp_path / "models"
    publish_models(repository, [served(path)], [], {})
    assert publish_models(repository, [served(path)], [], {}) == {"priced": 1}
    data = path.with_name(f"{path.name}.data")
    data.write_bytes(data.read_bytes()[:-4] + np.float32(7).tobytes())
    assert publish_models(repository, [served(path)], [], {}) == {"priced": 2}


# ---------------------------------------------------------------- a real one
class Large(nn.Module):
    """2.2 GiB of FP32 in one table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.arange(590_000).unsqueeze(1).expand(-1, 1000) / 590_000)
        self.mix = nn.Linear(1000, 1)

    def forward(self, input_ids: Tensor) -> Tensor:
        """int32 [rows, length] => float32 [rows, 1]."""
        scores: Tensor = self.mix(self.table(input_ids).mean(1))
        return scores


@pytest.mark.slow
def test_a_model_of_more_than_2_gib(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = Contract("large", (contract.INPUT_IDS,), (contract.SCORE,))
    graph = Graph("large", Large().eval(), tensors, batches=True, lengths=(8,))
    sample = {"input_ids": np.arange(0, 560_000, 35_000, dtype=np.int32).reshape(2, 8)}
    path = tmp_path / "large.onnx"
    onnx_from_ranker(graph, sample, path)
    assert path.with_name("large.onnx.data").stat().st_size > 2**31
    check_onnx(graph, path, [sample])
    wanted = open_session(path).run(sample)["score"]
    dynamic_int8_from_onnx(path, tmp_path / "int8.onnx")
    ir_from_onnx(path, tmp_path / "large.xml")
    fp16_from_onnx(path, tmp_path / "fp16.onnx", [sample])
    for made, atol in (("int8.onnx", 1e-2), ("large.xml", 1e-4), ("fp16.onnx", 1e-2)):
        np.testing.assert_allclose(open_session(tmp_path / made).run(sample)["score"], wanted, atol=atol)
    assert is_halved(tmp_path / "fp16.onnx")
    for file in tmp_path.iterdir():
        file.unlink()


def is_halved(path: Path) -> bool:
    return sum(file.stat().st_size for file in onnx_files.model_files(path)) < 1.3 * 2**30
