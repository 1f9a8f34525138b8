"""Which token id of a tokenizer stands for no token: padding has an id of its own, whatever id that is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from builders.features.text import TokenizerError

CONFIG = "tokenizer_config.json"
USUAL_NAMES = ("[PAD]", "<pad>")


def padding_id_of(tokenizer_file: Path) -> int:
    """Padding id that ``tokenizer.json`` sets, else that of its ``tokenizer_config.json``, else of a usual name.

    A byte-level BPE tokenizer has a real token at id 0, "!", so 0 is never assumed.

    Raises:
        TokenizerError: not a tokenizer, or one that names no padding token of its vocabulary.
    """
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise TokenizerError(f"{tokenizer_file}: not a tokenizer ({error})") from error
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    names = [*_configured(tokenizer_file.with_name(CONFIG)), *USUAL_NAMES]
    ids = [identifier for name in names if (identifier := tokenizer.token_to_id(name)) is not None]
    if not ids:
        raise TokenizerError(
            f"{tokenizer_file}: no padding token: no padding in the file, none of {', '.join(names)} in its "
            f"vocabulary, whose id 0 is {tokenizer.id_to_token(0)!r}; "
            "tokenizer.enable_padding(pad_id=..., pad_token=...) before saving names one"
        )
    return ids[0]


def _configured(config: Path) -> Iterator[str]:
    """The name of ``pad_token``, where there is one."""
    if config.is_file():
        try:
            token: Any = json.loads(config.read_text(encoding="utf-8")).get("pad_token")
        except (ValueError, AttributeError) as error:
            raise TokenizerError(f"{config}: not a JSON object ({error}); copy it anew, or leave it out") from error
        if token:
            yield token["content"] if isinstance(token, dict) else token
