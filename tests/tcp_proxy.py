"""A TCP proxy for tests, which loses what a server answers."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class TcpProxy:
    """The proxy runs within its ``with`` block, on a free port of loopback.

    :param port: the server's port, on loopback.
    """

    def __init__(self, port: int) -> None:
        self._behind = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        #: What a client sends for the next answer to be lost: the server gets it, and the client is cut off.
        self.lose_answer_to: bytes | None = None
        #: The number of answers that were lost.
        self.lost = 0
        #: Whether nothing is passed on from now on, while every connection stays open.
        self.silent = False
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            _cut(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        loses = threading.Event()
        with client, contextlib.suppress(OSError), socket.create_connection(self._behind) as server:
            self._sockets += [client, server]
            answers = threading.Thread(target=self._answer, args=(server, client, loses), daemon=True)
            answers.start()
            with contextlib.suppress(OSError):
                while data := client.recv(65536):
                    if self.lose_answer_to is not None and self.lose_answer_to in data:
                        self.lose_answer_to = None
                        loses.set()
                    if not self.silent:
                        server.sendall(data)
            _cut(server)
            answers.join()

    def _answer(self, server: socket.socket, client: socket.socket, loses: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if loses.is_set():
                    self.lost += 1
                    break
                if not self.silent:
                    client.sendall(data)
        _cut(client)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
