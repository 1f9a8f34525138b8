"""The settings of every compression step, as a recipe's ``steps`` name them; each says whose method it is.

A variant's steps form a chain. Steps of the network come first (ranker in, ranker out: pruning, distillation, sharing,
factorizing), then steps of the exported graph (quantization, half precision). What a step does is in
:mod:`builders.compress`, a module a method.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic

from builders.core.runtimes import RUNTIMES, Precision, Runtime

Share = Annotated[float, pydantic.Field(gt=0, lt=1)]


class Settings(pydantic.BaseModel):
    """A table of a recipe: nothing unknown, nothing changed afterwards."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class CompressionStep(Settings):
    """One step of a variant's chain: its settings, and its effects on what is built around it.

    Attributes:
        step: its name in a recipe.
    """

    step: str

    precision: ClassVar[Precision] = "fp32"
    """What its product asks the runtime to compute in."""
    quantizes: ClassVar[bool] = False
    """Whether its product multiplies in static INT8."""
    joins_requests: ClassVar[bool] = True
    """Whether its product's scores are independent of the rows beside them, so that requests may be run together."""
    keepable: ClassVar[bool] = True
    """Whether its product can be stored and loaded again."""
    inserts_quantizers: ClassVar[bool] = False
    """Whether the network has quantizers after it, which are exported as explicit Q/DQ by their own exporter."""
    reads_data: ClassVar[bool] = False
    """Whether its product depends on the data besides the network."""
    changes_graph: ClassVar[bool] = True
    """Whether the scorer's file is another one after it."""

    @property
    def recipes_read(self) -> tuple[str, ...]:
        """Other recipes whose rankers it learns from, by name or path."""
        return ()

    def refusal(self, runtime: Runtime) -> str:
        """Why the runtime cannot serve its product; "" where it can."""
        if self.precision in runtime.precisions:
            return ""
        wanted = " or ".join(f"..._{each.name}" for each in RUNTIMES.values() if self.precision in each.precisions)
        return f"{self.step} with the runtime {runtime.name}, wanted a variant {wanted}"

    def __str__(self) -> str:
        """As it is told while it is made: name, and the settings that are not the default's."""
        settings = self.model_dump(exclude={"step"}, exclude_defaults=True)
        told = ", ".join(f"{name} {value}" for name, value in settings.items())
        return f"{self.step} ({told})" if told else self.step


class NetworkStep(CompressionStep):
    """Changes the torch network; the graph is exported from the result."""


class GraphStep(CompressionStep):
    """Changes the exported graph."""

    def done_by(self, runtime: Runtime) -> bool:
        """Whether the runtime does it while it converts the graph, so that it is left out in ONNX."""
        return False


# ---------------------------------------------------------------- pruning
class PruneLayers(NetworkStep):
    """Keep these layers of the encoder: a student as in DistilBERT (arXiv:1910.01108); follow it with ``distill``.

    Attributes:
        keep: their positions in the trained encoder, 0 = the first.
    """

    step: Literal["prune_layers"]
    keep: tuple[Annotated[int, pydantic.Field(ge=0)], ...] = pydantic.Field(min_length=1)


class PruneHeads(NetworkStep):
    """Remove attention heads, the least important of each layer (Michel et al., arXiv:1905.10650).

    Attributes:
        amount: share of the heads removed; rounded so that each layer keeps one.
        lists: real lists from which importance is measured: |gradient x activation|, first-order Taylor expansion.
    """

    step: Literal["prune_heads"]
    reads_data: ClassVar[bool] = True
    amount: Share
    lists: int = pydantic.Field(32, ge=1)


class PruneChannels(NetworkStep):
    """Remove hidden units of feed-forward blocks: the same importance for the unit between two linear layers
    (Molchanov et al., arXiv:1906.10771).

    Attributes:
        amount: share of each block's units removed.
        lists: real lists from which importance is measured.
    """

    step: Literal["prune_channels"]
    reads_data: ClassVar[bool] = True
    amount: Share
    lists: int = pydantic.Field(32, ge=1)


class PruneRows(NetworkStep):
    """Keep the embedding rows that real lists use most (frequent ids have rows of their own as in Zhang et al.,
    arXiv:2007.14523); the others share one row, the mean of theirs.

    A table of int32 from id to row goes into the graph, so that pre-processing stays as it is.

    Attributes:
        amount: share of the rows removed, of every table that is at least ``min_rows`` long.
        min_rows: shorter tables stay.
        lists: real lists that are counted.
    """

    step: Literal["prune_rows"]
    reads_data: ClassVar[bool] = True
    amount: Share
    min_rows: int = pydantic.Field(256, ge=2)
    lists: int = pydantic.Field(2000, ge=1)


class PruneMagnitude(NetworkStep):
    """Zero the smallest weights of the linear layers together (Han et al., arXiv:1506.02626;
    ``torch.nn.utils.prune.global_unstructured``). Shapes stay: neither file nor time shrinks without sparse kernels.

    Attributes:
        amount: share of the weights.
    """

    step: Literal["prune_magnitude"]
    amount: Share


class Sparse24(NetworkStep):
    """Two of every four weights of a linear layer zero, for TensorRT's sparse kernels (Mishra et al., arXiv:2104.08378;
    ModelOpt's ``mts.sparsify``).

    Attributes:
        method: "sparse_magnitude", or "sparsegpt" (arXiv:2301.00774), which reads calibration data.
        lists: real lists of calibration, with "sparsegpt".
    """

    step: Literal["sparse_2_4"]
    reads_data: ClassVar[bool] = True
    method: Literal["sparse_magnitude", "sparsegpt"] = "sparse_magnitude"
    lists: int = pydantic.Field(32, ge=1)


# ---------------------------------------------------------------- sharing and factorizing
class ShareLayers(NetworkStep):
    """Neighbouring layers of the encoder use one set of weights (ALBERT, arXiv:1909.11942); follow it with ``distill``.

    Attributes:
        groups: sets of weights left; each is used by equally many layers one after the other.
    """

    step: Literal["share_layers"]
    groups: int = pydantic.Field(ge=1)


class LowRank(NetworkStep):
    """Embedding tables as products of two matrices of low rank (ALBERT, arXiv:1909.11942), by singular values.

    Attributes:
        rank: of the product: columns of the first matrix, rows of the second.
        min_rows: shorter tables stay.
    """

    step: Literal["low_rank"]
    rank: int = pydantic.Field(ge=1)
    min_rows: int = pydantic.Field(256, ge=2)


class HashRows(NetworkStep):
    """An embedding as the sum of two rows, picked by quotient and remainder of the id (Shi et al., arXiv:1909.02107),
    fitted to the trained table by least squares; follow it with ``distill``.

    Attributes:
        rows: of the table of remainders; the table of quotients has as many as it takes.
        min_rows: shorter tables stay.
    """

    step: Literal["hash_rows"]
    rows: int = pydantic.Field(ge=2)
    min_rows: int = pydantic.Field(256, ge=2)


# ---------------------------------------------------------------- distillation, recovery
class Teacher(Settings):
    """One of the rankers learned from.

    Attributes:
        recipe: its name under ``recipes/``, or a path; empty = the ranker at the chain's start (recovery tuning).
        weight: of its scores in the mean of the teachers'.
    """

    recipe: str = ""
    weight: float = pydantic.Field(1.0, gt=0)


class Distill(NetworkStep):
    """Train the network on teachers' scores of lists without judgements (Hinton et al., arXiv:1503.02531; ListNet's
    loss, Cao et al., ICML 2007), on hidden states (TinyBERT, arXiv:1909.10351) and on judged training lists.

    Attributes:
        teachers: of several, the scores, each standardised within a list, are averaged by weight.
        lists: made-up queries, or moments of customers' training histories.
        candidates: items of a list.
        epochs: passes over the lists.
        batch: lists a step.
        learning_rate: highest learning rate of AdamW; rises over the first tenth of the steps, then falls to 0.
        hidden: submodule of the student => of the first teacher; mean squared difference of their outputs is added.
        hidden_weight: weight of the difference in ``hidden``, beside the scores' loss of weight 1.
        judged_weight: weight of a pairwise loss on judged training lists, one a step; only with data "judged".
        sharpness: of the targets: softmax of so many times the teachers' scores, standardised within the list.
        freeze: patterns of parameter names (``fnmatch``) that stay as they are.
        seed: of the lists and their order.
    """

    step: Literal["distill"]
    reads_data: ClassVar[bool] = True
    teachers: tuple[Teacher, ...] = (Teacher(),)
    lists: int = pydantic.Field(1200, ge=1)
    candidates: int = pydantic.Field(12, ge=2)
    epochs: int = pydantic.Field(1, ge=1)
    batch: int = pydantic.Field(8, ge=1)
    learning_rate: float = pydantic.Field(1e-4, gt=0)
    hidden: dict[str, str] = {}
    hidden_weight: float = pydantic.Field(1.0, ge=0)
    judged_weight: float = pydantic.Field(0.0, ge=0)
    sharpness: float = pydantic.Field(2.0, gt=0)
    freeze: tuple[str, ...] = ("*embeddings.word_embeddings*",)
    seed: int = 0

    @property
    def recipes_read(self) -> tuple[str, ...]:
        """Of its teachers."""
        return tuple(teacher.recipe for teacher in self.teachers if teacher.recipe)


# ---------------------------------------------------------------- quantization
class Calibrated(Settings):
    """What the ranges of activations are taken from.

    Attributes:
        calibration_queries: training requests whose real candidates calibrate the activations.
        keep_fp32: patterns of node names (``fnmatch``) left in FP32.
        keep_most_sensitive: besides these, so many of the nodes that cost most when quantized alone.
    """

    calibration_queries: int = pydantic.Field(16, ge=1)
    keep_fp32: tuple[str, ...] = ()
    keep_most_sensitive: int = pydantic.Field(0, ge=0)


class Int8(Calibrated, GraphStep):
    """Static INT8: explicit Q/DQ by ONNX Runtime, or NNCF for the OpenVINO runtime (arXiv:2004.09602; NNCF with
    SmoothQuant, arXiv:2211.10438, and fast bias correction).

    Attributes:
        method: how a range is chosen from what calibration saw; NNCF knows "minmax" alone.
        percentile: the share of absolute values within the range, in percent, with method "percentile".
        activations: "uint8" is what x86 processors multiply fast; "int8", symmetric, is what TensorRT takes too.
    """

    step: Literal["int8"] = "int8"
    reads_data: ClassVar[bool] = True
    quantizes: ClassVar[bool] = True
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: float = pydantic.Field(99.99, gt=50, le=100)
    activations: Literal["uint8", "int8"] = "uint8"

    def done_by(self, runtime: Runtime) -> bool:
        """Where the runtime has a quantizer of its own."""
        return runtime.quantizes is not None

    def refusal(self, runtime: Runtime) -> str:
        """A method that the runtime's own quantizer does not know."""
        if self.method in runtime.int8_methods:
            return super().refusal(runtime)
        known = ", ".join(sorted(runtime.int8_methods))
        return f"int8 by {self.method} with the runtime {runtime.name}, wanted {known}: its quantizer has no other"


class DynamicInt8(GraphStep):
    """Activations' ranges taken from each run (``onnxruntime.quantization.quantize_dynamic``; integer products as
    in Jacob et al., arXiv:1712.05877): a score then depends on its neighbours, so the server neither joins its requests
    nor splits them."""

    step: Literal["dynamic_int8"]
    joins_requests: ClassVar[bool] = False


class Int8Embeddings(GraphStep):
    """Embedding tables as INT8, looked up before they are dequantized; the greater part of an interaction ranker
    (Guan et al., arXiv:1911.02079).

    Attributes:
        min_rows: shorter tables stay.
    """

    step: Literal["int8_embeddings"]
    reads_data: ClassVar[bool] = True
    min_rows: int = pydantic.Field(256, ge=2)


class Int8Network(NetworkStep):
    """INT8 in the network by ModelOpt: weights per channel, activations per tensor, all symmetric; exports
    the one graph of explicit Q/DQ that ONNX Runtime, OpenVINO and TensorRT take alike. The last step of the network.

    Calibrated only, or tuned like ``distill`` on the unquantized network's scores (QAT: Jacob et al.,
    arXiv:1712.05877).

    Attributes:
        smooth: move outliers of the activations into the weights before (SmoothQuant, arXiv:2211.10438).
        keep_fp32: patterns of quantizers' names (``fnmatch``) that stay off, such as "*layer.5.output*".
        calibration_lists: real lists whose largest values set the ranges.
        lists: lists without judgements that it is tuned on; 0 = no tuning.
        candidates: items of a list.
        batch: lists a step of tuning.
        learning_rate: highest of tuning, as for ``distill``.
        sharpness: of the targets, as for ``distill``.
        seed: of the lists and their order.
    """

    step: Literal["int8_network"]
    reads_data: ClassVar[bool] = True
    quantizes: ClassVar[bool] = True
    keepable: ClassVar[bool] = False  # its classes are made at run time and cannot be pickled
    inserts_quantizers: ClassVar[bool] = True
    smooth: bool = True
    keep_fp32: tuple[str, ...] = ()
    calibration_lists: int = pydantic.Field(32, ge=1)
    lists: int = pydantic.Field(0, ge=0)
    candidates: int = pydantic.Field(12, ge=2)
    batch: int = pydantic.Field(8, ge=1)
    learning_rate: float = pydantic.Field(1e-5, gt=0)
    sharpness: float = pydantic.Field(2.0, gt=0)
    seed: int = 0


class Fp16(GraphStep):
    """FP16 in the graph's own types; LayerNorm, softmax and what overflows on real samples stay FP32
    (Micikevicius et al., arXiv:1710.03740).

    Attributes:
        keep_fp32: patterns of node names (``fnmatch``) that stay FP32 too; ``python -m builders bisect`` finds them.
    """

    step: Literal["fp16"]
    reads_data: ClassVar[bool] = True
    precision: ClassVar[Precision] = "fp16"
    keep_fp32: tuple[str, ...] = ()


class Bf16(GraphStep):
    """BF16 arithmetic by OpenVINO's precision hint (Kalamkar et al., arXiv:1905.12322); the file stays as it is."""

    step: Literal["bf16"]
    precision: ClassVar[Precision] = "bf16"
    changes_graph: ClassVar[bool] = False


Step = Annotated[
    PruneLayers | PruneHeads | PruneChannels | PruneRows | PruneMagnitude | Sparse24
    | ShareLayers | LowRank | HashRows | Distill | Int8Network
    | Int8 | DynamicInt8 | Int8Embeddings | Fp16 | Bf16,
    pydantic.Field(discriminator="step"),
]  # fmt: skip
