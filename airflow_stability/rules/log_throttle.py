"""The log throttle: a waiting task logs each change, and otherwise once an hour."""

from __future__ import annotations

from datetime import datetime, timedelta

#: A waiting task logs something at least this often.
LOG_EVERY = timedelta(hours=1)


class LogThrottle:
    """What was logged last, and when. The clock is passed in."""

    def __init__(self) -> None:
        self._situation: object = None
        self._logged_at: datetime | None = None

    def is_new(self, situation: object) -> bool:
        """Tell whether the situation differs from the one that was logged last."""
        return self._logged_at is None or situation != self._situation

    def should_log(self, situation: object, now: datetime) -> bool:
        """Tell whether to log a situation, and count it as logged if so.

        :param situation: anything that compares equal while nothing has changed.
        :param now: aware time.
        """
        # A negative time says that the clock was set back.
        due = self._logged_at is None or not timedelta(0) <= now - self._logged_at < LOG_EVERY
        if not due and not self.is_new(situation):
            return False
        self._situation, self._logged_at = situation, now
        return True
