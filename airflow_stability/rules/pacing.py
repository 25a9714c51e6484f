"""The decision which tasks a balance lets go, and in which order.

After a top-up a thousand gates could open at once, and most of their runs would find the balance used up.
Tasks that say how much they expect to spend are paced instead. The rules:

- The task that has waited longest goes first. A task for which the balance is too low does not hold back the
  tasks behind it.
- The tasks of a wallet are paced together, whatever they or their connections name it.
- One balance lets go as many tasks as it covers: see :func:`airflow_stability.rules.gate.suffices`.
- The expected credits of a task that was let go are reserved for some time. A balance that is requested after
  that time shows whether they were spent.

The pacing is only advisory. Other processes and other people spend from the same balance, and only the server
can refuse a call without a race.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from airflow_stability.rules.credits import total
from airflow_stability.rules.gate import suffices

#: Seconds for which the expected credits of a task that was let go are reserved.
RESERVATION_SECONDS = 60.0

#: Seconds by which a balance may arrive later than one that was requested after it: several polls may serve
#: one wallet. For this long, a reservation that is over is kept for balances that were requested before.
LATE_SECONDS = 60.0

_Waiter = TypeVar("_Waiter")


@dataclass(frozen=True)
class Reservation:
    """What one task waits for.

    :param credits: credits that it expects to spend.
    :param minimum: credits that must be exceeded; None if the credits that it expects to spend are enough.
    :param since: when it began to wait, in seconds of the pacer's clock.
    :param seconds: seconds for which its credits stay reserved after it was let go.
    """

    credits: float
    minimum: float | None
    since: float
    seconds: float = RESERVATION_SECONDS


class Pacer(Generic[_Waiter]):
    """The tasks that wait for the credits of one wallet. Times are seconds of any one clock."""

    def __init__(self) -> None:
        #: The tasks that wait, by whatever identifies them.
        self.waiting: dict[_Waiter, Reservation] = {}
        #: The tasks that were let go, and when.
        self._let_go: dict[_Waiter, tuple[float, Reservation]] = {}

    def join(self, waiter: _Waiter, reservation: Reservation) -> None:
        """Add a task that waits."""
        self.waiting[waiter] = reservation

    def leave(self, waiter: _Waiter) -> None:
        """Remove a task, if it still waits."""
        self.waiting.pop(waiter, None)

    def take_waiting(self, other: Pacer[_Waiter], waiters: Iterable[_Waiter]) -> None:
        """Take over tasks of another pacer that turned out to wait for this wallet.

        :param waiters: the tasks, as far as they wait there.
        """
        for waiter in list(waiters):
            if reservation := other.waiting.pop(waiter, None):
                self.join(waiter, reservation)

    def take_reserved(self, other: Pacer[_Waiter]) -> None:
        """Reserve what another pacer has reserved, since its wallet is this one, or may be."""
        self._let_go |= other._let_go

    def reserved(self, requested_at: float) -> float:
        """Return the credits that are reserved at a balance.

        :param requested_at: when the balance was requested.
        """
        return total(
            *(
                reservation.credits
                for since, reservation in self._let_go.values()
                if requested_at - since < reservation.seconds
            )
        )

    def observe(
        self,
        balance: float,
        *,
        requested_at: float,
        now: float,
        only: _Waiter | None = None,
        also_reserved: float = 0.0,
    ) -> dict[_Waiter, float]:
        """Let go the tasks that a balance covers.

        :param balance: in credits.
        :param requested_at: when the balance was requested.
        :param now: the time at which tasks are let go.
        :param only: the one task to consider, a newcomer; the others have seen this balance.
        :param also_reserved: credits that are reserved in wallets that may be the same.
        :returns: for each task that was waiting, the credits of the balance that are reserved for others.
            A task for which the rest suffices has been let go, and waits no longer.
        """
        self._let_go = {
            waiter: (since, reservation)
            for waiter, (since, reservation) in self._let_go.items()
            if requested_at - since < reservation.seconds + LATE_SECONDS
        }
        reserved = total(self.reserved(requested_at), also_reserved)
        shares = {}
        waiting = self.waiting.items() if only is None else [(only, self.waiting[only])]
        for waiter, reservation in sorted(waiting, key=lambda each: each[1].since):
            shares[waiter] = reserved
            if suffices(balance, reservation.minimum, reservation.credits, reserved=reserved):
                reserved = total(reserved, reservation.credits)
                self._let_go[waiter] = now, reservation
                del self.waiting[waiter]
        return shares

    def is_idle(self, now: float) -> bool:
        """Tell whether no task waits and no credits are reserved."""
        return not self.waiting and all(
            now - since >= reservation.seconds for since, reservation in self._let_go.values()
        )
