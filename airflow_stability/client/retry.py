"""Which failures are retried within one call, and how long to wait before each retry.

Small tenacity strategies, put together in :func:`build_retrying`. They know nothing of HTTP: what the server
asked for is in the error.
"""

from __future__ import annotations

import logging
import random
from datetime import datetime
from email.utils import parsedate_to_datetime

import tenacity
from tenacity.wait import wait_base

from airflow_stability.errors import StabilityError, StabilityTransientError
from airflow_stability.rules.lockout import MAX_LOCKOUT_SECONDS
from airflow_stability.validation import in_utc

log = logging.getLogger(__name__)

#: Seconds that the vendor locks a key out for after too many requests, as documented.
LOCKOUT_SECONDS = 60.0

#: The largest random addition to a wait, as a share of it, so that callers do not return all at once.
JITTER = 0.1


def is_worth_retrying(error: BaseException) -> bool:
    """Tell whether to retry within one call: after a transient failure, unless the server advises against it.

    ``temporary: false`` in the body ends the call, but makes no permanent failure of an outage: the vendor's
    servers send it with ordinary 500 responses too.
    """
    return isinstance(error, StabilityTransientError) and error.temporary is not False


class wait_retry_after(wait_base):  # noqa: N801 - tenacity names its strategies so
    """Wait as long as the server asked and up to a tenth more, but never less than the backoff.

    :param backoff: the strategy if the server asked for nothing.
    """

    def __init__(self, backoff: wait_base) -> None:
        self.backoff = backoff

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        """Return the seconds to wait before the next attempt."""
        error = retry_state.outcome.exception() if retry_state.outcome else None
        retry_after = error.retry_after if isinstance(error, StabilityError) else None
        return max(with_jitter(retry_after or 0.0), self.backoff(retry_state))


def with_jitter(seconds: float) -> float:
    """Return these seconds and up to a tenth more, at random."""
    return seconds + random.uniform(0.0, JITTER * seconds)  # noqa: S311 - spreads load, guards nothing


def build_retrying(deadline: float) -> tenacity.Retrying:
    """Return tenacity's loop for one call.

    The backoff is exponential with full jitter, from 0.5 s to 30 s; a longer ``Retry-After`` overrides it.
    A wait that would exceed the deadline is not begun: the last error is raised, with its ``retry_after``.

    :param deadline: seconds that the call may spend on retries; 0 for a single attempt.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_worth_retrying),
        wait=wait_retry_after(backoff=tenacity.wait_random_exponential(multiplier=0.5, max=30)),
        stop=tenacity.stop_before_delay(deadline),
        before_sleep=_log_retry,
        reraise=True,
    )


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Read a ``Retry-After`` header: seconds, or an HTTP date (RFC 9110, section 10.2.3).

    :param value: the header; of several, joined with commas, the longest counts.
    :param now: the aware time that an HTTP date is compared with.
    :returns: seconds from now, never negative and at most :data:`MAX_LOCKOUT_SECONDS`; None if there is no
        header, or it cannot be read.
    """
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if all(part.isascii() and part.isdigit() for part in parts):
        return max(min(float(part), MAX_LOCKOUT_SECONDS) for part in parts)
    try:
        seconds = (in_utc(parsedate_to_datetime(value)) - now).total_seconds()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), MAX_LOCKOUT_SECONDS)


def _log_retry(retry_state: tenacity.RetryCallState) -> None:
    error = retry_state.outcome.exception() if retry_state.outcome else None
    log.info("%s Retrying in %.1f s.", error, retry_state.upcoming_sleep)
