"""Code in the documents: Python compiles, TOML is a recipe's, and commands exist with their options."""

from __future__ import annotations

import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pydantic
import pytest
import typer
from tritonrank_client import _command
from typer.core import TyperGroup

import builders.__main__ as builders_cli
import gateway.__main__ as gateway_cli
import perf.__main__ as perf_cli
from builders.core.recipe import Recipe, Variant, load_recipe
from builders.data.purchase_columns import COLUMNS_FILE, ColumnNames
from docs import generate
from perf.sweep import load_sweep

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "clients" / "README.md",
    *sorted(ROOT.glob("checkpoints/*/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
VARIABLES = {*re.findall(r"\$\(([A-Z_]+)\)", MAKEFILE)}
OTHERS = {
    "openssl",
    "cd",
    "curl",
    "grep",
    "sort",
    "docker",
    "cp",
    "fuser",
    "pip",
    "first_stage",
    "grpcurl",
    "chmod",
    "for",
}
"""Programs and words of the shell that are not the kit's."""
GROUPS = {"builders": typer.main.get_command(builders_cli.app), "perf": typer.main.get_command(perf_cli.app)}
GATEWAY = typer.main.get_command(gateway_cli.app)
SERVER_HELP = generate.PARTS["server"]()
_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_PLACEHOLDER = re.compile(r"^(\.\.\.|[A-Z_]+)$")


def blocks(page: Path, *languages: str) -> list[str]:
    """Fenced code of these languages."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(code) for _, language, code in found if language in languages]


def commands(page: Path) -> Iterator[str]:
    """Lines of shell blocks and of indented blocks, and inline code that starts one of the kit's programs."""
    text = page.read_text(encoding="utf-8")
    for code in blocks(page, "bash", "sh", "shell"):
        lines = code.replace("\\\n", " ").splitlines()
        yield from with_whole_quotes(line for line in lines if line.strip() and not line.startswith("#"))
    prose = _BLOCK.sub("", text)
    yield from re.findall(r"^    ((?:make|\.venv/bin/\S+|tritonrank-rank|pip) .*)$", prose, re.MULTILINE)
    yield from re.findall(
        r"`((?:make|\.venv/bin/\S+|python -m (?:builders|perf|server)|tritonrank-rank) [^`\n]+)`", prose
    )


def with_whole_quotes(lines: Iterable[str]) -> Iterator[str]:
    """Lines; those that a quotation goes over as one."""
    command = ""
    for line in lines:
        command += line
        try:
            shlex.split(command, comments=True)
        except ValueError:
            command += "\n"
            continue
        yield command
        command = ""
    yield from [command] * bool(command)


def faults(command: str) -> list[str]:
    """What of the command does not exist."""
    found = []
    for part in re.split(r"\s(?:&&|\|)\s", re.sub(r"\$\([^)]*\)", "", command)):
        words = shlex.split(part, comments=True)
        while words and re.match(r"^[A-Z_]+=", words[0]):
            words = words[1:]
        found += faults_of_words(words) if words else []
    return found


def faults_of_words(words: list[str]) -> list[str]:
    """What of one program's command line does not exist."""
    program, arguments = Path(words[0]).name, words[1:]
    if program == "make":
        return faults_of_make(arguments)
    if program in ("python", "python3") and arguments[:1] == ["-m"]:
        return faults_of_module(arguments[1], arguments[2:])
    if program == "tritonrank-rank":
        known = _command._parser()._option_string_actions
        return [f"tritonrank-rank {option}" for option in options_in(arguments) if option not in known]
    if program == "python":
        return [path for path in arguments if path.endswith(".py") and not (ROOT / path).is_file()]
    return [] if program in OTHERS else [f"program {program}"]


def faults_of_make(arguments: list[str]) -> list[str]:
    """Targets and variables that the Makefile does not have."""
    variables = [word.partition("=")[0] for word in arguments if "=" in word]
    targets = [word for word in arguments if "=" not in word and not word.startswith("-")]
    unknown = [f"make {name}=" for name in variables if name not in VARIABLES]
    return unknown + [f"make {name}" for name in targets if name not in TARGETS and not _PLACEHOLDER.match(name)]


def faults_of_module(module: str, arguments: list[str]) -> list[str]:
    """Verbs and options that ``python -m MODULE`` does not have."""
    if module == "server":
        return [f"server {option}" for option in options_in(arguments) if f"{option} " not in f"{SERVER_HELP} "]
    if module == "gateway":
        known = {name for param in GATEWAY.params for name in param.opts}
        return [f"gateway {option}" for option in options_in(arguments) if option not in known]
    if module not in GROUPS:
        file = ROOT / module.replace(".", "/")
        there = module == "pytest" or file.is_dir() or file.with_suffix(".py").is_file()
        return [] if there else [f"python -m {module}"]
    verb = next((word for word in arguments if not word.startswith("-")), "...")
    group = GROUPS[module]
    assert isinstance(group, TyperGroup)
    if _PLACEHOLDER.match(verb):
        return []
    if verb not in group.commands:
        return [f"{module} {verb}"]
    known = {name for param in group.commands[verb].params for name in (*param.opts, *param.secondary_opts)}
    return [f"{module} {verb} {option}" for option in options_in(arguments) if option not in {*known, "--help"}]


def options_in(arguments: list[str]) -> list[str]:
    """Words that are options, without their values."""
    return [word.partition("=")[0] for word in arguments if word.startswith("--")]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_compiles(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, name_of(page), "exec")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=name_of)
def test_toml_is_a_recipe_or_part_of_one_or_a_sweep_or_names_columns(page: Path, tmp_path: Path) -> None:
    for code in blocks(page, "toml"):
        found = tomllib.loads(code)
        (tmp_path / "found.toml").write_text(code, encoding="utf-8")
        if "ranker" in found:
            load_recipe(tmp_path / "found.toml")
        elif "columns" in found:
            (tmp_path / COLUMNS_FILE).write_text(code, encoding="utf-8")
            assert ColumnNames.beside(tmp_path / "purchases.parquet").theirs == found["columns"]
        elif "variants" in found:
            pydantic.TypeAdapter(list[Variant]).validate_python(found["variants"])
        elif tables := [name for name in ("text", "reference", "serving") if name in found]:
            for name in tables:
                Recipe.model_fields[name].annotation.model_validate(found[name])
        else:
            load_sweep(tmp_path / "found.toml")


@pytest.mark.parametrize("page", [page for page in PAGES if [*commands(page)]], ids=name_of)
def test_commands_exist_with_their_targets_verbs_and_options(page: Path) -> None:
    assert [fault for command in commands(page) for fault in faults(command)] == []


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("make no-such-target", "make no-such-target"),
        ("make serve NO_SUCH_VARIABLE=1", "make NO_SUCH_VARIABLE="),
        (".venv/bin/python -m builders no-such-verb", "builders no-such-verb"),
        ("A=1 .venv/bin/python -m builders tune big --no-such-option 1", "builders tune --no-such-option"),
        ("make help && .venv/bin/python -m perf sweep --nothing", "perf sweep --nothing"),
        (".venv/bin/python -m server --nothing", "server --nothing"),
        (".venv/bin/python -m gateway --nothing", "gateway --nothing"),
        ("python3 -m builders.no_such_module", "python -m builders.no_such_module"),
        ("tritonrank-rank --nothing", "tritonrank-rank --nothing"),
        ("no_such_program --help", "program no_such_program"),
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str, fault: str) -> None:
    assert faults(command) == [fault]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
