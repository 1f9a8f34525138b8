"""What the gateway is started with, checked. ``python -m gateway`` makes it from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, get_args

from tritonrank_client import TLS

from gateway.errors import GatewayError

Kind = Literal["rank", "recommend", "similar"]
"""What an endpoint of the server answers. It is called so, its variants ``<kind>_<variant>``."""


@dataclass(frozen=True)
class Settings:
    """Checked as they are made. Raises: GatewayError.

    Attributes:
        servers: host and port of each Triton's gRPC service.
        models: name that a request states => endpoint of the server; the first of a kind is that of requests that state
            none. A request reaches no other model, whatever it states.
        host, port: where the gateway listens.
        key_file: with the keys of callers; see :class:`gateway.auth.Keys`.
        open: although the host is not this machine's own address and there is no key file.
        timeout_s: of one request to the ranker.
        max_body_bytes: of a request's body.
        max_documents: to be ranked by one request.
        max_in_flight: requests at once; further ones are refused at once.
        first_stage: answer in the order of the request, marked as degraded, where the ranker gives no list.
        tls: of the connection to the server; None = in the clear.
        certificate, key: PEM files for HTTPS; None = HTTP.
    """

    servers: tuple[str, ...] = ("localhost:8001",)
    models: Mapping[str, str] | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    key_file: Path | None = None
    open: bool = False
    timeout_s: float = 1.0
    max_body_bytes: int = 8 * 2**20
    max_documents: int = 1000
    max_in_flight: int = 256
    first_stage: bool = False
    tls: TLS | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        for endpoint in self.named.values():
            kind_of(endpoint)
        for name in ("timeout_s", "max_body_bytes", "max_documents", "max_in_flight"):
            if not (value := getattr(self, name)) > 0:
                raise GatewayError(f"{option(name)}: found {value}, wanted more than 0")
        if not (self.key_file or self.open or _is_own_address(self.host)):
            raise GatewayError(
                f"--host {self.host}: whoever reaches this address could rank; give --key-file, or --open where only "
                "services that you trust reach it"
            )
        if (self.certificate is None) != (self.key is None):
            raise GatewayError("--tls-cert and --tls-key go together; give both, or none")

    @property
    def named(self) -> Mapping[str, str]:
        """``models``, or the published ranker alone where none is given."""
        return self.models or {"rank": "rank"}


def models_of(pairs: list[str]) -> dict[str, str]:
    """``NAME=ENDPOINT`` each. Raises: GatewayError."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, endpoint = pair.rpartition("=")
        if not (name and equals and endpoint):
            raise GatewayError(f"--model {pair}: wanted NAME=ENDPOINT, such as rerank-v3.5=rank")
        if name in found:
            raise GatewayError(f"--model {pair}: '{name}' is named already, for {found[name]}; name each once")
        found[name] = endpoint
    return found


def kind_of(endpoint: str) -> Kind:
    """Raises: GatewayError: a model of the server that is not for callers, such as a scorer."""
    for kind in get_args(Kind):
        if endpoint == kind or endpoint.startswith(f"{kind}_"):
            return kind
    raise GatewayError(
        f"--model ...={endpoint}: not an endpoint for callers, wanted rank, recommend, similar or a variant of one, "
        "such as rank_two_tower_fp32_onnx"
    )


def option(name: str) -> str:
    """Of the command line."""
    return f"--{name.replace('_', '-')}"


def _is_own_address(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
