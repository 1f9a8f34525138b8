"""Sends requests to a served model, alone and together, and finds the processes that answer them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import np_to_triton_dtype

from server import TritonServer


def waits_for(rows: int) -> str:
    """A batcher that runs as soon as it holds so many rows, and else waits ten seconds: merging without chance."""
    return f"dynamic_batching {{ preferred_batch_size: [{rows}] max_queue_delay_microseconds: 10000000 }}"


def infer(client: grpc.InferenceServerClient, model: str, **arrays: np.ndarray) -> grpc.InferResult:
    inputs = []
    for name, array in arrays.items():
        inputs.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return client.infer(model, inputs)


def infer_together(
    client: grpc.InferenceServerClient, model: str, requests: Sequence[dict[str, np.ndarray]]
) -> list[Future]:
    """Send requests at the same time; return their finished futures in the order of the requests."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return [pool.submit(infer, client, model, **request) for request in requests]


def stubs_of(server: TritonServer, model: str) -> list[Path]:
    """The /proc folders of a model's instances: the server's children that name the instance in their command."""
    children = [
        Path("/proc", pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    ]
    children += [
        Path("/proc", pid)
        for task in Path(f"/proc/{server.pid}/task").iterdir()
        if task.name != str(server.pid)
        for pid in (task / "children").read_text().split()
    ]
    instance = re.compile(rf"{model}_\d+(_\d+)?")
    return [child for child in children if any(map(instance.fullmatch, arguments_of(child)))]


def arguments_of(process: Path) -> list[str]:
    return (process / "cmdline").read_text().split("\0")
