"""What of a bi-encoder's folder cannot be served as sentence-transformers computes it, or would be passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling

from builders.rankers.backbone import CheckpointError
from builders.rankers.imported import library
from builders.rankers.imported.folder import LIBRARY_CONFIG, library_settings, module_settings, transformer_folder

SERVED_MODULES = (Transformer, Pooling, Dense, LayerNorm, Normalize, Dropout)


def check_modules(folder: Path, model: SentenceTransformer) -> None:
    """Raises: CheckpointError: a module or a setting that is not served, or that the library reads over."""
    settings = library_settings(folder)
    kind, similarity = settings.get("model_type"), settings.get("similarity_fn_name")
    if kind not in (None, "SentenceTransformer"):
        raise CheckpointError(
            f"{folder}: {LIBRARY_CONFIG} says {kind}, which its library would turn into a bi-encoder without its "
            "head; wanted SentenceTransformer, or another format in the recipe"
        )
    if similarity not in (None, model.similarity_fn_name):
        raise CheckpointError(
            f"{folder}: similarity {similarity}, for which its library would take {model.similarity_fn_name}; wanted "
            "cosine, dot, euclidean or manhattan"
        )
    if strangers := [type(module).__name__ for module in model if not isinstance(module, SERVED_MODULES)]:
        raise CheckpointError(
            f"{folder}: {', '.join(strangers)} among its modules, which no format serves; wanted "
            f"{', '.join(module.__name__ for module in SERVED_MODULES)}: write a ranker around it "
            "(docs/tutorials/your-own-ranker.md)"
        )
    _check_dense(folder, model)
    _check_reading(folder, model[0])


def _check_dense(folder: Path, model: SentenceTransformer) -> None:
    """What the library reads over with a warning."""
    for module, (path, stated) in zip(model, module_settings(folder), strict=False):
        if not isinstance(module, Dense):
            continue
        taken = module.get_config_dict() | {"use_residual": module.use_residual}
        activation = taken["activation_function"]
        if stated.get("activation_function", activation) != activation:
            raise CheckpointError(
                f"{folder / path}: activation {stated['activation_function']}, for which its library would take "
                f"{activation}; wanted one of torch.nn"
            )
        if unknown := sorted(set(stated) - set(taken)):
            raise CheckpointError(f"{folder / path}: its config.json sets {', '.join(unknown)}, which its library does "
                                  f"not read; wanted {', '.join(sorted(taken))} at most")  # fmt: skip


def _check_reading(folder: Path, first: Any) -> None:
    """How texts become tokens, and which method of the network reads them."""
    if "message" in first.modality_config:
        raise CheckpointError(
            f"{folder}: its tokenizer has a chat template, so that the library makes a conversation of each text; "
            "wanted a modality_config of text alone in sentence_bert_config.json, or a tokenizer without the template"
        )
    method = first.modality_config["text"]["method"]
    if method != "forward":
        raise CheckpointError(f"{folder}: its texts are read by {method}, which is not served; wanted a text encoder")
    unserved = set(first.processing_kwargs.get("text", {})) - {"max_length"}
    unserved |= set(first.processing_kwargs) - {"text"}
    unserved |= {name for name in ("query_length", "document_length", "query_expansion") if getattr(first, name)}
    if unserved:
        raise CheckpointError(
            f"{folder}: sentence_bert_config.json sets {', '.join(sorted(unserved))}, which is not served; wanted "
            "max_length at most"
        )
    if getattr(first.model.config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"{folder}: quantized weights, wanted them as they were trained: the kit quantizes by a step of the recipe"
        )


def check_weights(folder: Path, first: Any, trust_remote_code: bool) -> list[str]:
    """Names of stored tensors that are not read. Raises: CheckpointError."""
    unused = ("pooler",) if first.module_output_name == "token_embeddings" else ()
    unread = library.check_all_loaded(
        transformer_folder(folder), type(first.model), unused=unused, trust_remote_code=trust_remote_code
    )
    library.check_vocabulary(folder, first.tokenizer, first.model)
    library.check_right_padding(folder, first.tokenizer, first.model)
    return unread
