"""A feature ranker's checkpoint folder: weights, the network's settings, and the features that it was trained on.

    config.json          arguments of the network's constructor, JSON
    features.json        what ``FeatureEncoder.to_json`` writes: vocabularies, normalization
    weights.safetensors  the trained tensors, as FP16 to keep the folder small; loaded as FP32

Knows nothing of any network.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from builders.core.files import write_atomically
from builders.features.encoder import Feature, FeatureEncoder, FeatureError
from builders.rankers.backbone import CheckpointError

N = TypeVar("N", bound=torch.nn.Module)

CONFIG, FEATURES, WEIGHTS = "config.json", "features.json", "weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    Attributes:
        config: arguments of the network's constructor.
        features: in the order of the network's inputs.
        fallback_field: see :class:`builders.features.encoder.FeatureEncoder`.
        weights: tensor name => float32.
    """

    config: Mapping[str, Any]
    features: tuple[Feature, ...]
    fallback_field: str
    weights: Mapping[str, torch.Tensor]


def save_checkpoint(
    folder: Path, network: torch.nn.Module, config: Mapping[str, Any], encoder: FeatureEncoder, *, skip: str = ""
) -> None:
    """Write the three files into ``folder``, which is made when absent; what else lies there stays.

    Args:
        skip: prefix of tensors that are not the network's own to keep, such as a packaged embedding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to(torch.float16 if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in network.state_dict().items()
        if not (skip and name.startswith(skip))
    }
    save_file(tensors, str(folder / WEIGHTS))
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes it 0600
    write_atomically(folder / FEATURES, encoder.to_json() + "\n")
    write_atomically(folder / CONFIG, json.dumps(dict(config), indent=2, sort_keys=True) + "\n")


def load_checkpoint(folder: Path | None, network: str) -> Checkpoint:
    """Read the three files.

    Args:
        folder: None is refused.
        network: for messages.

    Raises:
        CheckpointError: a file is missing or broken.
    """
    if folder is None:
        raise CheckpointError(f'{network}: no checkpoint; name one in the recipe (checkpoint = "checkpoints/..."), or '
                              "train one with 'python -m builders train'")  # fmt: skip
    missing = [name for name in (CONFIG, FEATURES, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: no {', '.join(missing)}; run 'python -m builders train' for {network}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        content = json.loads((folder / FEATURES).read_text(encoding="utf-8"))
        features = FeatureEncoder.features_from_json(content["features"])
        weights = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in load_file(str(folder / WEIGHTS)).items()
        }
        return Checkpoint(config, features, content["fallback_field"], weights)
    except (ValueError, KeyError, TypeError, FeatureError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: broken checkpoint ({error}); train {network} anew") from error


def network_from_checkpoint(network: type[N], folder: Path | None, name: str) -> N:
    """The network of a folder: made from its features and settings, with its weights.

    Args:
        network: its constructor takes the features, and the settings by name.
        name: for messages.

    Raises:
        CheckpointError: as :func:`load_checkpoint` and :func:`load_weights`; or the network does not take its settings.
    """
    checkpoint = load_checkpoint(folder, name)
    try:
        made = network(checkpoint.features, **checkpoint.config)
    except TypeError as error:
        raise CheckpointError(
            f"{folder}: {CONFIG} does not fit {network.__name__} ({error}); train {name} anew"
        ) from error
    load_weights(made, checkpoint, folder)
    return made


def load_weights(network: torch.nn.Module, checkpoint: Checkpoint, folder: Path | None, *, skip: str = "") -> None:
    """Put the weights into ``network``. Raises: CheckpointError where they do not fit."""
    try:
        missing, unexpected = network.load_state_dict(dict(checkpoint.weights), strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: {str(error).splitlines()[1].strip()}; train anew") from error
    missing = [name for name in missing if not (skip and name.startswith(skip))]
    if missing or unexpected:
        raise CheckpointError(f"{folder}: missing {missing}, unknown {unexpected}; train anew")
