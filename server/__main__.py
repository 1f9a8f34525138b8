"""`python -m server`: serves a model repository until Ctrl-C or SIGTERM, and starts a server that ended again."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from server.admin_key import KEY_FILE_VARIABLE, OPEN_VARIABLE, key_file, opened_by_variable, read_or_make_key
from server.errors import ServerError, one_line, refused_by_machine
from server.tls import ServerTls
from server.triton import DEFAULT_MODEL, DEFAULT_REPOSITORY, DEFAULT_STORE, LOOPBACK, TritonServer
from server.verify import MODES

RESTARTS = 10
WINDOW_S = 600.0  # in which they are counted
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 30.0
SERVED_S = 10.0  # a server that has been up for so long has recovered: its next restart comes at once
DRAIN_S = 5.0
ANSWER_WITHIN_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until stopped; return the exit code: 0 after a clean stop, 1 where the server ended too often, or an
    error's own."""
    options = _parse(arguments)
    try:
        server = _server(options)
        _stop_on_signals(server)
        with server:
            return _serve(server, options.restarts)
    except _StopRequested:
        return 0
    except ServerError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    except OSError as error:
        refused = refused_by_machine(error)
        print(one_line(refused), file=sys.stderr)
        return refused.exit_code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument("--repository", type=Path, default=DEFAULT_REPOSITORY, help="model repository (%(default)s)")
    parser.add_argument("--store", type=Path, default=DEFAULT_STORE, help="item-store folder (%(default)s)")
    parser.add_argument(
        "--response-cache-mb", type=_size_mb, default=0, metavar="MB",
        help="MiB of Triton's response cache, for models that ask for it (%(default)s = none)",
    )  # fmt: skip
    parser.add_argument(
        "--server-env", type=Path, help="the server's Python environment ($TRITONRANK_SERVER_ENV, .venv-server)"
    )
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--load", action="append", metavar="MODEL", help=f"model to load; repeatable ({DEFAULT_MODEL})")
    models.add_argument("--all", action="store_true", help="load every model that was published in the repository")
    parser.add_argument(
        "--verify", choices=MODES, default=os.environ.get("TRITONRANK_VERIFY", "hash"),
        help="what is loaded must be as published: by the hashes of its manifest, and by the manifest's signature "
        "($TRITONRANK_VERIFY, %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--public-key", type=Path, default=os.environ.get("TRITONRANK_PUBLIC_KEY"),
        help="PEM file with the Ed25519 key of the signature ($TRITONRANK_PUBLIC_KEY)",
    )  # fmt: skip
    parser.add_argument("--config-name", help="use <model>/configs/<CONFIG_NAME>.pbtxt where a model has it")
    parser.add_argument("--host", default=LOOPBACK, help="address that gRPC and metrics listen on (%(default)s)")
    parser.add_argument(
        "--http-host", default=LOOPBACK,
        help="address that HTTP listens on (%(default)s); one HTTP request can end this Triton, see "
        "docs/how-to/close-the-doors.md",
    )  # fmt: skip
    parser.add_argument("--grpc-port", type=int, default=8001, help="0 picks a free one (%(default)s)")
    parser.add_argument("--http-port", type=int, default=8000, help="0 picks a free one (%(default)s)")
    parser.add_argument("--metrics-port", type=int, default=8002, help="0 picks a free one (%(default)s)")
    _add_doors(parser)
    parser.add_argument("--ready-timeout-s", type=float, default=120.0, help="longest start-up (%(default)s)")
    parser.add_argument(
        "--restarts", type=int, default=RESTARTS, metavar="N",
        help=f"start a server that ended, or that has a dead stub, again, at most N times in {WINDOW_S / 60:g} minutes "
        "(%(default)s); 0 = end with it, where something else starts this program again",
    )  # fmt: skip
    parser.add_argument(
        "--answer-within-s", type=float, default=ANSWER_WITHIN_S, metavar="S",
        help="end a server of which an endpoint does not answer its canary in this time (%(default)s); 0 = never ask",
    )  # fmt: skip
    parser.add_argument(
        "--drain-s", type=float, default=DRAIN_S, metavar="S",
        help="after SIGTERM, seconds of answering while it says that it is not ready (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--log-verbose", type=int, default=0, help="Triton's verbosity (%(default)s)")
    return parser.parse_args(arguments)


def _size_mb(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a number of MiB; 0 = none")
    return int(text)


def _add_doors(parser: argparse.ArgumentParser) -> None:
    doors = parser.add_mutually_exclusive_group()
    doors.add_argument(
        "--admin-key-file", type=Path,
        help="file with the key that control of models, shared memory, log and trace asks for; made where there is "
        f"none (${KEY_FILE_VARIABLE}, admin.key of this checkout)",
    )  # fmt: skip
    doors.add_argument(
        "--open-apis", action="store_true",
        help=f"ask for no admin key: whoever reaches a port then runs code here (${OPEN_VARIABLE}=1)",
    )  # fmt: skip
    parser.add_argument("--tls-cert", type=Path, help="PEM file with gRPC's certificate; HTTP and metrics have no TLS")
    parser.add_argument("--tls-key", type=Path, help="PEM file with its private key")
    parser.add_argument(
        "--tls-client-ca", type=Path, help="PEM file: take only clients with a certificate signed by it"
    )


def _server(options: argparse.Namespace) -> TritonServer:
    open_apis = options.open_apis or (options.admin_key_file is None and opened_by_variable())
    return TritonServer(
        options.repository,
        None if options.all else options.load or [DEFAULT_MODEL],
        store=options.store,
        response_cache_mb=options.response_cache_mb,
        environment=options.server_env,
        verify=options.verify,
        public_key=options.public_key,
        config_name=options.config_name,
        host=options.host,
        http_host=options.http_host,
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        metrics_port=options.metrics_port,
        admin_key=None if open_apis else read_or_make_key(key_file(options.admin_key_file)),
        open_apis=open_apis,
        tls=ServerTls.named(options.tls_cert, options.tls_key, options.tls_client_ca),
        log_verbose=options.log_verbose,
        log_to_terminal=True,
        ready_timeout_s=options.ready_timeout_s,
        drain_s=options.drain_s,
        answer_within_s=options.answer_within_s,
    )


class _StopRequested(BaseException):
    """SIGINT or SIGTERM came. Not an Exception, for the same reason as KeyboardInterrupt."""


def _stop_on_signals(server: TritonServer) -> None:
    """Raise _StopRequested in the main thread at the first SIGINT or SIGTERM; kill the server at the second."""
    requested = False

    def handle(signal_number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            server.kill()
            return
        requested = True
        server.drains = signal_number == signal.SIGTERM
        raise _StopRequested

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def _serve(server: TritonServer, restarts: int) -> int:
    """Serve until the server has ended once more than it may be started again."""
    _tell(server)
    ends: list[float] = []
    in_a_row = 0
    while True:
        started_s = time.monotonic()
        code = server.wait()
        print(f"error: tritonserver ended with code {code}; see its log above.", file=sys.stderr, flush=True)
        now_s = time.monotonic()
        ends = [*(end_s for end_s in ends if now_s - end_s < WINDOW_S), now_s]
        if len(ends) > restarts:
            print(f"error: not started again: --restarts {restarts} in {WINDOW_S / 60:g} minutes.", file=sys.stderr)
            return 1
        in_a_row = 1 if now_s - started_s > SERVED_S else in_a_row + 1
        _start_again(server, len(ends), in_a_row)


def _start_again(server: TritonServer, attempt: int, in_a_row: int) -> None:
    """At once at the first end in a row, after twice as long at each further one. A failed start is one more end."""
    wait_s = 0.0 if in_a_row == 1 else min(FIRST_WAIT_S * 2 ** (in_a_row - 2), LONGEST_WAIT_S)
    print(f"restart {attempt}, in {wait_s:g} s", file=sys.stderr, flush=True)
    time.sleep(wait_s)
    try:
        server.restart()
    except ServerError as error:
        print(one_line(error), file=sys.stderr, flush=True)
    else:
        _tell(server)


def _tell(server: TritonServer) -> None:
    print(f"ready: gRPC {server.grpc_url}, HTTP {server.http_url}, metrics {server.metrics_url}", flush=True)
    print(f"       tritonserver {server.pid}; Ctrl-C stops it, a second one at once", flush=True)


if __name__ == "__main__":
    sys.exit(main())
