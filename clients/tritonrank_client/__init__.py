"""Ranks, recommends and finds similar items through a tritonrank server on NVIDIA Triton, within a deadline.

    from tritonrank_client import RankClient

    with RankClient("localhost:8001") as client:
        for item_id, score in client.rank("red shoes", ["B01", "B02", "B03"], top_k=2):
            print(item_id, score)

Needs numpy and tritonclient. Knows nothing of how a ranker is trained, built or published.
"""

from ._async._client import AsyncRankClient
from ._contract import ListRules, ModelSpec, TensorSpec
from ._errors import (
    CircuitOpen,
    ContractMismatch,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServerError,
    TritonRankError,
    Unavailable,
)
from ._mock import AsyncMockTransport, MockTransport
from ._options import BreakerPolicy, Connections, Degradation, Experiment, HedgePolicy, RetryPolicy, Shadow
from ._privacy import hashed_id
from ._response import Degraded, RankedList, Reranked
from ._rules import Boost, Rules
from ._shadow import append_to
from ._sync._client import DEFAULT_TIMEOUT_S, RankClient
from ._tls import TLS
from ._version import __version__
from ._wire import AsyncTransport, InferRequest, Transport

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "TLS",
    "AsyncMockTransport",
    "AsyncRankClient",
    "AsyncTransport",
    "Boost",
    "BreakerPolicy",
    "CircuitOpen",
    "Connections",
    "ContractMismatch",
    "DeadlineExceeded",
    "Degradation",
    "Degraded",
    "Experiment",
    "HedgePolicy",
    "InferRequest",
    "InvalidRequest",
    "ListRules",
    "MockTransport",
    "ModelSpec",
    "Overloaded",
    "RankClient",
    "RankedList",
    "Reranked",
    "RetryPolicy",
    "Rules",
    "ServerError",
    "Shadow",
    "TensorSpec",
    "Transport",
    "TritonRankError",
    "Unavailable",
    "__version__",
    "append_to",
    "hashed_id",
]
