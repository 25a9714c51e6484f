"""The log of requests to the simulator, without keys. Knows no HTTP.

Each finished request is also one line of the logger ``airflow_stability.simulator``, which the command line
prints.
"""

from __future__ import annotations

import dataclasses
import logging
import urllib.parse
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger("airflow_stability.simulator")

Authorization = Literal["raw", "bearer", "none"]

#: Requests that are kept, the latest ones: on the command line a simulator may run for days.
MAX_REQUESTS = 100_000


@dataclass(frozen=True)
class RequestRecord:
    """One request to the API. Tells in which form a key came and which one it was, by its label.

    :param at: when it came, in seconds since the epoch.
    :param monotonic: the same on ``time.monotonic()``, for intervals.
    :param method: the HTTP method.
    :param path: without the query.
    :param authorization: the form of the ``Authorization`` header: ``raw``, ``bearer`` or ``none``.
    :param key_label: such as ``key-1``; ``unknown`` for a key that the simulator never issued, and for none.
    :param organization: the ``Organization`` header.
    :param client_id: the ``Stability-Client-ID`` header.
    :param client_version: the ``Stability-Client-Version`` header.
    :param user_agent: the ``User-Agent`` header.
    :param status: status of the response; None while there is none, and for a request that never gets one.
    """

    at: float
    monotonic: float
    method: str
    path: str
    authorization: Authorization
    key_label: str
    organization: str | None
    client_id: str | None
    client_version: str | None
    user_agent: str | None
    status: int | None = None


@dataclass
class LoggedRequest:
    """A request in the log whose response may still be to come."""

    record: RequestRecord

    def set_status(self, status: int) -> None:
        """Note the status of the response, just before it is sent."""
        self.record = dataclasses.replace(self.record, status=status)

    def write_line(self) -> None:
        """Write the log line of the finished request."""
        record = self.record
        # Quoted: a path may contain line breaks, and would forge log lines.
        path = urllib.parse.quote(record.path)
        key = "no key" if record.authorization == "none" else f"{record.key_label} ({record.authorization})"
        logger.info("%s %s, %s: %s", record.method, path, key, record.status or "no answer")
