"""`tritonrank-rank`: rank the ids of a file for a query, from a shell."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ._client import RankClient
from ._errors import InvalidRequest, TritonRankError
from ._response import RankedList

# A person waits longer than a page, and each command pays for a new connection.
COMMAND_TIMEOUT_S = 5.0

_EPILOG = """\
Prints rank, id and score, separated by tabs; an item that the server could not score has '-' (null in JSON).
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
    print(_as_json(options.query, ranked) if options.json else _as_table(ranked))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tritonrank-rank",
        description="Rank items for a query on a Triton server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--query", required=True)
    parser.add_argument("--items", required=True, metavar="FILE", help="item ids, one a line; - reads standard input")
    parser.add_argument("--url", default="localhost:8001", help="Triton's gRPC service (default: %(default)s)")
    parser.add_argument("--top-k", type=int, metavar="K", help="items to print (default: all)")
    parser.add_argument("--timeout-s", type=float, default=COMMAND_TIMEOUT_S, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def _ranked(options: argparse.Namespace) -> RankedList:
    item_ids = _item_ids(options.items)
    with RankClient(options.url, timeout_s=options.timeout_s) as client:
        return client.rank(options.query, item_ids, top_k=options.top_k)


def _item_ids(source: str) -> list[str]:
    """The lines of a file or of standard input; empty lines are skipped."""
    try:
        text = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        # Not splitlines(), which also breaks at characters that an id may hold.
        lines = text.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InvalidRequest(f"--items: cannot read {source} ({error.strerror})", "items") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"--items: {source} is not UTF-8 ({error})", "items") from error
    return [line.removesuffix("\r") for line in lines if line.removesuffix("\r")]


def _as_table(ranked: RankedList) -> str:
    rows = [
        f"{rank}\t{item_id}\t{f'{score:.6g}' if scored else '-'}"
        for rank, ((item_id, score), scored) in enumerate(zip(ranked, ranked.scored, strict=True), start=1)
    ]
    return "\n".join(["rank\tid\tscore", *rows])


def _as_json(query: str, ranked: RankedList) -> str:
    rows = [
        {"rank": rank, "id": item_id, "score": score if scored else None}
        for rank, ((item_id, score), scored) in enumerate(zip(ranked, ranked.scored, strict=True), start=1)
    ]
    return json.dumps({"query": query, "ranked": rows}, ensure_ascii=False)


def _failed(error: TritonRankError, code: int) -> int:
    print(f"tritonrank-rank: {error}", file=sys.stderr)
    return code
