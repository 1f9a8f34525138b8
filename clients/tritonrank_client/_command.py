"""`tritonrank-rank`: rank the ids or the texts of a file for a query, from a shell."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ._errors import InvalidRequest, TritonRankError
from ._response import RankedList, Reranked
from ._sync._client import RankClient
from ._tls import TLS

# A person waits longer than a page, and each command pays for a new connection.
COMMAND_TIMEOUT_S = 5.0

_EPILOG = """\
Prints rank, id and score, separated by tabs; an item that the server could not score has '-' (null in JSON). Of
documents it prints the position in the file in place of an id, 0 = the first that is not an empty line.
Exit codes: 0 ranked, 1 the server failed or did not answer, 2 the request is at fault.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        ranked = _ranked(options)
    except InvalidRequest as error:
        return _failed(error, 2)
    except TritonRankError as error:
        return _failed(error, 1)
    key = "id" if isinstance(ranked, RankedList) else "index"
    print(_as_json(options.query, ranked, key) if options.json else _as_table(ranked, key))
    if isinstance(ranked, RankedList) and ranked.left_out:
        print(f"tritonrank-rank: a filter left {ranked.left_out} items out", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tritonrank-rank",
        description="Rank items for a query on a Triton server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--query", required=True)
    ranked = parser.add_mutually_exclusive_group(required=True)
    ranked.add_argument("--items", metavar="FILE", help="item ids, one a line; - reads standard input")
    ranked.add_argument("--documents", metavar="FILE", help="texts, one a line, in place of items of the store")
    parser.add_argument("--url", default="localhost:8001", help="Triton's gRPC service (default: %(default)s)")
    parser.add_argument("--tls", action="store_true", help="encrypted, by the authorities that gRPC brings")
    parser.add_argument(
        "--tls-ca", metavar="FILE", help="encrypted, by this authority of the server's certificate (PEM)"
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="this client's certificate, where the server asks for one")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key")
    parser.add_argument("--top-k", type=int, metavar="K", help="items to print (default: all)")
    parser.add_argument("--timeout-s", type=float, default=COMMAND_TIMEOUT_S, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def _ranked(options: argparse.Namespace) -> RankedList | Reranked:
    lines = _lines(options.items, "items") if options.documents is None else _lines(options.documents, "documents")
    with RankClient(options.url, timeout_s=options.timeout_s, tls=_tls(options)) as client:
        rank = client.rank if options.documents is None else client.rerank
        return rank(options.query, lines, top_k=options.top_k)


def _tls(options: argparse.Namespace) -> TLS | None:
    asked = TLS(options.tls_ca, options.tls_cert, options.tls_key)
    return asked if options.tls or asked != TLS() else None


def _lines(source: str, argument: str) -> list[str]:
    """The lines of a file or of standard input; empty lines are skipped."""
    try:
        text = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        # Not splitlines(), which also breaks at characters that an id may hold.
        lines = text.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InvalidRequest(f"--{argument}: cannot read {source} ({error.strerror})", argument) from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"--{argument}: {source} is not UTF-8 ({error})", argument) from error
    return [line.removesuffix("\r") for line in lines if line.removesuffix("\r")]


def _as_table(ranked: RankedList | Reranked, key: str) -> str:
    rows = [
        f"{rank}\t{which}\t{f'{score:.6g}' if scored else '-'}"
        for rank, ((which, score), scored) in enumerate(zip(ranked, ranked.scored, strict=True), start=1)
    ]
    return "\n".join([f"rank\t{key}\tscore", *rows])


def _as_json(query: str, ranked: RankedList | Reranked, key: str) -> str:
    rows = [
        {"rank": rank, key: which, "score": score if scored else None}
        for rank, ((which, score), scored) in enumerate(zip(ranked, ranked.scored, strict=True), start=1)
    ]
    return json.dumps({"query": query, "ranked": rows}, ensure_ascii=False)


def _failed(error: TritonRankError, code: int) -> int:
    print(f"tritonrank-rank: {error}", file=sys.stderr)
    return code
