"""What a client shows and checks where the server's gRPC port has TLS."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from ._errors import InvalidRequest

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class TLS:
    """PEM files of a connection with TLS; without any, the authorities that gRPC brings are trusted.

        TLS(ca="ca.pem")                                                    the server shows a certificate
        TLS(ca="ca.pem", certificate="client.pem", key="client.key")        so does the client (mutual TLS)

    Attributes:
        ca: certificate of the authority that signed the server's.
        certificate, key: the client's own, for a server that asks for one; the key without a password.
    Raises: InvalidRequest for a file that cannot be read or holds something else, when a client is made.
    """

    ca: PathLike | None = None
    certificate: PathLike | None = None
    key: PathLike | None = None

    def check(self) -> None:
        """Read the files once: gRPC would say nothing of them but that the handshake failed. Raises: InvalidRequest."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequest("tls: a certificate of the client and its key come together; give both or none", "tls")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            _check_ca(context, self.ca)
        if self.certificate is not None and self.key is not None:
            _check_pair(context, self.certificate, self.key)


def _check_ca(context: ssl.SSLContext, ca: PathLike) -> None:
    try:
        context.load_verify_locations(ca)
    except OSError as error:
        raise InvalidRequest(
            f"tls: found no certificate in ca={os.fspath(ca)!r} ({_reason(error)}), wanted a PEM file with that of the "
            "authority that signed the server's",
            "tls",
        ) from error


def _check_pair(context: ssl.SSLContext, certificate: PathLike, key: PathLike) -> None:
    try:
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise InvalidRequest(
            f"tls: certificate={os.fspath(certificate)!r} and key={os.fspath(key)!r} are no pair ({_reason(error)}), "
            "wanted two PEM files that belong together, the key without a password",
            "tls",
        ) from error


def _reason(error: OSError) -> str:
    """Of OpenSSL where it has one."""
    return getattr(error, "reason", None) or error.strerror or str(error)
