"""A TCP proxy that breaks what goes through it, as networks do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Self

CHUNK = 65536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 seconds: close() sends RST


class Proxy:
    """Listens on `port` and passes on to `target`, as `fault` says at each moment.

    fault: "" = as it is; "delay" = each chunk `delay_s` later; "blackhole" = nothing goes through, either way;
        "reset" = connections are reset at the next chunk; "half close" = an answer is cut in the middle and its
        direction closed; "noise" = other bytes than the server's.
    """

    def __init__(self, target: tuple[str, int], delay_s: float = 0.0) -> None:
        self._target, self.delay_s, self.fault = target, delay_s, ""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                try:
                    server = socket.create_connection(self._target)
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
                for source, sink, is_answer in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=(source, sink, is_answer), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK):
                if self.fault == "reset":
                    for each in (source, sink):
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                        each.close()
                    return
                while self.fault == "blackhole":
                    time.sleep(0.005)
                if self.fault == "delay":
                    time.sleep(self.delay_s)
                if self.fault == "half close" and is_answer:
                    sink.sendall(chunk[: len(chunk) // 2])
                    sink.shutdown(socket.SHUT_WR)
                    return
                if self.fault == "noise" and is_answer:
                    chunk = bytes(byte ^ 0x55 for byte in chunk)
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)
