"""The commands of the README and the tutorials, run as a reader would type them.

A block of commands is run when the comment ``<!-- tested -->`` stands before it; a command that stands in several pages
is run once. They run in a copy of this checkout that shares its environments.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from builders.core.workspace import Workspace
from builders.data.find import DATA_VARIABLE, find_data
from tests.support.checkout import copy_of_checkout
from tests.support.kit import DEMO, WORKSPACE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
TIMEOUT_S = 900
_TESTED = re.compile(r"<!-- tested -->\s*```(?:bash|sh|shell)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands_in(markdown: str) -> list[str]:
    """Each command of the tested blocks, in order; a line that ends in a backslash goes on in the next."""
    blocks = "\n".join(_TESTED.findall(markdown)).replace("\\\n", " ")
    lines = (line.strip().removeprefix("$ ") for line in blocks.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


BY_PAGE = {page.name: commands_in(page.read_text(encoding="utf-8")) for page in PAGES}
COMMANDS = list(dict.fromkeys(command for commands in BY_PAGE.values() for command in commands))


def test_only_tested_blocks_are_taken_line_by_line() -> None:
    markdown = """
```bash
rm -rf never
```
<!-- tested -->
```bash
# a comment
make help
$ echo one \\
  two
```
text
<!-- tested -->

```bash
make data   # said again
```
"""
    assert commands_in(markdown) == ["make help", "echo one    two", "make data   # said again"]


def test_the_readme_and_the_demos_tutorial_have_commands_that_are_tested() -> None:
    assert any("make demo" in command for command in BY_PAGE["README.md"])
    assert any("make demo" in command for command in BY_PAGE["demo.md"])


def test_the_demo_is_run_once() -> None:
    assert len([command for command in COMMANDS if "make demo" in command]) == 1


def test_no_tested_command_runs_the_tests_or_never_ends() -> None:
    assert not [command for command in COMMANDS if re.search(r"\bmake (test|serve)\b|\bpytest\b", command)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_checkout(tmp_path_factory.mktemp("reader") / "tritonrank")


@pytest.mark.server
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_or_a_tutorial_works(command: str, checkout: Path) -> None:
    if "make demo" in command:
        _lend_what_takes_longest(checkout)
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=checkout,
        env={**os.environ, "DEMO_QUERIES": "10", DATA_VARIABLE: str(find_data().folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, f"{command}\n{ran.stdout[-4000:]}"


def _lend_what_takes_longest(checkout: Path) -> None:
    """The cross-encoder as the tests' kit built it, if they did: the demo judges and gates it, and builds the rest."""
    here = Workspace(build=checkout / "build")
    built, target = (workspace.ranker_folder(DEMO) for workspace in (WORKSPACE, here))
    if built.is_dir() and not target.exists():
        shutil.copytree(built, target)
