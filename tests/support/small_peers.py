"""Peers of a few lines for the comparison's own tests: a server of the standard library, and one in process."""

from __future__ import annotations

import http.server
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from perf.peers.peer import Environment, Peer, posts_json

MODULE = "tests.support.small_peers"


def peer(name: str, how: str = "", *, served: bool = True, exact: bool = True, environment: str = "") -> Peer:
    """how: "", "twice" (other scores), "short" (a score too few), "dies" (at its start), "fails" (at request 2),
    "hangs up" (a connection may ask each request once)."""
    connect = posts_json("/", dict, lambda answer, _: answer["scores"]) if served else None
    base = "" if environment else "kit"
    return Peer(name, MODULE, Environment(environment, base), connect, (how,) if how else (), exact)


def scores(body: Mapping[str, Any], how: str = "") -> list[float]:
    """Lengths of the documents."""
    if how == "fails" and body["query"] == "2":
        raise ValueError("request 2 is too much")
    found = [float(len(document)) * (2 if how == "twice" else 1) for document in body["documents"]]
    return found[1:] if how == "short" else found


def opened(folder: Path, how: str = "") -> Callable[[Mapping[str, Any]], list[float]]:
    """In process."""
    print("a line that is no answer")
    return lambda body: scores(body, how)


def main(folder: str, port: str, how: str = "") -> None:
    """Served."""
    if how == "dies":
        raise SystemExit("no such weights")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.asked: set[str] = set()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if how == "hangs up" and body["query"] in self.asked:
                self.close_connection = True
                return
            self.asked.add(body["query"])
            try:
                status, answer = 200, {"scores": scores(body, how)}
            except ValueError as error:
                status, answer = 500, {"error": str(error)}
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
