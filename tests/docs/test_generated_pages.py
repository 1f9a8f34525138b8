"""What the pages say of commands, tensors, errors, alerts, metrics and rankers is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tritonrank_client import _errors as client_errors

from builders.core import contract
from builders.core.recipe import load_recipes
from docs import generate
from server import errors as server_errors

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


def rows_of(page: str) -> dict[str, list[str]]:
    """First cell without its backticks => the other cells, of every table of the page."""
    lines = (REFERENCE / page).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    return {row[0].strip("` "): row[1:] for row in cells}


def test_the_command_line_the_tensors_and_the_errors_have_generated_parts() -> None:
    assert {page.name for page in generate.pages()} >= {"command-line.md", "tensors.md", "errors.md"}


@pytest.mark.parametrize("page", [*generate.pages()], ids=lambda page: page.name)
def test_a_generated_page_is_what_the_code_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    assert generate.written(text) == text, "run '.venv/bin/python -m docs.generate' and commit what it writes"


def test_every_error_of_client_and_server_is_told() -> None:
    names = [
        name
        for module in (client_errors, server_errors)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    told = re.findall(r"^ *- `(\w+)`", (REFERENCE / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(told) == sorted(names)


def test_a_part_that_nobody_makes_is_an_error() -> None:
    with pytest.raises(KeyError, match="no such part"):
        generate.written("<!-- generated: no such part -->\n<!-- generated: end -->")


def test_every_limit_of_the_contract_is_told() -> None:
    numbers = {name for name, value in vars(contract).items() if isinstance(value, (int, float))}
    limits = {name for name in numbers if re.match(r"(MAX|DEFAULT)_", name)}

    assert limits <= set(generate.LIMITS)


def test_every_alert_is_told_with_its_severity_and_patience() -> None:
    groups = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    rows = {name: cells for name, cells in rows_of("metrics-and-alerts.md").items() if name[0].isupper()}

    assert rows.keys() == rules.keys()
    assert {name: cells[0] for name, cells in rows.items()} == {
        name: rule["labels"]["severity"] for name, rule in rules.items()
    }
    assert [name for name, rule in rules.items() if f"for {rule['for']}" not in rows[name][1]] == []


def test_every_metric_that_the_kit_counts_is_told() -> None:
    code = [*(ROOT / "served").rglob("*.py"), *(ROOT / "model_repository").rglob("*.py")]
    counted = {name for path in code for name in re.findall(r'"(tritonrank_\w+_total)"', path.read_text())}

    assert counted
    assert counted <= rows_of("metrics-and-alerts.md").keys()


def test_every_metric_of_triton_that_alerts_or_dashboard_read_is_told() -> None:
    texts = [(ROOT / "deploy" / "alerts.yml"), *(ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")]
    read = {name for path in texts for name in re.findall(r"\bnv_\w+", path.read_text(encoding="utf-8"))}
    told = set(re.findall(r"`(nv_\w+)`", (REFERENCE / "metrics-and-alerts.md").read_text(encoding="utf-8")))

    assert read == told


def test_every_recipe_of_the_kit_is_a_row_of_the_rankers() -> None:
    table = (REFERENCE / "rankers.md").read_text(encoding="utf-8").partition("\n## ")[0]

    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(load_recipes())
