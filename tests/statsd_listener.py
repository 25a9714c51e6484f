"""What a StatsD server gets: a real UDP socket on loopback that keeps each metric, and who sent it."""

from __future__ import annotations

import socket
import threading
from typing import NamedTuple, Self


class Metric(NamedTuple):
    """One line of StatsD.

    :param name: with the tags behind it, if there are any.
    :param kind: ``g`` for a gauge, ``c`` for a counter, ``ms`` for a timer.
    :param sender: the port that it came from; each process has its own.
    """

    name: str
    value: float
    kind: str
    sender: int


class StatsdListener:
    """Listens from ``with`` on until its end."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._metrics: list[Metric] = []
        #: All that came, of whoever.
        self.packets: list[bytes] = []
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing it would not wake up who reads from it.
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
        """Return Airflow's settings for sending metrics here."""
        where = {"statsd_on": True, "statsd_host": "127.0.0.1", "statsd_port": self.port, **more}
        return {f"metrics__{name}": value for name, value in where.items()}

    @property
    def ours(self) -> list[Metric]:
        """The metrics of this package, in the order they came."""
        return [metric for metric in list(self._metrics) if metric.name.startswith("airflow.stability.")]

    def named(self, name: str) -> list[Metric]:
        """Return the metrics of a name, given without what all begin with."""
        return [metric for metric in self.ours if metric.name == f"airflow.stability.{name}"]
