"""Clients that no one here wrote, each in an environment of its own, made by the first run in build/gateway-clients."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tritonrank_client import RankClient

from builders.core.workspace import REPOSITORY_ROOT
from perf.peers.environments import NotInstalled, python_of
from perf.peers.peer import Environment
from server import TritonServer
from tests.support.gateways import PATIENT_S

pytestmark = [pytest.mark.server, pytest.mark.slow]
OUTSIDE = Path(__file__).parent / "outside"
KEY = "0123456789abcdef" * 2
QUERY, TEXTS = "red shoe", ["a blue mug", "red running shoe", "red shoe, waterproof"]


@pytest.fixture
def ask(started: Callable[..., httpx2.Client], tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Runs a script of ``outside/`` against a gateway with a key; what it prints."""
    (tmp_path / "keys").write_text(KEY)
    (tmp_path / "keys").chmod(0o600)
    client = started(models={"shop": "rank"}, key_file=tmp_path / "keys")

    def run(script: str) -> dict[str, Any]:
        folder = REPOSITORY_ROOT / "build" / "gateway-clients"
        try:
            python = python_of(Environment(script), folder, requirements=OUTSIDE / "requirements")
        except NotInstalled as error:
            pytest.skip(f"{script}: {error}")
        url = str(client.base_url).rstrip("/")
        command = [python, OUTSIDE / f"{script}.py", url, KEY, QUERY, json.dumps(TEXTS)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        return dict(json.loads(ended.stdout.splitlines()[-1]))

    return run


@pytest.fixture
def wanted(triton: TritonServer) -> list[list[object]]:
    """Text and score, best first."""
    with RankClient(triton.grpc_url, timeout_s=PATIENT_S) as direct:
        return [[TEXTS[index], score] for index, score in direct.rerank(QUERY, TEXTS)]


def test_coheres_sdk(ask: Callable[[str], dict[str, Any]], wanted: list[list[object]]) -> None:
    found = ask("cohere_sdk")
    assert found["v1"] == found["v2"] == found["async v2"] == wanted
    assert (found["top 2"], found["version"]) == (wanted[:2], "2")
    assert found["errors"] == [
        "UnauthorizedError 401 this key is not know",
        "NotFoundError 404 model: found 'none',",
        "BadRequestError 400 documents: found non",
        "BadRequestError 400 max_tokens_per_doc: ",
    ]


def test_langchains_rerankers(ask: Callable[[str], dict[str, Any]], wanted: list[list[object]]) -> None:
    assert ask("langchain_rerankers") == {"CohereRerank": wanted, "NVIDIARerank": wanted}


def test_llama_index_rerankers(ask: Callable[[str], dict[str, Any]], wanted: list[list[object]]) -> None:
    assert ask("llama_index_rerankers") == {"CohereRerank": wanted, "TextEmbeddingInference": wanted}
