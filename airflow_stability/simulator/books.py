"""The books: what was charged, and the jobs that were paid for. Knows no HTTP; the clock is passed in."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from decimal import Decimal

from airflow_stability.simulator.endpoints import Endpoint
from airflow_stability.simulator.outputs import Output

#: For how long the output of a job can be fetched, in seconds: 24 hours, as with the real API.
KEPT = 24 * 3600.0


def total(*credits: float) -> float:
    """Return the sum of credits as people write them: 0.1 and 0.2 make 0.3, which is not so in binary.

    :param credits: the numbers to add; a negative one is subtracted.
    """
    return float(sum(Decimal(repr(float(each))) for each in credits))


@dataclass(frozen=True)
class Charge:
    """One payment.

    :param at: when, in seconds since the epoch.
    :param path: path of the request.
    :param credits: what was paid.
    :param key_label: the key of the request, such as ``key-1``.
    :param organization: id of the organization that paid.
    :param request: a digest of the path, the fields and the files. Equal requests have equal digests.
    """

    at: float
    path: str
    credits: float
    key_label: str
    organization: str
    request: str


@dataclass(frozen=True)
class Job:
    """An asynchronous call that was accepted and paid for.

    :param id: 64 hexadecimal digits.
    :param key_label: the key that started it; no other gets the output.
    :param endpoint: the endpoint that was called.
    :param started: when, on ``time.monotonic()``.
    :param output: what comes out.
    """

    id: str
    key_label: str
    endpoint: Endpoint
    started: float
    output: Output


class Jobs:
    """The jobs of the last 24 hours."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def start(self, key_label: str, endpoint: Endpoint, output: Output, now: float) -> Job:
        """Start a job, and forget those that are too old."""
        self._jobs = {job.id: job for job in self._jobs.values() if now < job.started + KEPT}
        job = Job(secrets.token_hex(32), key_label, endpoint, now, output)
        self._jobs[job.id] = job
        return job

    def find(self, job_id: str, key_label: str, now: float) -> Job | None:
        """Return a job; None if there is none of that id, if it is too old, or if another key started it."""
        job = self._jobs.get(job_id)
        if job is None or job.key_label != key_label or now >= job.started + KEPT:
            return None
        return job
