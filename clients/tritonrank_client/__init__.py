"""Ranks, recommends and finds similar items through a tritonrank server on NVIDIA Triton, within a deadline.

    from tritonrank_client import RankClient

    with RankClient("localhost:8001") as client:
        for item_id, score in client.rank("red shoes", ["B01", "B02", "B03"], top_k=2):
            print(item_id, score)

Needs numpy and tritonclient. Knows nothing of how a ranker is trained, built or published.
"""

from ._client import DEFAULT_TIMEOUT_S, RankClient
from ._contract import ListRules, ModelSpec, TensorSpec
from ._errors import (
    ContractMismatch,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ServerError,
    TritonRankError,
    Unavailable,
)
from ._mock import MockTransport
from ._privacy import hashed_id
from ._response import RankedList, Reranked
from ._rules import Boost, Rules
from ._tls import TLS
from ._transport import InferRequest, Transport
from ._version import __version__

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "TLS",
    "Boost",
    "ContractMismatch",
    "DeadlineExceeded",
    "InferRequest",
    "InvalidRequest",
    "ListRules",
    "MockTransport",
    "ModelSpec",
    "Overloaded",
    "RankClient",
    "RankedList",
    "Reranked",
    "Rules",
    "ServerError",
    "TensorSpec",
    "Transport",
    "TritonRankError",
    "Unavailable",
    "__version__",
    "hashed_id",
]
