"""query + items => token sequences of a reranker's prompt, and, where its graph takes it so, what all of them start
with, once.

Texts are tokenised whole, as the library of the checkpoint tokenises them: tokens at the seam of two parts differ. The
store keeps texts, therefore. An item without one gets the prompt of an empty text, so that rows and candidates stay
aligned; ``postprocess`` ranks it last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from served import TextPreprocessor, padded_length


class TritonPythonModel(TextPreprocessor):
    """inputs: query BYTES [1], item_ids BYTES [candidates]; optional item_texts or item_fields BYTES [candidates];
    outputs: as the contract beside this file declares."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load tokenizer, prompt and item store. Raises: RuntimeError when the store belongs to another model."""
        import prompts  # beside the models of rerankers only

        super().initialize(args)
        found: dict[str, Any] | None = self.parameters["prompt"]
        self.prompts = prompts
        self.prompt = None if found is None else prompts.Prompt.from_parameters(found)
        self.arranged = prompts.split_sequences if self.parameters["shares_prefix"] else prompts.padded_sequences

    def tensors(self, query: str, stored: list[bytes | None], texts: list[str | None]) -> dict[str, np.ndarray]:
        """The contract's token tensors: INT32."""
        items = [
            (value or b"").decode("utf-8") if text is None else text for text, value in zip(texts, stored, strict=True)
        ]
        longest = self.parameters["max_length"]
        rows, truncated = self.prompts.token_sequences(
            self.tokenizer, self.prompt, query, items, longest, self.parameters["truncation_side"]
        )
        self.truncated.add(truncated)
        return self.arranged(rows, self._padded, longest, self.parameters["pad_token_id"])

    def _padded(self, tokens: int, maximum: int) -> int:
        return padded_length(tokens, {**self.parameters, "max_length": maximum})
