"""A StatsD server for tests: a UDP socket on loopback that keeps every metric and its sender."""

from __future__ import annotations

import socket
import threading
from typing import NamedTuple, Self


class Metric(NamedTuple):
    """A line of StatsD.

    :param name: the metric's name, followed by its tags if it has any.
    :param kind: ``g`` for a gauge, ``c`` for a counter, ``ms`` for a timer.
    :param sender: the port that it came from. Each process sends from a port of its own.
    """

    name: str
    value: float
    kind: str
    sender: int


class StatsdListener:
    """A server that listens within a ``with`` block."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._metrics: list[Metric] = []
        #: All packets, from any sender.
        self.packets: list[bytes] = []
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing the socket would not wake up the thread that reads from it.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while True:
            packet, (_, sender) = self._socket.recvfrom(65536)
            if not packet:
                return
            self.packets.append(packet)
            for line in packet.decode().splitlines():
                name, _, rest = line.partition(":")
                value, kind, *_ = rest.split("|")
                self._metrics.append(Metric(name, float(value), kind, sender))

    def settings(self, **more: object) -> dict[str, object]:
        """Return Airflow's settings for sending metrics to this server."""
        where = {"statsd_on": True, "statsd_host": "127.0.0.1", "statsd_port": self.port, **more}
        return {f"metrics__{name}": value for name, value in where.items()}

    @property
    def ours(self) -> list[Metric]:
        """The metrics of this package, in the order of their arrival."""
        return [metric for metric in list(self._metrics) if metric.name.startswith("airflow.stability.")]

    def named(self, name: str) -> list[Metric]:
        """Return the metrics of a name, which is given without ``airflow.stability.``."""
        return [metric for metric in self.ours if metric.name == f"airflow.stability.{name}"]
