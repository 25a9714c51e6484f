"""Gates in a real Airflow: scheduler, triggerer and all, while everything goes wrong at once.

One story, told once for each Airflow version; the tests look at what it left.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from airflow_stability.compat import AIRFLOW_VERSION, RENDERS_IN_TRIGGERER, STARTS_IN_TRIGGERER
from airflow_stability.ledger.ledger import Hold, Spender
from airflow_stability.simulator import StabilitySimulator
from tests.conftest import ROOT
from tests.e2e.gates import (
    ALONE,
    BUDGET,
    DEADLINE,
    EVENTS,
    LASTS,
    LATE,
    MAPPED,
    MAPPED_GATES,
    MINIMUM,
    POKE_INTERVAL,
    POOR,
    REQUEST_TIMEOUT,
    RICH,
    SHARED,
    SOFT_PERCENT,
    STOPPED,
    TOP_UP,
    TROUBLES,
    TWO,
)
from tests.e2e.ledgers import LedgerOfTasks
from tests.leaks import Search
from tests.real_airflow import COMPONENTS, XCOM, RealAirflow
from tests.rest_api import RestApi
from tests.statsd_listener import StatsdListener

#: Seconds for the story; it takes two or three minutes on two cores. pytest's own limit ends this process at
#: once, and would leave Airflow's running.
LIMIT = 600
pytestmark = pytest.mark.timeout(LIMIT + 60)

WATCHERS = "SELECT id FROM trigger WHERE classpath LIKE '%EventTrigger'"
READ_DEADLINES = """
import json

from airflow.models import TaskInstance
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session

with create_session() as session:
    rows = session.query(TaskInstance, Trigger).join(Trigger, TaskInstance.trigger_id == Trigger.id)
    deadlines = {
        f"{task.task_id} {task.map_index}": [str(trigger.kwargs.get("waited")), str(task.trigger_timeout)]
        for task, trigger in rows
    }
print()
print(json.dumps(deadlines))
"""
SETTINGS = {
    # Tasks that start before the API server answers fail.
    "core__dags_are_paused_at_creation": True,
    # Whoever asks the API server for a token gets one.
    "core__simple_auth_manager_all_admins": True,
    # So that a triggerer that was killed is noticed soon.
    "triggerer__job_heartbeat_sec": 2,
    "triggerer__triggerer_health_check_threshold": 6,
    "scheduler__trigger_timeout_check_interval": 2,
}
HAS_EVENTS = AIRFLOW_VERSION >= (3, 0)
HAS_REST_API = "api-server" in COMPONENTS
HAS_MEMORY = AIRFLOW_VERSION >= (3, 3)
OPENED = (*TROUBLES, "rotated", *TWO, *SHARED, "template", "from_xcom")
ENDED = {"success", "failed", "skipped"}
LOCK_OUT = 60.0
#: What a person does with the buttons "Mark as failed" and "Clear".
STOP = f"""
from airflow.models.serialized_dag import SerializedDagModel

run = "scheduled__2026-01-01T00:00:00+00:00"
dag = SerializedDagModel.get_dag("stopped")
dag.set_task_instance_state(task_id="marked_failed", run_id=run, state="failed")
dag.clear(task_ids=["cleared"]{"" if AIRFLOW_VERSION < (3, 0) else ", run_id=run"})
"""


class Wallets:
    """A simulator for each connection, whose organizations have the names of the gates that watch them."""

    def __init__(self) -> None:
        self.of: dict[str, StabilitySimulator] = {}
        self.keys: dict[str, str] = {}
        self.every_key: list[str] = []
        for connection in (*ALONE, *STOPPED, "watched"):
            self._add(connection, (connection,))
        self._add("two", TWO)
        self._add("shared", ("shared",))
        self._add("mapped", MAPPED)

    def _add(self, connection: str, organizations: tuple[str, ...]) -> None:
        simulator = StabilitySimulator()
        for organization in organizations:
            simulator.add_organization(organization, credits=POOR)
        simulator.add_account(f"user-{connection}", "someone@example.org", list(organizations))
        self.of[connection] = simulator
        self.keys[connection] = simulator.add_key(account=f"user-{connection}")
        self.every_key.append(self.keys[connection])
        simulator.start()

    def uri(self, connection: str) -> str:
        key = self.keys[connection]
        options = f"api_version=v1&request_timeout={REQUEST_TIMEOUT}"
        # The gates on two organizations name theirs.
        if connection not in ("two", "mapped"):
            options += f"&organization={connection}"
        if connection == "watched":
            options += "&ledger_conn_id=ledger_of_watched"
        return f"{self.of[connection].connection_uri(key)}?{options}"

    def rotate(self, connection: str) -> None:
        self.keys[connection] = self.of[connection].rotate_key(self.keys[connection])
        self.every_key.append(self.keys[connection])

    def calls(self, connection: str, *, since: float = 0.0) -> list[float]:
        return [record.monotonic for record in self.of[connection].requests if record.monotonic > since]


class Story:
    """What happens, and what it leaves."""

    def __init__(
        self, airflow: RealAirflow, wallets: Wallets, metrics: StatsdListener, ledger: LedgerOfTasks
    ) -> None:
        self.airflow, self.wallets, self.metrics, self.ledger = airflow, wallets, metrics, ledger
        self.deadlines: list[dict[str, list[str]]] = []
        self.trouble_since: dict[str, float] = {}
        self.healed_at: dict[str, float] = {}
        self.stopped_at: dict[str, float] = {}
        self.api: RestApi | None = None

    def play(self) -> None:
        airflow, wallets = self.airflow, self.wallets
        airflow.run("db", "migrate")
        uris = {connection: wallets.uri(connection) for connection in wallets.of}
        wallets.of["never_worked"].revoke_key(wallets.keys["never_worked"])
        airflow.connect(uris | {"ledger_of_watched": self.ledger.connection})
        self._set_limit(10)
        airflow.start()
        airflow.wait_for("all components are healthy", airflow.healthy)
        dags = ["gates", "stopped", *(EVENTS if HAS_EVENTS else ()), "late"]
        # Those of the other story are there, too, and stay paused.
        airflow.wait_for(
            "all DAGs are there",
            lambda: {dag_id for (dag_id,) in airflow.query("SELECT dag_id FROM dag")} >= set(dags),
        )
        airflow.unpause(*dags[:-1])
        airflow.wait_for("gates and stopped wait", self._most_wait, seconds=300)
        if HAS_EVENTS:
            # Airflow sets up those of a DAG that it has read since the DAG was unpaused.
            airflow.wait_for("all watchers are there", lambda: len(airflow.query(WATCHERS)) == len(EVENTS))
        self._wait_for_polls("before a crossing")
        wallets.of["watched"].top_up(TOP_UP, "watched")
        if HAS_EVENTS:
            # The first reading fires nothing.
            reading = f"Watching: budget {BUDGET}: 0 of 10 credits"
            log = airflow.log_of("triggerer")
            airflow.wait_for("the budget was read", lambda: reading in log.read_text())
            self._spend(5)
            for dag_id in ("restored", "soft_limit"):
                airflow.wait_for(f"{dag_id} has run", lambda dag_id=dag_id: self.payloads(dag_id))
        airflow.unpause("late")
        airflow.wait_for("late waits", lambda: self._waiting("late") == set(LATE))
        # With this, what watches has also had the time to remember what it has fired.
        self._wait_for_polls("before the triggerer is killed")

        self.deadlines.append(self._deadlines())
        airflow.kill("triggerer")
        wallets.of["watched"].set_credits(POOR, "watched")
        self._set_limit(20)
        self._spend(6)
        airflow.start("triggerer")
        self._wait_for_polls("after the triggerer was killed")
        self.deadlines.append(self._deadlines())

        self._begin_trouble()
        self._stop_two()
        wallets.of["revoked"].revoke_key(wallets.keys["revoked"])
        wallets.rotate("rotated")
        airflow.connect({"rotated": wallets.uri("rotated")})
        for connection, organization in (("rotated", "rotated"), ("shared", "shared")):
            wallets.of[connection].top_up(TOP_UP, organization)
        for organization in MAPPED:
            wallets.of["mapped"].top_up(TOP_UP, organization)
        self._end_trouble()
        airflow.wait_for("all gates have ended", self._all_ended)
        if HAS_REST_API:
            self.api = RestApi(airflow.url, airflow.token())
            self.api.request_all()

    def _waiting(self, dag_id: str) -> set[str]:
        return {name for (name, _), state in self.airflow.states(dag_id).items() if state == "deferred"}

    def _most_wait(self) -> bool:
        gates = {*OPENED, *MAPPED_GATES, "revoked"}
        return self._waiting("gates") >= gates and self._waiting("stopped") == set(STOPPED)

    def _wait_for_polls(self, when: str) -> None:
        """Wait until a triggerer polls for each gate that it has to."""
        now = time.monotonic()
        unpolled = {"never_worked", "soft", *LATE} | (set() if HAS_EVENTS else {"watched"})
        polled = self.wallets.of.keys() - unpolled
        self.airflow.wait_for(
            f"polls {when}", lambda: all(self.wallets.calls(connection, since=now) for connection in polled)
        )

    def _set_limit(self, credits: float) -> None:
        self.ledger.ledger.set_budget(BUDGET, credits, "total", soft_percent=SOFT_PERCENT)

    def _spend(self, credits: float) -> None:
        hold = Hold(f"{credits} credits", Spender("watched", "watched", BUDGET), credits)
        assert self.ledger.ledger.hold([hold]).held

    def _deadlines(self) -> dict[str, list[str]]:
        """Return the deadlines of the gates that wait: in their triggers' arguments, and kept by Airflow."""
        deadlines: dict[str, list[str]] = json.loads(self.airflow.execute(READ_DEADLINES))
        return deadlines

    def _begin_trouble(self) -> None:
        for name in (*TROUBLES, "two"):
            simulator = self.wallets.of[name]
            fault = TROUBLES[name] if name in TROUBLES else TROUBLES["lock_out"]
            if fault:
                simulator.inject(fault, times=1 if fault.code == 429 else None)
            else:
                simulator.stop()
            self.trouble_since[name] = time.monotonic()
            for organization in TWO if name == "two" else (name,):
                simulator.top_up(TOP_UP, organization)

    def _end_trouble(self) -> None:
        time.sleep(max(0.0, max(self.trouble_since.values()) + LASTS - time.monotonic()))
        for name, fault in TROUBLES.items():
            self.healed_at[name] = time.monotonic()
            if fault:
                self.wallets.of[name].clear_faults()
            else:
                self.wallets.of[name].start()

    def _stop_two(self) -> None:
        trigger = (
            "SELECT trigger.created_date FROM trigger JOIN task_instance ON trigger.id = trigger_id "
            "WHERE task_id = 'cleared'"
        )
        ((first,),) = self.airflow.query(trigger)
        self.airflow.execute(STOP)
        self.stopped_at["marked_failed"] = time.monotonic()
        assert self.airflow.states("stopped")["marked_failed", -1] == "failed"
        # What is cleared starts again, and waits again, with another trigger.
        self.airflow.wait_for(
            "cleared waits again",
            lambda: self._waiting("stopped") == {"cleared"} and self.airflow.query(trigger) != [(first,)],
        )
        self.airflow.wait_for(
            "the first trigger is gone",
            lambda: not self.airflow.query("SELECT 1 FROM trigger WHERE created_date = :first", first=first),
        )
        self.wallets.of["cleared"].top_up(TOP_UP, "cleared")
        self.airflow.wait_for(
            "cleared has ended", lambda: self.airflow.states("stopped")["cleared", -1] == "success"
        )
        self.stopped_at["cleared"] = time.monotonic()

    def _all_ended(self) -> bool:
        return {*self.airflow.states("gates").values(), *self.airflow.states("late").values()} <= ENDED

    def state(self, task_id: str, map_index: int = -1, dag_id: str = "gates") -> str | None:
        return self.airflow.states(dag_id)[task_id, map_index]

    def xcoms(self, task_id: str) -> list[Any]:
        rows = self.airflow.query(
            f"SELECT value FROM {XCOM} WHERE task_id = :task_id AND key = 'return_value'", task_id=task_id
        )
        return [value if isinstance(value, int | float) else json.loads(value) for (value,) in rows]

    def payloads(self, dag_id: str) -> list[Any]:
        """Return what the runs of an event's DAG were told."""
        rows = self.airflow.query(f"SELECT value FROM {XCOM} WHERE dag_id = :dag_id", dag_id=dag_id)
        return [json.loads(value) for (value,) in rows]

    def time_of(self, column: str, task_id: str) -> datetime | None:
        ((value,),) = self.airflow.query(
            f"SELECT {column} FROM task_instance WHERE task_id = :task_id", task_id=task_id
        )
        return datetime.fromisoformat(value) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    wallets = Wallets()
    folder, dags = tmp_path_factory.mktemp("airflow"), Path(__file__).parent / "dags"
    with StatsdListener() as metrics:
        airflow = RealAirflow(folder, dags, settings=SETTINGS | metrics.settings(), seconds=LIMIT)
        airflow.environment["PYTHONPATH"] = str(ROOT)
        try:
            story = Story(airflow, wallets, metrics, LedgerOfTasks(f"sqlite:///{folder / 'ledger.db'}"))
            story.play()
            yield story
        finally:
            airflow.end()
            for simulator in wallets.of.values():
                simulator.stop()


@pytest.mark.parametrize("name", OPENED)
def test_a_gate_opens_with_the_balance_in_xcom_as_a_float(name, story):
    assert story.state(name) == "success"
    balances = story.xcoms(name)
    assert balances == ([] if name == "end_without_xcom" else [RICH])
    assert all(type(balance) is float for balance in balances)


@pytest.mark.parametrize("name", MAPPED_GATES)
def test_mapped_gates_open(name, story):
    assert [story.state(name, index) for index in range(2)] == ["success"] * 2
    assert story.xcoms(name) == [RICH] * 2


def test_a_killed_triggerer_does_not_move_a_deadline(story):
    before, after = story.deadlines

    assert {f"{name} -1" for name in OPENED} <= after.keys()
    assert after == {name: before[name] for name in after}
    for name in LATE:
        took = story.time_of("end_date", name) - story.time_of("start_date", name)
        assert story.state(name, dag_id="late") == "failed"
        # Airflow 2.11 notes a new start when a task resumes; the triggers' rows above hold there as well.
        if AIRFLOW_VERSION >= (3, 0):
            assert timedelta(seconds=DEADLINE) <= took <= timedelta(seconds=DEADLINE + 120)


def test_the_text_of_a_timeout_says_what_the_gate_saw_last(story):
    log = story.airflow.task_log("late", "deadline")

    assert f"Timed out after 75 s: organization deadline has 5.25 credits, needs more than {MINIMUM}." in log


def test_the_text_says_so_when_airflow_ended_the_wait(story):
    # The trigger that started anew would have waited for another minute: Airflow kept the deadline.
    log = story.airflow.task_log("late", "deadline_start")

    ended_by = (
        "Timed out in the triggerer (timeout of 75 s)" if STARTS_IN_TRIGGERER else "Timed out after 75 s"
    )
    assert ended_by in log


def test_a_gate_that_starts_and_ends_in_the_triggerer_skips_softly(story):
    assert story.state("soft") == "skipped"
    assert "Timed out" in story.airflow.task_log("gates", "soft")


def test_a_name_that_is_missing_in_a_condition_fails_the_task_wherever_it_is_rendered(story):
    log = story.airflow.task_log("gates", "missing_name")
    ((tries,),) = story.airflow.query("SELECT try_number FROM task_instance WHERE task_id = 'missing_name'")

    assert (story.state("missing_name"), tries) == ("failed", 2)
    assert "has no attribute 'bigrun'" in log
    assert "The gate opens" not in log


def test_a_key_that_never_worked_fails_its_gate_at_once(story):
    assert story.state("never_worked") == "failed"
    assert len(story.wallets.calls("never_worked")) == 1
    assert "401 unauthorized" in story.airflow.task_log("gates", "never_worked")


def test_a_revoked_key_fails_its_gate_after_its_grace(story):
    log = story.airflow.task_log("gates", "revoked")

    assert story.state("revoked") == "failed"
    assert "the key has worked before and may be about to be replaced" in log
    assert "The key had worked before." in log


@pytest.mark.parametrize("name", TROUBLES)
def test_a_waiting_gate_polls_once_an_interval_through_a_minute_of(name, story):
    calls = story.wallets.calls(name, since=story.trouble_since[name])

    # On a busy machine a call arrives later than it was made.
    gaps = [later - earlier for earlier, later in pairwise(calls)]
    assert not [gap for gap in gaps if gap < POKE_INTERVAL - 1]
    assert len(calls) <= (story.healed_at[name] - story.trouble_since[name]) / POKE_INTERVAL + 2
    if name == "lock_out":
        assert len(calls) == 2
        assert calls[1] - calls[0] >= LOCK_OUT
    if name in ("outage", "hang"):
        assert len(calls) >= LASTS / (POKE_INTERVAL + 2 * REQUEST_TIMEOUT)


def test_two_organizations_on_one_key_wait_out_its_lock_out_together(story):
    records = [
        record for record in story.wallets.of["two"].requests if record.monotonic > story.trouble_since["two"]
    ]
    (locked_out,) = [record for record in records if record.status == 429]
    later = [record.monotonic - locked_out.monotonic for record in records]

    # The other organization's call may have been on its way already.
    assert not [seconds for seconds in later if 1 < seconds < LOCK_OUT]
    assert sum(seconds >= LOCK_OUT for seconds in later) in (1, 2)


@pytest.mark.parametrize("name", STOPPED)
def test_a_task_that_is_killed_or_cleared_leaves_no_poll(name, story):
    assert story.wallets.calls(name)
    # A triggerer looks every second which triggers it is to run.
    assert not story.wallets.calls(name, since=story.stopped_at[name] + POKE_INTERVAL + 5)
    assert time.monotonic() > story.stopped_at[name] + 2 * POKE_INTERVAL + 5


def test_what_starts_in_the_triggerer_takes_no_worker(story):
    expected = {
        "classic": True,
        "end": True,
        "start_and_end": not STARTS_IN_TRIGGERER,
        "from_xcom": True,
        "mapped_start_and_end": True,
    }
    for name, takes_worker in expected.items():
        log = story.airflow.task_log("gates", name)
        # Airflow queues what it wants to start on a worker, and nothing else.
        rows = story.airflow.query("SELECT queued_dttm FROM task_instance WHERE task_id = :name", name=name)
        assert {queued is not None for (queued,) in rows} == {takes_worker}
        if name not in ("classic", "end"):
            assert ("deferring at once" in log) == takes_worker
    at_once = "deferring at once" in story.airflow.task_log("gates", "template")
    assert at_once == (not RENDERS_IN_TRIGGERER)


@pytest.mark.skipif(not HAS_EVENTS, reason="Airflow 2.11 starts no DAG on an event")
def test_a_crossing_starts_a_dag_once_and_is_remembered_where_airflow_can(story):
    (restored,) = story.payloads("restored")

    assert (restored["previous_credits"], restored["credits"]) == (POOR, RICH)
    assert (restored["organization"], restored["direction"]) == ("watched", "above")
    # It fell while no triggerer ran.
    low = [(payload["previous_credits"], payload["credits"]) for payload in story.payloads("low")]
    assert low == ([(RICH, POOR)] if HAS_MEMORY else [])


@pytest.mark.skipif(not HAS_EVENTS, reason="Airflow 2.11 starts no DAG on an event")
def test_a_soft_limit_starts_a_dag_once_and_is_remembered_where_airflow_can(story):
    runs = [(payload["used"], payload["limit"]) for payload in story.payloads("soft_limit")]

    # It was reached anew, after a change, while no triggerer ran.
    assert sorted(runs) == ([(5.0, 10.0), (11.0, 20.0)] if HAS_MEMORY else [(5.0, 10.0)])


def test_each_log_holds_its_own_lines_and_no_others(story):
    organizations = {
        **{name: name for name in (*ALONE, *TWO)},
        **dict.fromkeys([*SHARED, "template", "from_xcom"], "shared"),
    }
    for name, organization in organizations.items():
        log = story.airflow.task_log("late" if name in LATE else "gates", name)
        # Those two end before they have a balance, or may.
        assert f"organization {organization} " in log or name in ("never_worked", "soft")
        for other in {*organizations.values(), *MAPPED} - {organization}:
            assert f"organization {other} " not in log
        if name in OPENED:
            assert f"The gate opens: organization {organization} has {RICH} credits" in log


@pytest.mark.skipif(not HAS_MEMORY, reason="before Airflow 3.3 a task's page has no place for it")
@pytest.mark.parametrize("name", TWO)
def test_the_page_of_a_gate_shows_why_it_waits(name, story):
    ((shown,),) = story.airflow.query(
        "SELECT value FROM task_state_store WHERE task_id = :task_id AND key = 'last_wait'", task_id=name
    )

    assert f"UTC: Waiting: organization {name} has {POOR} credits, needs more than {MINIMUM}." in str(shown)


def test_worker_and_triggerer_send_the_balance_as_a_gauge(story):
    triggerers = {metric.sender for metric in story.metrics.ours if ".waiting_gates." in metric.name}
    gauges = story.metrics.named("balance.two.two_a")

    # A worker has looked once, before it deferred; a triggerer since.
    assert {metric.value for metric in gauges if metric.sender not in triggerers} == {POOR}
    assert {metric.value for metric in gauges if metric.sender in triggerers} == {POOR, RICH}
    assert {metric.kind for metric in gauges} == {"g"}


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("outage", "unavailable"),
        ("lock_out", "rate_limit"),
        ("refused", "network"),
        ("hang", "timeout"),
        ("revoked", "authentication"),
    ],
)
def test_polls_are_counted_by_their_outcome(name, outcome, story):
    counters = {
        kind: story.metrics.named(f"polls.{name}.{name}.{kind}") for kind in ("ok", outcome, "blocked")
    }

    assert counters["ok"]
    assert counters[outcome]
    assert not counters["blocked"]
    assert {(metric.value, metric.kind) for metric in counters[outcome]} == {(1.0, "c")}


def test_calls_are_timed_in_milliseconds(story):
    times = [metric.value for metric in story.metrics.named("call.hang.hang")]

    assert 1000 * REQUEST_TIMEOUT <= max(times) < 1000 * (2 * REQUEST_TIMEOUT + 10)
    assert {metric.kind for metric in story.metrics.named("call.hang.hang")} == {"ms"}


def test_the_triggerer_gauges_how_many_gates_wait(story):
    waiting = [metric.value for metric in story.metrics.ours if ".waiting_gates." in metric.name]

    assert max(waiting) > len(SHARED)
    assert waiting[-1] < len(SHARED)


def test_no_key_stands_anywhere(story):
    keys = story.wallets.every_key
    search = Search(keys)
    places, files, rows = story.airflow.places_of(*keys)
    in_answers = story.api.find(search) if story.api else []
    in_metrics = search.find(b"\n".join(story.metrics.packets))

    assert (places, in_answers, in_metrics) == ([], [], [])
    assert files + rows > 100


def test_the_search_for_keys_would_find_one(story):
    texts = ("organization deadline has 5.25 credits", "scheduled__2026-01-01T00:00:00+00:00")
    places, _, _ = story.airflow.places_of(*texts)

    log = story.airflow.task_logs / "dag_id=late"
    assert [place for place in places if place.startswith(str(log)) and place.endswith("secret 0: itself")]
    assert "table task_instance, column run_id: secret 1: itself" in places
    assert Search(["airflow.stability.balance.two.two_a"]).find(b"\n".join(story.metrics.packets))
    if story.api:
        # The logs, and all else.
        found = story.api.find(Search(texts))
        for number in range(len(texts)):
            assert [place for place in found if place.endswith(f"secret {number}: itself")]
        assert max(response.status_code for response in story.api.responses.values()) < 500
    # What was sought is there, encrypted.
    fernet = Fernet(story.airflow.fernet_key)
    passwords = dict(story.airflow.query("SELECT conn_id, password FROM connection"))
    keys = {name: fernet.decrypt(passwords[name].encode()).decode() for name in story.wallets.keys}
    assert keys == story.wallets.keys
