"""What was asked of the simulator, without keys. It knows no HTTP: `front` writes it.

Each finished request is also one line on the logger `airflow_stability.simulator`, which the command line
prints.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import urllib.parse
from collections import deque
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger("airflow_stability.simulator")

Authorization = Literal["raw", "bearer", "none"]

# A simulator may run for days on the command line.
KEPT = 100_000


@dataclass(frozen=True)
class RequestRecord:
    """One request to the API. It says in what form a key came and which one it was, by a label; never the
    key.

    :param at: when it came, in seconds since the epoch.
    :param monotonic: the same on `time.monotonic()`, for intervals.
    :param method: the HTTP method.
    :param path: without the query.
    :param authorization: the form of the `Authorization` header: `raw`, `bearer` or `none`.
    :param key_label: such as `key-1`; `unknown` for a key that the simulator never issued, and for none.
    :param organization: the `Organization` header.
    :param client_id: the `Stability-Client-ID` header.
    :param client_version: the `Stability-Client-Version` header.
    :param user_agent: the `User-Agent` header.
    :param status: what was answered; None where nothing was: a reset, a hang, an answer still to come.
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


class Entry:
    """A request while it is being answered."""

    def __init__(self, record: RequestRecord) -> None:
        self.record = record

    def answered(self, status: int) -> None:
        """Notes the status, just before it is sent."""
        self.record = dataclasses.replace(self.record, status=status)

    def finished(self) -> None:
        """Logs the request."""
        record = self.record
        # Quoted: a path may hold line breaks, and would write lines of its own.
        path = urllib.parse.quote(record.path)
        key = "no key" if record.authorization == "none" else f"{record.key_label} ({record.authorization})"
        logger.info("%s %s, %s: %s", record.method, path, key, record.status or "no answer")


class Journal:
    """The last 100 000 requests, in the order in which they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=KEPT)

    def begin(self, record: RequestRecord) -> Entry:
        """Writes a request down that has just come."""
        entry = Entry(record)
        with self._lock:
            self._entries.append(entry)
        return entry

    def records(self) -> list[RequestRecord]:
        """All of it, as it stands now."""
        with self._lock:
            return [entry.record for entry in self._entries]

    def clear(self) -> None:
        """Forgets all of it."""
        with self._lock:
            self._entries.clear()
