"""The door to the server, and the only module that calls tritonclient and grpc or knows their errors.

`Transport` is what RankClient needs of a server; `GrpcTransport` is the real one, `MockTransport` (in `_mock.py`) the
one to test through. Sends each request once: knows nothing of retries, of several servers, or of what tensors mean.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ._contract import ModelSpec, TensorSpec, list_rules
from ._deadline import Deadline
from ._errors import DeadlineExceeded, InvalidRequest, Overloaded, ServerError, TritonRankError, Unavailable
from ._tls import TLS


@dataclass(frozen=True)
class InferRequest:
    """One inference.

    Attributes:
        model: the model's name.
        inputs: arrays by name; text as object arrays of bytes.
        outputs: names of the wanted outputs.
        timeout_s: seconds until the answer is of no more use, on the wire and in the server's queue.
    """

    model: str
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    timeout_s: float


class Transport(Protocol):
    """A way to a server, used from many threads at once. Every method but `close` raises a TritonRankError."""

    def infer(self, request: InferRequest) -> Mapping[str, np.ndarray]:
        """The outputs of the request, by name; those that the server left out are missing."""

    def served_model(self, model: str, timeout_s: float) -> ModelSpec:
        """The model's interface, as the server describes it."""

    def is_ready(self, model: str, timeout_s: float) -> bool:
        """Whether the server takes requests for the model."""

    def close(self) -> None:
        """Give the connection back; later calls raise Unavailable."""


# After an outage grpc would wait up to two minutes before it tries to connect again.
_CHANNEL_OPTIONS = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]


def connection(url: str, tls: TLS | None = None) -> triton.InferenceServerClient:
    """Triton's own client of `url`. Raises: InvalidRequest for such a `tls`."""
    if tls is None:
        return triton.InferenceServerClient(url, channel_args=_CHANNEL_OPTIONS)
    tls.check()
    return triton.InferenceServerClient(
        url,
        ssl=True,
        root_certificates=tls.ca,
        certificate_chain=tls.certificate,
        private_key=tls.key,
        channel_args=_CHANNEL_OPTIONS,
    )


class GrpcTransport:
    """A gRPC channel to one Triton; connects when first used, and again after a loss.

    url: host and gRPC port ("localhost:8001"), or another gRPC target ("unix:/run/triton.sock").
    tls: None = in the clear.
    Raises: InvalidRequest for such a tls.
    """

    def __init__(self, url: str, tls: TLS | None = None):
        self._url = url
        self._client = connection(url, tls)
        self._name = secrets.token_hex(4)  # of this process and its clock, of nobody's person

    def infer(self, request: InferRequest) -> dict[str, np.ndarray]:
        """See Transport."""
        with _translated_errors(self._url, request.timeout_s):
            result = self._client.infer(
                request.model,
                [_infer_input(name, array) for name, array in request.inputs.items()],
                outputs=[triton.InferRequestedOutput(name) for name in request.outputs],
                timeout=_queue_timeout_microseconds(request.timeout_s),
                parameters=self._sent_now(),
                client_timeout=request.timeout_s,
            )
        return _arrays(self._url, result, request.outputs)

    def _sent_now(self) -> dict[str, int | str]:
        """By which the server's models see how long a request has waited, whatever the two clocks say: they compare
        with the same client's other requests, and compute nothing that would come too late."""
        return {"sent_unix_us": time.time_ns() // 1000, "client": self._name}

    def served_model(self, model: str, timeout_s: float) -> ModelSpec:
        """See Transport."""
        deadline = Deadline(timeout_s)
        with _translated_errors(self._url, timeout_s):
            # Only the metadata has the shapes as requests have them; only the configuration says what is optional.
            metadata = self._client.get_model_metadata(model, client_timeout=deadline.remaining_s())
            config = self._client.get_model_config(model, client_timeout=deadline.remaining_s()).config
        optional = {tensor.name for tensor in config.input if tensor.optional}
        answer = config.parameters["answer"].string_value if "answer" in config.parameters else ""
        return ModelSpec(
            _served_tensors(metadata.inputs, optional),
            _served_tensors(metadata.outputs, set()),
            list_rules(answer, model) if answer else None,
        )

    def is_ready(self, model: str, timeout_s: float) -> bool:
        """See Transport."""
        with _translated_errors(self._url, timeout_s):
            return bool(self._client.is_model_ready(model, client_timeout=timeout_s))

    def close(self) -> None:
        """See Transport."""
        self._client.close()


def _infer_input(name: str, array: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def _queue_timeout_microseconds(timeout_s: float) -> int:
    """At least 1: Triton reads 0 as the model's own default."""
    return max(1, int(timeout_s * 1e6))


def _arrays(url: str, result: triton.InferResult, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        arrays = {name: result.as_numpy(name) for name in names}
    except (ValueError, struct.error) as error:  # bytes that do not fit the shape or the lengths they announce
        raise ServerError(f"{url}: the answer cannot be decoded ({error})") from error
    return {name: array for name, array in arrays.items() if array is not None}


def _served_tensors(tensors: Iterable[Any], optional: set[str]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape), tensor.name in optional) for tensor in tensors
    )


# ---------------------------------------------------------------- errors
ERROR_OF_STATUS: dict[str, type[TritonRankError]] = {
    "CANCELLED": Unavailable,  # the channel was closed under the call, or the server is going down
    "UNKNOWN": ServerError,
    "INVALID_ARGUMENT": InvalidRequest,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "NOT_FOUND": Unavailable,  # Triton's word for a model that is not loaded
    "ALREADY_EXISTS": ServerError,
    "PERMISSION_DENIED": ServerError,
    "RESOURCE_EXHAUSTED": Overloaded,
    "FAILED_PRECONDITION": ServerError,
    "ABORTED": ServerError,
    "OUT_OF_RANGE": ServerError,
    "UNIMPLEMENTED": ServerError,
    "INTERNAL": ServerError,
    "UNAVAILABLE": Unavailable,
    "DATA_LOSS": ServerError,
    "UNAUTHENTICATED": ServerError,
}
"""Every gRPC status that is an error."""

# Triton refuses these with UNAVAILABLE, the status of a server that is not there; only the text tells them apart.
_QUEUE_REFUSALS = ("Exceeds maximum queue size", "Request timeout expired")

_NEXT_STEP: dict[type[TritonRankError], str] = {
    InvalidRequest: "the server refused the request; a newer tritonrank-client may say more",
    Unavailable: "is Triton running there, is this its gRPC port (8001 unless set), and is the model loaded?",
    Overloaded: "send less, or raise the server's capacity",
    DeadlineExceeded: "raise timeout_s, send fewer items, or look at the server's load",
    ServerError: "see the server's log",
}

# How gRPC words a refused handshake; a server that refuses a client just closes the connection.
_TLS_NEXT_STEPS = (
    ("CERTIFICATE_VERIFY_FAILED", "TLS: is tls=TLS(ca=...) the authority that signed this server's certificate?"),
    (
        "Hostname Verification",
        "TLS: the server's certificate is for another name; use a url with the name that it is for",
    ),
    ("handshake failed", "TLS: does this port speak TLS at all? Without, leave tls out"),
    (
        "Socket closed",
        "is this Triton's gRPC port (8001 unless set)? It ended the connection at once: does it ask for TLS, "
        "tls=TLS(ca=...), or for a client's certificate, tls=TLS(ca=..., certificate=..., key=...), that its authority "
        "signed?",
    ),
)


def _next_step(kind: type[TritonRankError], message: str) -> str:
    steps = (step for text, step in _TLS_NEXT_STEPS if text in message and "failed to connect" in message)
    return next(steps, _NEXT_STEP[kind])


def translated(error: InferenceServerException, url: str, timeout_s: float) -> TritonRankError:
    """The error of this package that says what tritonclient's `error` means."""
    status = str(error.status()).removeprefix("StatusCode.")
    kind = ERROR_OF_STATUS.get(status, ServerError)
    if status == "UNAVAILABLE" and any(text in str(error.message()) for text in _QUEUE_REFUSALS):
        kind = Overloaded
    if kind is DeadlineExceeded:
        return kind(f"{url}: no answer within {timeout_s:.3f} s; {_NEXT_STEP[kind]}")
    message = str(error.message()).strip()
    return kind(f"{url}: {message} ({status}); {_next_step(kind, message)}")


@contextlib.contextmanager
def _translated_errors(url: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except InferenceServerException as error:
        raise translated(error, url, timeout_s) from error
    except ValueError as error:  # grpc's only word for a channel that was closed before the call
        if "closed channel" not in str(error):
            raise
        raise Unavailable(f"{url}: this client is closed; make a new one") from error
