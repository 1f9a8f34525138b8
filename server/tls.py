"""TLS of the gRPC port: the certificate that the server shows, and whose certificates it asks for."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from server.errors import TlsError


@dataclass(frozen=True)
class ServerTls:
    """PEM files of the gRPC port. This Triton has no TLS for HTTP and metrics.

    certificate   the server's, with those between it and its authority
    key           its private key, without a password
    client_ca     authority of the clients' certificates; None takes every client (mutual TLS with one)
    """

    certificate: str | os.PathLike[str]
    key: str | os.PathLike[str]
    client_ca: str | os.PathLike[str] | None = None

    @classmethod
    def named(cls, certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
        """Return what the options of a command line name, None where they name nothing. Raises TlsError."""
        if certificate is not None and key is not None:
            return cls(certificate, key, client_ca)
        if (certificate, key, client_ca) != (None, None, None):
            raise TlsError("TLS needs both --tls-cert and --tls-key; --tls-client-ca comes on top.")
        return None

    def options(self) -> list[str]:
        """Return tritonserver's. Raises TlsError for what tritonserver would start with and refuse every client."""
        self._check()
        mutual = (
            [] if self.client_ca is None else ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={_at(self.client_ca)}"]
        )
        return [
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={_at(self.certificate)}",
            f"--grpc-server-key={_at(self.key)}",
            *mutual,
        ]

    def _check(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:
            raise TlsError(
                f"TLS: {self.certificate} and {self.key} are no certificate and private key ({_reason(error)}); "
                "expected two PEM files that belong together, the key without a password (--tls-cert, --tls-key)."
            ) from error
        try:
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except OSError as error:
            raise TlsError(
                f"TLS: {self.client_ca} holds no certificate ({_reason(error)}); expected the PEM file of the "
                "authority that signed the clients' certificates (--tls-client-ca)."
            ) from error


def _at(path: str | os.PathLike[str]) -> Path:
    """tritonserver runs in another folder."""
    return Path(path).absolute()


def _reason(error: OSError) -> str:
    """Of OpenSSL where it has one."""
    return getattr(error, "reason", None) or error.strerror or str(error)
