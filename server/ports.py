"""TCP ports to listen on."""

from __future__ import annotations

import socket

from server.errors import PortInUse


def is_this_machine(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    return host in ("localhost", "::1") or host.startswith("127.")


def port_to_bind(host: str, port: int, option: str) -> int:
    """Return `port`, or a free one where it is 0. Raises PortInUse, naming the option that chooses another."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"cannot listen on {host}:{port} ({error.strerror}); stop what listens there, or choose another with "
                f"{option} PORT (0 picks a free one)."
            ) from error
        chosen: int = probe.getsockname()[1]
        return chosen
