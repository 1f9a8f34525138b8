"""Models of DeepCTR-Torch, torch-rechub and RecBole by their pages: served scores are the libraries' own.

The libraries lie in an environment of their own over the builders', made on first use and kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as grpc

from builders.core.contract import HISTORY, ITEM_IDS, USER_ID
from builders.core.workspace import PROJECT, REPOSITORY_ROOT
from builders.data.synthetic import write_generated
from server import TritonServer
from tests.support.endpoint import send, texts
from tests.support.library_recommenders import RECIPES

pytestmark = pytest.mark.slow
REQUIREMENTS = REPOSITORY_ROOT / "requirements" / "recommender-libraries.txt"
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Served:
    """What a page led to."""

    ranker: str
    folder: Path
    output: str

    @property
    def expected(self) -> list[dict[str, Any]]:
        """Requests with the library's own scores."""
        found: list[dict[str, Any]] = json.loads((self.folder / "expected.json").read_text(encoding="utf-8"))
        return found


@pytest.fixture(scope="session")
def python() -> Path:
    """Of an environment with the libraries, in which everything else is the builders'."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.prefix.encode()).hexdigest()[:12]
    folder = PROJECT.build / "test-recommender-libraries" / digest
    interpreter = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        venv.create(folder, with_pip=True, clear=True)
        [packages] = folder.glob("lib/python*/site-packages")
        (packages / "builders.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--requirement", str(REQUIREMENTS)]
        subprocess.run([interpreter, "-m", "pip", "install", *options], check=True)
        (folder / ".ready").touch()
    return interpreter


@pytest.fixture(scope="module", params=list(RECIPES))
def served(request: pytest.FixtureRequest, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    library = request.param
    folder = tmp_path_factory.mktemp(library)
    for name, text in files_of(library).items():
        (folder / name).write_text(text, encoding="utf-8")
    write_generated(folder / "shop")
    paths = os.pathsep.join(str(REPOSITORY_ROOT / part) for part in (".", "clients"))
    run = subprocess.run(
        [python, "-m", "tests.support.library_recommenders", library, folder],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=REPOSITORY_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    return Served(f"my_{Path(RECIPES[library]).stem}", folder, run.stdout)


def files_of(library: str) -> dict[str, str]:
    """File name => its text on the library's page."""
    page = (REPOSITORY_ROOT / "docs" / "how-to" / f"serve-{library}.md").read_text(encoding="utf-8")
    return dict(re.findall(rf"<!-- {library}: (\S+) -->\n```\w+\n(.*?)^```", page, re.DOTALL | re.MULTILINE))


def test_served_scores_are_the_librarys_own(served: Served) -> None:
    endpoint = f"recommend_{served.ranker}_fp32_onnx"
    with (
        TritonServer(
            served.folder / "models",
            load=[endpoint],
            store=served.folder / "store",
            grpc_port=0,
            http_port=0,
            metrics_port=0,
        ) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        for request in served.expected:
            found = answer(client, endpoint, request)
            assert found == pytest.approx(dict(zip(request["item_ids"], request["scores"], strict=True)), abs=TOLERANCE)


def answer(client: grpc.InferenceServerClient, endpoint: str, request: dict[str, Any]) -> dict[str, float]:
    """Item id => served score."""
    reads = {tensor.name for tensor in client.get_model_metadata(endpoint).inputs}
    asked = {HISTORY.name: texts(*request["history"]), ITEM_IDS.name: texts(*request["item_ids"])}
    if USER_ID.name in reads:
        asked[USER_ID.name] = texts(request["user_id"])
    return dict(zip(*send(client, endpoint, **asked), strict=True))


def test_the_requests_tell_models_apart(served: Served) -> None:
    scores = np.array([request["scores"] for request in served.expected[:-1]])
    assert np.ptp(scores, axis=1).min() > 100 * TOLERANCE
    assert np.ptp(scores, axis=0).max() > 100 * TOLERANCE
    lengths = {len(request["history"]) for request in served.expected}
    assert min(lengths) < 20 and len(lengths) > 1


def test_the_graph_is_onnx_and_needs_no_library(served: Served) -> None:
    graphs = sorted((served.folder / "models").glob(f"{served.ranker}*_fp32_onnx/1/model.onnx"))
    assert graphs and all(onnxruntime.InferenceSession(str(graph)).get_inputs() for graph in graphs)


def test_each_page_has_a_module_of_about_thirty_lines_and_a_recipe() -> None:
    for library, recipe in RECIPES.items():
        files = files_of(library)
        module = recipe.replace(".toml", ".py")
        assert set(files) == {"save.py", module, recipe}
        assert len(files[module].splitlines()) <= 50
