"""A byte-level BPE tokenizer, as GPT-2, RoBERTa and Qwen have one: the token at id 0 is a real one, "!"."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PADDING = "<|padding|>"
TEXTS = ("red shoe! blue shoe", "wow! a red mug", "!! blue mug for tea", "green shoe of wool!")


def write_byte_level_bpe(folder: Path, padding: str | None = PADDING) -> Path:
    """Trains one on :data:`TEXTS`; its padding token, where it has one, is its last. Returns ``tokenizer.json``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if padding:
        tokenizer.add_special_tokens([padding])
        tokenizer.enable_padding(pad_id=tokenizer.token_to_id(padding), pad_token=padding)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"
