"""`tritonrank-rank`, in this process and installed on its own."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tritonrank_client import _command

ROOT = Path(__file__).parents[2]
NOWHERE = "127.0.0.1:1"  # nothing listens on this port


@pytest.fixture
def items(tmp_path: Path) -> Path:
    file = tmp_path / "ids.txt"
    file.write_text("\ufeff1\n3\r\n\nunknown\n2\n", encoding="utf-8")
    return file


@pytest.mark.server
def test_it_prints_a_table(server, items, capsys):
    assert _command.main(["--query", "shoes", "--items", str(items), "--url", server.grpc_url]) == 0

    assert capsys.readouterr().out == "rank\tid\tscore\n1\t3\t3\n2\t2\t2\n3\t1\t1\n4\tunknown\t-\n"


@pytest.mark.server
def test_it_prints_json_from_standard_input(server, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1\nunknown\n2")))
    options = ["--query", "schöne Schuhe", "--items", "-", "--url", server.grpc_url, "--json", "--top-k", "3"]
    assert _command.main(options) == 0

    assert json.loads(capsys.readouterr().out) == {
        "query": "schöne Schuhe",
        "ranked": [
            {"rank": 1, "id": "2", "score": 2.0},
            {"rank": 2, "id": "1", "score": 1.0},
            {"rank": 3, "id": "unknown", "score": None},
        ],
    }


def test_a_server_that_is_not_there_is_exit_code_1(items, capsys):
    assert _command.main(["--query", "shoes", "--items", str(items), "--url", NOWHERE]) == 1

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"tritonrank-rank: {NOWHERE}: ") and "is Triton running there" in output.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--query", " "], "query: found ' ', wanted text that is not blank"),
        (["--items", "no_such_file"], "--items: cannot read no_such_file (No such file or directory)"),
        (["--top-k", "-1"], "top_k: found -1, wanted 0 (all items) to 2147483647"),
        (["--timeout-s", "0"], "timeout_s: found 0.0, wanted seconds above 0 and at most 3600"),
        (["--url", "http://x"], "url: found 'http://x', wanted host:port"),
    ],
)
def test_a_request_at_fault_is_exit_code_2(items, capsys, change, message):
    assert _command.main(["--query", "shoes", "--items", str(items), "--url", NOWHERE, *change]) == 2

    assert capsys.readouterr().err.startswith(f"tritonrank-rank: {message}")


@pytest.mark.server
def test_documents_for_a_model_that_takes_no_texts_are_exit_code_2(server, items, capsys):
    assert _command.main(["--query", "shoes", "--documents", str(items), "--url", server.grpc_url]) == 2

    output = capsys.readouterr()
    assert output.err.startswith("tritonrank-rank: item_texts: model 'rank' on the server has no input 'item_texts'")


def test_items_and_documents_at_once_are_refused(items, capsys):
    with pytest.raises(SystemExit, match="2"):
        _command.main(["--query", "shoes", "--items", str(items), "--documents", str(items)])

    assert "not allowed with argument --items" in capsys.readouterr().err


def test_a_file_that_is_not_utf8_is_exit_code_2(tmp_path, capsys):
    (tmp_path / "ids").write_bytes(b"a\n\xff\n")

    assert _command.main(["--query", "shoes", "--items", str(tmp_path / "ids"), "--url", NOWHERE]) == 2
    assert "is not UTF-8" in capsys.readouterr().err


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client's distribution alone; numpy and tritonclient come from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", str(folder)]
    # A copy, since the build writes into its source folder.
    source = tmp_path_factory.mktemp("source") / "clients"
    shutil.copytree(ROOT / "clients", source)
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return folder


def run_installed(command: list[str], installed: Path, **options: object) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(command, env=environ, cwd=installed, capture_output=True, text=True, **options)


@pytest.mark.server
def test_the_installed_command_ranks(installed, server):
    command = [str(installed / "bin" / "tritonrank-rank"), "--query", "shoes", "--items", "-", "--url", server.grpc_url]
    done = run_installed(command, installed, input="1\n2\n")

    assert (done.returncode, done.stdout, done.stderr) == (0, "rank\tid\tscore\n1\t2\t2\n2\t1\t1\n", "")


def test_importing_the_installed_package_pulls_neither_torch_nor_builders(installed):
    code = "import sys, tritonrank_client; print(tritonrank_client.__file__, *sys.modules, sep='\\n')"
    file, *modules = run_installed([sys.executable, "-c", code], installed, check=True).stdout.split("\n")

    assert Path(file).parent == installed / "tritonrank_client"
    assert (Path(file).parent / "py.typed").exists()
    assert "tritonclient.grpc" in modules
    assert not {"torch", "builders", "server", "transformers", "onnx", "onnxruntime"} & set(modules)
