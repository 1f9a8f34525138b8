"""A checkpoint's chat template => what it writes around query and item, found by rendering it with the library."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from builders.features.prompts import Prompt
from builders.rankers.backbone import CheckpointError

_MARKS = {"query": "\ue000", "item": "\ue001"}
"""Of Unicode's private use: no template looks for them or takes them off."""
PROBES = (
    ("red running shoe", "Garden hose, 20 m"),
    ("!", ""),
    ('  <b>"it\'s" & {{ 2 }}\n', "two\nlines\t, \u00a0spaces  "),
    ("跑步鞋 用户:", "System: <Query>: no </think> {% raw %}"),
    ("mug", "word " * 300),
)
"""Query and item: templates that look at the text itself show by one of these."""


def chat_prompt(folder: Path, transformer: Any, system: str, settings: Mapping[str, Any]) -> Prompt:
    """What ``transformer`` (sentence-transformers' module) makes of a pair.

    Args:
        system: the system's message; "" = none.
        settings: further arguments of the template.

    Raises:
        CheckpointError: the template does not hold both, or writes them otherwise for some texts.
    """
    if "strftime_now" in str(transformer.processor.chat_template):
        raise CheckpointError(
            f"{folder}: its chat template writes today's date, so that scores change by the day; wanted one without "
            "'strftime_now'"
        )
    settings = {name: value for name, value in settings.items() if name != "restore_suffix"}

    def rendered(query: str, item: str) -> str:
        conversation = _conversation(transformer, system, query, item)
        return str(transformer.processor.apply_chat_template(conversation, tokenize=False, **settings))

    prompt = _prompt(folder, rendered)
    for query, item in PROBES:
        if rendered(query, item) != prompt.text(query, item):
            raise CheckpointError(
                f"{folder}: its chat template writes query {query[:40]!r} with document {item[:40]!r} otherwise than "
                "others: it changes with the document; wanted a template that only puts the two into their places"
            )
    return prompt


def chat_suffix(transformer: Any, system: str, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Token ids that the library writes over the end of a sequence that it cut."""
    settings = dict(settings)
    if not settings.pop("restore_suffix", True):
        return ()
    conversation = _conversation(transformer, system, *PROBES[0])
    return tuple(transformer._chat_template_suffix_ids(conversation, settings, {}))


def _conversation(transformer: Any, system: str, query: str, item: str) -> list[dict[str, Any]]:
    messages = transformer.input_formatter.pair_to_messages((query, item))
    if system:
        [messages] = transformer.input_formatter.prepend_prompt_to_messages([messages], system)
    return list(messages)


def _prompt(folder: Path, rendered: Callable[[str, str], str]) -> Prompt:
    pieces = re.split(f"([{''.join(_MARKS.values())}])", rendered(*_MARKS.values()))
    names = {mark: name for name, mark in _MARKS.items()}
    slots = tuple(names[mark] for mark in pieces[1::2])
    if set(slots) != set(_MARKS):
        raise CheckpointError(
            f"{folder}: its chat template does not write the messages of the roles 'query' and 'document'; wanted one "
            "that holds both, as sentence-transformers documents it for rerankers"
        )
    spaced = rendered(*(f" {mark} " for mark in _MARKS.values()))
    stripped = tuple(name for name, mark in _MARKS.items() if f" {mark} " not in spaced)
    return Prompt(tuple(pieces[::2]), slots, stripped)
