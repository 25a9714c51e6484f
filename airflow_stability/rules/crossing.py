"""When a balance crosses a threshold: the decision behind event-driven DAGs. Knows no HTTP and no Airflow.

A driver observes the balance or a failure and tells the watch; the watch answers with a
:class:`CrossingDecision`. The rules:

- ``above``: an event is fired when the balance rises to more credits than the threshold. ``below``: when it
  falls to as many or fewer.
- It is fired once. The watch is armed again when the balance is back on the other side, by the margin at
  least: ``above`` at the threshold less the margin or fewer credits, ``below`` at more credits than the
  threshold plus the margin.
- The first balance tells the side and fires nothing: a crossing has two sides. Beyond the threshold it counts
  as if it had fired. What was known before a restart can be recalled; then it is not the first.
- A failure fires nothing and forgets nothing, and it never ends anything: nobody waits for a watch.
- It speaks when it starts, at each change, and every hour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from airflow_stability.errors import StabilityError, StabilityPermanentError
from airflow_stability.rules.gate import LOG_EVERY
from airflow_stability.validation import check_credits, format_number, safe_repr

Direction = Literal["above", "below"]


@dataclass(frozen=True)
class CrossingDecision:
    """What the watch made of one observation.

    :param text: what there is to say, for the log.
    :param should_log: whether the log should have the text, or has heard it before.
    :param crossed: whether an event is to be fired.
    :param previous_credits: the balance before this one; None if there was none.
    :param refused: whether asking is of no use until somebody changes something.
    """

    text: str
    should_log: bool
    crossed: bool = False
    previous_credits: float | None = None
    refused: bool = False


class ThresholdWatch:
    """One threshold and what is remembered between observations.

    :param threshold: credits: a number, 0 or more, or a string that is one.
    :param direction: ``above`` or ``below``.
    :param margin: how many credits the balance must have gone back by before a second event.
    :raises ValueError: one of the arguments cannot be what it should.
    """

    def __init__(self, threshold: object, direction: object, *, margin: object = 0) -> None:
        self.threshold = check_credits(threshold, argument="threshold")
        if direction != "above" and direction != "below":
            raise ValueError(f"direction must be 'above' or 'below'; got {safe_repr(direction)}.")
        self.direction: Direction = direction
        self.margin = check_credits(margin, argument="margin")
        if direction == "above" and self.margin > self.threshold:
            raise ValueError(
                f"margin must not be more than the threshold of {format_number(self.threshold)}, or no "
                f"balance is low enough for a second event; got {safe_repr(margin)}."
            )
        self._armed: bool | None = None
        self._credits: float | None = None
        self._fired = False
        self._said: tuple[object, ...] | None = None
        self._said_at: datetime | None = None

    @property
    def state(self) -> dict[str, bool | float] | None:
        """What has to be known after a restart, as plain JSON; None before the first balance."""
        if self._armed is None or self._credits is None:
            return None
        return {"armed": self._armed, "credits": self._credits}

    def restore(self, state: object) -> None:
        """Take over a :attr:`state` from before a restart; anything else is not minded.

        It may come late, after balances were observed: it counts as long as they have fired nothing, and
        never disarms what they have armed.
        """
        match state:
            case {"armed": bool(armed), "credits": int() | float() as credits} if math.isfinite(credits):
                if self._fired:
                    return
                self._armed = armed or bool(self._armed)
                if self._credits is None:
                    self._credits = float(credits)

    def observe_balance(
        self, credits: float, now: datetime, organization: str | None = None
    ) -> CrossingDecision:
        """Decide on a balance.

        :param credits: the balance as the API sent it.
        :param now: aware time at which it was read.
        :param organization: whose it is, for the text; None for the key's default.
        """
        previous, self._credits = self._credits, credits
        beyond = self._is_beyond(credits)
        if self._armed and beyond:
            self._armed, self._fired = False, True
            had = "" if previous is None else f"; it had {format_number(previous)}"
            has = f"{_whose(organization)} has {format_number(credits)} credits"
            text = f"An event is fired: {has}, {self._goal()}{had}."
            self._speak(("balance", False), now)
            return CrossingDecision(text, True, crossed=True, previous_credits=previous)
        if self._armed is None:
            self._armed = not beyond
        elif not self._armed:
            self._armed = self._is_back(credits)
        then = f"when it has {self._goal()}" if self._armed else f"before it has had {self._way_back()}"
        text = (
            f"Watching: {_whose(organization)} has {format_number(credits)} credits, "
            f"{'an' if self._armed else 'no'} event is fired {then}."
        )
        return CrossingDecision(text, self._speak(("balance", self._armed), now), previous_credits=previous)

    def observe_failure(
        self, error: StabilityError, now: datetime, organization: str | None = None
    ) -> CrossingDecision:
        """Decide on a failure to read the balance.

        :param error: what went wrong.
        :param now: aware time after the call.
        :param organization: whose balance it would have been; None for the key's default.
        """
        refused = isinstance(error, StabilityPermanentError)
        until = " Until that is mended it is asked for less often." if refused else ""
        text = f"The balance of {_whose(organization)} is unknown, no event can be fired: {error}{until}"
        return CrossingDecision(
            text, self._speak((type(error), error.status, error.name), now), refused=refused
        )

    def _is_beyond(self, credits: float) -> bool:
        return credits > self.threshold if self.direction == "above" else credits <= self.threshold

    def _is_back(self, credits: float) -> bool:
        if self.direction == "above":
            return credits <= self.threshold - self.margin
        return credits > self.threshold + self.margin

    def _goal(self) -> str:
        threshold = format_number(self.threshold)
        return f"more than {threshold}" if self.direction == "above" else f"{threshold} or fewer"

    def _way_back(self) -> str:
        if self.direction == "above":
            return f"{format_number(self.threshold - self.margin)} or fewer"
        return f"more than {format_number(self.threshold + self.margin)}"

    def _speak(self, what: tuple[object, ...], now: datetime) -> bool:
        should_log = what != self._said or self._said_at is None or now - self._said_at >= LOG_EVERY
        if should_log:
            self._said, self._said_at = what, now
        return should_log


def _whose(organization: str | None) -> str:
    return f"organization {organization}" if organization else "the key's default organization"
