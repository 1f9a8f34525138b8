"""What a checkpoint's folder or file is, told from its files alone: which format serves it, or why none does.

Nothing is loaded but JSON and the heads of weight files, so that a wrong folder is refused at once.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch

from builders.core.recipe import Format
from builders.rankers.backbone import CheckpointError

CONFIG, MODULES, LIBRARY_CONFIG = "config.json", "modules.json", "config_sentence_transformers.json"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_OWN_MODULES = ("sentence_transformers.", "pylate.")
_ELSEWHERE = {
    "SparseEncoder": "a sparse encoder: its vectors belong into an inverted index, not behind a ranker",
}


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies at a path.

    Attributes:
        format: as a recipe spells it.
        facts: what was found that tells so, a line each.
    """

    path: Path
    format: Format
    facts: tuple[str, ...]


def look_at(path: Path) -> Found:
    """Tell the format.

    Raises:
        CheckpointError: nothing is there, files are missing or broken, or no format serves it as its library does.
    """
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder or file; wanted the folder that the training wrote")
    if (path / "adapter_config.json").is_file() and not (path / CONFIG).is_file():
        raise CheckpointError(
            f"{path}: an adapter without its base model; wanted the merged model: "
            "model.merge_and_unload().save_pretrained(FOLDER), and its tokenizer beside it"
        )
    check_weights(transformer_folder(path))
    if (path / MODULES).is_file():
        return _of_modules(path)
    return _of_architecture(path)


def check_weights(folder: Path) -> list[Path]:
    """The weight files of a transformers folder, each whole and no more than tensors.

    Raises:
        CheckpointError: none, a shard is missing or cut short, or a pickle that holds more than tensors.
    """
    files = _weight_files(folder)
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: named by the index beside it, but not there; copy the missing shards")
        _check_tensors(file)
    return files


def _weight_files(folder: Path) -> list[Path]:
    for index in _INDEXES:
        if (folder / index).is_file():
            of_tensor = _json(folder / index).get("weight_map", {})
            return [folder / name for name in sorted(set(of_tensor.values()))]
    found = [folder / name for name in _SINGLE if (folder / name).is_file()]
    if not found:
        raise CheckpointError(f"{folder}: no weights, wanted {' or '.join((*_SINGLE, *_INDEXES))}")
    return found[:1]


def _check_tensors(file: Path) -> None:
    try:
        if file.suffix == ".safetensors":
            with safetensors.safe_open(str(file), framework="pt") as tensors:
                names = list(tensors.keys())
        else:
            names = list(torch.load(file, map_location="meta", weights_only=True))
    except Exception as error:  # safetensors, zipfile and pickle raise what they meet
        kind = "safetensors" if file.suffix == ".safetensors" else "weights"
        raise CheckpointError(
            f"{file}: not whole {kind} ({type(error).__name__}: {str(error).splitlines()[0]}); copy it anew, or save "
            "the model's state_dict: nothing but tensors is ever unpickled"
        ) from error
    if not names:
        raise CheckpointError(f"{file}: holds no tensor; copy it anew")


def transformer_folder(folder: Path) -> Path:
    """Where the first module's weights lie: the folder itself, or the one that modules.json names."""
    if not (folder / MODULES).is_file():
        return folder
    modules = _modules(folder)
    return folder / str(modules[0].get("path", "")) if modules else folder


def library_settings(folder: Path) -> dict[str, Any]:
    """``config_sentence_transformers.json``; empty where there is none. Raises: CheckpointError: not JSON."""
    path = folder / LIBRARY_CONFIG
    return dict(_json(path)) if path.is_file() else {}


def module_settings(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(folder, its ``config.json``) of each module in order; nothing without modules.json. Raises: CheckpointError."""
    if not (folder / MODULES).is_file():
        return []
    paths = [str(module.get("path", "")) for module in _modules(folder)]
    return [(path, dict(_json(folder / path / CONFIG)) if (folder / path / CONFIG).is_file() else {}) for path in paths]


# ---------------------------------------------------------------- folders
def _of_modules(folder: Path) -> Found:
    modules = _modules(folder)
    kinds = [str(module.get("type", "")) for module in modules]
    names = [kind.rsplit(".", 1)[-1] for kind in kinds]
    config = library_settings(folder)
    facts = [f"{MODULES}: {' => '.join(names)}"]
    model_type = str(config.get("model_type") or "")
    if model_type:
        facts.append(f"{LIBRARY_CONFIG}: {model_type}")
    if model_type in _ELSEWHERE:
        raise CheckpointError(f"{folder}: {_ELSEWHERE[model_type]}")
    if "Router" in names or "CLIPModel" in names:
        raise CheckpointError(f"{folder}: a {' and a '.join({'Router', 'CLIPModel'} & set(names))} among its modules, "
                              "which no format serves; wanted one text encoder for query and items")  # fmt: skip
    if "LogitScore" in names:
        return Found(folder, "causal_reranker", tuple(facts))
    if model_type == "CrossEncoder":
        return Found(folder, "cross_encoder", tuple(facts))
    if model_type in ("MultiVectorEncoder", "ColBERT") or any(kind.startswith("pylate.") for kind in kinds):
        return Found(folder, "late_interaction", tuple(facts))
    return Found(folder, "bi_encoder", tuple(facts))


def _of_architecture(folder: Path) -> Found:
    config = _json(folder / CONFIG)
    architectures = [str(name) for name in config.get("architectures") or []]
    facts = (f"{CONFIG}: {', '.join(architectures) or 'no architecture'}", f"no {MODULES}")
    first = architectures[0] if architectures else ""
    if first.endswith("ForSequenceClassification"):
        return Found(folder, "cross_encoder", facts)
    if first.endswith("ForCausalLM"):
        return Found(folder, "causal_reranker", facts)
    if first in ("HF_ColBERT", "ColBERT", "ColBERTModel"):
        return Found(folder, "late_interaction", facts)
    if first.endswith("Model"):
        return Found(folder, "bi_encoder", (*facts, "so its library takes the mean of the token states"))
    raise CheckpointError(
        f"{folder}: {first or 'a model without a named architecture'}, which has no trained head that scores or "
        "encodes a text; wanted *ForSequenceClassification, *ForCausalLM, *Model, or a folder of sentence-transformers"
    )


def _modules(folder: Path) -> Sequence[Mapping[str, Any]]:
    found = _json(folder / MODULES)
    if not isinstance(found, list) or not found:
        raise CheckpointError(f"{folder / MODULES}: no list of modules; copy it anew")
    strangers = [str(each.get("type")) for each in found if not str(each.get("type", "")).startswith(_OWN_MODULES)]
    if strangers:
        raise CheckpointError(
            f"{folder / MODULES}: {', '.join(strangers)} is code of the folder's own; no format serves it: write a "
            "ranker around it (docs/tutorials/your-own-ranker.md)"
        )
    return found


# ---------------------------------------------------------------- single files
def _file(path: Path) -> Found:
    formats: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch_export"}
    if path.suffix in formats:
        _check_content(path)
        return Found(path, formats[path.suffix], (f"a {path.suffix} file",))
    kind = _in_zip(path) or f"a {path.suffix or 'file without a suffix'}"
    raise CheckpointError(f"{path}: {kind}, wanted a folder, a .onnx or a .pt2 file. {_EXPORT}")


_EXPORT = (
    "TorchScript and pickled modules hold code: load it where it was trained and save torch.export.export(...) as a "
    ".pt2, or torch.onnx.export(..., dynamo=True)"
)


def _check_content(path: Path) -> None:
    """That a file is what its name says. Raises: CheckpointError."""
    found = _in_zip(path)
    if path.suffix == ".pt2" and found != _PROGRAM:
        raise CheckpointError(f"{path}: {found or 'no zip archive'} inside, wanted {_PROGRAM}. {_EXPORT}")
    if path.suffix == ".onnx" and found:
        raise CheckpointError(f"{path}: {found} inside, wanted an ONNX model. {_EXPORT}")


_PROGRAM = "a program of torch.export.save"


def _in_zip(path: Path) -> str:
    """What a zip archive of torch holds; "" for another file."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if "archive_format" in names:
        return _PROGRAM
    if any(name.startswith("code/") for name in names):
        return "TorchScript"
    return "a pickle of torch.save" if "data.pkl" in names else "a zip archive"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: not there; wanted the folder as its library's save_pretrained writes it"
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy it anew") from error
