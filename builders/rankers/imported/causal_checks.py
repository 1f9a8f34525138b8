"""What a causal reranker's folder must be, so that it is served as its library computes it: each fault in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM

from builders.core.contract import TOKEN_TYPE_IDS
from builders.features.text import TextForm
from builders.rankers.backbone import CheckpointError
from builders.rankers.imported import library
from builders.rankers.imported.causal_network import SAME, check_positions_stay
from builders.rankers.imported.chat_prompt import PROBES

MODULES = ["Transformer", "LogitScore"]
_SIZES = {"padding", "truncation", "max_length", "return_tensors"}


def check_folder(folder: Path, model: Any, trust_remote_code: bool) -> None:
    """What is there. model: the folder's ``CrossEncoder``. Raises: CheckpointError."""
    first = model[0]
    _check_modules(folder, model)
    _check_settings(folder, first.processing_kwargs)
    library.check_all_loaded(folder, AutoModelForCausalLM, trust_remote_code=trust_remote_code)
    library.check_vocabulary(folder, first.tokenizer, first.model)
    check_positions_stay(first.model, folder)
    _check_asked_tokens(folder, *model)
    _check_inputs(folder, first)


def check_tokens(
    folder: Path,
    transformer: Any,
    form: TextForm,
    tokens_of: Callable[[str, Sequence[str]], tuple[list[list[int]], int]],
) -> None:
    """Raises: CheckpointError: our tokens of some pairs are not the library's.

    Args:
        transformer: the library's module, which cuts at the form's ``max_length``.
        tokens_of: query and items => token ids of each prompt, and how many were cut.
    """
    long = "waterproof tent " * form.max_length
    probes = [*((query, [item, "mug"]) for query, item in PROBES), ("mug", [long, "tent"]), (long, ["", "mug"])]
    for query, items in probes:
        with library.asked(folder):
            given = transformer.preprocess([[query, item] for item in items], prompt=form.query_prompt)
        rows = zip(given["input_ids"], given["attention_mask"], strict=True)
        if tokens_of(query, items)[0] != [ids[mask.bool()].tolist() for ids, mask in rows]:
            raise CheckpointError(
                f"{folder}: the library makes other tokens of query {query[:40]!r} with document {items[0][:40]!r} "
                "than the tokenizers library does of its tokenizer.json; wanted a tokenizer without code of its own"
            )


def check_neighbours(folder: Path, model: Any) -> None:
    """Raises: CheckpointError: the library's own score of a pair depends on the padding before it."""
    pair, longer = ("red shoe", "mug"), ("red shoe", "garden hose " * 8)
    with library.asked(folder):
        beside, _ = model.predict([pair, longer], activation_fn=nn.Identity())
        [alone] = model.predict([pair], activation_fn=nn.Identity())
    if abs(beside - alone) > SAME * max(1.0, abs(alone)):
        raise CheckpointError(
            f"{folder}: the library scores a pair {alone:.4f} alone and {beside:.4f} beside a longer one: its network "
            "counts positions from the padding on; wanted a network with rotary positions"
        )


def _check_modules(folder: Path, model: Any) -> None:
    first = model[0]
    modules = [type(module).__name__ for module in model]
    task = getattr(first, "transformer_task", "no task")
    if modules != MODULES or task != "text-generation":
        found = " => ".join(modules)
        raise CheckpointError(
            f"{folder}: modules {found} for {task}, wanted {' => '.join(MODULES)} for text-generation"
        )
    if extra := sorted(map(str, set(first.modality_config) - {"text", "message"})):
        raise CheckpointError(f"{folder}: a multimodal model ({', '.join(extra)}), wanted one that reads text alone")
    if not isinstance(model.activation_fn, nn.Module):
        raise CheckpointError(f"{folder}: activation {model.activation_fn!r}, wanted a torch.nn.Module")


def _check_settings(folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    unserved = [
        *(f"text.{name}" for name in set(settings.get("text", {})) - {"max_length"}),
        *(f"chat_template.{name}" for name in _SIZES.intersection(settings.get("chat_template", {}))),
        *(f"common.{name}" for name in settings.get("common", {})),
    ]
    if unserved:
        raise CheckpointError(
            f"{folder}: sentence_bert_config.json sets {', '.join(sorted(unserved))}, which is not served; wanted "
            "max_length for text and arguments of the chat template at most"
        )


def _check_asked_tokens(folder: Path, transformer: Any, score: Any) -> None:
    rows = transformer.model.get_output_embeddings().weight.shape[0]
    asked = [score.true_token_id, score.false_token_id]
    if not (folder / "modules.json").is_file():
        found = transformer.tokenizer.convert_ids_to_tokens(asked)
        if found != ["yes", "no"]:
            raise CheckpointError(
                f"{folder}: its tokenizer has no tokens 'yes' and 'no' (found {found}), which the library scores a "
                "plain folder by; wanted a folder that CrossEncoder.save_pretrained wrote, with LogitScore"
            )
    beyond = [token for token in asked if token is not None and not 0 <= token < rows]
    if beyond or asked[0] == asked[1]:
        raise CheckpointError(
            f"{folder}: LogitScore asks for the tokens {asked}, of a network with {rows}; wanted one of these, or two "
            "different ones"
        )


def _check_inputs(folder: Path, transformer: Any) -> None:
    if transformer.tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"{folder}: its tokenizer has no padding token, so that the library itself cannot score two pairs at once; "
            "wanted pad_token in tokenizer_config.json"
        )
    if TOKEN_TYPE_IDS in library.token_inputs(transformer.tokenizer, transformer.model):
        raise CheckpointError(
            f"{folder}: {type(transformer.model).__name__} reads token types, wanted a network that does not: a prompt "
            "is one text"
        )
