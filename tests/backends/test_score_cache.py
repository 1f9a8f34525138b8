"""Remembered scores: which rows are the same, how the file is bounded, and what the real server does with it."""

from __future__ import annotations

import importlib
import multiprocessing
import sqlite3
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from server import TritonServer
from server.backend_directory import DROP_INS
from tests.support import openvino_models
from tests.support.admin import admin_client
from tests.support.driving import stubs_of, waits_for
from tests.support.endpoint import metric
from tests.support.onnx_models import (
    CONFIG,
    save_identity_model,
    save_row_counting_model,
    save_sharing_model,
    save_summing_model,
    write_config,
)
from tests.support.openvino_models import parameter, save_ir
from tests.support.repositories import infer, infer_together, inputs_of
from tests.support.waiting import wait_until

COMMON = ("batching", "row_keys", "score_store")
KIB = 1024


# ---------------------------------------------------------------- which rows are the same
@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The modules of backends/common, imported as Triton's stub imports them."""
    monkeypatch.syspath_prepend(DROP_INS / "common")
    for name in COMMON:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        del sys.modules[name]
    return types.SimpleNamespace(**{name: importlib.import_module(name) for name in COMMON})


def keys_of(
    code: Any, model: bytes = b"m", padding_mask: str = "mask", shared: Sequence[str] = (), **inputs: Any
) -> list[bytes]:
    arrays = {name: np.array(values, dtype=np.int64) for name, values in inputs.items()}
    sequences = frozenset(name for name, array in arrays.items() if array.ndim == 2)
    of_rows = frozenset(name for name in arrays if name not in shared) if shared else frozenset()
    keys = code.row_keys.RowKeys(model, code.batching.RunLimits(row_inputs=of_rows, mask=padding_mask), sequences)
    found: list[bytes] = keys.of(arrays)
    return found


def test_a_row_has_one_key_whatever_rows_and_padding_are_beside_it(code: Any) -> None:
    alone = keys_of(code, ids=[[5, 6]], mask=[[1, 1]])
    padded = keys_of(code, ids=[[7, 7, 7, 7], [5, 6, 0, 0]], mask=[[1, 1, 1, 1], [1, 1, 0, 0]])
    padded_otherwise = keys_of(code, ids=[[5, 6, 1, 1, 1, 1]], mask=[[1, 1, 0, 0, 0, 0]])
    assert [padded[1]] == alone == padded_otherwise
    assert padded[0] not in alone


def test_whatever_a_score_depends_on_changes_the_key(code: Any) -> None:
    same: dict[str, Any] = {"ids": [[5, 6]], "mask": [[1, 1]], "kind": [3], "prompt": [1, 2], "shared": ("prompt",)}
    others: list[dict[str, Any]] = [
        {},
        {"model": b"n"},
        {"ids": [[5, 7]]},
        {"ids": [[6, 5]]},
        {"mask": [[0, 1]]},
        {"mask": [[1, 0]]},
        {"kind": [4]},
        {"prompt": [1, 3]},
        {"prompt": [1, 2, 0]},
        {"prompt": [[1, 2]]},
    ]
    keys = [keys_of(code, **{**same, **other})[0] for other in others]
    assert len({*keys, *keys_of(code, **{**same, "idz": same["ids"], "ids": [[0, 0]]})}) == len(others) + 1


def test_without_a_mask_padding_counts(code: Any) -> None:
    assert keys_of(code, padding_mask="", ids=[[5, 0]]) != keys_of(code, padding_mask="", ids=[[5, 0, 0]])


def test_a_row_of_zeros_has_no_key(code: Any) -> None:
    [zeros, other] = keys_of(code, ids=[[0, 0], [0, 1]], mask=[[0, 0], [0, 0]])
    assert zeros == code.row_keys.NO_KEY != other


def test_a_fixed_width_is_not_cut_where_it_happens_to_be_the_masks_length(code: Any) -> None:
    limits = code.batching.RunLimits(mask="mask")
    keys = code.row_keys.RowKeys(b"m", limits, frozenset({"mask"}))
    mask = np.array([[1, 0]])
    assert keys.of({"mask": mask, "price": np.array([[1.0, 2.0]])}) != keys.of(
        {"mask": mask, "price": np.array([[1.0, 3.0]])}
    )


def test_the_digest_of_a_model_is_of_its_files_its_settings_and_its_runtime(code: Any, tmp_path: Path) -> None:
    def digest(config: dict[str, Any], runtime: str = "r 1") -> bytes:
        found: bytes = code.row_keys.model_digest(tmp_path, config, runtime)
        return found

    (tmp_path / "model.onnx").write_bytes(b"weights")
    first = digest({"parameters": {"threads": "1"}})
    assert digest({"parameters": {"threads": "1"}, "version_policy": {"specific": [1]}}) == first
    found = {first, digest({"parameters": {"threads": "2"}}), digest({"parameters": {"threads": "1"}}, "r 2")}
    (tmp_path / "model.onnx").write_bytes(b"others")
    found.add(digest({"parameters": {"threads": "1"}}))
    (tmp_path / "model.onnx.data").write_bytes(b"")
    assert len({*found, digest({"parameters": {"threads": "1"}})}) == 5


# ---------------------------------------------------------------- the file
def key_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_the_file_stays_within_its_size_and_the_oldest_go(code: Any, tmp_path: Path) -> None:
    store = code.score_store.ScoreStore(tmp_path / "new" / "scores.sqlite", 256 * KIB)
    for start in range(0, 20_000, 50):
        store.write({key_of(number): b"1234" for number in range(start, start + 50)})
    assert 128 * KIB < (tmp_path / "new" / "scores.sqlite").stat().st_size < 300 * KIB
    assert store.read([key_of(number) for number in range(500)]) == {}
    newest = [key_of(number) for number in range(19_000, 20_000)]
    assert store.read(newest) == dict.fromkeys(newest, b"1234")
    store.close()


def test_nobody_else_reads_the_files_folder(code: Any, tmp_path: Path) -> None:
    code.score_store.ScoreStore(tmp_path / "new" / "scores.sqlite", KIB).close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def _write_some(folder: Path, first: int) -> int:
    """In a process of its own; how many of its writes another process did not hold up for too long."""
    sys.path.insert(0, str(DROP_INS / "common"))
    from score_store import ScoreStore

    written = 0
    for number in range(first, first + 200):
        try:
            store = ScoreStore(folder / "scores.sqlite", 10**6)
            store.write({key_of(number): key_of(number)})
            written += 1
        except sqlite3.OperationalError:
            continue
        finally:
            store.close()
    return written


def test_processes_open_and_write_one_file_at_once(code: Any, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        written = pool.starmap(_write_some, [(tmp_path, first) for first in (0, 1000, 2000)])
    keys = [key_of(first + number) for first in (0, 1000, 2000) for number in range(200)]
    found = code.score_store.ScoreStore(tmp_path / "scores.sqlite", 10**6).read(keys)
    assert len(found) == sum(written) > 0
    assert all(key == value for key, value in found.items())


# ---------------------------------------------------------------- on the real server
COUNTING = """
backend: "onnxruntime"
max_batch_size: 1024
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "rows_in_run" data_type: TYPE_INT64 dims: [1] reshape { shape: [] } }]
instance_group [{ count: 2 kind: KIND_CPU }]
"""
SHARING = """
backend: "onnxruntime"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1, -1] }, { name: "shared" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "rows_in_run" data_type: TYPE_INT64 dims: [-1] }, { name: "total" data_type: TYPE_FP32 dims: [-1] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""
OPENVINO = """
backend: "openvino"
input [{ name: "x" data_type: TYPE_FP32 dims: [-1, -1] }]
output [{ name: "rows_in_run" data_type: TYPE_INT64 dims: [-1] }]
""" + parameter("max_rows_per_run", 16)
CACHED = parameter("score_cache_mb", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``models``, and ``store`` for the caches."""
    folder = tmp_path_factory.mktemp("score_cache")

    def add(model: str, config: str, save: Any = save_row_counting_model) -> None:
        save(write_config(folder / "models", model, config + CACHED) / "model.onnx")

    add("counting", COUNTING)
    add("joining", COUNTING.replace("count: 2", "count: 1") + waits_for(4))
    add("trimming", COUNTING + parameter("padding_mask", "x") + parameter("lengths", "2,4,8"))
    add("damaged", COUNTING.replace("count: 2", "count: 1"))
    add("summing", CONFIG, save_summing_model)
    add("sharing", SHARING + parameter("row_inputs", "x") + parameter("max_rows_per_run", 4), save_sharing_model)
    save_ir(write_config(folder / "models", "openvino", OPENVINO + CACHED) / "model.xml", save_row_counting_model)
    (folder / "store" / "score_cache").mkdir(parents=True)
    (folder / "store" / "score_cache" / "damaged.sqlite").write_bytes(b"no database " * 1000)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[TritonServer]:
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    with TritonServer(folder / "models", None, store=folder / "store", ready_timeout_s=300, **ports) as running:
        yield running
        running.kill()  # quicker than a clean stop


@pytest.fixture(scope="module")
def client(server: TritonServer) -> grpc.InferenceServerClient:
    return admin_client(server)


def rows(*values: float, length: int = 2) -> dict[str, np.ndarray]:
    """x FP32 [rows, length]: each value, padded with zeros."""
    return {"x": np.array([[value] + [0] * (length - 1) for value in values], np.float32)}


def rows_in_run(client: grpc.InferenceServerClient, model: str, x: dict[str, np.ndarray]) -> list[int]:
    """Of the run that each row was scored in: a remembered row tells the size of an earlier one."""
    found: list[int] = infer(client, model, **x).as_numpy("rows_in_run").ravel().tolist()
    return found


def counted(server: TritonServer, model: str) -> dict[str, float]:
    names = ("hits", "misses", "unusable")
    return {name: metric(server, f"tritonrank_score_cache_{name}_total", model) for name in names}


@pytest.mark.server
@pytest.mark.parametrize("model", ["counting", "openvino"])
def test_only_rows_that_were_not_scored_before_are_run(
    server: TritonServer, client: grpc.InferenceServerClient, model: str
) -> None:
    assert rows_in_run(client, model, rows(1, 2, 3)) == [3, 3, 3]
    assert rows_in_run(client, model, rows(3, 4, 1)) == [3, 1, 3]
    assert rows_in_run(client, model, rows(4, 3, 2, 1)) == [1, 3, 3, 3]
    assert counted(server, model) == {"hits": 6, "misses": 4, "unusable": 0}


@pytest.mark.server
def test_rows_of_joined_requests_are_remembered_each(client: grpc.InferenceServerClient) -> None:
    def together(*requests: dict[str, np.ndarray]) -> list[list[int]]:
        answers = infer_together(client, "joining", requests)
        return [answer.result().as_numpy("rows_in_run").ravel().tolist() for answer in answers]

    assert together(rows(1), rows(2), rows(3, 4)) == [[4], [4], [4, 4]]
    assert together(rows(3), rows(5, 1), rows(6)) == [[4], [2, 4], [2]]


@pytest.mark.server
def test_a_failure_is_not_remembered_and_what_it_was_joined_with_is(
    server: TritonServer, client: grpc.InferenceServerClient
) -> None:
    def tokens(*numbers: int) -> dict[str, np.ndarray]:
        return {"tokens": np.array([[number] for number in numbers], np.int64)}

    for _ in range(2):
        with pytest.raises(InferenceServerException, match="99"):
            infer(client, "summing", **tokens(1, 99))
        assert infer(client, "summing", **tokens(1, 3)).as_numpy("score").ravel().tolist() == [1, 3]
    assert counted(server, "summing") == {"hits": 3, "misses": 5, "unusable": 0}


@pytest.mark.server
def test_padding_is_no_part_of_a_row(client: grpc.InferenceServerClient) -> None:
    assert rows_in_run(client, "trimming", rows(1, 2)) == [2, 2]
    assert rows_in_run(client, "trimming", rows(2, length=8)) == [2]


@pytest.mark.server
def test_what_is_not_of_rows_is_part_of_every_row(client: grpc.InferenceServerClient) -> None:
    def asked(shared: float, *values: float) -> tuple[list[int], list[float]]:
        answer = infer(client, "sharing", **rows(*values), shared=np.array([shared], np.float32))
        return answer.as_numpy("rows_in_run").tolist(), answer.as_numpy("total").tolist()

    assert asked(5, 1, 2) == ([2, 2], [5, 5])
    assert asked(5, 2) == ([2], [5])
    assert asked(6, 2) == ([1], [6])


@pytest.mark.server
def test_instances_share_what_they_know(server: TritonServer, client: grpc.InferenceServerClient) -> None:
    def uses_the_file(stub: Path) -> bool:
        return any(link.readlink().name == "counting.sqlite" for link in (stub / "fd").iterdir())

    assert rows_in_run(client, "counting", rows(31, 32)) == [2, 2]
    before = counted(server, "counting")["misses"]
    for _ in range(100):
        answers = infer_together(client, "counting", [rows(31), rows(32)] * 4)
        assert {int(answer.result().as_numpy("rows_in_run").ravel()[0]) for answer in answers} == {2}
        if all(map(uses_the_file, stubs_of(server, "counting"))):
            break
    assert [uses_the_file(stub) for stub in stubs_of(server, "counting")] == [True, True]
    assert counted(server, "counting")["misses"] == before


@pytest.mark.server
def test_a_request_may_ask_for_what_is_computed_now(server: TritonServer, client: grpc.InferenceServerClient) -> None:
    def fresh(*values: float) -> list[int]:
        answer = client.infer("counting", inputs_of(**rows(*values)), parameters={"score_cache": False})
        found: list[int] = answer.as_numpy("rows_in_run").ravel().tolist()
        return found

    before = counted(server, "counting")
    assert fresh(21, 22) == [2, 2]
    assert fresh(21) == [1]
    assert counted(server, "counting") == before
    assert rows_in_run(client, "counting", rows(21, 22, 23)) == [3, 3, 3]


@pytest.mark.server
def test_zeros_are_run_every_time_for_they_warm_a_model_up(
    server: TritonServer, client: grpc.InferenceServerClient
) -> None:
    before = counted(server, "trimming")
    assert rows_in_run(client, "trimming", rows(0, 0)) == [2, 2]
    assert rows_in_run(client, "trimming", rows(0)) == [1]
    assert counted(server, "trimming") == before


@pytest.mark.server
def test_another_model_file_under_the_same_name_gives_its_own_scores(
    server: TritonServer, client: grpc.InferenceServerClient, folder: Path
) -> None:
    def score() -> float:
        return float(infer(client, "summing", tokens=np.array([[2, 3]], np.int64)).as_numpy("score").ravel()[0])

    before = counted(server, "summing")

    def since() -> tuple[float, float]:
        now = counted(server, "summing")
        return now["hits"] - before["hits"], now["misses"] - before["misses"]

    assert [score(), score()] == [5.0, 5.0]
    client.unload_model("summing")
    client.load_model("summing")
    assert score() == 5.0
    assert since() == (2, 1)
    save_summing_model(folder / "models" / "summing" / "1" / "model.onnx", factor=10)
    client.load_model("summing")
    assert [score(), score()] == [50.0, 50.0]
    assert since() == (3, 2)


@pytest.mark.server
def test_without_a_usable_file_rows_are_run_which_is_counted_and_said_once(
    server: TritonServer, client: grpc.InferenceServerClient, folder: Path
) -> None:
    path = folder / "store" / "score_cache" / "damaged.sqlite"
    assert [rows_in_run(client, "damaged", rows(1, 2)) for _ in range(2)] == [[2, 2]] * 2
    path.unlink()
    path.mkdir()
    assert [rows_in_run(client, "damaged", rows(1, 2)) for _ in range(2)] == [[2, 2]] * 2
    assert counted(server, "damaged") == {"hits": 0, "misses": 8, "unusable": 8}
    assert server.log().count(f"damaged: score cache '{path}' cannot be used (DatabaseError: ") == 1
    path.rmdir()
    assert [rows_in_run(client, "damaged", rows(3, 4)), rows_in_run(client, "damaged", rows(4))] == [[2, 2], [2]]


@pytest.mark.server
def test_a_server_without_caches_says_so_and_runs_every_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = COUNTING + CACHED + "response_cache { enable: true }"
    save_row_counting_model(write_config(tmp_path / "models", "counting", config) / "model.onnx")
    ports = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    with TritonServer(tmp_path / "models", None, store=tmp_path / "store", score_cache=False, **ports) as server:
        client = grpc.InferenceServerClient(server.grpc_url)
        assert [rows_in_run(client, "counting", rows(1, 2)), rows_in_run(client, "counting", rows(1))] == [[2, 2], [1]]
        wait_until(lambda: "counting: no score cache, TRITONRANK_SCORE_CACHE names no folder" in server.log())
        server.kill()
    assert not (tmp_path / "store").exists()
    assert "counting: no response cache, which the configuration asks for" in caplog.text


IDENTITY = """
backend: "onnxruntime" max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }] output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
"""
REFUSED = {
    "no size": (COUNTING + parameter("score_cache_mb", "some"), "is 'some', wanted a number of MiB from 1 on"),
    "rows that cannot be told apart": (SHARING + CACHED, "wanted a model that batches any.*max_rows_per_run"),
    "outputs of no fixed size": (IDENTITY + CACHED, r"a row of output 'y' is \[-1\], wanted a fixed shape"),
    "texts": (IDENTITY.replace("FP32", "STRING") + CACHED, "x, y is TYPE_STRING; wanted numbers"),
    "a fixed number of rows": (openvino_models.CONFIG + CACHED, "wanted a model that batches any number of rows"),
}


@pytest.mark.server
@pytest.mark.parametrize("what", REFUSED)
def test_a_cache_that_could_not_be_right_is_refused_at_load(
    client: grpc.InferenceServerClient, folder: Path, what: str
) -> None:
    config, fault = REFUSED[what]
    version = write_config(folder / "models", "refused", config)
    if "openvino" in config:
        save_ir(version / "model.xml", save_summing_model)
    elif config.startswith(SHARING):
        save_sharing_model(version / "model.onnx")
    elif config.startswith(COUNTING):
        save_row_counting_model(version / "model.onnx")
    else:
        from onnx import TensorProto

        kind = TensorProto.STRING if "STRING" in config else TensorProto.FLOAT
        save_identity_model(version / "model.onnx", kind, ["rows", "length"])
    with pytest.raises(InferenceServerException, match=fault):
        client.load_model("refused")
