"""The demo's ledger: its tables, its budget and its report of spends, by the commands that users have."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from tests.demo.airflow_setup import DemoAirflow
from tests.demo.folders import TIME_ZONES
from tests.demo.scenario import BUDGET, BUDGET_LIMIT
from tests.demo.terminal import Terminal
from tests.demo.time_zone import make_time_zone

#: The budget's first time zone. It is noon there when the demo begins, so no midnight comes by accident.
LATER = "Demo/Later"
#: The budget's second time zone, in which midnight comes soon.
SOON = "Demo/Soon"
#: Midnight comes after this many seconds, or after this many times the seconds that the command to set the
#: budget takes, whichever is later.
SECONDS, TIMES = 8.0, 2


class DemoLedger:
    """The ledger, and the budget that counts all spends of the demo."""

    def __init__(self, terminal: Terminal, airflow: DemoAirflow) -> None:
        self._say = terminal.say
        self._airflow = airflow
        self._command_seconds = 0.0
        #: When the first day of the budget ends; None until the demo has chosen that time.
        self.midnight: datetime | None = None
        self._midnight_was_told = False

    def set_up(self) -> None:
        """Make the tables and the budget."""
        self._airflow.run_stability("ledger", "init")
        zone = f"The demo makes {LATER} for it, where it is noon now"
        self._say("demo", f"A budget renews at midnight in its time zone. {zone}.")
        make_time_zone(TIME_ZONES, LATER, _in_seconds(12 * 60 * 60))
        started = time.monotonic()
        self._set_budget(LATER)
        self._command_seconds = time.monotonic() - started

    def let_the_day_end(self) -> None:
        """Give the budget a time zone in which midnight comes soon.

        On a slow machine, midnight may come before the command ends. Then the budget renews with the command.
        """
        self.midnight = midnight = _in_seconds(max(SECONDS, TIMES * self._command_seconds))
        make_time_zone(TIME_ZONES, SOON, midnight)
        when = f"midnight is at {midnight.astimezone():%H:%M:%S} local time"
        self._say("demo", f"Nobody has to wait for hours: the demo makes {SOON}, where {when}.")
        self._set_budget(SOON)

    def tell_midnight(self) -> None:
        """Print that midnight has come, once."""
        if self.midnight and datetime.now(UTC) >= self.midnight and not self._midnight_was_told:
            self._midnight_was_told = True
            self._say("demo", f"It is midnight in {SOON}: a new day of the budget begins.")

    def show_spends(self) -> None:
        """Print who has spent what."""
        self._airflow.run_stability("spend", "--by", "run", "--since", "1d")

    def _set_budget(self, zone: str) -> None:
        settings = ("--limit", str(BUDGET_LIMIT), "--every", "day", "--timezone", zone)
        self._airflow.run_stability("budget", "set", BUDGET, *settings)


def _in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=round(seconds))
