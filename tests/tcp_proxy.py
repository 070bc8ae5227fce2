"""A TCP proxy before a server on this machine, which breaks connections as networks do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass

BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
BROKEN = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 16\r\nConnection: close\r\n\r\n<html>Oops</html"
)


@dataclass
class Fault:
    """A fault in the responses to one HTTP method.

    Attributes:
        method: of the requests.
        kind: `reset up`, `reset down`: the connection is reset after so many bytes of request or answer; `cut`: the
            answer ends there as if it were complete; `busy`: 503; `broken`: 500 with a page that is no JSON and no XML; `silent`: no answer; `slow`: the answer trickles.
        after: bytes that still pass.
        times: how many requests it affects.
    """

    method: str
    kind: str
    after: int = 0
    times: int = 1


class TcpProxy:
    """Passes connections, one request each, on to `port`; `asked` lists the first line of every request."""

    def __init__(self, port: int) -> None:
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        self._port = port
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            first = client.recv(65536)
            fault = self._befalls(first)
            if fault and fault.kind in ("busy", "broken"):
                client.sendall(BUSY if fault.kind == "busy" else BROKEN)
                client.shutdown(socket.SHUT_WR)
            if fault and fault.kind in ("busy", "broken", "silent"):
                while client.recv(65536):  # until the client gives up
                    pass
                return
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                up = threading.Thread(target=self._up, args=(client, server, first, fault), daemon=True)
                up.start()
                self._down(client, server, fault)
                with contextlib.suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)  # ends the other direction too

    def _befalls(self, first: bytes) -> Fault | None:
        method = first.partition(b" ")[0].decode()
        with self._lock:
            self.asked.append(first.partition(b"\r\n")[0].decode())
            fault = next((fault for fault in self.faults if fault.method == method and fault.times), None)
            if fault:
                fault.times -= 1
        return fault

    @staticmethod
    def _up(client: socket.socket, server: socket.socket, first: bytes, fault: Fault | None) -> None:
        left = fault.after if fault and fault.kind == "reset up" else None
        with contextlib.suppress(OSError):
            data = first
            while data:
                if left is not None and len(data) >= left:
                    server.sendall(data[:left])
                    _reset(client)
                    break
                server.sendall(data)
                left = None if left is None else left - len(data)
                data = client.recv(65536)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)  # else the server waits for the rest

    @staticmethod
    def _down(client: socket.socket, server: socket.socket, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        left = fault.after if fault and kind in ("reset down", "cut") else None
        while data := server.recv(65536):
            if left is not None and len(data) >= left:
                client.sendall(data[:left])
                return _reset(client) if kind == "reset down" else None
            if kind == "slow":
                time.sleep(0.01)
            client.sendall(data)
            left = None if left is None else left - len(data)


def _reset(connection: socket.socket) -> None:
    """Close a connection so that the other side sees a reset, not an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RD)
    connection.close()
