"""The runbook: a page for each alert, and its commands run on a server that is served from a copy of this checkout."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders.build import build_ranker
from builders.core.recipe import load_recipe
from builders.core.workspace import Workspace
from builders.publish.catalogue import fill_item_store
from builders.publish.endpoints import publish_rankers
from builders.publish.lifecycle import promote
from server.ports import port_to_bind
from tests.support.checkout import copy_of_checkout
from tests.support.own_ranker import catalogue, write_own_ranker
from tests.support.waiting import wait_until
from tests.test_compose import alerts
from tests.test_readme import commands_in

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "how-to" / "runbook"
PAGES = sorted(path for path in RUNBOOK.glob("*.md") if path.stem != "index")
ALERTS = alerts()
SECTIONS = ("What it means.", "What a caller sees.", "What to type.", "How to know it is over.")
TIMEOUT_S = 120.0


def page_of(alert: str) -> Path:
    """The runbook's page: TritonDown is in triton-down.md."""
    return RUNBOOK / f"{re.sub('(?<!^)(?=[A-Z])', '-', alert).lower()}.md"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_has_a_page_that_it_names_and_the_index_lists(rule: dict[str, dict[str, str]]) -> None:
    page = page_of(str(rule["alert"]))
    assert rule["annotations"]["runbook"] == page.relative_to(ROOT).as_posix()
    assert f"[{rule['alert']}]({page.name}) | {rule['labels']['severity']} |" in (RUNBOOK / "index.md").read_text()


def test_a_page_is_of_an_alert_and_has_the_four_sections() -> None:
    assert {page_of(rule["alert"]) for rule in ALERTS} == set(PAGES)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert [section for section in SECTIONS if f"**{section}**" not in text] == [], page.name


# ---------------------------------------------------------------- the commands
@dataclasses.dataclass(frozen=True)
class Served:
    """A copy of the checkout that is served."""

    checkout: Path
    ports: dict[str, int]

    def run(self, command: str) -> None:
        """As it stands on the page, on this server's ports."""
        told = command.replace("127.0.0.1:8002", f"127.0.0.1:{self.ports['metrics']}")
        told = told.replace("ready.py 8000", f"ready.py {self.ports['http']}")
        told = re.sub(r"(server\.control \w+)", rf"\1 --http-port {self.ports['http']}", told)
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", told],
            cwd=self.checkout,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert ran.returncode == 0, f"{told}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`rank` is in its second generation of an own ranker."""
    checkout = copy_of_checkout(tmp_path_factory.mktemp("operator") / "tritonrank")
    workspace = Workspace(checkout / "build", checkout / "model_repository", checkout / "item_store")
    recipe = write_own_ranker(checkout / "own")
    module = recipe.with_suffix(".py")
    for seed in ("manual_seed(7)", "manual_seed(8)"):
        module.write_text(module.read_text().replace("manual_seed(7)", seed))
        built = build_ranker(load_recipe(recipe), catalogue(), lambda _: None, workspace)
        fill_item_store([built], lambda _: None, workspace)
        publish_rankers([built], {}, "made up", lambda _: None, workspace)
        promote(workspace.repository, "rank", "rank_every_kind_fp32_onnx")
    ports = {name: port_to_bind("127.0.0.1", 0, "") for name in ("grpc", "http", "metrics")}
    command = [checkout / ".venv" / "bin" / "python", "-m", "server", "--load", "rank"]
    command += [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    log = checkout / "server.log"
    with log.open("wb") as written:
        launcher = subprocess.Popen(command, cwd=checkout, stdout=written, stderr=written, env=dict(os.environ))
    try:
        wait_until(lambda: launcher.poll() is not None or b"ready: gRPC" in log.read_bytes(), TIMEOUT_S)
        assert launcher.poll() is None, log.read_text()[-3000:]
        yield Served(checkout, ports)
    finally:
        launcher.terminate()
        launcher.wait()


@pytest.mark.server
@pytest.mark.parametrize("page", [RUNBOOK / "index.md", *PAGES], ids=lambda page: page.stem)
def test_the_commands_of_a_page_work(page: Path, served: Served) -> None:
    commands = commands_in(page.read_text(encoding="utf-8"))
    assert commands
    for command in commands:
        served.run(command)
