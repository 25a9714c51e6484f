"""A SOCKS5 proxy (RFC 1928) with user and password (RFC 1929), as what a test's server says to a client."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Mapping
from typing import Any

NO_LOGIN, LOGIN, NONE_OF_THESE = 0x00, 0x02, 0xFF
IPV4, NAME = 0x01, 0x03
DONE, REFUSED, NO_SUCH_HOST = 0x00, 0x05, 0x04


class SocksProxy:
    """What the proxy says on a connection: call it with a server, which is not used, and the connection.

    :param login: user and password that a client has to send; None to let everybody through.
    :param hosts: addresses of names that only the proxy knows.
    """

    def __init__(self, login: tuple[str, str] | None = None, hosts: Mapping[str, str] | None = None) -> None:
        self.login = login
        self.hosts = hosts or {}
        #: What clients have asked for: address or name, and port.
        self.asked: list[tuple[str, int]] = []

    def __call__(self, server: object, client: socket.socket) -> None:
        """Greet a client, connect to where it asks, and pass on what both say until one of them ends."""
        if not self._greet(client):
            return
        kind = _read(client, 4)[3]
        if kind == NAME:
            host = _read_string(client).decode()
        else:
            family, size = (socket.AF_INET, 4) if kind == IPV4 else (socket.AF_INET6, 16)
            host = socket.inet_ntop(family, _read(client, size))
        port = int.from_bytes(_read(client, 2))
        self.asked.append((host, port))
        if kind == NAME and host not in self.hosts:
            _reply(client, NO_SUCH_HOST)
            return
        try:
            target = socket.create_connection((self.hosts.get(host, host), port))
        except OSError:
            _reply(client, REFUSED)
            return
        with target:
            _reply(client, DONE)
            with contextlib.suppress(OSError):
                _pass_on(client, target)

    def _greet(self, client: socket.socket) -> bool:
        _, count = _read(client, 2)
        wanted = LOGIN if self.login else NO_LOGIN
        if wanted not in _read(client, count):
            client.sendall(bytes([5, NONE_OF_THESE]))
            return False
        client.sendall(bytes([5, wanted]))
        if not self.login:
            return True
        _read(client, 1)
        right = (_read_string(client).decode(), _read_string(client).decode()) == self.login
        client.sendall(bytes([1, not right]))
        return right


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionResetError
        data += piece
    return data


def _read_string(connection: socket.socket) -> bytes:
    return _read(connection, _read(connection, 1)[0])


def _reply(client: socket.socket, status: int) -> None:
    client.sendall(bytes([5, status, 0, IPV4, 0, 0, 0, 0, 0, 0]))


def _pass_on(client: socket.socket, target: socket.socket) -> None:
    other: dict[Any, socket.socket] = {client: target, target: client}
    while True:
        for side in select.select(list(other), [], [])[0]:
            data = side.recv(65536)
            if not data:
                return
            other[side].sendall(data)
