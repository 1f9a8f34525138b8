"""What can go wrong between a search service and its ranking server.

    TritonRankError
    +-- InvalidRequest     the arguments break the contract; the same request never succeeds
    +-- ContractMismatch   client and server were built for different contracts
    +-- Unavailable        nothing answers there, or the model is not loaded; another server may answer
    |   +-- CircuitOpen    it was not asked, since too many attempts failed before
    +-- Overloaded         the server refused the request, its queue is too long; less load, or another server, helps
    +-- DeadlineExceeded   no answer within timeout_s
    +-- ServerError        the server failed, or its answer breaks the contract

Each message says what was found, what was wanted and what to do next.
"""

from __future__ import annotations


class TritonRankError(Exception):
    """Base of every error of this package."""


class InvalidRequest(TritonRankError):
    """The arguments break the contract, by this client's check or by the server's (INVALID_ARGUMENT).

    Attributes:
        argument: the argument at fault, None where the server refused.
    """

    def __init__(self, message: str, argument: str | None = None):
        super().__init__(message)
        self.argument = argument


class ContractMismatch(TritonRankError):
    """Client and server were built for different contracts.

    Attributes:
        differences: one line a tensor.
    """

    def __init__(self, message: str, differences: tuple[str, ...] = ()):
        super().__init__(message)
        self.differences = differences


class Unavailable(TritonRankError):
    """Nothing answers there, the connection was lost, the client is closed, or the model is not loaded."""


class CircuitOpen(Unavailable):
    """The model was not asked: too many of the last attempts failed."""


class Overloaded(TritonRankError):
    """The server refused the request: its queue is full, or the request waited there for as long as it may."""


class DeadlineExceeded(TritonRankError):
    """No answer within timeout_s."""


class ServerError(TritonRankError):
    """The server failed, or its answer breaks the contract."""
