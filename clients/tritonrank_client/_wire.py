"""What goes over the wire and what comes back, errors among it: shared by the doors to the server, which alone call it.

`Transport` is what a client needs of a server: `GrpcTransport` (in `_sync`) and `AsyncGrpcTransport` are the real ones,
`MockTransport` (in `_mock.py`) the one to test through. Knows nothing of retries, or of what tensors mean.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ._contract import ModelSpec, TensorSpec, list_rules
from ._errors import DeadlineExceeded, InvalidRequest, Overloaded, ServerError, TritonRankError, Unavailable
from ._options import Connections

MAX_ANSWER_BYTES = 4 << 20
"""Of one answer: 1,024 ids of 511 bytes and their scores take 0.6 MB."""


@dataclass(frozen=True)
class InferRequest:
    """One inference.

    Attributes:
        model: the model's name.
        inputs: arrays by name; text as object arrays of bytes.
        outputs: names of the wanted outputs.
        timeout_s: seconds until the answer is of no more use, on the wire and in the server's queue.
        request_id: in the server's log too.
        headers: by lower-case name, such as ``traceparent``; beside those that the client sends with every request.
    """

    model: str
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    timeout_s: float
    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Transport(Protocol):
    """A way to a server, used from many threads at once. Every method but `close` raises a TritonRankError.

    That of `AsyncRankClient` has the same methods as coroutines: :class:`AsyncTransport`.
    """

    def infer(self, request: InferRequest) -> Mapping[str, np.ndarray]:
        """The outputs of the request, by name; those that the server left out are missing."""

    def served_model(self, model: str, timeout_s: float) -> ModelSpec:
        """The model's interface, as the server describes it."""

    def is_ready(self, model: str, timeout_s: float) -> bool:
        """Whether the server takes requests for the model."""

    def close(self) -> None:
        """Give the connection back; later calls raise Unavailable."""


class AsyncTransport(Protocol):
    """As :class:`Transport`, from many tasks of one event loop."""

    async def infer(self, request: InferRequest) -> Mapping[str, np.ndarray]:
        """See Transport."""

    async def served_model(self, model: str, timeout_s: float) -> ModelSpec:
        """See Transport."""

    async def is_ready(self, model: str, timeout_s: float) -> bool:
        """See Transport."""

    async def close(self) -> None:
        """See Transport."""


PING_AFTER_MS = 1000
"""Of nothing heard while a request waits; a server ends connections that ping more than twice without data."""
LEAST_REQUESTS = 3
"""Of a server between two looks, before it may be set aside."""


def channel_options(connections: Connections, several: bool, authority: str | None = None) -> list[tuple[str, Any]]:
    """gRPC's own: servers that take turns where there are several, and one that fails or hangs set aside (gRFC A50)."""
    ejection = {
        "interval": f"{connections.eject_every_s:g}s",
        "baseEjectionTime": f"{connections.ejected_s:g}s",
        "maxEjectionPercent": 50,
        "failurePercentageEjection": {
            "threshold": round(100 * connections.eject_above),
            "enforcementPercentage": 100,
            "minimumHosts": 2,
            "requestVolume": LEAST_REQUESTS,
        },
        "childPolicy": [{"round_robin": {}}],
    }
    turns: list[dict[str, Any]] = [{"outlier_detection_experimental": ejection}, {"round_robin": {}}]
    service = {"loadBalancingConfig": turns if several else [{"pick_first": {}}]}
    named = [] if authority is None else [("grpc.default_authority", authority)]
    return [
        # After an outage grpc would wait up to two minutes before it tries to connect again.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A process that stands still answers no ping: its connection is ended, and made again when it answers.
        ("grpc.keepalive_time_ms", PING_AFTER_MS),
        ("grpc.keepalive_timeout_ms", PING_AFTER_MS),
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ("grpc.enable_retries", 0),  # they would know nothing of a budget
        ("grpc.service_config", json.dumps(service)),
        ("grpc.use_local_subchannel_pool", 1),  # a new channel is to have connections of its own
        *named,
    ]


def target(urls: Sequence[str]) -> tuple[str, bool]:
    """gRPC's name of what there is to connect to, and whether that may be several servers. Of one url gRPC resolves the
    name, again and again; those of several are resolved now. Raises: Unavailable."""
    if len(urls) == 1:
        return urls[0], _is_name(urls[0])
    found = [address for url in urls for address in _addresses(url)]
    one_family = [each for each in found if each[0] is socket.AF_INET] or found
    scheme = "ipv4" if one_family[0][0] is socket.AF_INET else "ipv6"
    return f"{scheme}:" + ",".join(dict.fromkeys(address for _, address in one_family)), True


def _is_name(url: str) -> bool:
    """Whether it can stand for several servers: no address, not this machine, whose two families are one server."""
    host = url.rpartition(":")[0].strip("[]")
    if url.startswith("unix:") or host == "localhost":
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return False
    return True


def _addresses(url: str) -> list[tuple[socket.AddressFamily, str]]:
    host, _, port = url.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(f"{url}: {error.strerror or error}; is the name right?") from error
    return [(each[0], f"[{each[4][0]}]:{port}" if ":" in str(each[4][0]) else f"{each[4][0]}:{port}") for each in found]


def sent_headers(token: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    """By lower-case name. Raises: InvalidRequest for what a header cannot hold."""
    given = {} if headers is None else dict(headers)
    if token is not None:
        given["authorization"] = f"Bearer {token}"
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str) or not (name.isascii() and value.isprintable()):
            raise InvalidRequest(f"headers: {str(name)[:60]!r} is no header of printable text", "headers")
    return {name.lower(): value for name, value in given.items()}


def checked_urls(url: str | Sequence[str]) -> tuple[str, ...]:
    """One or several. Raises: InvalidRequest."""
    urls = (url,) if isinstance(url, str) else tuple(url)
    for each in urls or ("",):
        if not isinstance(each, str) or not each or each.startswith(("http://", "https://", "grpc://", "grpcs://")):
            raise InvalidRequest(
                f"url: found {each!r}, wanted host:port of Triton's gRPC service without a scheme, such as "
                "'localhost:8001', or several of them",
                "url",
            )
    return urls


def request_arguments(request: InferRequest, name: str) -> dict[str, Any]:
    """What tritonclient's `infer` is called with. `name`: of this client, by which the server's models see how long a
    request has waited, whatever the two clocks say: they compare with the same client's other requests, and compute
    nothing that would come too late."""
    return {
        "inputs": [_infer_input(name, array) for name, array in request.inputs.items()],
        "outputs": [triton.InferRequestedOutput(name) for name in request.outputs],
        "request_id": request.request_id,
        "timeout": _queue_timeout_microseconds(request.timeout_s),
        "parameters": {"sent_unix_us": time.time_ns() // 1000, "client": name},
        "client_timeout": request.timeout_s,
    }


def model_spec(model: str, metadata: Any, config: Any) -> ModelSpec:
    """Of what the server says of a model. Only the metadata has the shapes as requests have them; only the
    configuration says what is optional. Raises: ContractMismatch."""
    optional = {tensor.name for tensor in config.input if tensor.optional}
    answer = config.parameters["answer"].string_value if "answer" in config.parameters else ""
    return ModelSpec(
        _served_tensors(metadata.inputs, optional),
        _served_tensors(metadata.outputs, set()),
        list_rules(answer, model) if answer else None,
    )


def _infer_input(name: str, array: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def _queue_timeout_microseconds(timeout_s: float) -> int:
    """At least 1: Triton reads 0 as the model's own default."""
    return max(1, int(timeout_s * 1e6))


def arrays(url: str, result: triton.InferResult, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The outputs of those names that are there. Raises: ServerError for bytes that are no such tensor."""
    response = result.get_response()
    raw = response.raw_output_contents
    found = {}
    try:
        for place, output in enumerate(response.outputs):
            if output.name not in names:
                continue
            if output.datatype == "BYTES" and place < len(raw):
                # tritonclient's own decoding takes two microseconds an item, most of what this client would add to it.
                found[output.name] = _strings(raw[place]).reshape(tuple(output.shape))
            elif (array := result.as_numpy(output.name)) is not None:
                found[output.name] = array
    except (ValueError, TypeError, IndexError, struct.error) as error:  # shape or lengths do not fit the bytes
        raise ServerError(f"{url}: the answer cannot be decoded ({error})") from error
    return found


def _strings(raw: bytes) -> np.ndarray:
    """object [n] of bytes: each with its length before it, little-endian UINT32. Raises: ValueError."""
    found, place, end = [], 0, len(raw)
    while place < end:
        start = place + 4
        place = start + int.from_bytes(raw[place:start], "little")
        found.append(raw[start:place])
    if place != end:
        raise ValueError(f"found {end} bytes, wanted {place} by the lengths that they announce")
    strings = np.empty(len(found), np.object_)
    strings[:] = found
    return strings


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


_NOT_CONNECTED = ("failed to connect", "connections to all backends failing")


def _next_step(kind: type[TritonRankError], message: str) -> str:
    steps = (
        step for text, step in _TLS_NEXT_STEPS if text in message and any(sign in message for sign in _NOT_CONNECTED)
    )
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
def translated_errors(url: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except InferenceServerException as error:
        raise translated(error, url, timeout_s) from error
    except ValueError as error:  # grpc's only word for a channel that was closed before the call
        if "closed channel" not in str(error):
            raise
        raise Unavailable(f"{url}: this client is closed; make a new one") from error
