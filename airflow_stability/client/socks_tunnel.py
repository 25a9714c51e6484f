"""The way through a SOCKS proxy, with PySocks, which the extra ``socks`` installs. Knows no HTTP."""

from __future__ import annotations

import socket

import socks  # type: ignore[import-untyped]


class _Connected(socket.socket):
    """Stands where PySocks expects the socket that it connects to the proxy: here, this is done already."""

    def connect(self, address: object) -> None:
        """Do nothing."""


class _Tunnel(socks.socksocket, _Connected):  # type: ignore[misc]
    """A socket of PySocks on an open connection, so that a time limit can watch the talk with the proxy."""


def open_tunnel(
    to_proxy: socket.socket,
    host: str,
    port: int,
    *,
    timeout: float | None,
    socks_version: int,
    proxy_host: str,
    proxy_port: int | None,
    username: str | None,
    password: str | None,
    rdns: bool,
) -> socket.socket:
    """Ask a proxy for a connection to a host, and return the socket that then leads there.

    :param to_proxy: an open connection to the proxy. It is closed if the proxy refuses.
    :param timeout: seconds for each answer of the proxy.
    :param socks_version: PySocks's number for SOCKS4 or SOCKS5, as urllib3 has it, like all that follows.
    :param rdns: whether the proxy looks up the host's name.
    :raises OSError: the proxy refuses, or gives no answer.
    """
    tunnel: socket.socket = _Tunnel(to_proxy.family, to_proxy.type, to_proxy.proto, to_proxy.detach())
    try:
        tunnel.settimeout(timeout)
        tunnel.set_proxy(socks_version, proxy_host, proxy_port, rdns, username, password)  # type: ignore[attr-defined]
        tunnel.connect((host, port))
    except BaseException:
        tunnel.close()
        raise
    return tunnel
