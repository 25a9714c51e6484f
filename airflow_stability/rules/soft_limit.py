"""The decision that starts DAGs when a budget reaches its soft limit.

The ledger notes the time at which a budget reaches its soft limit, once in each period. If somebody changes
the limit or the soft limit, the ledger forgets this time. It notes a new one when the budget reaches the soft
limit again. So a different time means a new crossing. The rules:

- An event fires once for each time that the ledger has noted.
- The first reading fires nothing: the limit may have been reached long ago. After a restart, a restored state
  replaces the first reading.
- The watch remembers a time even if it is gone from the ledger, for example in a new period. A replica of the
  database that lags behind may show the old time again.
- A failure fires no event, and does not end the watch. The watch keeps what it remembers.
- The watch logs when it starts, at each change, and every hour.
"""

from __future__ import annotations

from datetime import datetime

from airflow_stability.errors import StabilityBudgetNotFoundError, StabilityError, StabilityPermanentError
from airflow_stability.rules.crossing import CrossingDecision
from airflow_stability.rules.log_throttle import LogThrottle
from airflow_stability.rules.wording import clock_time


class SoftLimitWatch:
    """One budget's soft limit, and what is remembered between two readings of the ledger.

    :param budget: the name, for the texts.
    """

    def __init__(self, budget: str) -> None:
        self._budget = budget
        #: The last time that the ledger has noted, in ISO format.
        self._reached_at: str | None = None
        self._has_read = False
        #: Whether a state from before a restart still counts.
        self._restorable = True
        self._log = LogThrottle()

    @property
    def state(self) -> dict[str, str | None] | None:
        """What must be known after a restart, as plain JSON; None before the first reading."""
        return {"reached_at": self._reached_at} if self._has_read else None

    def restore(self, state: object) -> None:
        """Take over a :attr:`state` from before a restart. After an event, or if unusable, it is ignored."""
        match state:
            case {"reached_at": str() | None as reached_at} if self._restorable:
                self._has_read, self._reached_at = True, reached_at

    def observe_budget(
        self, soft_percent: int | None, reached_at: datetime | None, text: str, now: datetime
    ) -> CrossingDecision:
        """Decide on a reading of the budget.

        :param soft_percent: percent of the limit; None for a budget without a soft limit.
        :param reached_at: aware time at which the soft limit was reached in the period; None if it was not.
        :param text: how much of the budget is used.
        :param now: aware time of the reading.
        """
        noted = reached_at and reached_at.isoformat()
        is_new = noted is not None and noted != self._reached_at
        crossed = is_new and self._has_read
        self._has_read = True
        self._reached_at = noted or self._reached_at
        if crossed:
            self._restorable = False
            self._log.should_log((soft_percent, noted), now)
            return CrossingDecision(
                f"An event is fired: the soft limit of {soft_percent} % is reached: {text}.",
                should_log=True,
                crossed=True,
            )
        if soft_percent is None:
            then = "It has no soft limit, so no event is fired."
        elif reached_at is None:
            then = f"An event is fired when {soft_percent} % of the limit is reached."
        else:
            then = (
                f"The soft limit of {soft_percent} % was reached at {clock_time(reached_at)}. The next event "
                "is fired when it is reached again, in another period or after a change of the budget."
            )
        should_log = self._log.should_log((soft_percent, noted), now)
        return CrossingDecision(f"Watching: {text}. {then}", should_log)

    def observe_failure(self, error: StabilityError, now: datetime) -> CrossingDecision:
        """Decide on a failure to read the budget.

        If the budget does not exist, it has not reached its soft limit. So that counts as a reading.

        :param error: what went wrong.
        :param now: aware time of the failure.
        """
        self._has_read = self._has_read or isinstance(error, StabilityBudgetNotFoundError)
        refused = isinstance(error, StabilityPermanentError)
        until = " Until that is fixed, the ledger is read less often." if refused else ""
        should_log = self._log.should_log((type(error), str(error) if refused else ""), now)
        text = f"It is unknown how much of budget {self._budget} is used, so no event can be fired"
        return CrossingDecision(f"{text}: {error}{until}", should_log, refused=refused)
