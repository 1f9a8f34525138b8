"""A network that comes as a file beside the features that a recipe declares for it: which input is which, and what has
to be done to a made tensor so that the file takes it.

Knows nothing of ONNX or torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from builders.core.recipe import FeatureTable, Recipe
from builders.features.encoder import Feature
from builders.rankers.backbone import CheckpointError

Dims = tuple[int | str, ...]
_IDS = ("INT32", "INT64")
_NUMBERS = ("FP32", "FP16", "FP64", *_IDS)
_TAKES = {"INT32": _IDS, "FP32": _NUMBERS}
"""dtype of a made tensor => those of a file's input that it can be cast to."""
_FIELDS_OF = {"history": "item_id", "query": "query"}


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """An input or output as the file declares it.

    Attributes:
        dtype: as Triton's protocol spells it, FP64 beside; another spelling of a type that no ranker takes.
        dims: outermost first; a free dimension by a name.
    """

    name: str
    dtype: str
    dims: Dims

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A declared feature with the file's input that it feeds."""

    feature: Feature
    input: FileTensor

    @property
    def cast(self) -> bool:
        """Whether the file wants another dtype."""
        return self.input.dtype != self.feature.dtype

    @property
    def flat(self) -> bool:
        """Whether the file wants [rows] in place of [rows, 1]."""
        return len(self.input.dims) == 1

    @property
    def repeated(self) -> bool:
        """Whether what the request has once is repeated for each candidate: the file wants as many rows of it."""
        return not self.feature.per_candidate and self.input.dims[0] != 1


def declared_features(recipe: Recipe) -> tuple[Feature, ...]:
    """The recipe's ``[[features]]``. Raises: FeatureError; CheckpointError: a vocabulary's file is not there."""
    return tuple(_feature(recipe, table) for table in recipe.features)


def _feature(recipe: Recipe, table: FeatureTable) -> Feature:
    vocabularies = table.vocabularies or tuple(_lines(recipe.path(file)) for file in table.vocabulary_files)
    return Feature(
        table.name, table.kind, table.fields or (_FIELDS_OF.get(table.source, table.name),), table.source, table.size,
        table.log1p, table.mean, table.std, vocabularies, table.oov_buckets, table.padding,
    )  # fmt: skip


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); wanted a text file with a value a line") from error
    return tuple(line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines))


def fitted(
    path: Path, inputs: Sequence[FileTensor], features: Sequence[Feature], tables: Sequence[FeatureTable]
) -> tuple[Fitted, ...]:
    """Each feature with its input, in the file's order.

    Raises:
        CheckpointError: an input without a feature, a feature without an input, or the two do not go together; both
            sides are listed.
    """
    by_input = {table.input or table.name: feature for table, feature in zip(tables, features, strict=True)}
    faults = [*_strangers(inputs, by_input)]
    faults += [fault for one in inputs if one.name in by_input for fault in _faults(by_input[one.name], one)]
    if faults:
        declared = (f"{name}: {one.kind} {one.dtype} {_shape(one)}" for name, one in by_input.items())
        raise CheckpointError(
            f"{path}: {'; '.join(faults)}. The file's inputs: {'; '.join(map(str, inputs))}. The recipe's features: "
            f"{'; '.join(declared)}"
        )
    return tuple(Fitted(by_input[one.name], one) for one in inputs)


def _strangers(inputs: Sequence[FileTensor], by_input: dict[str, Feature]) -> Iterator[str]:
    names = {one.name for one in inputs}
    if len(names) != len(inputs) or len(by_input) < len({id(feature) for feature in by_input.values()}):
        yield "a name stands there twice"
    yield from (f"input '{one.name}' has no [[features]]" for one in inputs if one.name not in by_input)
    yield from (f"feature '{name}' is no input of the file" for name in by_input if name not in names)


def _faults(feature: Feature, found: FileTensor) -> Iterator[str]:
    if found.dtype not in _NUMBERS:
        yield f"input '{found.name}' is {found.dtype}, which no feature is; wanted one of {', '.join(_NUMBERS)}"
    elif found.dtype not in _TAKES[feature.dtype]:
        yield f"input '{found.name}' is {found.dtype}, and kind '{feature.kind}' makes ids; wanted kind dense or vector"
    if found.dtype in _IDS and feature.dtype == "FP32" and (feature.log1p or feature.mean or feature.std):
        yield f"input '{found.name}' is {found.dtype}, and log1p, mean or std make broken numbers; leave them out"
    if len(found.dims) not in (1, 2):
        yield f"input '{found.name}' has {len(found.dims)} dimensions, wanted [rows, width] or [rows]"
        return
    rows, *width = found.dims
    if isinstance(rows, int) and (feature.per_candidate or rows != 1):
        yield (
            f"input '{found.name}' has a fixed number of rows ({rows}), wanted a free one: export with dynamic_axes "
            "(or dynamic_shapes), or free it by onnx.tools.update_model_dims.update_inputs_outputs_dims"
        )
    made = feature.width
    if not width and made != 1:
        yield f"input '{found.name}' is [rows], and the feature makes {_shape(feature)}; wanted one column"
    if width and isinstance(width[0], int) and width[0] != made:
        yield f"input '{found.name}' has width {width[0]}, and the feature makes {_shape(feature)}"


def _shape(feature: Feature) -> str:
    return f"[{'candidates' if feature.per_candidate else 1}, {feature.width}]"


def chosen_output(path: Path, outputs: Sequence[FileTensor], score: str) -> FileTensor:
    """The one that is the score. Raises: CheckpointError: none is, several may be, or it cannot be a score."""
    listed = "; ".join(map(str, outputs))
    named = [one for one in outputs if one.name == score] if score else list(outputs)
    if len(named) != 1:
        told = f"no output '{score}'" if score else f"{len(outputs)} outputs"
        raise CheckpointError(f"{path}: {told}; set score in the recipe to the output that is the score, of: {listed}")
    found = named[0]
    if found.dtype not in ("FP32", "FP16", "FP64"):
        raise CheckpointError(
            f"{path}: output {found} is no score, wanted float numbers: set score in the recipe to another of: "
            f"{listed}. Convert a scikit-learn classifier with options={{'zipmap': False}}, and set score = "
            '"probabilities"'
        )
    if len(found.dims) not in (1, 2):
        raise CheckpointError(f"{path}: output {found}, wanted [rows], [rows, 1] or [rows, heads]")
    return found
