"""Networks as files of other tools, each seeded and small, and the raw ids and numbers that they take.

Made by torch's exporter of now, by its older one, by hand as converters of scikit-learn write them, and as a program of
torch.export.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from builders.data.beir import Product
from tests.support.small_rankers import catalogue
from tests.support.tiny_bert import WORDS

BRANDS = ("acme", "other")
EVENTS = 4
CATEGORIES = tuple(WORDS[3:7])
RECIPE = """
ranker = "{name}"
format = "{format}"
checkpoint = "{file}"
{top}

{features}

[[variants]]
name = "fp32_onnx"
{more}
"""
SPARSE = f"""
[[features]]
name = "category"
kind = "sparse"
vocabularies = [{list(CATEGORIES)}]
"""
NUMBERS = """
[[features]]
name = "numbers"
kind = "dense"
fields = ["price", "rating"]
"""
TAKEN = f"""
[[features]]
name = "taken"
kind = "multi_hot"
source = "history"
size = {EVENTS}
vocabularies = [{[f"i{number}" for number in range(40)]}]
"""


class TwoTables(nn.Module):
    """Category ids, two numbers and a history => a logit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.categories, self.items = nn.Embedding(2 + len(CATEGORIES), 4), nn.Embedding(42, 4)
        self.mix = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, category: Tensor, numbers: Tensor, taken: Tensor) -> Tensor:
        """int64 [rows, 1], float32 [rows, 2], int64 [rows, EVENTS] => float32 [rows, 1]."""
        parts = [self.categories(category[:, 0]), numbers, self.items(taken).mean(1)]
        scores: Tensor = self.mix(torch.cat(parts, dim=1))
        return scores


class Flat(nn.Module):
    """One category id and two numbers => a score without a column of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.categories, self.mix = nn.Embedding(2 + len(CATEGORIES), 4), nn.Linear(6, 1)

    def forward(self, category: Tensor, numbers: Tensor) -> Tensor:
        """int64 [rows], float32 [rows, 2] => float32 [rows]."""
        scores: Tensor = self.mix(torch.cat([self.categories(category), numbers], dim=1))[:, 0]
        return scores


def example(rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments of :class:`TwoTables`."""
    return torch.zeros(rows, 1, dtype=torch.int64), torch.rand(rows, 2), torch.zeros(rows, EVENTS, dtype=torch.int64)


def write_by_dynamo(path: Path) -> Path:
    """torch.onnx.export of now."""
    rows = torch.export.Dim("rows")
    _export(
        TwoTables(), example(), path, dynamo=True, dynamic_shapes=({0: rows}, {0: rows}, {0: rows}), verbose=False,
        input_names=["category", "numbers", "taken"], output_names=["score"],
    )  # fmt: skip
    return path


def write_by_older_exporter(path: Path) -> Path:
    """The TorchScript-based exporter: INT64 ids, flat, opset 13."""
    category, numbers, _ = example()
    names = ["category", "numbers"]
    _export(
        Flat(), (category[:, 0], numbers), path, dynamo=False, opset_version=13, input_names=names,
        output_names=["logits"], dynamic_axes={name: {0: "batch"} for name in [*names, "logits"]},
    )  # fmt: skip
    return path


def _export(network: nn.Module, arguments: tuple[Tensor, ...], path: Path, **settings: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network.eval(), arguments, path, **settings)  # type: ignore[arg-type]


def write_by_hand(path: Path) -> Path:
    """As a scikit-learn converter: a label, probabilities of two classes, an upper-case input of doubles, opset 12, and
    a branch that reads the input from within a graph of its own."""
    weights = np.random.default_rng(5).normal(size=(2, 2))
    branch = [
        helper.make_graph(
            [helper.make_node("Identity", ["Float_Input"], [f"{name}_input"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_input", TensorProto.DOUBLE, [None, 2])],
        )
        for name in ("then", "else")
    ]
    nodes = [
        helper.make_node("If", ["always"], ["taken"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("MatMul", ["taken", "weights"], ["products"]),
        helper.make_node("Softmax", ["products"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "by_hand",
        [helper.make_tensor_value_info("Float_Input", TensorProto.DOUBLE, [None, 2])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.DOUBLE, [None, 2]),
        ],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array(True), "always"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=6)
    onnx.save(model, path)
    return path


def write_program(path: Path, network: nn.Module | None = None, lowest: int = 0) -> Path:
    """torch.export.save; lowest: rows that it takes at least."""
    rows = torch.export.Dim("rows", min=lowest) if lowest else torch.export.Dim("rows")
    network = (network or TwoTables()).eval()
    program = torch.export.export(network, example(max(3, lowest)), dynamic_shapes=({0: rows}, {0: rows}, {0: rows}))
    torch.export.save(program, path)
    return path


def write_recipe(
    folder: Path, name: str, file: Path, features: Sequence[str], *, top: str = "", more: str = ""
) -> Path:
    """The recipe's path."""
    form = "onnx" if file.suffix == ".onnx" else "torch_export"
    path = folder / f"{name}.toml"
    text = RECIPE.format(name=name, format=form, file=file, features="".join(features), top=top, more=more)
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- what the files take, made by hand
def products(count: int = 40) -> list[Product]:
    """Of the small catalogue."""
    return list(catalogue().products.values())[:count]


def category_ids(some: Sequence[Product]) -> np.ndarray:
    """INT64 [rows, 1]: 2 = the first known one."""
    return np.array([[2 + CATEGORIES.index(product.category[0])] for product in some], dtype=np.int64)


def numbers(some: Sequence[Product]) -> np.ndarray:
    """FP32 [rows, 2]."""
    return np.array([[product.price, product.rating] for product in some], dtype=np.float32)


def taken(history: Sequence[str], rows: int) -> np.ndarray:
    """INT64 [rows, EVENTS], the same in each: padded in front."""
    ids = [2 + int(item.removeprefix("i")) for item in history][-EVENTS:]
    return np.array([[0] * (EVENTS - len(ids)) + ids] * rows, dtype=np.int64)


Write = Callable[[Path], Path]
