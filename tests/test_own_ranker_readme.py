"""The tutorial's own ranker, as a reader would copy it: from its two files to a published endpoint."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from builders.build import build_ranker
from builders.core.recipe import load_recipe
from builders.core.workspace import Workspace
from builders.data.beir import Request
from builders.publish.catalogue import fill_item_store
from builders.publish.endpoints import publish_rankers
from tests.support.own_ranker import catalogue

TUTORIAL = (Path(__file__).parents[1] / "docs" / "tutorials" / "your-own-ranker.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- own ranker: (\S+) -->\n```\w+\n(.*?)^```", TUTORIAL, re.DOTALL | re.MULTILINE))


def test_it_is_under_40_lines() -> None:
    assert set(FILES) == {"my_ranker.py", "my_ranker.toml"}
    assert sum(len(text.splitlines()) for text in FILES.values()) < 40


def test_it_is_built_checked_and_published(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    workspace = Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "store")
    said: list[str] = []
    built = build_ranker(load_recipe(tmp_path / "my_ranker.toml"), catalogue(), said.append, workspace)
    fill_item_store([built], said.append, workspace)
    publish_rankers([built], {}, "made up", said.append, workspace)
    assert (workspace.repository / "recommend_my_ranker_fp32_onnx" / "config.pbtxt").is_file()
    assert any("parity with torch over 3 shapes" in line for line in said)


def test_its_score_depends_on_the_history(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    workspace = Workspace(tmp_path / "build", tmp_path / "models", tmp_path / "store")
    data = catalogue()
    torch.manual_seed(0)  # its weights are random
    ranker = build_ranker(load_recipe(tmp_path / "my_ranker.toml"), data, lambda _: None, workspace).ranker
    products = list(data.products.values())[:10]
    first, second = (ranker.score(Request(history=(item_id,)), products) for item_id in ("B1", "B2"))
    assert np.abs(first - second).max() > 1e-3
