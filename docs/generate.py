"""Writes the parts of the pages that are made from the code: ``.venv/bin/python -m docs.generate``.

A part stands between ``<!-- generated: NAME -->`` and ``<!-- generated: end -->``. The pages are committed, so that a
diff shows what a change of the code means for a reader; a test fails where a page is not what this would write.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from unittest import mock

import pydantic
import typer
from tritonrank_client import _command, _errors, _wire
from typer.cli import get_docs_for_click
from typer.core import TyperGroup

import builders
import builders.__main__ as builders_cli
import gateway.__main__ as gateway_cli
import perf.__main__ as perf_cli
import server.__main__ as server_cli
import server.control as control_cli
from builders.core import contract
from builders.core.errors import BuilderError
from builders.feedback.events import EVENTS
from gateway.cohere import COHERE
from gateway.errors import Fault
from gateway.nemo import NIM
from gateway.own import OWN
from gateway.tei import TEI
from server import errors as server_errors

ROOT = Path(__file__).resolve().parents[1]
_PART = re.compile(r"(<!-- generated: (?!end)([^>]+) -->\n).*?(<!-- generated: end -->)", re.DOTALL)
LIMITS = {
    "MAX_CANDIDATES": "items of one request, at least 1",
    "MAX_ITEM_ID_BYTES": "bytes of an item id (the key limit of LMDB)",
    "MAX_QUERY_BYTES": "bytes of a query; a longer one is refused",
    "MAX_QUERY_TOKENS": "word pieces of a query that the kit's own text rankers read, unless `[text]` says other",
    "MAX_LENGTH": "tokens of one sequence of the kit's own text rankers, unless `[text]` says other",
    "LENGTH_BUCKET": "sequences of up to 128 tokens are padded to a multiple of this, longer ones to wider steps",
    "MAX_HISTORY_EVENTS": "items of a history; a ranker reads as many of the latest as its features say",
    "MAX_CONTEXT_BYTES": "bytes of `context`, and of each item's `item_fields`",
    "MAX_TEXT_BYTES": "bytes of each of `item_texts`",
    "MAX_BOOSTS": "boosts of one request",
    "MAX_ATTRIBUTE_BYTES": "bytes of one `attribute=value`",
    "MAX_BOOST_AMOUNT": "largest boost, up or down",
    "MAX_SIMILAR": "items that `similar` returns at most",
    "DEFAULT_SIMILAR": "items that `similar` returns where `top_k` is absent or 0",
    "MAX_ROWS_PER_RUN": "rows that a scorer computes at once; larger requests are computed in parts",
    "MAX_REQUESTS_PER_RUN": "requests of one row, such as queries of a query encoder, that are computed at once",
    "MAX_TOKENS_PER_RUN": "rows times padded length that a scorer of sequences computes at once, but one row at least",
    "UNSCORED": "score of an item that could not be scored: the lowest finite FP32",
}
"""Constant of builders/core/contract.py => what it limits."""


# ---------------------------------------------------------------- pages
def written(page: str) -> str:
    """The page with its generated parts made anew. Raises: KeyError: a part that :data:`PARTS` does not know."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]().strip()}\n\n{part[3]}", page)


def pages() -> Iterator[Path]:
    """Those that have generated parts."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        if _PART.search(path.read_text(encoding="utf-8")):
            yield path


def table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """In Markdown."""
    lines: list[Iterable[object]] = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


# ---------------------------------------------------------------- command line
def typer_help(app: typer.Typer, name: str) -> str:
    """What ``typer utils docs`` writes, a heading lower, and without what belongs to this machine."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name=name).replace(f"{ROOT}/", "")
    text = re.sub(r"(`--threads <int>`:.*)\[default: \d+\]", r"\1[default: this machine's processors]", text)
    # The list of commands cuts each sentence at 45 characters.
    whole = {verb: " ".join((command.help or "").split("\n\n")[0].split()) for verb, command in group.commands.items()}
    listed = re.compile(r"^\* `([a-z-]+)`: .*$", re.MULTILINE)
    text = listed.sub(lambda line: f"* `{line[1]}`: {whole[line[1]]}" if line[1] in whole else line[0], text)
    return re.sub(r"^(#+) ", r"#\1 ", text, flags=re.MULTILINE)


def typer_command_help(app: typer.Typer, name: str) -> str:
    """As :func:`typer_help`, of a program without verbs."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name=name)
    return re.sub(r"^(#+) ", r"#\1 ", text, flags=re.MULTILINE)


def argparse_help(parse: Callable[[], object], name: str) -> str:
    """What ``--help`` prints, as a block under a heading."""
    printed = io.StringIO()
    width = mock.patch.dict(os.environ, {"COLUMNS": "100"})
    with width, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        parse()
    return f"## `{name}`\n\n```text\n{printed.getvalue().strip().replace(str(ROOT), '.')}\n```"


# ---------------------------------------------------------------- tensors
def tensors(endpoint: str) -> str:
    """Inputs and outputs of an endpoint, those included that only some rankers read."""
    described = json.loads(contract.client_contracts())[endpoint]
    rows = [
        (f"{arrow}`{each['name']}`", f"{each['dtype']} [{', '.join(map(str, each['dims']))}]", needed, each["meaning"])
        for side, arrow in (("inputs", ""), ("outputs", "=> "))
        for each in described[side]
        for needed in ["" if side == "outputs" else "optional" if each["optional"] else "required"]
    ]
    return f"{table(('tensor', 'dtype and shape', '', 'meaning'), rows)}\n\nScores: {described['score']}."


def limits() -> str:
    """Every limit, with its value."""
    rows = ((f"`{name}`", _readable(getattr(contract, name)), meaning) for name, meaning in LIMITS.items())
    return table(("name", "value", "what it limits"), rows)


def _readable(value: float) -> str:
    return f"{value:,.0f}" if abs(value) < 1e9 else str(value)


# ---------------------------------------------------------------- errors
def tree(module: ModuleType) -> str:
    """The tree of errors in a module's docstring, as a list; with exit codes where the errors have some."""
    drawn = re.findall(r"^    ([ |]*)(\+-- )?(\w+)(?: +(.*))?$", module.__doc__ or "", re.MULTILINE)
    return "\n".join(
        f"{indent.replace('|', ' ')}{'    ' if below else ''}- `{name}`{_exit_code(module, name)}"
        f"{f': {meaning}' if meaning else ''}"
        for indent, below, name, told in drawn
        if isinstance(getattr(module, name, None), type)
        for meaning in [re.sub(r"^(\d+: |exit code \d+$)", "", told)]
    )


def _exit_code(module: ModuleType, name: str) -> str:
    code = getattr(getattr(module, name), "exit_code", None)
    return "" if code is None else f" (exit code {code})"


def statuses() -> str:
    """Which of the client's errors a gRPC status becomes."""
    by_error: dict[str, list[str]] = {}
    for status, error in _wire.ERROR_OF_STATUS.items():
        by_error.setdefault(error.__name__, []).append(f"`{status}`")
    return table(("error", "gRPC status"), ((f"`{error}`", ", ".join(of)) for error, of in by_error.items()))


def gateway_errors() -> str:
    """HTTP statuses of what a request to the gateway meets, by interface."""
    forms = {"Cohere's, `/v3`": COHERE, "TEI": TEI, "NeMo": NIM, "ours": OWN}
    rows = ((fault.meaning, *(form.status(fault) for form in forms.values())) for fault in Fault)
    return table(("what happened", *forms), rows)


def builder_errors() -> str:
    """Every error that the builders raise on purpose."""
    for module in pkgutil.walk_packages(builders.__path__, "builders."):
        if module.name != "builders.__main__":
            importlib.import_module(module.name)
    rows = [
        (f"`{error.__name__}`", f"`{error.__module__}`", error.exit_code, _first_sentence(error))
        for error in sorted(_subclasses(BuilderError), key=lambda error: (error.__name__, error.__module__))
        if error.__module__.startswith("builders.")
    ]
    return table(("error", "module", "exit code", "when"), rows)


def _subclasses(error: type[BuilderError]) -> set[type[BuilderError]]:
    below = set(error.__subclasses__())
    return below.union(*map(_subclasses, below))


def _first_sentence(error: type[BuilderError]) -> str:
    return " ".join((error.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")


# ---------------------------------------------------------------- feedback log
def event_fields(model: type[pydantic.BaseModel]) -> str:
    """Every field of a record, those of all records first."""
    rows = (
        (f"`{name}`", "needed" if field.is_required() else "optional", field.description or "")
        for name, field in model.model_fields.items()
        if name != "event"
    )
    return table(("field", "", "meaning"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "builders": lambda: typer_help(builders_cli.app, "python -m builders"),
    "perf": lambda: typer_help(perf_cli.app, "python -m perf"),
    "server": lambda: argparse_help(lambda: server_cli.main(["--help"]), "python -m server"),
    "server.control": lambda: argparse_help(lambda: control_cli.main(["--help"]), "python -m server.control"),
    "gateway": lambda: typer_command_help(gateway_cli.app, "python -m gateway"),
    "tritonrank-rank": lambda: argparse_help(lambda: _command.main(["--help"]), "tritonrank-rank"),
    **{f"tensors of {name}": lambda name=name: tensors(name) for name in ("rank", "recommend", "similar")},  # type: ignore[misc]
    "limits": limits,
    "errors of the client": lambda: tree(_errors),
    "errors of the server": lambda: tree(server_errors),
    "errors of the gateway": gateway_errors,
    "statuses": statuses,
    "errors of the builders": builder_errors,
    **{f"event {model.__name__}": lambda model=model: event_fields(model) for model in EVENTS},  # type: ignore[misc]
}
"""Name of a part => what makes it."""


if __name__ == "__main__":
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if written(text) != text:
            path.write_text(written(text), encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")
