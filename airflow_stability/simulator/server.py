"""The server of the simulator: uvicorn on a socket, in a thread of its own."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
import time
from os import PathLike
from typing import Self
from urllib.parse import quote

import uvicorn

from airflow_stability.simulator.middleware import SimulatorMiddleware, TransportProtocol
from airflow_stability.simulator.rate_limit import RateLimit
from airflow_stability.simulator.request_log import logger
from airflow_stability.simulator.state import SimulatorState


class _Server(uvicorn.Server):
    """uvicorn that cuts open requests when it stops. It would wait for them, also if they hang or drip."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        # More than one round: a connection may have been accepted just before, and a request takes a moment
        # to notice that its connection was cut. The range ends in case one never does.
        for _ in range(100):
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0.01)
            if not self.server_state.connections and not self.server_state.tasks:
                break


class StabilitySimulator(SimulatorState):
    """A local Stability API. It runs inside a ``with`` block, or from ``start`` to ``stop``.

    At first there is one account, ``user-1``, a member of two organizations: ``org-default``, its default,
    which pays, and ``org-other``, which has no credits.

    :param host: address to listen on. Any but loopback admits other machines; the controls ask for no key.
    :param port: 0 takes a free one, which stays the same when the simulator is started again.
    :param credits: the balance of ``org-default``, in credits.
    :param api_key: the key of ``user-1``; None generates one.
    :param rate_limit: None is the real API's: 150 requests in 10 seconds, then a lock-out of 60.
    :param job_seconds: how long an asynchronous call takes, in seconds.
    :param repeat_keys: whether a 401 of v1 repeats the key that it refuses, as the real one does.
    :param certfile: a file with a certificate (PEM): the simulator speaks TLS.
    :param keyfile: a file with the private key of the certificate; None if ``certfile`` has it.
    :raises ValueError: a balance, a port or a time that is not valid, a key that no header can carry, or a
        private key without a certificate.
    :raises OSError: the certificate cannot be read.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        credits: float = 25.0,
        api_key: str | None = None,
        rate_limit: RateLimit | None = None,
        job_seconds: float = 10.0,
        repeat_keys: bool = False,
        certfile: str | PathLike[str] | None = None,
        keyfile: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__(
            credits=credits,
            api_key=api_key,
            rate_limit=rate_limit or RateLimit(),
            job_seconds=job_seconds,
            repeat_keys=repeat_keys,
        )
        if not 0 <= port <= 65535:  # the system would take it modulo 65536
            raise ValueError(f"The port must be from 0, for a free one, to 65535; got {port}.")
        if certfile is not None:
            # The server reads the files in its own thread, where nobody would see the error.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile)
        elif keyfile is not None:
            raise ValueError("A keyfile needs a certfile.")
        self._certfile, self._keyfile = certfile, keyfile
        self.host = host
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on.

        :raises RuntimeError: before the first ``start``, if the port is to be a free one.
        """
        if self._port == 0:
            raise RuntimeError("The simulator has no port before it is started.")
        return self._port

    @property
    def url(self) -> str:
        """The base URL, such as ``http://127.0.0.1:43211``."""
        return f"{self._scheme}://{self._address}"

    def connection_uri(self, key: str | None = None) -> str:
        """Return an Airflow connection for ``AIRFLOW_CONN_STABILITY_DEFAULT``. It contains the API key.

        :param key: the API key; None is ``api_key``. A key that the simulator refuses is fine.
        """
        return f"stability://:{quote(key or self.api_key, safe='')}@{self._address}/{self._scheme}"

    @property
    def _scheme(self) -> str:
        return "http" if self._certfile is None else "https"

    @property
    def _address(self) -> str:
        # A client cannot connect to the address that means all interfaces.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - binds nothing
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def start(self) -> None:
        """Start the server, and return once it accepts connections. After ``stop``: same port, same state.

        :raises OSError: the address cannot be listened on.
        :raises RuntimeError: the simulator is running already.
        """
        if self._thread is not None:
            raise RuntimeError("The simulator is running already.")
        listener = self._listen()
        if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
            logger.warning("The simulator's controls need no key, and %s lets others reach them.", self.host)
        config = uvicorn.Config(
            SimulatorMiddleware(self),
            http=TransportProtocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # As nginx has it. After uvicorn's 5 s, a poll every 5 s would meet connections that just end.
            timeout_keep_alive=75,
            ssl_certfile=self._certfile,
            ssl_keyfile=self._keyfile,
        )
        self._server = _Server(config)
        # A daemon: a simulator that is never stopped must not keep the interpreter alive.
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="stability-simulator", daemon=True
        )
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)

    def stop(self) -> None:
        """Stop the server: cut open connections and refuse new ones. The state is kept.

        Does nothing if the simulator is not running.
        """
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join()
        self._server = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._thread is None else f"at {self.url}"
        return f"<{type(self).__name__} {state}>"

    def _listen(self) -> socket.socket:
        family, kind, protocol, _, address = socket.getaddrinfo(
            self.host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            # When the simulator is started again, connections of the run before still linger on the port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
        self._port = listener.getsockname()[1]
        return listener
