"""The simulator on a socket: uvicorn in a thread of its own. What it answers is decided elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
import time
from types import TracebackType
from typing import Self
from urllib.parse import quote

import uvicorn

from airflow_stability.simulator.api import create_api
from airflow_stability.simulator.controls import Controls, create_controls
from airflow_stability.simulator.middleware import Front, TransportProtocol
from airflow_stability.simulator.request_log import logger
from airflow_stability.simulator.state import RateLimit


class _Server(uvicorn.Server):
    """uvicorn, except that it ends at once: its own way is to wait for open requests, and those that hang or
    drip by order would keep it waiting.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        while not self._stopping.is_set():
            await self.on_tick(0)  # keeps the Date header right
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), timeout=1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        # More than one round: a connection may have been accepted just before, and those that are cut still
        # have to notice. They all do; the end of the range is for the case that one ever does not.
        for _ in range(100):
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0.01)
            if not self.server_state.connections and not self.server_state.tasks:
                break

    def stop(self) -> None:
        """Called from another thread."""
        self._loop.call_soon_threadsafe(self._stopping.set)


class StabilitySimulator(Controls):
    """A Stability API to run at home, for as long as the `with` block lasts; or from `start` to `stop`.

    At first there is one account, `user-1`, a member of two organizations: `org-default`, its default, which
    pays, and `org-other`, which has no credits.

    :param host: where to listen. Anything but loopback lets others in, and the controls ask for no key.
    :param port: 0 takes a free one, and keeps it when started again.
    :param credits: the balance of `org-default`, in credits.
    :param api_key: the key of `user-1`; None makes one up.
    :param rate_limit: None is the real API's: 150 requests in 10 seconds, then a lock-out of 60.
    :raises ValueError: for credits that are no balance, a key that no header can carry, or a port
        that is none.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        credits: float = 25.0,
        api_key: str | None = None,
        rate_limit: RateLimit | None = None,
    ) -> None:
        super().__init__(credits=credits, api_key=api_key, rate_limit=rate_limit or RateLimit())
        if not 0 <= port <= 65535:  # the system would take the remainder
            raise ValueError(f"The port must be from 0, for a free one, to 65535; got {port}.")
        self.host = host
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on.

        :raises RuntimeError: before the first `start`, when the port is to be a free one.
        """
        if self._port == 0:
            raise RuntimeError("The simulator has no port before it is started.")
        return self._port

    @property
    def url(self) -> str:
        """Where it is reached, such as `http://127.0.0.1:43211`."""
        return f"http://{self._address}"

    def connection_uri(self, key: str | None = None) -> str:
        """An Airflow connection to it, for `AIRFLOW_CONN_STABILITY_DEFAULT`. The API key stands in it.

        :param key: the API key; None is `api_key`. It may be one that is refused.
        """
        return f"stability://:{quote(key or self.api_key, safe='')}@{self._address}/http"

    @property
    def _address(self) -> str:
        # An address that means all interfaces is no address to go to.
        host = self.host
        if _is_ip(host) and ipaddress.ip_address(host).is_unspecified:
            host = "::1" if ":" in host else "127.0.0.1"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def start(self) -> None:
        """Starts to serve; returns once connections are accepted. After a `stop`: same port, same state.

        :raises OSError: when the address cannot be listened on.
        :raises RuntimeError: when it runs already.
        """
        if self._thread is not None:
            raise RuntimeError("The simulator is running already.")
        if not _is_loopback(self.host):
            logger.warning("The simulator's controls need no key, and %s lets others reach them.", self.host)
        listener = self._listen()
        config = uvicorn.Config(
            Front(create_api(self._world), create_controls(self), self._world, self._faults, self._journal),
            http=TransportProtocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        self._server = _Server(config)
        # Anyone may forget to stop it: it must not keep the interpreter alive.
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="stability-simulator", daemon=True
        )
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)

    def stop(self) -> None:
        """Stops to serve: open connections are cut, new ones refused. The state is kept. Nothing if it is
        stopped.
        """
        if self._server is None or self._thread is None:
            return
        self._server.stop()
        self._thread.join()
        self._server = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            # Connections of a life before still linger on the port when it is started again.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
        self._port = listener.getsockname()[1]
        return listener


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
