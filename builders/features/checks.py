"""Whether a module does what its declared features say: names, then a run at the lowest and the highest ids."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from builders.core.contract import ContractError
from builders.core.errors import BuilderError
from builders.features.encoder import Feature, FeatureError

ROWS = 3
PROBED_LENGTH = 8
"""Of token sequences: one length bucket."""


@contextlib.contextmanager
def feature_faults_as(kind: type[BuilderError], owner: str) -> Iterator[None]:
    """A FeatureError within becomes ``kind`` and names its owner: the encoder is served too, without the builders."""
    try:
        yield
    except FeatureError as error:
        raise kind(f"{owner}: {error}") from error


def check_module(name: str, module: nn.Module, features: Sequence[Feature], token_ids: int, heads: int) -> None:
    """Raises: ContractError naming the declared tensor, or the output, that disagrees with the module.

    Args:
        token_ids: size of the tokenizer's vocabulary; 0 without one.
        heads: columns of the scores.
    """
    faults = [*_argument_faults(module, features)]
    if faults:
        raise ContractError(f"{name}: {'; '.join(faults)}. Mend features or {type(module).__name__}")
    lowest = {feature.name: _probe(feature, 0) for feature in features}
    _check_scores(name, _score(name, module, features, lowest, "zeros everywhere"), heads)
    for feature in features:
        highest = _highest(feature, token_ids)
        if highest.any():
            told = f"'{feature.name}' at its highest ids {highest[0].tolist()}"
            _score(name, module, features, {**lowest, feature.name: _probe(feature, highest)}, told)


def _argument_faults(module: nn.Module, features: Sequence[Feature]) -> Iterator[str]:
    of_request = [feature.name for feature in features if not feature.per_candidate]
    of_candidates = [feature.name for feature in features if feature.per_candidate]
    if not hasattr(module, "encode_request"):
        yield from _differing("forward", module.forward, [feature.name for feature in features])
        return
    yield from _differing("encode_request", module.encode_request, of_request)
    if not hasattr(module, "score_candidates"):
        yield "there is encode_request, but no score_candidates(request_vector, ...)"
        return
    yield from _differing("score_candidates", module.score_candidates, ["request_vector", *of_candidates])


def _differing(method: str, function: object, wanted: Sequence[str]) -> Iterator[str]:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return
    found = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    if found == list(wanted):
        return
    strangers = sorted(set(found) - set(wanted))
    missing = sorted(set(wanted) - set(found))
    reason = "another order" if not (strangers or missing) else ""
    reason = reason or ", ".join(
        [*(f"'{each}' is not declared" for each in strangers), *(f"'{each}' is no argument" for each in missing)]
    )
    yield f"{method} takes ({', '.join(found)}), features declare ({', '.join(wanted)}): {reason}"


def _highest(feature: Feature, token_ids: int) -> np.ndarray:
    """INT32 [1, width]: the highest id that each column can hold; zeros for numbers."""
    if feature.kind == "tokens":
        return np.full((1, PROBED_LENGTH), max(token_ids - 1, 0), dtype=np.int32)
    if feature.kind == "sparse":
        return np.array([[rows - 1 for rows in feature.table_rows]], dtype=np.int32)
    if feature.kind == "multi_hot":
        return np.full((1, feature.size), feature.rows() - 1, dtype=np.int32)
    return np.zeros((1, feature.size or len(feature.fields)), dtype=np.float32)


def _probe(feature: Feature, values: np.ndarray | int) -> np.ndarray:
    """[ROWS or 1, width] of one value a column."""
    width = PROBED_LENGTH if feature.kind == "tokens" else int(feature.size or len(feature.fields))
    dtype = np.float32 if feature.dtype == "FP32" else np.int32
    rows = ROWS if feature.per_candidate else 1
    return np.ascontiguousarray(np.broadcast_to(np.asarray(values, dtype=dtype), (rows, width)))


def _score(
    name: str, module: nn.Module, features: Sequence[Feature], sample: Mapping[str, np.ndarray], told: str
) -> torch.Tensor:
    tensors = {each: torch.from_numpy(array.copy()) for each, array in sample.items()}
    try:
        with torch.inference_mode():
            return _run(module, features, tensors)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        shapes = ", ".join(f"{each} {list(tensor.shape)} {tensor.dtype}" for each, tensor in tensors.items())
        raise ContractError(
            f"{name}: {type(module).__name__} cannot take {told} ({type(error).__name__}: {str(error).strip()}); "
            f"it was given {shapes.replace('torch.', '')}. An embedding needs feature.rows() rows, a linear layer the "
            "feature's width; fix the module or the declaration"
        ) from error


def _run(module: nn.Module, features: Sequence[Feature], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    of_request = [tensors[feature.name] for feature in features if not feature.per_candidate]
    of_candidates = [tensors[feature.name] for feature in features if feature.per_candidate]
    if hasattr(module, "encode_request"):
        scores: torch.Tensor = module.score_candidates(module.encode_request(*of_request), *of_candidates)  # type: ignore[operator]
        return scores
    repeat = not getattr(module, "broadcasts", False)
    rows = [
        tensors[feature.name].expand(ROWS, -1) if repeat and not feature.per_candidate else tensors[feature.name]
        for feature in features
    ]
    return cast(torch.Tensor, module(*rows))


def _check_scores(name: str, scores: object, heads: int) -> None:
    if not isinstance(scores, torch.Tensor) or scores.dtype != torch.float32 or tuple(scores.shape) != (ROWS, heads):
        found = f"{scores.dtype} {list(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ContractError(
            f"{name}: for {ROWS} candidates the module gives {found.replace('torch.', '')}, wanted float32 "
            f"[{ROWS}, {heads}] as 'score'; set heads if it gives several scores a candidate"
        )
