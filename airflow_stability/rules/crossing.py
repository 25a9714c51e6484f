"""The decision that starts event-driven DAGs: has the balance crossed a threshold?

A driver passes a balance or a failure to the watch. The watch returns a :class:`CrossingDecision`. The rules:

- ``above``: an event fires when the balance rises to more credits than the threshold. ``below``: an event
  fires when the balance falls to the threshold or fewer credits.
- An event fires once. The watch is armed again when the balance is back on the other side, by at least the
  margin. For ``above``, that is the threshold less the margin, or fewer credits; for ``below``, more credits
  than the threshold plus the margin.
- The first balance fires nothing, because one balance alone shows no crossing. If it is beyond the threshold,
  it counts as if it had fired. After a restart, a restored state replaces the first balance.
- A balance of other credits than before is a first balance: somebody has edited the connection, and nothing
  has crossed. See :class:`WatchedWallet`.
- A failure fires nothing, forgets nothing and ends nothing.
- The watch logs when it starts, at each change, and every hour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from airflow_stability.errors import StabilityError, StabilityPermanentError
from airflow_stability.rules.credits import total
from airflow_stability.rules.log_throttle import LogThrottle
from airflow_stability.rules.wording import organization_label
from airflow_stability.validation import check_credits, format_number, safe_repr

Direction = Literal["above", "below"]


@dataclass(frozen=True)
class CrossingDecision:
    """What one balance or failure means for the watch.

    :param text: the state in a sentence, for the log.
    :param should_log: whether the text is news for the log.
    :param crossed: whether an event fires.
    :param previous_credits: the balance before this one; None if there was none.
    :param refused: whether polling is of no use until somebody changes something.
    """

    text: str
    should_log: bool
    crossed: bool = False
    previous_credits: float | None = None
    refused: bool = False


@dataclass(frozen=True)
class WatchedWallet:
    """Whose credits a balance counts.

    An organization that is known tells it: its key may be rotated. Otherwise it is the default organization
    of the key, and another key may have another one.

    :param organization: the id; None for a key's default organization that is not known.
    :param address: the URL of the API; None if it is not known, as after a restart.
    :param source: the organization that the request named, and what tells its API key from others in this
        process; None likewise. The latter must not be stored.
    """

    organization: str | None
    address: str | None = None
    source: tuple[str | None, bytes] | None = field(default=None, repr=False)

    def is_another(self, earlier: WatchedWallet) -> bool:
        """Tell whether these are other credits than those of an earlier balance, or may be.

        After a restart, nothing but two different organizations tells it.
        """
        if None not in (self.address, earlier.address) and self.address != earlier.address:
            return True
        if self.organization and earlier.organization:
            return self.organization != earlier.organization
        return None not in (self.source, earlier.source) and self.source != earlier.source


class ThresholdWatch:
    """One threshold, and what is remembered between two polls.

    :param threshold: credits: a number, 0 or more, or a string that is one.
    :param direction: ``above`` or ``below``.
    :param margin: credits by which the balance must go back before a second event.
    :raises ValueError: one of the arguments is unusable.
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
        self._wallet: WatchedWallet | None = None
        #: Whether a state from before a restart still counts.
        self._restorable = True
        self._log = LogThrottle()

    @property
    def state(self) -> dict[str, bool | float | str | None] | None:
        """What must be known after a restart, as plain JSON; None before the first balance."""
        if self._armed is None or self._credits is None:
            return None
        organization = self._wallet.organization if self._wallet else None
        return {"armed": self._armed, "credits": self._credits, "organization": organization}

    def restore(self, state: object) -> None:
        """Take over a :attr:`state` from before a restart. Anything else is ignored.

        Balances may have been observed before. The state counts only if they have fired nothing and are of
        the same wallet, and never disarms a watch that they have armed.
        """
        match state:
            case {"armed": bool(armed), "credits": int() | float() as credits, **more}:
                organization = more.get("organization")
                wallet = WatchedWallet(organization if isinstance(organization, str) else None)
                if self._wallet and self._wallet.is_another(wallet):
                    return
                if not self._restorable or not math.isfinite(credits):
                    return
                self._wallet = self._wallet or wallet
                self._armed = armed or bool(self._armed)
                if self._credits is None:
                    self._credits = float(credits)

    def observe_balance(
        self,
        credits: float,
        now: datetime,
        organization: str | None = None,
        wallet: WatchedWallet | None = None,
    ) -> CrossingDecision:
        """Decide on a balance.

        :param credits: the balance as the API sent it.
        :param now: aware time at which it was read.
        :param organization: whose balance it is, for the text; None for the key's default.
        :param wallet: whose credits it counts; None for the same as before.
        """
        news = ""
        if wallet and self._wallet and wallet.is_another(self._wallet):
            news = "The connection leads to other credits than before, so the watch begins anew. "
            self._armed = self._credits = self._wallet = None
            self._restorable = False
            self._log = LogThrottle()
        if wallet:
            known = self._wallet.organization if self._wallet else None
            self._wallet = replace(wallet, organization=wallet.organization or known)
        previous, self._credits = self._credits, credits
        has = f"{organization_label(organization)} has {format_number(credits)} credits"
        beyond = self._is_beyond(credits)
        if self._armed and beyond:
            self._armed = self._restorable = False
            self._log.should_log(("balance", False), now)
            before = "" if previous is None else f"; it had {format_number(previous)}"
            text = f"An event is fired: {has}, {self._goal()}{before}."
            return CrossingDecision(text, True, crossed=True, previous_credits=previous)
        if self._armed is None:
            self._armed = not beyond
        elif not self._armed:
            self._armed = self._is_back(credits)
        then = f"when it has {self._goal()}" if self._armed else f"before it has had {self._way_back()}"
        text = f"{news}Watching: {has}, {'an' if self._armed else 'no'} event is fired {then}."
        should_log = self._log.should_log(("balance", self._armed), now)
        return CrossingDecision(text, should_log, previous_credits=previous)

    def observe_failure(
        self, error: StabilityError, now: datetime, organization: str | None = None
    ) -> CrossingDecision:
        """Decide on a failure to read the balance.

        :param error: what went wrong.
        :param now: aware time after the call.
        :param organization: whose balance it would have been; None for the key's default.
        """
        refused = isinstance(error, StabilityPermanentError)
        until = " Until that is fixed, the balance is polled less often." if refused else ""
        unknown = f"The balance of {organization_label(organization)} is unknown, so no event can be fired"
        should_log = self._log.should_log((type(error), error.status, error.name), now)
        return CrossingDecision(f"{unknown}: {error}{until}", should_log, refused=refused)

    def _is_beyond(self, credits: float) -> bool:
        return credits > self.threshold if self.direction == "above" else credits <= self.threshold

    def _is_back(self, credits: float) -> bool:
        if self.direction == "above":
            return credits <= total(self.threshold, -self.margin)
        return credits > total(self.threshold, self.margin)

    def _goal(self) -> str:
        threshold = format_number(self.threshold)
        return f"more than {threshold}" if self.direction == "above" else f"{threshold} or fewer"

    def _way_back(self) -> str:
        if self.direction == "above":
            return f"{format_number(total(self.threshold, -self.margin))} or fewer"
        return f"more than {format_number(total(self.threshold, self.margin))}"
