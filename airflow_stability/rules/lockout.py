"""Lock-outs: the time until which a server wants no call with a key."""

from __future__ import annotations


class Lockout:
    """The end of a lock-out. The caller passes the time, in seconds of any one clock."""

    def __init__(self) -> None:
        self._until: float | None = None

    def extend(self, seconds: float | None, now: float) -> None:
        """Take over for how many seconds the server wants no call; None if it named no time.

        A shorter lock-out never ends a longer one.
        """
        if seconds is not None:
            self._until = max(now + seconds, self._until or now)

    def end(self) -> None:
        """Forget the lock-out: the server has answered, or another key is in use."""
        self._until = None

    def seconds_left(self, now: float) -> float:
        """Return for how many more seconds the server wants no call; 0.0 if it allows one."""
        return 0.0 if self._until is None else max(self._until - now, 0.0)
