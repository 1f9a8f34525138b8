"""PyTriton's own API around ONNX Runtime: Python functions bound to a Triton that it starts.

Source: https://triton-inference-server.github.io/pytriton/latest/binding_models/
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.peers.items import ItemScorer
from perf.peers.pairs import PairScorer
from perf.peers.peer import Environment, Peer, Score, free_port

MODEL = "ranker"
MAX_ROWS = 1024


@contextlib.contextmanager
def _connect(port: int, bodies: Sequence[Mapping[str, Any]]) -> Iterator[Score]:
    """Its gRPC, with the tensors that :func:`main` binds."""
    import numpy as np
    import tritonclient.grpc as triton

    def tensor(name: str, values: Any) -> triton.InferInput:
        text = values.dtype == object
        found = triton.InferInput(name, values.shape, "BYTES" if text else triton.np_to_triton_dtype(values.dtype))
        found.set_data_from_numpy(values)
        return found

    def encoded(body: Mapping[str, Any]) -> list[triton.InferInput]:
        if "documents" in body:
            documents = np.array([[text.encode()] for text in body["documents"]], object)
            return [
                tensor("query", np.full_like(documents, body["query"].encode())),
                tensor("document", documents),
            ]
        texts = {"item_ids": "\n".join(body["item_ids"]), "request": json.dumps(body["request"])}
        return [tensor(name, np.array([text.encode()], object)) for name, text in texts.items()]

    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield (
            lambda number: (
                client.infer(MODEL, encoded(bodies[number]), client_timeout=300).as_numpy("scores").reshape(-1).tolist()
            )
        )


def _peer(kind: str, note: str) -> Peer:
    return Peer(
        "PyTriton, ONNX Runtime FP32",
        "perf.peers.pytriton_onnx",
        Environment(base="server"),
        _connect,
        (kind,),
        note=note,
    )


PEERS = (
    _peer("cross_encoder", "@batch, its default dynamic batcher, a row a candidate; gRPC; PYTRITON_NO_TENSORSTORE=1"),
)
PEERS_OF_ITEMS = (
    _peer(
        "interactions",
        "batching=False, a session of one thread, one instance: a second waits a second for the first at most; gRPC; "
        "PYTRITON_NO_TENSORSTORE=1",
    ),
)


def main(folder: str, port: str, kind: str) -> None:
    """Serve until SIGTERM."""
    # Its store of tensors needs multiprocessing, which its stub cannot import on a later patch release of Python.
    os.environ.setdefault("PYTRITON_NO_TENSORSTORE", "1")
    import numpy as np
    from pytriton.decorators import batch
    from pytriton.model_config import ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    config = TritonConfig(grpc_port=int(port), http_port=free_port(), metrics_port=free_port())
    outputs = [Tensor(name="scores", dtype=np.float32, shape=(-1,))]
    with Triton(config=config) as server:
        if kind == "cross_encoder":
            pairs = PairScorer(Path(folder))

            @batch
            def rank(query: Any, document: Any) -> dict[str, Any]:
                texts = [(q.decode(), d.decode()) for q, d in zip(query[:, 0], document[:, 0], strict=True)]
                return {"scores": pairs.scores(texts).astype(np.float32)[:, None]}

            inputs = [Tensor(name=name, dtype=bytes, shape=(1,)) for name in ("query", "document")]
            server.bind(MODEL, rank, inputs, outputs, config=ModelConfig(max_batch_size=MAX_ROWS))
        else:
            inputs = [Tensor(name=name, dtype=bytes, shape=(1,)) for name in ("item_ids", "request")]
            server.bind(MODEL, _of_items(ItemScorer(Path(folder))), inputs, outputs, config=ModelConfig(batching=False))
        server.run()
        stopped = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        stopped.wait()


def _of_items(scorer: ItemScorer) -> Any:
    def rank(requests: Sequence[Any]) -> list[dict[str, Any]]:
        return [
            {"scores": scorer.scores(each["item_ids"][0].decode().split("\n"), json.loads(each["request"][0]))}
            for each in requests
        ]

    return rank


if __name__ == "__main__":
    main(*sys.argv[1:])
