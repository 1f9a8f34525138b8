"""Small causal language models with random weights, written by transformers and sentence-transformers as rerankers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tests.support.library_checkpoints import drawn_wide, texts

LENGTH = 160
"""Positions of every network here."""
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
CHAT_TEMPLATE = f"""<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{{{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first \
| default("{INSTRUCTION}") }}}}
<Query>: {{{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}}}
<Document>: {{{{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}}}<|im_end|>
<|im_start|>assistant
<think>

</think>

"""
"""Of Qwen3-Reranker's form, with the roles that sentence-transformers gives a pair."""
STRIPPING_TEMPLATE = (
    '{%- for message in messages %}<|im_start|>{{ message["role"] }}\n{{ message["content"] | trim }}<|im_end|>\n'
    "{%- endfor %}<|im_start|>assistant\n"
)
DOCUMENT_FIRST = STRIPPING_TEMPLATE.replace("messages", "messages | reverse")
CHANGING_TEMPLATE = CHAT_TEMPLATE.replace(
    "</think>", "{% if messages[-1].content | length > 99 %}Long.{% endif %}</think>"
)
_SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": LENGTH,
}  # fmt: skip
_CONFIGS: dict[str, Any] = {
    "qwen3": lambda **given: Qwen3Config(head_dim=12, tie_word_embeddings=True, **given),
    "qwen2": lambda **given: Qwen2Config(**given),
    "llama": lambda **given: LlamaConfig(head_dim=12, tie_word_embeddings=False, **given),
    "gemma2": lambda **given: Gemma2Config(
        **{"head_dim": 12, "sliding_window": 16, "final_logit_softcapping": 2.0, **given}
    ),
    "gemma3": lambda **given: Gemma3TextConfig(**{"head_dim": 12, "sliding_window": 4096, **given}),
    "gpt2": lambda **given: GPT2Config(
        vocab_size=given["vocab_size"], n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH
    ),
}


def tokenizer(*, answers: bool = True, **settings: Any) -> PreTrainedTokenizerFast:
    """As Qwen's: byte-level BPE, nothing around a text. answers: whether "yes" and "no" are tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    asked = [*["yes", "no"] * 2000, *[CHAT_TEMPLATE] * 9] if answers else []
    made.train_from_iterator([*asked, *texts()], trainer)
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    given: dict[str, Any] = {"model_input_names": ["input_ids", "attention_mask"], "padding_side": "left", **settings}
    given = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", **given}
    return PreTrainedTokenizerFast(tokenizer_object=made, **given)


def write_causal(
    folder: Path, kind: str = "qwen3", chat_template: str | None = CHAT_TEMPLATE, words: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:  # fmt: skip
    """``*ForCausalLM`` as transformers saves it. words: of the tokenizer; settings: of the configuration."""
    made = tokenizer(**words or {})
    made.chat_template = chat_template
    given = {"vocab_size": len(made), "pad_token_id": made.pad_token_id, **_SIZES, **settings}
    drawn_wide(AutoModelForCausalLM.from_config(_CONFIGS[kind](**given))).save_pretrained(folder)
    made.save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).architectures[0].endswith(("ForCausalLM", "LMHeadModel"))
    return folder


def write_reranker(
    folder: Path, kind: str = "qwen3", chat_template: str | None = CHAT_TEMPLATE, words: dict[str, Any] | None = None,
    *, yes: str = "yes", no: str | None = "no", processing: dict[str, Any] | None = None, **settings: Any,
) -> Path:  # fmt: skip
    """Transformer => LogitScore as sentence-transformers saves it. settings: of ``CrossEncoder``."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    write_causal(folder / "network", kind, chat_template, words)
    transformer = Transformer(
        str(folder / "network"), transformer_task="text-generation", processing_kwargs=processing or {}
    )
    asked = [None if token is None else transformer.tokenizer.convert_tokens_to_ids(token) for token in (yes, no)]
    model = CrossEncoder(modules=[transformer, LogitScore(*asked)], device="cpu", **settings)
    model.save_pretrained(str(folder / "saved"))
    return folder / "saved"
