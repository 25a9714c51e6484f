"""Which failures are tried again within one call, and how long to wait first.

Small tenacity strategies, put together in :func:`build_retrying`. They know errors, not HTTP: what the
server advised stands in the error.
"""

from __future__ import annotations

import logging
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_before_delay,
    wait_random_exponential,
)
from tenacity.wait import wait_base

from airflow_stability.errors import StabilityError, StabilityTransientError

log = logging.getLogger(__name__)

#: Seconds for which the vendor locks a key out after too many requests (documented: 60).
LOCKOUT_SECONDS = 60.0

#: How much longer than told to wait at most, as a share of it, so that callers do not return all at once.
JITTER = 0.1

#: A ``Retry-After`` beyond this many seconds is read as this many: no wait of ours is ever that long.
_LONGEST_RETRY_AFTER = 366 * 86400.0


def is_worth_retrying(error: BaseException) -> bool:
    """Tell whether one call should try again: a transient failure, unless the server said it is not.

    ``temporary: false`` ends the call, but does not make an outage a permanent failure: the vendor's
    servers send it with ordinary status 500 too.
    """
    return isinstance(error, StabilityTransientError) and error.temporary is not False


class wait_as_told(wait_base):  # noqa: N801 - tenacity names its strategies so
    """Wait as long as the server asked and up to a tenth more; never less than ``otherwise`` would.

    :param otherwise: the strategy where the server named no time.
    """

    def __init__(self, otherwise: wait_base) -> None:
        self.otherwise = otherwise

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the seconds to wait before the next attempt."""
        error = retry_state.outcome.exception() if retry_state.outcome else None
        told = error.retry_after if isinstance(error, StabilityError) else None
        return max(with_jitter(told or 0.0), self.otherwise(retry_state))


def with_jitter(seconds: float) -> float:
    """Return these seconds and up to a tenth more, at random."""
    return seconds + random.uniform(0.0, JITTER * seconds)  # noqa: S311 - spreads load, guards nothing


def build_retrying(deadline: float) -> Retrying:
    """Return tenacity's loop for one call.

    Full-jitter exponential backoff from 0.5 s to 30 s; the server's advice comes first. A wait that does
    not fit into the deadline is not begun: the last error is raised instead, with its ``retry_after``.

    :param deadline: seconds that the call may spend on retries; 0 means a single attempt.
    """
    return Retrying(
        retry=retry_if_exception(is_worth_retrying),
        wait=wait_as_told(otherwise=wait_random_exponential(multiplier=0.5, max=30)),
        stop=stop_before_delay(deadline),
        before_sleep=_log_retry,
        reraise=True,
    )


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Read a ``Retry-After`` header: seconds, or an HTTP date (RFC 9110, section 10.2.3).

    :param value: the header; several of them joined with commas count as the longest.
    :param now: aware time that an HTTP date is measured from.
    :returns: seconds from now, never negative; None where there is nothing that can be read.
    """
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if all(part.isascii() and part.isdigit() for part in parts):
        return max(min(float(part), _LONGEST_RETRY_AFTER) for part in parts)
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - now).total_seconds()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)


def _log_retry(retry_state: RetryCallState) -> None:
    error = retry_state.outcome.exception() if retry_state.outcome else None
    log.info("%s Trying again in %.1f s.", error, retry_state.upcoming_sleep)
