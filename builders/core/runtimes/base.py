"""What a runtime is to the kit: one record, with everything that depends on it."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    Sample = dict[str, np.ndarray]
    """Tensor name => array, in the contract's dtypes."""

Precision = Literal["fp32", "fp16", "bf16"]
"""Of the arithmetic that a runtime is asked for; INT8 is written in the graph."""


class Session(abc.ABC):
    """A loaded scorer in this process: what offline figures are made with."""

    @abc.abstractmethod
    def run(self, sample: Sample) -> Sample:
        """Output name => array. sample: input name => array; what the graph does not take is ignored."""


class Converts(Protocol):
    """ONNX => the runtime's own form, written whole at ``target`` with what belongs beside it."""

    def __call__(self, source: Path, target: Path, precision: Precision) -> None: ...


class Quantizes(Protocol):
    """FP32 ONNX => the runtime's own form with static INT8.

    samples: real requests for calibration. keep_fp32: patterns of names of ONNX nodes. transformer: the network has
    attention.
    """

    def __call__(
        self, source: Path, target: Path, samples: Sequence[Sample], keep_fp32: Sequence[str], *, transformer: bool
    ) -> None: ...


def _no_more(path: Path) -> Mapping[str, Path]:
    return {}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """One runtime. Adding another is a file beside this one and a line in ``builders/core/runtimes/__init__.py``.

    Attributes:
        name: the end of a variant's name.
        suffix: of the scorer's file.
        backend: Triton's, which serves it.
        precisions: that it can be asked to compute in.
        open: (file, threads of one run, 0 = its choice, precision) => session.
        parameters: (threads, precision) => of ``config.pbtxt``.
        thread_parameter: the one of them that says how many threads a run takes; "" = none.
        graph_level: precision => ``optimization.graph.level`` of ``config.pbtxt``; absent = the backend's own.
        joins_requests: whether Triton may run several requests as one batch.
        fuses: whether its drop-in backend's code may run in one process with pre- and post-processing.
        files_beside: scorer file => what else the served version's folder holds: file name => file.
        converts: None = the ONNX file itself is served.
        quantizes: None = an int8 step is done in ONNX.
        int8_methods: that an int8 step may ask for.
        needs_gpu: its scorers are built and run on a GPU machine alone.
        computes_in: (file, precision, one sample) => types that its kernels multiply in, as the runtime itself says:
            on a processor that lacks an instruction set it may be another than was asked for. None = it is not asked.
    """

    name: str
    suffix: str
    backend: str
    precisions: frozenset[Precision]
    open: Callable[[Path, int, Precision], Session]
    parameters: Callable[[int, Precision], Mapping[str, str]] = lambda threads, precision: {}
    thread_parameter: str = ""
    graph_level: Mapping[Precision, int] = dataclasses.field(default_factory=dict)
    joins_requests: bool = True
    fuses: bool = False
    files_beside: Callable[[Path], Mapping[str, Path]] = _no_more
    converts: Converts | None = None
    quantizes: Quantizes | None = None
    int8_methods: frozenset[str] = frozenset({"minmax", "entropy", "percentile"})
    needs_gpu: bool = False
    computes_in: Callable[[Path, Precision, Sample], frozenset[str]] | None = None

    def files(self, path: Path) -> dict[str, Path]:
        """What the served version's folder holds: file name => file. path: the scorer's file, under any name."""
        return {f"model{self.suffix}": path, **self.files_beside(path)}
