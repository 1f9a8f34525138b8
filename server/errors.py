"""What can go wrong before a server is ready.

    ServerError            exit code 1
    +-- EnvironmentUnfit   4: the server's Python environment is missing, or cannot run this Triton
    +-- RepositoryError    the repository is missing or empty, or does not hold the wanted model
    +-- PortInUse          another process listens on a wanted port
    +-- AdminKeyError      the admin key's file cannot be used, or everyone can read it
    +-- TlsError           a certificate or key cannot be used
    +-- ControlError       a running server does not do what it is asked
    +-- ServerNotReady     tritonserver ended, or was not ready in time
        +-- ModelsNotReady tritonserver runs, a model could not be loaded

Each message says what was found, what was wanted and what to run next.
"""

from __future__ import annotations

from collections.abc import Mapping


class ServerError(RuntimeError):
    """Base of every error of this package; ``python -m server`` prints it in one line and exits with ``exit_code``."""

    exit_code = 1


class EnvironmentUnfit(ServerError):
    """The server's Python environment is missing, or cannot run this Triton."""

    exit_code = 4


class RepositoryError(ServerError):
    """The model repository is missing or empty, or does not hold the wanted model."""


class PortInUse(ServerError):
    """Another process listens on a wanted port."""


class AdminKeyError(ServerError):
    """The admin key's file cannot be read or made, can be read by everyone, or holds no key."""


class TlsError(ServerError):
    """A certificate or key cannot be read, or the two do not belong together."""


class ControlError(ServerError):
    """The running server does not answer, does not take the key, or cannot do what it is asked."""


class ServerNotReady(ServerError):
    """tritonserver ended before it was ready, or was not ready in time."""


class ModelsNotReady(ServerNotReady):
    """tritonserver runs, but wanted models could not be loaded.

    `reasons`: model name => Triton's reason.
    """

    def __init__(self, message: str, reasons: Mapping[str, str]):
        super().__init__(message)
        self.reasons = dict(reasons)


def one_line(error: BaseException) -> str:
    """``error: <message>``, line breaks as spaces."""
    return f"error: {' '.join(str(error).split())}"


def refused_by_machine(error: OSError) -> ServerError:
    """What the operating system refused while starting, as an error that says what to do."""
    path = "the system" if error.filename is None else error.filename
    return ServerError(
        f"{path}: {error.strerror or error}; see that this user may read the repository and the server's environment "
        "and write the temporary folder ($TMPDIR), and that there is room on the disk."
    )
