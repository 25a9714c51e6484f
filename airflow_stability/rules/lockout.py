"""Lock-outs: the time until which a server wants no call with a key."""

from __future__ import annotations

#: The longest lock-out that a server may name, in seconds: a day. A gateway's mistake, such as a date of
#: another year, must not keep every task of a connection waiting for longer.
MAX_LOCKOUT_SECONDS = 86400.0


class Lockout:
    """The seconds that are left of a lock-out.

    The caller passes the time, in seconds of any one clock. If that clock is set back, the lock-out goes on
    for as long as was left of it, and no longer.
    """

    def __init__(self) -> None:
        self._left = 0.0
        self._at = 0.0

    def extend(self, seconds: float | None, now: float) -> None:
        """Take over for how many seconds the server wants no call; None if it named no time.

        A shorter lock-out never ends a longer one. No lock-out is longer than :data:`MAX_LOCKOUT_SECONDS`.
        """
        self._left = max(min(seconds or 0.0, MAX_LOCKOUT_SECONDS), self.seconds_left(now))

    def end(self) -> None:
        """Forget the lock-out: the server has answered, or another key is in use."""
        self._left = 0.0

    def seconds_left(self, now: float) -> float:
        """Return for how many more seconds the server wants no call; 0.0 if it allows one."""
        self._left = max(self._left - max(now - self._at, 0.0), 0.0)
        self._at = now
        return self._left
