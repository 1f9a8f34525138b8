"""Which endpoints a repository publishes: what a build wrote on this machine, never what git alone brought."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.core.workspace import Workspace
from builders.publish import pbtxt
from perf.endpoints import published_endpoints, serving
from perf.errors import PerfError
from tests.support.figures import small_recipe
from tests.support.tiny_models import publish, tiny_model

RECIPES = {"small": small_recipe()}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """The reference is published; of the INT8 variant there is a configuration that names a version of elsewhere."""
    repository = tmp_path / "models"
    publish(repository, tiny_model(tmp_path / "sources", 1, name="small_fp32_onnx"))
    config = pbtxt.parse((repository / "rank_small_fp32_onnx" / "config.pbtxt").read_text())
    config.name = "rank_small_int8_onnx"
    config.ensemble_scheduling.step[0].model_version = 3
    (repository / config.name).mkdir()
    (repository / config.name / "config.pbtxt").write_text(pbtxt.render(config))
    return Workspace(tmp_path / "build", repository, tmp_path / "store")


def test_a_variant_that_was_not_published_here_is_left_out_and_named(workspace: Workspace) -> None:
    said: list[str] = []
    assert [one.name for one in published_endpoints(RECIPES, workspace, say=said.append)] == ["rank_small_fp32_onnx"]
    [line] = said
    assert line.startswith("left out, not published on this machine: rank_small_int8_onnx (failed the gate here")


@pytest.mark.server
def test_what_is_published_can_be_served_beside_what_is_not(workspace: Workspace) -> None:
    endpoints = published_endpoints(RECIPES, workspace, say=lambda _: None)
    with serving(["rank", *(endpoint.name for endpoint in endpoints)], workspace) as server:
        assert "rank_small_fp32_onnx" in server.log()


def test_configurations_without_a_manifest_are_no_published_endpoints(workspace: Workspace) -> None:
    (workspace.repository / "manifest.json").unlink()
    with pytest.raises(PerfError, match="no endpoint of small; run 'make repository'"):
        published_endpoints(RECIPES, workspace, say=lambda _: None)
