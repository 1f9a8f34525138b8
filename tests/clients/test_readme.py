"""The client's README says what is so."""

from __future__ import annotations

from pathlib import Path

import pytest
from tritonrank_client import _command, _errors

README = (Path(__file__).parents[2] / "clients" / "README.md").read_text(encoding="utf-8")
USAGES, FALLBACK, MOCKS = (block.partition("```")[0] for block in README.split("```python\n")[1:])


def test_the_page_without_a_server_falls_back_to_the_first_stage():
    names = {"query": "shoes", "ids": [str(row) for row in range(20)]}
    exec(MOCKS, names)  # leaves the overloaded client
    exec(FALLBACK, names)

    assert names["order"] == names["ids"][:10]


@pytest.mark.server
def test_the_column_of_usages_runs(server):
    usages = USAGES.replace('"localhost:8001"', f"{server.grpc_url!r}, timeout_s=30").replace("timeout_s=0.05", "")
    names = {"ids": ["1", "2", "3"]}
    exec(usages, names)

    assert names["ranked"].ids == ("3", "2", "1")


def test_the_errors_are_those_of_the_tree():
    drawn = [line.split()[1] for line in _errors.__doc__.splitlines() if "+--" in line]

    assert [line.split()[1] for line in README.splitlines() if "+--" in line] == drawn


def test_the_commands_options_are_its_own():
    (_, _, shell) = README.partition("## From a shell")
    options = {word for word in shell.split() if word.startswith("--")}

    assert options <= set(_command._parser()._option_string_actions)
