"""The changelog and the third-party notices name what is really pinned and installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from tritonrank_client import __version__ as client_version

from builders.core.files import sha256
from builders.export.onnx import OPSET
from builders.rankers.backbone import PACKAGED_BACKBONE, packaged_backbone

ROOT = Path(__file__).resolve().parent.parent
NEWEST = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
NOTICES = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")


def pin(environment: str, package: str) -> str:
    pins = (ROOT / "requirements" / f"{environment}.txt").read_text()
    return re.search(rf"^{re.escape(package)}==(\S+)", pins, re.MULTILINE)[1]


def in_changelog(row: str) -> str:
    """The second cell of the version table's row that starts with `row`."""
    return re.search(rf"^\| {re.escape(row)}[^|]*\| ([^|]+) \|$", NEWEST, re.MULTILINE)[1]


def test_project_client_and_changelog_carry_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert NEWEST.split()[0] == project == client_version


def test_the_changelog_names_the_pinned_versions() -> None:
    release = re.search(r"^ARG TRITON_RELEASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]

    assert f"(nvidia-pytriton {pin('server', 'nvidia-pytriton')})" in NEWEST
    assert in_changelog("Triton container").split()[0] == release
    assert in_changelog("ONNX Runtime") == pin("server", "onnxruntime") == pin("builders", "onnxruntime")
    assert in_changelog("OpenVINO") == pin("server", "openvino") == pin("builders", "openvino")
    assert in_changelog("ONNX opset") == str(OPSET)
    assert in_changelog("PyTorch") == pin("torch", "torch")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_the_notices_name_the_installed_weights(name: str) -> None:
    package = PACKAGED_BACKBONE.replace("_", "-")

    assert f"`{package}=={pin('builders', package)}`" in NOTICES
    assert f"/{name}`, SHA-256 `{sha256(packaged_backbone() / name)}`" in NOTICES
