"""A way to a server that fails when a test says: it passes bytes on until a client's COMMIT."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

COMMIT = b"Q" + (11).to_bytes(4, "big") + b"COMMIT\0"


class Way:
    """Listens on `port` and passes on to `target`.

    Attributes
    ----------
    fail
        At the next COMMIT: "before" cuts the connection instead of passing it on, "after" when the server has answered.
    meanwhile
        Called when the connection is cut.
    closed
        Whether new connections are cut at once.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.fail: str | None = None
        self.meanwhile: Callable[[], None] = lambda: None
        self.closed = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self.closed:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                cut = threading.Event()
                threading.Thread(target=self._up, args=(client, server, cut), daemon=True).start()
                threading.Thread(target=self._down, args=(client, server, cut), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                if self.fail and data.endswith(COMMIT):
                    if self.fail == "after":
                        cut.set()  # the answer stays here
                        server.sendall(data)
                        return
                    _end(server)
                    self._cut(client)
                    return
                server.sendall(data)
        _end(server)

    def _down(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if cut.is_set():
                    _end(server)
                    self._cut(client)
                    return
                client.sendall(data)
        if not cut.is_set() and not self.fail:
            _end(client)

    def _cut(self, client: socket.socket) -> None:
        self.fail = None
        self.meanwhile()
        _end(client)


def _end(connection: socket.socket) -> None:
    """Close it, though another thread waits for it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
