"""Small causal language models with random weights, written by transformers and sentence-transformers as rerankers."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
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

from builders.data.beir import JudgedQueries, Product

LENGTH = 256
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
QUERIES = ("red running shoe", "mug", "waterproof tent for kids", "!")
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


def offers() -> JudgedQueries:
    """1,100 products, every fifth with a description far longer than a sequence; each query judged on 44."""
    draw = random.Random(11)
    colors, things = ("red", "blue", "grey"), ("running shoe", "garden hose", "tea mug", "camping tent", "desk lamp")
    titles = itertools.product(range(74), colors, things)
    products = {}
    for number, (size, color, thing) in zip(range(1100), titles, strict=False):
        text = " ".join(draw.choices([*colors, *things, "no.", "yes!"], k=150)) if number % 5 == 0 else ""
        products[f"p{number}"] = Product(f"p{number}", f"{color} {thing} {size}", text, ("Acme", "")[number % 2])
    judgements = {
        f"q{number}": {item_id: draw.choice([0, 1, 2, 3]) for item_id in draw.sample(sorted(products), 44)}
        for number in range(len(QUERIES))
    }
    return JudgedQueries({f"q{number}": text for number, text in enumerate(QUERIES)}, products, judgements)


def tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """As Qwen's: byte-level BPE, nothing around a text; with the tokens "yes" and "no"."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    words = [*QUERIES, *(f"{one.title} {one.brand}" for one in offers().products.values()), *[CHAT_TEMPLATE] * 9]
    made.train_from_iterator([*["yes", "no"] * 2000, *words], trainer)
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


def drawn_wide(network: Any) -> Any:
    """The same network with seeded weights, wide enough that scores differ."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    network.tie_weights()
    return network.eval()
