"""The rate limit of an API key. Knows no HTTP; the clock is passed in."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class RateLimit:
    """The requests that one key may make, and the lock-out after too many. The defaults are the real API's.

    :param requests: requests that a key may make in any ``window``; the next one is refused with 429.
    :param window: seconds.
    :param lockout: seconds for which the key is then refused. Requests during a lock-out do not extend it.
    :param retry_after: ``Retry-After`` of the 429, in seconds or as the literal header; None sends none.
    :raises ValueError: a limit that no request could pass, or a time that is not valid.
    """

    requests: int = 150
    window: float = 10.0
    lockout: float = 60.0
    retry_after: float | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.requests, bool) or not isinstance(self.requests, int) or self.requests < 1:
            raise ValueError("RateLimit.requests must be a whole number, one or more.")
        if not (math.isfinite(self.window) and self.window > 0):
            raise ValueError("RateLimit.window must be a number of seconds above zero.")
        if not (math.isfinite(self.lockout) and self.lockout >= 0):
            raise ValueError("RateLimit.lockout must be a number of seconds, zero or more.")
        advice = str(self.retry_after)
        if isinstance(self.retry_after, bool) or not (advice.isascii() and advice.isprintable()):
            raise ValueError("RateLimit.retry_after must be a number of seconds or a literal header.")


class RateLimiter:
    """The requests of one key, counted against a limit. Only the server's event loop uses it: no lock."""

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self._recent: deque[float] = deque()
        self._locked_until = 0.0

    def exceeded(self, now: float) -> RateLimit | None:
        """Count a request, and return the limit if it refuses the request; None if the request may pass."""
        if now < self._locked_until:
            return self.limit
        while self._recent and self._recent[0] <= now - self.limit.window:
            self._recent.popleft()
        if len(self._recent) >= self.limit.requests:
            self._locked_until = now + self.limit.lockout
            self._recent.clear()
            return self.limit
        self._recent.append(now)
        return None
