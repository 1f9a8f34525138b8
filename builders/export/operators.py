"""Torch's operators as ONNX Runtime computes them fastest, in standard ONNX operators alone.

The same file feeds OpenVINO, TensorRT and the quantizers, so nothing here is of ONNX Runtime's own domain: graphs are
written so that its fusions at loading recognise them, where torch's own exporter writes what they do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnxscript
import torch
from onnxscript import ir
from onnxscript.function_libs.torch_lib.ops import nn as torchlib
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase, rewrite

op: Any = onnxscript.opset18  # typed for scripts, whose values are tensors


def gelu(self: ir.Value, approximate: str = "none") -> ir.Value:
    """``aten::gelu``, with the half where ONNX Runtime looks for it: last, or of the approximation, first."""
    one, half = _constant(1.0, self), _constant(0.5, self)
    if approximate == "none":
        erf = op.Erf(op.Div(self, _constant(math.sqrt(2), self)))
        return op.Mul(op.Mul(self, op.Add(erf, one)), half)
    cube = op.Mul(_constant(0.044715, self), op.Pow(self, _constant(3.0, self)))
    tanh = op.Tanh(op.Mul(_constant(math.sqrt(2 / math.pi), self), op.Add(self, cube)))
    return op.Mul(op.Mul(self, half), op.Add(tanh, one))


def rsqrt(self: ir.Value) -> ir.Value:
    """``aten::rsqrt``: one over the root, as ONNX Runtime looks for it in an RMSNorm."""
    return op.Div(_constant(1.0, self), op.Sqrt(self))


def attention(
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    attn_mask: ir.Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> ir.Value:
    """``aten::scaled_dot_product_attention`` of [rows, heads, length, width]: the scale and one transposition, which
    are fused into the product.

    Torch's exporter reshapes the keys twice, to shapes that each run computes, and looks for NaN behind a boolean mask,
    though what it adds is finite. What transformers' encoders do not ask for is left to it.
    """
    width = query.shape[-1] if query.shape else None
    if is_causal or enable_gqa or dropout_p or not isinstance(width, int):
        return torchlib.aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        )
    factor = _constant(1 / math.sqrt(width) if scale is None else scale, query)
    scores = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = op.Add(scores, _added(attn_mask, query))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _added(mask: ir.Value, query: ir.Value) -> ir.Value:
    """What a mask adds to scores: where a boolean one is false, the lowest value."""
    if mask.dtype != ir.DataType.BOOL:
        return mask
    return op.Where(mask, _constant(0.0, query), _constant(torch.finfo(torch.float32).min, query))


def _constant(value: float, like: ir.Value) -> ir.Value:
    return op.Constant(value=ir.tensor(value, dtype=like.dtype))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.gelu.default: gelu,
    torch.ops.aten.rsqrt.default: rsqrt,
    torch.ops.aten.scaled_dot_product_attention.default: attention,
}
"""For ``torch.onnx.export``'s ``custom_translation_table``."""


class KeptDimensions(RewriteRuleClassBase):
    """Dimensions that a reshape keeps are 0, in place of shapes that each run computes."""

    def pattern(self, op: Any, data: ir.Value, shape: ir.Value) -> ir.Value:
        """A reshape."""
        return op.Reshape(data, shape, _outputs=["reshaped"])

    def check(self, context: Any, data: ir.Value, shape: ir.Value, reshaped: ir.Value) -> MatchResult:
        """Whether its shape is computed, and all but one of its dimensions are kept or fixed."""
        found = MatchResult()
        if data.shape is None or reshaped.shape is None or ir.convenience.get_const_tensor(shape) is not None:
            return found.fail("its shape is fixed, or not known")
        if _dimensions(data.shape, reshaped.shape).count(-1) > 1:
            return found.fail("two of its dimensions are computed")
        return found

    def rewrite(self, op: Any, data: ir.Value, shape: ir.Value, reshaped: ir.Value) -> ir.Value:
        """The same with a constant shape."""
        dimensions = ir.tensor(_dimensions(data.shape, reshaped.shape), dtype=ir.DataType.INT64)
        return op.Reshape(data, op.initializer(dimensions, name=f"{reshaped.name}_dimensions"))


def _dimensions(before: ir.Shape | None, after: ir.Shape | None) -> list[int]:
    """As Reshape takes them: 0 = as it was, -1 = computed."""
    assert before is not None and after is not None
    kept = [place < len(before) and _same(before[place], dim) for place, dim in enumerate(after)]
    return [0 if same else dim if _known(dim) else -1 for dim, same in zip(after, kept, strict=True)]  # type: ignore[misc]


def _same(before: int | ir.SymbolicDim, after: int | ir.SymbolicDim) -> bool:
    return isinstance(after, ir.SymbolicDim) and after.value is not None and before == after


def _known(dim: int | ir.SymbolicDim) -> bool:
    """The exporter's shape inference writes 0 for what it does not know."""
    return isinstance(dim, int) and dim > 0


class SumBeforeNormalization(RewriteRuleClassBase):
    """What a LayerNormalization alone reads is added by Sum, which ONNX Runtime does not fuse with it: on a CPU its
    SkipLayerNormalization (1.32) takes four times as long as the two."""

    def pattern(self, op: Any, left: ir.Value, right: ir.Value) -> ir.Value:
        """An addition."""
        return op.Add(left, right, _outputs=["total"])

    def check(self, context: Any, left: ir.Value, right: ir.Value, total: ir.Value) -> MatchResult:
        """Who reads it."""
        found = MatchResult()
        readers = {node.op_type for node in total.consumers()}
        return found if readers == {"LayerNormalization"} else found.fail("read by others")

    def rewrite(self, op: Any, left: ir.Value, right: ir.Value, total: ir.Value) -> ir.Value:
        """The same by Sum."""
        return op.Sum(left, right)


def simplify(model: ir.Model) -> None:
    """Applies both rules in place."""
    rewrite(model, [KeptDimensions.rule(), SumBeforeNormalization.rule()])
