"""Late-interaction checkpoints with random weights, in the form that each library writes."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

HIDDEN, WIDTH, POSITIONS = 32, 16, 96
MARKERS = ("[Q] ", "[D] ", "[unused0]", "[unused1]")
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip


def tokenizer(markers: Sequence[str] = (), *, lower: bool = True) -> PreTrainedTokenizerFast:
    """WordPiece of letters, digits and punctuation, so that every text has many tokens; BERT's template."""
    letters = [*string.ascii_letters, *string.digits]
    vocabulary = [*SPECIALS, "[unused0]", "[unused1]", *string.punctuation, *letters, *(f"##{one}" for one in letters)]
    made = Tokenizer(models.WordPiece({token: row for row, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=POSITIONS,
    )  # fmt: skip
    wrapped.add_tokens(list(markers))
    return wrapped


def _rows() -> int:
    return len(tokenizer()) + len(MARKERS)


def bert() -> BertModel:
    """With token types."""
    return BertModel(BertConfig(vocab_size=_rows(), max_position_embeddings=POSITIONS, **_SIZES))


def roberta() -> RobertaModel:
    """Whose positions start behind the padding id."""
    config = RobertaConfig(
        vocab_size=_rows(), max_position_embeddings=POSITIONS + 1, pad_token_id=0, type_vocab_size=1, **_SIZES
    )
    return RobertaModel(config)


def modern_bert() -> ModernBertModel:
    """With a sliding window shorter than the items."""
    config = ModernBertConfig(
        vocab_size=_rows(), max_position_embeddings=POSITIONS, local_attention=16, global_attn_every_n_layers=2,
        pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, **_SIZES,
    )  # fmt: skip
    return ModernBertModel(config)


def _write_backbone(folder: Path, network: Any, markers: Sequence[str] = ()) -> Path:
    torch.manual_seed(5)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)
    tokenizer(markers).save_pretrained(folder)
    return folder


def write_multi_vector(
    folder: Path,
    network: Any = None,
    *,
    prompts: dict[str, str] | None = None,
    mask: dict[str, Any] | None = None,
    pooling: bool = False,
    normalize: bool = True,
    similarity: str = "maxsim",
    **of_transformer: Any,
) -> Path:
    """As ``MultiVectorEncoder.save_pretrained`` writes it.

    Args:
        network: None = BERT.
        mask: settings of its ``MultiVectorMask``.
        pooling: whether items' tokens are pooled.
        of_transformer: such as ``query_expansion`` and ``document_length``.
    """
    torch.manual_seed(3)
    backbone = _write_backbone(folder / "backbone", network or bert())
    modules = [
        Transformer(str(backbone), **of_transformer),
        Dense(HIDDEN, WIDTH, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings"),
        MultiVectorMask(**(mask or {})),
        *([Normalize(module_input_name="token_embeddings")] if normalize else []),
        *([HierarchicalTokenPooling(pool_factor=2)] if pooling else []),
    ]
    model = MultiVectorEncoder(modules=modules, prompts=prompts, similarity_fn_name=similarity, device="cpu")
    model.save_pretrained(str(folder / "model"))
    return folder / "model"


def write_pylate(folder: Path, **changed: Any) -> Path:
    """The files that PyLate's ``ColBERT.save_pretrained`` writes: Transformer and its own Dense, the rest in one JSON.

    Args:
        changed: of ``config_sentence_transformers.json``.
    """
    _write_backbone(folder, bert(), MARKERS[:2])
    dense = folder / "1_Dense"
    dense.mkdir()
    torch.manual_seed(11)
    save_file({"linear.weight": torch.randn(WIDTH, HIDDEN)}, dense / "model.safetensors")
    _write(dense / "config.json", {
        "in_features": HIDDEN, "out_features": WIDTH, "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity", "use_residual": False,
    })  # fmt: skip
    _write(folder / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ])  # fmt: skip
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 39, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {
        "model_type": "ColBERT", "prompts": {"query": "", "document": ""}, "default_prompt_name": None,
        "similarity_fn_name": "MaxSim", "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 12,
        "document_length": 40, "attend_to_expansion_tokens": False, "skiplist_words": list(string.punctuation),
        "do_query_expansion": True, **changed,
    })  # fmt: skip
    return folder


def write_stanford(folder: Path) -> Path:
    """``HF_ColBERT``: the projection beside the network's tensors, settings in ``artifact.metadata``."""
    network = bert()
    _write_backbone(folder, network)
    torch.manual_seed(13)
    tensors = {f"bert.{name}": tensor for name, tensor in network.state_dict().items()}
    save_file({**tensors, "linear.weight": torch.randn(WIDTH, HIDDEN)}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _write(folder / "config.json", {**config, "architectures": ["HF_ColBERT"]})
    _write(folder / "artifact.metadata", {
        "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 16, "doc_maxlen": 48,
        "mask_punctuation": True, "attend_to_mask_tokens": False,
    })  # fmt: skip
    return folder


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
