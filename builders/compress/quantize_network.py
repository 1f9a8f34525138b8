"""Network => network with INT8 quantizers by ModelOpt => ONNX with explicit Q/DQ: SmoothQuant, and tuning (QAT).

INT8 weights per channel, activations per tensor, all symmetric: the one graph that ONNX Runtime, OpenVINO and TensorRT
take alike. https://nvidia.github.io/Model-Optimizer/guides/_pytorch_quantization.html
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import nn

from builders.compress.distill import SEEDS_APART, distill
from builders.compress.lists import OnLists, tensors_of
from builders.core.contract import Tensor
from builders.core.onnx_files import DATA_SUFFIX, is_large, load_model, save_model
from builders.core.quiet import quiet
from builders.core.steps import Distill, Int8Network
from builders.data.beir import JudgedQueries
from builders.data.unlabeled import unlabeled_lists
from builders.export.onnx import OPSET, check_tensors
from builders.rankers.base import Graph, Ranker, Sample


def quantized_network(
    ranker: Ranker, data: JudgedQueries, settings: Int8Network, say: Callable[[str], None] = print
) -> nn.Module:
    """Put quantizers into the network's linear layers, calibrate them, and tune on the unquantized ranker's scores.

    Args:
        ranker: whose network is changed: hand it a copy.
    """
    with quiet():  # it warns of versions
        import modelopt.torch.quantization as quantization

    teacher = ranker.with_network(copy.deepcopy(ranker.network))
    lists = unlabeled_lists(data, settings.calibration_lists, settings.candidates, settings.seed + 2 * SEEDS_APART)
    samples = tensors_of(ranker, lists)
    on_lists = OnLists(ranker, samples)
    say(f"{ranker.name}: calibrating INT8 on {len(samples)} lists{' with SmoothQuant' if settings.smooth else ''}")
    with quiet():  # it counts quantizers
        quantization.quantize(
            on_lists, _config(settings), lambda module: [module(place) for place in range(len(samples))]
        )
    if settings.lists:
        tuning = Distill(
            step="distill", lists=settings.lists, candidates=settings.candidates, batch=settings.batch,
            learning_rate=settings.learning_rate, sharpness=settings.sharpness, seed=settings.seed,
        )  # fmt: skip
        distill(ranker, [(teacher, 1.0)], data, tuning, say)
    return ranker.network.eval()


def _config(settings: Int8Network) -> dict[str, Any]:
    """Linear layers alone: ModelOpt's ready-made configuration also quantizes what LayerNorm reads."""
    weights = {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Linear", "cfg": {"num_bits": 8, "axis": 0}}
    inputs = {"quantizer_name": "*input_quantizer", "parent_class": "nn.Linear", "cfg": {"num_bits": 8, "axis": None}}
    kept = [{"quantizer_name": pattern, "enable": False} for pattern in settings.keep_fp32]
    return {
        "quant_cfg": [{"quantizer_name": "*", "enable": False}, weights, inputs, *kept],
        "algorithm": "smoothquant" if settings.smooth else "max",
    }


def onnx_from_quantized(graph: Graph, example: Sample, path: Path) -> None:
    """Export with torch's older exporter, the one that knows ModelOpt's quantizers.

    Args:
        graph: module with quantizers, and its contract.
        example: one real request.
        path: written beside and renamed.

    Raises:
        ContractError: the exported graph's tensors are not the contract's.
    """
    tensors = (*graph.contract.inputs, *graph.contract.outputs)
    axes: dict[str, Any] = {
        tensor.name: {axis: dim for axis, dim in enumerate(tensor.dims) if isinstance(dim, str)} for tensor in tensors
    }
    with tempfile.TemporaryDirectory() as scratch, quiet(), torch.inference_mode(), _no_fast_path():
        exported = Path(scratch) / "exported.onnx"  # with files beside it where it is large
        torch.onnx.export(
            graph.module,
            tuple(torch.from_numpy(example[tensor.name]) for tensor in graph.contract.inputs),
            exported,
            dynamo=False,
            input_names=[tensor.name for tensor in graph.contract.inputs],
            output_names=[tensor.name for tensor in graph.contract.outputs],
            dynamic_axes={name: dims for name, dims in axes.items() if dims},
            opset_version=OPSET,
            do_constant_folding=True,
        )
        model = _folded(exported)
    _name_dimensions(model, tensors)
    check_tensors(model, graph.contract)
    save_model(model, path)


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """Without the fused attention of torch, an operator that ONNX has not."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _folded(exported: Path) -> onnx.ModelProto:
    """With weights that are INT8 in the file: the exporter writes them as FP32 with a QuantizeLinear behind each."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard operators alone
    options.log_severity_level = 3
    folded = exported.with_name("folded.onnx")
    options.optimized_model_filepath = str(folded)
    if is_large(exported):
        data = f"{folded.name}{DATA_SUFFIX}"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
    onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    onnx.checker.check_model(folded)
    model = load_model(folded)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    return model


def _name_dimensions(model: onnx.ModelProto, tensors: Sequence[Tensor]) -> None:
    """This exporter makes up names for dimensions that it cannot derive."""
    by_name = {tensor.name: tensor for tensor in tensors}
    for value in (*model.graph.input, *model.graph.output):
        wanted = by_name[value.name].dims if value.name in by_name else ()
        for dim, size in zip(value.type.tensor_type.shape.dim, wanted, strict=False):
            if isinstance(size, int) and not dim.dim_value:
                dim.dim_value = size
