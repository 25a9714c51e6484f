"""A ledger that goes away while tasks spend, run by Airflow in this process; and the task that follows."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import quote

import pytest
from sqlalchemy import select, update

from airflow_stability.compat import TaskDeferred
from airflow_stability.deferral import DeferralEvent
from airflow_stability.errors import StabilityPaymentRequiredError
from airflow_stability.hooks import spend_recorder
from airflow_stability.hooks.ledger import open_ledger
from airflow_stability.ledger.ledger import Hold, Spender
from airflow_stability.ledger.schema import spends
from airflow_stability.operators.spend import StabilitySpendOperator
from airflow_stability.simulator import StabilitySimulator
from tests.versions import IS_LOWEST

# Airflow 2.11.0 loads all hooks for one of them, and modules of that time use what is deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore")] if IS_LOWEST else []

#: How each task ends; the spend that it cannot write, a call of the client or the run; how that has ended.
TASKS = {
    "paint": ("success", "call", "posted"),
    "paint_and_fail": ("failed", "call", "posted"),
    "paint_otherwise": ("success", "run", "posted"),
    "be_refused": ("failed", "run", "void"),
    "paint_in_a_plain_task": ("success", "call", "posted"),
}
#: The task whose call is overdue when the next one comes. The leases of the others are over.
OVERDUE = "paint_and_fail"


class Story:
    """What happens, and what it leaves."""

    def __init__(self, run_dag, simulator, ledger):
        self.simulator, self.ledger = simulator, ledger
        self.away = run_dag("ledger_away")
        self.rows_then = self.rows()
        self.let_time_pass()
        self.later = run_dag("ledger_is_back")
        self.rows_now = self.rows()

    def rows(self):
        """Return the spends that a task could not write, by task."""
        query = select(spends).where(spends.c.dag_id == "ledger_away")
        found = self.ledger.database.run(lambda connection, _now: connection.execute(query).all())
        return {
            task_id: row
            for task_id, (_, kind, _) in TASKS.items()
            for row in found
            if row.task_id == task_id and (row.endpoint is None) == (kind == "run")
        }

    def let_time_pass(self):
        """Let the spends be older."""

        def work(connection, _now):
            for task_id, row in self.rows_then.items():
                age = timedelta(minutes=6) if task_id == OVERDUE else timedelta(hours=3)
                values = {"started_at": row.started_at - age, "lease_ends_at": row.lease_ends_at - age}
                connection.execute(update(spends).where(spends.c.spend_key == row.spend_key).values(values))

        self.ledger.database.run(work)

    def left(self, task_id):
        """Return what a task has left of its spend."""
        return self.away.xcom(task_id, f"stability_spend_{self.rows_then[task_id].spend_key}")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Open a ledger; return it, and the simulator of the connection with this ledger."""
    folder = tmp_path_factory.mktemp("ledger")
    with StabilitySimulator(credits=100.0) as simulator, pytest.MonkeyPatch.context() as patch:
        patch.setattr(spend_recorder, "PATIENCE", 0.1)
        patch.setattr(spend_recorder, "PAUSE", 0.1)
        there = f"sqlite:///{quote(str(folder / 'ledger.db'))}"
        options = "api_version=v1&ledger_conn_id=the_ledger&budget=team"
        connections = {
            "with_ledger": f"{simulator.connection_uri()}?{options}",
            "the_ledger": there,
            "still_the_ledger": there,
            "no_ledger": f"sqlite:///{quote(str(folder / 'missing' / 'ledger.db'))}",
        }
        for conn_id, uri in connections.items():
            patch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", uri)
        ledger = open_ledger("still_the_ledger")
        ledger.database.init()
        ledger.set_budget("team", 50, "total")
        yield ledger, simulator


@pytest.fixture(scope="module")
def story(run_dag, opened):
    ledger, simulator = opened
    return Story(run_dag, simulator, ledger)


@pytest.mark.parametrize("task_id", TASKS)
def test_what_a_task_could_not_write_it_has_left(story, task_id):
    state, _, outcome = TASKS[task_id]

    assert story.away.states[task_id] == state
    assert story.rows_then[task_id].state == "held"
    assert story.left(task_id)["state"] == outcome


@pytest.mark.parametrize("task_id", TASKS)
def test_the_next_task_of_another_dag_writes_it(story, task_id):
    assert story.later.state == "success"
    assert story.rows_now[task_id].state == TASKS[task_id][2]


def test_a_mapped_task_has_left_its_own(story):
    assert story.rows_then["paint"].map_index == 0


def test_the_budget_and_the_books_agree(story):
    posted = sum(row.microcredits for row in story.rows_now.values() if row.state == "posted")
    charged = sum(charge.credits for charge in story.simulator.charges)

    assert charged == 4 * 3  # and paint_otherwise has spent 3 elsewhere
    assert posted == 4 * 3_000_000
    assert story.ledger.budgets()[0].used == posted + 3_000_000


def test_a_run_leaves_nothing_that_tells_of_a_later_one(opened):
    def refuse():
        raise StabilityPaymentRequiredError("402")

    ledger, _ = opened
    ledger.hold([Hold("a hold", Spender("with_ledger", budget="team"), 3)])
    task = StabilitySpendOperator(
        task_id="spend", python_callable=refuse, credits=3, stability_conn_id="with_ledger"
    )
    event = DeferralEvent(DeferralEvent.OPEN, "It is enough.", credits=100.0, hold="a hold").to_payload()
    with pytest.raises(TaskDeferred) as deferred:
        task.resume_execution("execute_complete", {"event": event}, {"outlet_events": {}})

    # What it may have left of the hold of this run would otherwise be taken for the next run's.
    assert deferred.value.trigger.hold != "a hold"
