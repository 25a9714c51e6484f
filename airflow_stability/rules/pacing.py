"""Who is let go at a balance, and in which order. Knows no HTTP and no Airflow.

After a top-up a thousand gates could open at once, and most of their runs would find the wallet empty again.
Those that say what they expect to spend are paced instead. The rules:

- The oldest goes first. One for whom the balance is not enough holds back nobody behind it.
- At one balance as many are let go as it carries: see :func:`airflow_stability.rules.gate.suffices`.
- What somebody was let go for counts as spent until a balance that was asked for a while later: by then it
  shows in the balance, if it was spent.

This is advice. Other processes and other people spend from the same wallet, and only its owner, the server,
can refuse without a race.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from airflow_stability.rules.gate import suffices

#: Seconds for which what somebody was let go for counts as spent.
RESERVATION_SECONDS = 60.0


@dataclass(frozen=True)
class Reservation:
    """What one gate waits for.

    :param credits: what it expects to spend.
    :param minimum: what must be left over, and a little more.
    :param since: aware time at which it began to wait.
    :param seconds: seconds for which its credits count as spent after it was let go.
    """

    credits: float
    minimum: float
    since: datetime
    seconds: float = RESERVATION_SECONDS


class Pacer:
    """Those that wait for one wallet. Times are seconds of one clock, whichever."""

    def __init__(self) -> None:
        self._waiting: dict[object, Reservation] = {}
        self._let_go: list[tuple[float, Reservation]] = []

    def join(self, who: object, reservation: Reservation) -> None:
        """Let somebody wait."""
        self._waiting[who] = reservation

    def leave(self, who: object) -> None:
        """Let somebody wait no longer, if it still does."""
        self._waiting.pop(who, None)

    def observe(
        self, balance: float, *, asked_at: float, now: float, only: object = None
    ) -> dict[object, float]:
        """Let go whom a balance carries.

        :param balance: in credits.
        :param asked_at: when it was asked for.
        :param now: when that is; those who are let go, are now.
        :param only: a newcomer to whom this balance, which the others know, is news.
        :returns: for each who was waiting, how much of the balance is spoken for by others. Those for whom
            the rest suffices have been let go, and wait no longer.
        """
        self._let_go = [
            (since, reservation)
            for since, reservation in self._let_go
            if asked_at - since < reservation.seconds
        ]
        spoken_for = sum(reservation.credits for _, reservation in self._let_go)
        shares = {}
        waiting = self._waiting.items() if only is None else [(only, self._waiting[only])]
        for who, reservation in sorted(waiting, key=lambda each: each[1].since):
            shares[who] = spoken_for
            if suffices(balance - spoken_for, reservation.minimum, reservation.credits):
                spoken_for += reservation.credits
                self._let_go.append((now, reservation))
                del self._waiting[who]
        return shares

    def is_settled(self, now: float) -> bool:
        """Tell whether nobody waits, and nothing counts as spent any more."""
        return not self._waiting and all(
            now - since >= reservation.seconds for since, reservation in self._let_go
        )
