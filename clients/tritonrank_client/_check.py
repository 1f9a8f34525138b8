"""`tritonrank-client check URL`: whether a server serves what this client asks for, and what is wrong if not."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from ._arguments import asked_whether_ready
from ._contract import ENDPOINTS
from ._deadline import Deadline
from ._errors import InvalidRequest, TritonRankError, Unavailable
from ._observing import Observation
from ._sync._caller import Caller, Policies
from ._sync._endpoint import Endpoint
from ._sync._transport import GrpcTransport
from ._tls import TLS
from ._version import __version__
from ._wire import Transport

CANARIES = 20
_EPILOG = """\
Of each endpoint: whether the model is ready, whether its tensors are those of this client's contract, and how long a
real request takes. Exit codes: 0 all is well, 1 something is wrong, 2 the arguments are at fault.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    tls = TLS(options.tls_ca, options.tls_cert, options.tls_key)
    try:
        transport = GrpcTransport(options.url, tls if options.tls or tls != TLS() else None)
    except InvalidRequest as error:
        print(f"tritonrank-client: {error}", file=sys.stderr)
        return 2
    print(f"tritonrank-client {__version__}, {', '.join(options.url)}")
    try:
        faults = [
            fault for model in options.model or ["rank"] for fault in check(transport, model, options.timeout_s, print)
        ]
    finally:
        transport.close()
    return 1 if faults else 0


def check(transport: Transport, model: str, timeout_s: float, say: Callable[[str], None]) -> list[TritonRankError]:
    """Say of each step whether it is well; return what is wrong."""
    endpoint = endpoint_of(model)
    caller = Caller(transport, model, endpoint, Policies())
    steps: list[tuple[str, Callable[[], str]]] = [
        ("ready", lambda: _ready(transport, model, timeout_s)),
        ("contract", lambda: _contract(caller.endpoint, timeout_s)),
        ("canary", lambda: _canary(caller, endpoint, timeout_s)),
    ]
    for name, step in steps:
        try:
            say(f"{model}: {name}: {step()}")
        except TritonRankError as error:
            say(f"{model}: {name}: {type(error).__name__}: {error}")
            return [error]
    return []


def endpoint_of(model: str) -> str:
    """``recommend`` of ``recommend_din_fp32_onnx``. Raises: InvalidRequest for another name."""
    endpoint = model.partition("_")[0]
    if endpoint not in ENDPOINTS:
        names = ", ".join(ENDPOINTS)
        raise InvalidRequest(f"--model: found {model!r}, wanted {names}, or a name that begins so", "model")
    return endpoint


def _ready(transport: Transport, model: str, timeout_s: float) -> str:
    if not transport.is_ready(model, timeout_s):
        raise Unavailable(f"the server does not take requests for '{model}'; is it published, and the server ready?")
    return "yes"


def _contract(endpoint: Endpoint, timeout_s: float) -> str:
    deadline = Deadline(timeout_s)
    served = endpoint.served(deadline)
    rules = endpoint.own_rules(served)
    optional = sorted(tensor.name for tensor in served.inputs if tensor.optional)
    said = [
        f"reads {', '.join(tensor.name for tensor in served.inputs if not tensor.optional)}",
        f"takes {', '.join(optional)}" if optional else "",
        "leaves items out that are not in stock" if rules.in_stock_only else "",
        f"pins {len(rules.pinned)} items" if rules.pinned else "",
        f"at most {rules.max_per_brand} items of a brand first" if rules.max_per_brand else "",
        f"{rules.default_top_k} items unless asked for more" if rules.default_top_k else "",
    ]
    return "the same; " + "; ".join(each for each in said if each)


def _canary(caller: Caller, endpoint: str, timeout_s: float) -> str:
    """Real requests, the first apart: it may load what the others find loaded."""
    seconds = []
    for _ in range(CANARIES + 1):
        deadline, start_s = Deadline(timeout_s), time.perf_counter()
        asked = asked_whether_ready(endpoint, caller.endpoint.served(deadline))
        try:
            caller.ask(asked, deadline, Observation("tritonrank-client check"))
        except InvalidRequest as error:
            if endpoint != "similar":
                raise
            return f"answered: {error}"
        seconds.append(time.perf_counter() - start_s)
    rest = seconds[1:]
    return (
        f"answered {len(seconds)} of {len(seconds)} requests of one item; first {seconds[0] * 1e3:.1f} ms, then median "
        f"{statistics.median(rest) * 1e3:.1f}, longest {max(rest) * 1e3:.1f} ms"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tritonrank-client", description="Looks at a ranking server.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    check = verbs.add_parser(
        "check",
        help="is what this client asks for served?",
        description="Check a server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("url", nargs="+", help="Triton's gRPC service, such as localhost:8001; or several")
    check.add_argument("--model", action="append", type=_model, help="an endpoint; repeatable (default: rank)")
    check.add_argument("--timeout-s", type=float, default=5.0, help="(default: %(default)s)")
    check.add_argument("--tls", action="store_true", help="encrypted, by the authorities that gRPC brings")
    check.add_argument("--tls-ca", metavar="FILE", help="encrypted, by this authority of the server's certificate")
    check.add_argument("--tls-cert", metavar="FILE", help="this client's certificate, where the server asks for one")
    check.add_argument("--tls-key", metavar="FILE", help="its private key")
    return parser


def _model(text: str) -> str:
    try:
        endpoint_of(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
