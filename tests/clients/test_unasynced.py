"""The client for threads is the asyncio one, made from it."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

import pytest
from tritonrank_client import AsyncRankClient, RankClient

CLIENTS = Path(__file__).parents[2] / "clients"


def test_the_committed_files_are_what_is_made_from_the_asyncio_client(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("unasynced", CLIENTS / "unasynced.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["unasynced"] = module
    spec.loader.exec_module(module)
    module.main(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {
        path.name: path.read_text()
        for path in (CLIENTS / "tritonrank_client" / "_sync").glob("*.py")
        if path.name not in module.BY_HAND
    }
    assert made == committed, "run: python clients/unasynced.py"
    assert not any("async" in text.lower() or "await" in text for text in made.values())


@pytest.mark.parametrize("name", [name for name in vars(RankClient) if not name.startswith("_")])
def test_both_have_the_same_methods(name: str) -> None:
    threads, tasks = getattr(RankClient, name), getattr(AsyncRankClient, name)
    assert inspect.signature(threads) == inspect.signature(tasks)
    assert inspect.iscoroutinefunction(tasks) and not inspect.iscoroutinefunction(threads)
