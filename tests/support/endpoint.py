"""Raw requests to an endpoint, without the client's checks, so that bad ones reach the server too."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence

import numpy as np
import tritonclient.grpc as grpc

from builders.core.contract import CONTEXT, HISTORY, ITEM_IDS, QUERY, RANKED_IDS, SCORES, TOP_K, USER_ID
from builders.data.beir import Request
from server import TritonServer

CLIENT_TIMEOUT_S = 120
Array = tuple[np.ndarray, str]
"""A tensor and its dtype as the request states it."""


def texts(*values: str | bytes) -> Array:
    """BYTES [n]."""
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    return np.array(encoded, dtype=object), "BYTES"


def integers(values: Sequence[object], dtype: str = "INT32") -> Array:
    """INT32 or INT64, of the shape that ``values`` have."""
    return np.array(values, dtype=dtype.lower()), dtype


def send(client: grpc.InferenceServerClient, endpoint: str, **tensors: Array) -> tuple[list[str], list[float]]:
    """Ranked ids and scores. Raises: InferenceServerException."""
    inputs = []
    for name, (array, dtype) in tensors.items():
        inputs.append(grpc.InferInput(name, list(array.shape), dtype))
        inputs[-1].set_data_from_numpy(array)
    result = client.infer(endpoint, inputs, client_timeout=CLIENT_TIMEOUT_S)
    ids = [item_id.decode() for item_id in result.as_numpy(RANKED_IDS.name).tolist()]
    return ids, result.as_numpy(SCORES.name).tolist()


def rank(
    client: grpc.InferenceServerClient, endpoint: str, query: str, item_ids: Sequence[str], top_k: int | None = None
) -> tuple[list[str], list[float]]:
    """Ranked ids and scores of a well-formed request."""
    limit = {} if top_k is None else {TOP_K.name: integers([top_k])}
    return send(client, endpoint, **{QUERY.name: texts(query), ITEM_IDS.name: texts(*item_ids), **limit})


def ask(
    client: grpc.InferenceServerClient, endpoint: str, request: Request, item_ids: Sequence[str]
) -> tuple[list[str], list[float]]:
    """Ranked ids and scores for whatever the request holds and the endpoint reads."""
    tensors = {QUERY.name: texts(request.query)} if request.query else {HISTORY.name: texts(*request.history)}
    held = {USER_ID.name: request.user_id, CONTEXT.name: json.dumps(dict(request.context)) if request.context else ""}
    reads = {tensor.name for tensor in client.get_model_metadata(endpoint).inputs}
    tensors |= {name: texts(value) for name, value in held.items() if value and name in reads}
    return send(client, endpoint, **tensors, **{ITEM_IDS.name: texts(*item_ids)})


def metric(server: TritonServer, name: str, model: str) -> float:
    """A counter of Triton's metrics page; 0 before it was first added to."""
    with urllib.request.urlopen(server.metrics_url) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f'{name}{{model="{model}"'))
