"""sentence-transformers' CrossEncoder behind FastAPI: torch in FP32, ONNX and OpenVINO in INT8.

As its documentation has it: `backend=`, the ONNX file quantized dynamically for AVX2, the OpenVINO one statically.
Source: https://sbert.net/docs/cross_encoder/usage/efficiency.html
"""

from __future__ import annotations

import contextlib
import csv
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from perf.peers.peer import Environment, Peer, bodies_in, posts_json

INT8_FILES = {"onnx": "onnx/model_quint8_avx2.onnx", "openvino": "openvino/openvino_model_qint8_quantized.xml"}
CALIBRATION_PAIRS = 300

_CONNECT = posts_json("/rerank", dict, lambda answer, _: answer["scores"])
_MODULE = "perf.peers.sentence_transformers_fastapi"
PEERS = (
    Peer(
        "sentence-transformers torch FP32, FastAPI",
        _MODULE,
        Environment("fastapi", base="kit"),
        _CONNECT,
        ("torch",),
        note="CrossEncoder.predict, its default batches of 32; torch's own count of threads",
    ),
    Peer(
        "sentence-transformers ONNX INT8, FastAPI",
        _MODULE,
        Environment("sentence_transformers_onnx", torch=True),
        _CONNECT,
        ("onnx",),
        exact=False,
        note="backend='onnx', export_dynamic_quantized_onnx_model for avx2",
    ),
    Peer(
        "sentence-transformers OpenVINO INT8, FastAPI",
        _MODULE,
        Environment("sentence_transformers_openvino", torch=True),
        _CONNECT,
        ("openvino",),
        exact=False,
        note=f"backend='openvino', export_static_quantized_openvino_model, {CALIBRATION_PAIRS} of the requests' pairs; "
        "one call at a time, since its model fails where two threads ask",
    ),
)


def main(folder: str, port: str, backend: str) -> None:
    """Serve ``{"query", "documents"}`` => ``{"scores"}``."""
    import fastapi
    import uvicorn
    from pydantic import BaseModel

    model = opened_model(Path(folder), backend)
    app = fastapi.FastAPI()

    class Question(BaseModel):
        query: str
        documents: list[str]

    # optimum-intel keeps one request of OpenVINO, and fails where a second thread asks meanwhile.
    one_at_a_time = threading.Lock() if backend == "openvino" else contextlib.nullcontext()

    def rerank(question: Question) -> dict[str, list[float]]:
        pairs = [(question.query, document) for document in question.documents]
        with one_at_a_time:
            return {"scores": model.predict(pairs, show_progress_bar=False).tolist()}

    rerank.__annotations__["question"] = Question
    app.post("/rerank")(rerank)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


def opened_model(folder: Path, backend: str) -> Any:
    """A CrossEncoder; its INT8 file is made the first time."""
    from sentence_transformers import CrossEncoder

    checkpoint = folder / "checkpoint"
    if backend == "torch":
        return CrossEncoder(str(checkpoint), device="cpu", local_files_only=True)
    target = folder / f"sentence_transformers_{backend}"
    if not (target / INT8_FILES[backend]).is_file():
        shutil.copytree(checkpoint, target, dirs_exist_ok=True)
        whole = CrossEncoder(str(checkpoint), backend=backend, local_files_only=True, model_kwargs={"export": True})
        _quantize(whole, backend, target, folder)
    kwargs = {"file_name": INT8_FILES[backend]}
    return CrossEncoder(str(target), backend=backend, local_files_only=True, model_kwargs=kwargs)


def _quantize(model: Any, backend: str, target: Path, folder: Path) -> None:
    import sentence_transformers

    if backend == "onnx":
        sentence_transformers.export_dynamic_quantized_onnx_model(model, "avx2", str(target))
        return
    from optimum.intel import OVQuantizationConfig

    texts = folder / "calibration"
    texts.mkdir(exist_ok=True)
    pairs = [f"{body['query']} {document}" for body in bodies_in(folder) for document in body["documents"]]
    with (texts / "train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["sentence"], *([pair] for pair in pairs[:CALIBRATION_PAIRS])])
    sentence_transformers.export_static_quantized_openvino_model(
        model,
        OVQuantizationConfig(num_samples=CALIBRATION_PAIRS),
        str(target),
        dataset_name=str(texts),
        dataset_config_name="default",  # as `datasets` names that of a folder without any
        dataset_split="train",
        column_name="sentence",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
