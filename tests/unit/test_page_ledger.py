"""What the Credits page makes of a ledger."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import date, datetime, timedelta

import pytest

from airflow_stability.client.spend_recorder import LedgerSettings
from airflow_stability.compat import HAS_EXTERNAL_VIEWS
from airflow_stability.page import ledgers, shared_read
from airflow_stability.page.balance_cache import CachedBalance, CachedConnection
from airflow_stability.page.ledgers import LedgerPart, LedgerRead, read_all
from airflow_stability.page.plot import bars
from airflow_stability.page.shared_read import SharedRead
from airflow_stability.page.waiting_tasks import WaitingTask, Wallet

#: The connections of the user: one with a budget of its own, and one with none.
CONNECTIONS = {
    "mine": CachedConnection("org-1", {None: CachedBalance()}, ledger=LedgerSettings("ledger", "team")),
    "yours": CachedConnection(ledger=LedgerSettings("ledger", None)),
}


def content(ledger, tasks=(), dag_ids=("images",)):
    """Return what the template shows of a ledger."""
    return LedgerPart("ledger", CONNECTIONS, read_all(ledger), None).content(tasks, dag_ids)


def task(task_id, conn_id="mine", budget=None, *, spends=True, dag_id="images"):
    wallet = conn_id and Wallet(conn_id, None)
    return WaitingTask(dag_id, "run", task_id, -1, wallet, "3", None, None, "in a triggerer", budget, spends)


def waiting(shown):
    return {
        row["name"]: ([each.task_id for each in row["tasks"]["shown"]], row["tasks"]["hidden"])
        for row in shown["budgets"]
    }


def test_days_are_whole_ones_with_today(ledger):
    for key, days, seconds in (
        ("1", 0, 0),
        ("2", 1, 1),
        ("3", 6, 0),
        ("4", 7, 1),
        ("5", 29, 0),
        ("6", 30, 1),
    ):
        at = datetime(2026, 11, 18) - timedelta(days, seconds)
        ledger.spend(key, 10 ** int(key) / 10, at=at)
    shown = content(ledger)

    # The first moments of today, of 6 and of 29 days ago; and the last ones of 2, 8 and 31 days ago.
    assert shown["total"]["periods"] == [1, 1 + 100 + 10, 1 + 10 + 100 + 1000 + 10000]
    assert shown["since"] == [date(2026, 11, 18), date(2026, 11, 12), date(2026, 10, 20)]
    assert len(shown["days"]) == 30
    assert (shown["days"][0], shown["days"][-1]) == ((date(2026, 11, 18), 1), (date(2026, 10, 20), 10000))


def test_a_task_waits_for_the_budget_that_it_names_else_for_that_of_its_connection(ledger):
    for name in ("team", "other"):
        ledger.set_budget(name, 10, "month")
    tasks = [
        task("of-connection"),
        task("named", budget="other"),
        task("named-elsewhere", "yours", "team"),
        task("without", "yours"),
        task("spends-nothing", spends=False),
        task("of-nobody-knows", None, "team"),
        task("of-others", "hidden", "team"),
        task("hidden", budget="other", dag_id="hidden"),
    ]

    assert waiting(content(ledger, tasks)) == {
        "other": (["named"], 1),
        "team": (["of-connection", "named-elsewhere"], 0),
    }


def test_a_budget_is_nearly_used_up_from_its_soft_limit_on_and_used_up_at_its_limit(ledger):
    for name, soft, used in (
        ("none", None, 9),
        ("low", 80, 7),
        ("soft", 80, 8),
        ("up", 80, 10),
        ("gone", 1, 1),
    ):
        ledger.set_budget(name, 10, "month", soft_percent=soft)
        ledger.spend(name, used, budget=name)
    ledger.set_budget("none", 8, "month")
    ledger.delete_budget("gone")
    rows = {row["name"]: row["budget"] for row in content(ledger)["budgets"]}

    assert {name: budget and budget["state"] for name, budget in rows.items()} == {
        "low": None,
        "none": "used up",
        "soft": "nearly used up: 80 % or more",
        "up": "used up",
        "gone": None,
    }
    assert (rows["low"]["used"], rows["low"]["soft"], rows["low"]["limit"]) == (7, 8, 10)
    assert rows["none"]["used"] == rows["none"]["soft"] == 8
    assert rows["gone"] is None


def test_dags_that_spent_less_are_summed_up_and_so_are_those_that_she_may_not_read(ledger, monkeypatch):
    monkeypatch.setattr(ledgers, "MAX_SHOWN_DAGS", 2)
    for number, dag_id in enumerate(["a", "b", "c", "d", "e", None], 1):
        ledger.spend(str(number), number, "unknown" if dag_id in ("a", "d") else "posted", dag_id=dag_id)
    dags = content(ledger, dag_ids="abc")["dags"]

    assert [row["name"] for row in dags["shown"]] == [None, "c"]
    assert (dags["more"]["count"], dags["more"]["periods"], dags["more"]["unknown"]) == (2, [3, 3, 3], 1)
    assert (dags["hidden"]["count"], dags["hidden"]["periods"], dags["hidden"]["unknown"]) == (
        2,
        [9, 9, 9],
        4,
    )


def test_the_auth_manager_is_asked_about_the_dags_that_spent_most(ledger, monkeypatch):
    monkeypatch.setattr(ledgers, "MAX_ASKED_DAGS", 3)
    for number, dag_id in enumerate("abcde", 1):
        ledger.spend(str(number), number, dag_id=dag_id)
    part = LedgerPart("ledger", CONNECTIONS, read_all(ledger), None)
    assert part.dag_ids == ["e", "d", "c"]
    dags = part.content([], {"a", "d", "c"})["dags"]

    assert [row["name"] for row in dags["shown"]] == ["d", "c"]
    assert (dags["more"]["count"], dags["more"]["periods"]) == (2, [3, 3, 3])
    assert (dags["hidden"]["count"], dags["hidden"]["periods"]) == (1, [5, 5, 5])


def test_a_day_is_a_bar_from_the_bottom():
    assert bars([0, 0]) is None
    assert bars([0.5, 0, 2]).path == "M33.3 200V150.0H300.0V200ZM700.0 200V0.0H966.7V200Z"
    assert bars([0.5, 0, 2]).top == 2


def test_before_anything_is_read_and_after_a_failure_there_is_nothing_to_show():
    unread = LedgerPart("ledger", CONNECTIONS, None, None)
    failed = LedgerPart("ledger", CONNECTIONS, LedgerRead("It is out of reach."), None)

    assert (unread.pending, unread.dag_ids, unread.content([], [])["pending"]) == (True, [], True)
    assert (failed.pending, failed.dag_ids, failed.content([], [])["failure"]) == (
        False,
        [],
        "It is out of reach.",
    )


class Clock:
    """A monotonic clock, and a function that takes time by it and notes when it was called."""

    def __init__(self, monkeypatch):
        self.now, self.took, self.calls = 1000.0, 0.0, []
        monkeypatch.setattr(shared_read.time, "monotonic", lambda: self.now)

    def read(self, _now):
        self.calls.append(self.now)
        self.now += self.took
        return self.took

    def calls_until(self, shared, seconds):
        """Ask every second, and return when the function was called."""
        while self.now < 1000.0 + seconds:
            shared.get(30.0, wait_for_first=True)
            self.now += 1
        return [each - 1000.0 for each in self.calls]


def test_a_slow_read_is_repeated_more_rarely_and_a_failed_one_is_not(monkeypatch):
    clock = Clock(monkeypatch)
    assert clock.calls_until(SharedRead(clock.read), 40) == [0, 15, 30]
    for has_failed, calls in ((False, [0, 200, 400]), (True, [0, 35, 70, 105])):
        clock = Clock(monkeypatch)
        clock.took = 20.0
        shared = SharedRead(clock.read, has_failed=lambda _, failed=has_failed: failed)

        assert clock.calls_until(shared, 402)[: len(calls)] == calls


def test_without_an_earlier_result_a_request_that_does_not_wait_gets_none():
    answers = threading.Event()
    shared = SharedRead(lambda now: answers.wait(30) and now)

    assert shared.get(0.0) == (None, None)
    answers.set()
    assert shared.get(30.0)[0] is not None


@pytest.mark.skipif(not HAS_EXTERNAL_VIEWS, reason="the Credits page needs Airflow 3.1")
@pytest.mark.starts_python
def test_without_a_ledger_nothing_of_it_is_loaded():
    script = (
        "import sys\n"
        "from airflow_stability.page import app, balance_cache\n"
        "connections = {'stability_default': balance_cache.CachedConnection()}\n"
        "assert app.Ledgers().get(connections, 0.0) == []\n"
        "print(*[name for name in sys.modules if 'airflow_stability' in name and 'ledger' in name])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

    assert done.stdout.splitlines()[-1] == "airflow_stability.page.ledgers"
