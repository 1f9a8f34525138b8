"""sentence-transformers and transformers, asked quietly: folders alone, float32, on the CPU, faults in one line.

The network that is served is made of their own modules; what they compute end to end is the reference.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from builders.core.contract import ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS
from builders.core.contract import Tensor as ContractTensor
from builders.core.recipe import Text
from builders.features.text import TextForm, load_tokenizer_text
from builders.rankers.backbone import CheckpointError, check_positions, known_positions

ITEM_PROMPTS = ("document", "passage", "corpus")
"""Names of prompts that ``encode_document`` looks for, in this order, before the default."""
FLOAT32 = {"dtype": torch.float32}
"""Whatever the weights are stored as: scores are computed in float32, here as served."""
DEFAULT_MAX_LENGTH = 512
"""Of a checkpoint that names no limit at all."""


_SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".txt", ".py", ".jinja", ".vocab", ".spm"}
_OF_TRAINING = {"training_args.bin", "optimizer.bin", "scheduler.bin", "trainer_state.json", "eval_results.json"}


@contextlib.contextmanager
def asked(folder: Path) -> Iterator[None]:
    """Inside, the libraries are quiet. Raises: CheckpointError in place of whatever they raise."""
    transformers.utils.logging.disable_progress_bar()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CheckpointError:
        raise
    except Exception as error:  # the libraries raise whatever they meet
        raise CheckpointError(
            f"{folder}: its library cannot load it ({type(error).__name__}: {_first_line(error)}); wanted a folder as "
            "the library's save_pretrained writes it"
        ) from error
    finally:
        logging.disable(level)


def loaded(kind: type[Any], folder: Path, trust_remote_code: bool) -> Any:
    """The folder's model of this sentence-transformers class, in eval mode. Raises: CheckpointError."""
    with asked(folder):
        return kind(
            str(folder), device="cpu", local_files_only=True, trust_remote_code=trust_remote_code,
            model_kwargs=dict(FLOAT32),
        ).eval()  # fmt: skip


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def served_tokenizer(tokenizer: Any) -> str:
    """``tokenizer.json`` of a library's tokenizer, as it is after loading, without padding and truncation."""
    if not tokenizer.is_fast:
        raise CheckpointError(f"{tokenizer.name_or_path}: no fast tokenizer can be made of its files, wanted one")
    return str(load_tokenizer_text(tokenizer.backend_tokenizer.to_str()).to_str())


def files_of(folder: Path) -> list[Path]:
    """Of a checkpoint folder, what a score may depend on: configurations, tokenizer, weights, code."""
    kept = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix in _SUFFIXES
        and path.name not in _OF_TRAINING
        and not {"onnx", "openvino", ".git", ".cache"}.intersection(path.relative_to(folder).parts)
    ]
    weights = [path for path in kept if path.suffix in (".safetensors", ".bin")]
    safe = any(path.suffix == ".safetensors" for path in weights)
    return [path for path in kept if not (safe and path.suffix == ".bin")]


def check_all_loaded(
    folder: Path, task: type[Any], *, unused: Sequence[str] = (), trust_remote_code: bool = False
) -> list[str]:
    """Names of stored tensors that the network does not take.

    Args:
        task: the transformers class that the library loads the folder with, such as AutoModel.
        unused: parts of names that no score depends on, such as "pooler" where token states are read.

    Raises:
        CheckpointError: the folder lacks tensors of the network, which transformers would make up at random.
    """
    with asked(folder):
        _, told = task.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, trust_remote_code=trust_remote_code, **FLOAT32
        )
    missing = sorted(name for name in told["missing_keys"] if not any(part in name for part in unused))
    if missing or told["mismatched_keys"]:
        found = ", ".join([*missing[:4], *map(str, list(told["mismatched_keys"])[:4])])
        raise CheckpointError(
            f"{folder}: {len(missing) + len(told['mismatched_keys'])} tensors of the network are not in its weights "
            f"({found}): transformers would fill them at random; wanted the whole checkpoint, its trained head included"
        )
    return sorted(told["unexpected_keys"])


def prompt_of(model: Any, names: Sequence[str] = ()) -> str:
    """The first of these prompts that the model has, as ``encode_query`` and ``encode_document`` choose it; else its
    default one, else none."""
    named = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return model.prompts.get(named) or "" if named else ""


def text_form(folder: Path, model: Any, text: Text, query_prompt: str, item_prompt: str = "") -> TextForm:
    """The checkpoint's own way with texts, with what the recipe's [text] sets. Raises: CheckpointError: too long."""
    first = model[0]
    longest = longest_sequence(first.tokenizer, first.model)
    stated = first.processing_kwargs.get("text", {}).get("max_length") or longest
    own = TextForm(
        query_prompt=query_prompt,
        item_prompt=item_prompt,
        max_length=min(longest, int(stated)),
        max_query_tokens=None,
        truncation_side=first.tokenizer.truncation_side,
        pad_token_id=first.tokenizer.pad_token_id,
    )
    form = own.with_recipe(text)
    check_positions(form.max_length, first.model, folder)
    return form


def check_vocabulary(folder: Path, tokenizer: Any, network: Any) -> None:
    """Raises: CheckpointError: the tokenizer gives ids that the embedding has no row for."""
    rows = network.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise CheckpointError(
            f"{folder}: its tokenizer gives ids up to {highest}, but the embedding has {rows} rows; the two are not of "
            "one checkpoint: copy both anew"
        )


def longest_sequence(tokenizer: Any, network: Any) -> int:
    """Tokens of the longest sequence: what the tokenizer says, as far as the network has positions for it."""
    limits = [known_positions(network), tokenizer.model_max_length]
    known = [int(limit) for limit in limits if limit and limit < 1_000_000]  # transformers spells "none" as 1e30
    return min(known, default=DEFAULT_MAX_LENGTH)


def token_inputs(tokenizer: Any, network: Any) -> tuple[ContractTensor, ...]:
    """Of ``input_ids``, ``attention_mask`` and ``token_type_ids`` those that the tokenizer gives and the network
    reads."""
    given = set(tokenizer.model_input_names)
    reads = set(inspect.signature(network.forward).parameters)
    if getattr(network.config, "type_vocab_size", 1) == 0:
        reads.discard(TOKEN_TYPE_IDS.name)
    return tuple(
        tensor
        for tensor in (INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS)
        if tensor.name in given and tensor.name in reads
    )


def check_right_padding(folder: Path, tokenizer: Any, network: Any) -> None:
    """Raises: CheckpointError: rows are padded on the left and the network counts positions from there, so that the
    library's own scores depend on the texts beside."""
    absolute = any(name.endswith("position_embeddings") for name, _ in network.named_modules())
    if tokenizer.padding_side == "left" and absolute:
        raise CheckpointError(
            f"{folder}: its tokenizer pads on the left of a network with absolute positions: the library's own scores "
            'depend on the longest text beside; wanted padding_side "right" in tokenizer_config.json'
        )


class LibraryModules(nn.Module):
    """The library's own modules one after the other, with tensors in and a tensor out, as an exporter wants it.

    Args:
        modules: of a sentence-transformers model, in its order; the first is its ``Transformer``.
        inputs: names of the tensors, in the order of ``forward``.
        output: name of the feature that the last module leaves.
    """

    def __init__(self, modules: Sequence[nn.Module], inputs: Sequence[str], output: str) -> None:
        super().__init__()
        self.library_modules = nn.ModuleList(modules)
        self.inputs, self.output = tuple(inputs), output

    @property
    def backbone(self) -> Any:
        """The transformers network."""
        return self.library_modules[0].model

    def features(self, *tensors: Tensor) -> dict[str, Any]:
        """All that the modules leave. tensors: int32 [rows, length] each."""
        features: dict[str, Any] = {"modality": "text", **dict(zip(self.inputs, tensors, strict=True))}
        for module in self.library_modules:
            features = module(features)
        return features

    def forward(self, *tensors: Tensor) -> Tensor:
        """int32 [rows, length] each => the output's feature, float32 [rows, ...]."""
        return self.features(*tensors)[self.output].float()
