"""Gates and spending tasks in an Airflow of several machines' parts, which are killed one after another.

PostgreSQL, Redis, Celery's executor, and two each of scheduler, triggerer and worker. One story; the tests
look at what it left.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pytest
import requests

from airflow_stability.ledger.ledger import Hold, Spender
from airflow_stability.simulator import RateLimit, RequestRecord, StabilitySimulator
from tests.cluster.conftest import FIGURES
from tests.cluster.plan import (
    ALL_GATES,
    BUDGETS,
    DISTURBANCES,
    GATES,
    IMAGES,
    INTERVALS,
    ROUNDS,
    SPENDING,
    SPENDING_INTERVAL,
    balance,
    images,
    tasks_of,
)
from tests.conftest import ROOT
from tests.e2e.killed_tasks import DAG_FILE, KilledTasks
from tests.e2e.killing import tasks
from tests.e2e.ledgers import LedgerOfTasks
from tests.e2e.spending import COST
from tests.leaks import Search
from tests.real_airflow import RealAirflow
from tests.rest_api import RestApi
from tests.servers import PostgreSQL, Redis
from tests.statsd_listener import StatsdListener

log = logging.getLogger(__name__)

#: Another one is another order of what goes wrong.
SEED = int(os.environ.get("SEED", "1"))
#: Seconds for the story. pytest's own limit ends this process at once, and would leave Airflow's running.
LIMIT = 900
pytestmark = pytest.mark.timeout(LIMIT + 60)

TWO_EACH = ("scheduler", "triggerer", "worker")
COMPONENTS = ("api-server", "dag-processor", *(f"{kind}-{number}" for kind in TWO_EACH for number in (1, 2)))
#: Seconds for which the simulator cannot be reached: several polls of a triggerer.
OUTAGE = 12.0
#: Seconds in which nothing happens but polls.
QUIET = 20.0
#: With Airflow's defaults, each kill is noticed after minutes.
SETTINGS = {
    # Tasks that start before the API server answers fail.
    "core__dags_are_paused_at_creation": True,
    "core__executor": "CeleryExecutor",
    "core__parallelism": 64,
    "core__max_active_tasks_per_dag": 128,
    "celery__worker_concurrency": 12,
    "celery__worker_prefetch_multiplier": 1,
    # Seconds after which Redis hands out again what a worker has taken and not finished.
    "celery_broker_transport_options__visibility_timeout": 30,
    "scheduler__job_heartbeat_sec": 2,
    "scheduler__scheduler_health_check_threshold": 8,
    "scheduler__orphaned_tasks_check_interval": 5,
    "scheduler__task_instance_heartbeat_timeout": 15,
    "scheduler__task_instance_heartbeat_timeout_detection_interval": 3,
    "scheduler__trigger_timeout_check_interval": 2,
    "triggerer__job_heartbeat_sec": 2,
    "triggerer__triggerer_health_check_threshold": 6,
    "workers__max_failed_heartbeats": 10,
    "core__simple_auth_manager_all_admins": True,
}


class Cluster:
    """What happens, and what it leaves."""

    def __init__(
        self,
        airflow: RealAirflow,
        database: PostgreSQL,
        ledger_database: PostgreSQL,
        simulator: StabilitySimulator,
        metrics: StatsdListener,
    ) -> None:
        self.airflow, self.database, self.ledger_database = airflow, database, ledger_database
        self.ledger = LedgerOfTasks(ledger_database.url)
        self.simulator, self.metrics = simulator, metrics
        #: Tasks whose workers are killed in the middle of a call, after all else.
        self.killed_tasks: KilledTasks
        self.images = Path(airflow.environment[IMAGES])
        self.random = random.Random(SEED)
        self.began = time.monotonic()
        #: By connection, which has an account of its name: its key now. And all that there were.
        self.keys: dict[str, str] = {}
        self.every_key: list[str] = []
        #: When the top-up of each round came, by the wall clock.
        self.topped_up: list[float] = []
        self.order = self.random.sample(DISTURBANCES, ROUNDS)
        self.killed: list[str] = []
        #: While nothing happened: the calls for the deferred gates, and how many triggerers had any of those.
        self.polls_in_quiet: list[RequestRecord] = []
        self.feeds_in_quiet = 0
        #: How many images were made while all budgets were used up.
        self.images_without_budget: int
        #: How long the story took, and how long of that gates waited.
        self.seconds, self.waited = 0.0, 0.0

    def play(self) -> None:
        airflow = self.airflow
        airflow.run("db", "migrate")
        for mode in GATES:
            self._open_wallet(f"gates_{mode}", balance(-1))
        for mode in SPENDING:
            self._open_wallet(f"spending_{mode}", COST - 0.5)
        for budget in BUDGETS:
            self.ledger.ledger.set_budget(budget, COST, "total")
            self.ledger.ledger.hold([Hold(budget, Spender("somebody_else", budget=budget), COST)])
            self.ledger.ledger.end(budget, "posted")
        self._connect()
        airflow.start(*COMPONENTS)
        airflow.wait_for("all components are healthy", airflow.healthy)
        airflow.wait_for("all DAGs are there", lambda: len(airflow.query("SELECT * FROM dag")) == 3)
        waited_from = time.monotonic()
        airflow.unpause("gates", "spending")
        airflow.wait_for("all wait", self._all_wait, seconds=300)
        self._tell("all wait")
        time.sleep(QUIET)
        until = time.monotonic()
        self.polls_in_quiet = [
            record for record in self.calls("gates_deferrable") if until - QUIET <= record.monotonic < until
        ]
        ((self.feeds_in_quiet,),) = airflow.query(
            "SELECT count(DISTINCT triggerer_id) FROM trigger JOIN task_instance ON trigger.id = trigger_id "
            "WHERE dag_id = 'gates'"
        )
        for number, what in enumerate(self.order):
            self._tell("%s", what)
            self._disturb(what)
            self._top_up(number)
            if number == 0:
                airflow.wait_for("tasks wait for each budget", self._wait_for_budgets)
                self.images_without_budget = self.simulator.images_made
                self._raise_budgets()
            airflow.wait_for(
                f"what the top-up after {what} pays for has ended",
                lambda number=number: self._settled(number),
            )
        self.seconds, self.waited = time.monotonic() - self.began, time.monotonic() - waited_from
        self._tell("all have ended")

    def _open_wallet(self, name: str, credits: float) -> None:
        self.simulator.add_organization(name, credits=credits)
        self.simulator.add_account(name, "someone@example.org", [name])
        self._add_key(name)

    def _add_key(self, name: str) -> None:
        self.keys[name] = self.simulator.add_key(account=name)
        self.every_key.append(self.keys[name])

    def _connect(self) -> None:
        """Put the keys that are valid now into Airflow's connections."""
        uris = {
            name: f"{self.simulator.connection_uri(key)}?api_version=v1&organization={name}"
            for name, key in self.keys.items()
        }
        for mode in SPENDING:
            uris[f"spending_{mode}"] += "&ledger_conn_id=ledger"
        self.airflow.connect({**uris, "ledger": self.ledger.connection})

    # What goes wrong

    def _disturb(self, what: str) -> None:
        match what:
            case "outage":
                self.simulator.stop()
                time.sleep(OUTAGE)
                self.simulator.start()
            case "rotation":
                self._rotate()
            case "database":
                for database in (self.database, self.ledger_database):
                    database.stop()
                    database.start()
            case _:
                name = f"{what}-{self.random.randint(1, 2)}" if what in TWO_EACH else what
                self.airflow.kill(name)
                self.killed.append(name)
                # As a service manager does.
                self.airflow.start(name)

    def _rotate(self) -> None:
        """Rotate every key, in the order that people have: not everybody adds the new one first."""
        # Those that an earlier kill has started anew, too: a refused key that has not worked yet is a wrong
        # one, and fails its gate at once.
        self.airflow.wait_for("gates on workers have looked", self._have_looked)
        old = dict(self.keys)
        for name in old:
            self._add_key(name)
            # By reschedule nothing is remembered: a key that is refused before the new one is there fails
            # the task at once.
            if not name.endswith("_reschedule"):
                self.simulator.revoke_key(old[name])
        self._connect()
        for name in old:
            if name.endswith("_reschedule"):
                self.simulator.revoke_key(old[name])

    def _top_up(self, number: int) -> None:
        self.topped_up.append(time.time())
        for mode in GATES:
            self.simulator.set_credits(balance(number), f"gates_{mode}")
        for mode in SPENDING:
            self.simulator.top_up(images(mode, number) * COST, f"spending_{mode}")

    def _raise_budgets(self) -> None:
        for budget in BUDGETS:
            limit = str((1 + tasks_of(budget)) * COST)
            self.airflow.run(
                "stability",
                "budget",
                "set",
                budget,
                "--limit",
                limit,
                "--every",
                "total",
                "--ledger-conn-id",
                "ledger",
            )

    # What is seen

    def _wait_for_budgets(self) -> bool:
        """Tell whether tasks wait for each budget, and have said so."""
        said = "".join(log.read_text() for log in self.airflow.task_logs.glob("dag_id=spending/**/attempt=*"))
        used = f"{COST:g} of {COST:g} credits used or held"
        return all(f"budget {budget}: {used}" in said for budget in BUDGETS)

    def _all_wait(self) -> bool:
        states = self.airflow.states("gates") | {
            (f"spending_{name}", index): state
            for (name, index), state in self.airflow.states("spending").items()
        }
        wanted = {"deferrable": "deferred", "poke": "running", "reschedule": "up_for_reschedule"}
        ways = [(next(way for way in wanted if way in name), state) for (name, _), state in states.items()]
        return len(ways) == sum(GATES.values()) + sum(SPENDING.values()) and all(
            # One that is rescheduled now and then looks.
            state == wanted[way] or (way == "reschedule" and state in ("scheduled", "queued", "running"))
            for way, state in ways
        )

    def _have_looked(self) -> bool:
        """Tell whether each gate that pokes waits on a worker, and has looked in this try."""
        rows = self.airflow.query(
            "SELECT task_id, try_number FROM task_instance WHERE task_id LIKE 'poke%' AND state <> 'success'"
        )
        logs = (f"dag_id=gates/*/task_id={name}/attempt={number}.log" for name, number in rows)
        return all(
            any("Waiting: " in log.read_text() for log in self.airflow.task_logs.glob(each)) for each in logs
        )

    def _settled(self, number: int) -> bool:
        gates = [gate for gate in ALL_GATES if gate.round <= number]
        states = self.airflow.states("gates")
        spent = Counter(self.airflow.states("spending").values())["success"]
        return all(states[gate.task_id, -1] == "success" for gate in gates) and spent == sum(
            images(mode, earlier) for mode in SPENDING for earlier in range(number + 1)
        )

    def calls(self, name: str, method: str = "GET") -> list[RequestRecord]:
        """Return the calls with the keys of a connection, those of before too."""
        labels = {key["label"] for key in self.simulator.state()["keys"] if key["account"] == name}
        return [
            record
            for record in self.simulator.requests
            if record.key_label in labels and record.method == method
        ]

    def events(self, event: str, dag_id: str, mode: str = "") -> Counter[str]:
        """Return how often Airflow's log table has an event of each task, of a mode or of all."""
        rows = self.airflow.query(
            "SELECT task_id FROM log WHERE event = :event AND dag_id = :dag_id AND task_id LIKE :tasks",
            event=event,
            dag_id=dag_id,
            tasks=f"{mode}%",
        )
        return Counter(name for (name,) in rows)

    def retries(self, dag_id: str = "%", mode: str = "") -> int:
        """Return how many of Airflow's retries tasks have needed."""
        rows = self.airflow.query(
            "SELECT try_number FROM task_instance WHERE dag_id LIKE :dag_id AND task_id LIKE :tasks",
            dag_id=dag_id,
            tasks=f"{mode}%",
        )
        return sum(number - 1 for (number,) in rows)

    def looks(self, dag_id: str, mode: str) -> int:
        """Return how many calls for the balance workers have made at the most."""
        starts = self.events("running", dag_id, mode).total()
        if dag_id == "spending":
            return 2 * starts  # before the function, and after a refusal
        return starts - sum(gate.mode == mode and not gate.ends_in_the_triggerer for gate in ALL_GATES)

    def figures(self) -> dict[str, object]:
        """Return what docs/cluster.md shows of a run."""
        return {
            "seed": SEED,
            "order": " ".join(self.order),
            "killed": len(self.killed),
            "ended by themselves": self.airflow.restarted.total(),
            "opened": sum(state == "success" for state in self.airflow.states("gates").values()),
            "images": self.simulator.images_made,
            "retries": self.retries(),
            "worker starts": self.airflow.query("SELECT count(*) FROM log WHERE event = 'running'")[0][0],
            **{f"polls, {mode}": len(self.calls(f"gates_{mode}")) for mode in GATES},
            "waited": round(self.waited),
            "seconds": round(self.seconds),
        }

    def _tell(self, text: str, *values: object) -> None:
        log.info(f"after %.0f s: {text}", time.monotonic() - self.began, *values)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("airflow")
    for name in ("images", "dags"):
        (folder / name).mkdir()
    for file in (Path(__file__).parent / "dags" / "cluster.py", DAG_FILE):
        shutil.copy(file, folder / "dags")
    programs = {server: server.installed() for server in (PostgreSQL, Redis)}
    missing = [server.name for server, found in programs.items() if found is None]
    assert not missing, f"not on this machine: {', '.join(missing)}"
    with ExitStack() as stack:
        database = stack.enter_context(PostgreSQL(programs[PostgreSQL]))
        ledger_database = stack.enter_context(PostgreSQL(programs[PostgreSQL]))
        broker = stack.enter_context(Redis(programs[Redis]))
        simulator = stack.enter_context(StabilitySimulator(rate_limit=RateLimit(requests=1000)))
        metrics = stack.enter_context(StatsdListener())
        celery = {
            "celery__broker_url": broker.url,
            "celery__result_backend": database.url.replace("postgresql+psycopg2", "db+postgresql"),
        }
        airflow = RealAirflow(
            folder,
            folder / "dags",
            database=database.url,
            settings=SETTINGS | celery | metrics.settings(),
            seconds=LIMIT,
            restarts=True,
        )
        killed_tasks = KilledTasks(stack.enter_context(StabilitySimulator()), folder)
        airflow.environment |= {"PYTHONPATH": str(ROOT), IMAGES: str(folder / "images")}
        airflow.environment |= killed_tasks.environment()
        stack.callback(airflow.end)
        cluster = Cluster(airflow, database, ledger_database, simulator, metrics)
        cluster.killed_tasks = killed_tasks
        cluster.play()
        request.config.stash[FIGURES] = cluster.figures()
        yield cluster


def test_every_gate_has_opened_once(cluster):
    states = cluster.airflow.states("gates")

    assert states == {(gate.task_id, -1): "success" for gate in ALL_GATES}
    successes = cluster.events("success", "gates")
    # Airflow notes what workers report. What ends in the triggerer, only its state tells.
    assert successes == Counter(gate.task_id for gate in ALL_GATES if not gate.ends_in_the_triggerer)


def test_no_gate_has_opened_with_too_little_credit(cluster):
    rows = cluster.airflow.query("SELECT task_id, value FROM xcom WHERE dag_id = 'gates'")
    balances = {
        name: float(value if isinstance(value, int | float) else json.loads(value)) for name, value in rows
    }
    ends = dict(cluster.airflow.query("SELECT task_id, end_date FROM task_instance WHERE dag_id = 'gates'"))

    # None waited for more than its own round's, either.
    assert balances == {gate.task_id: balance(gate.round) for gate in ALL_GATES}
    for gate in ALL_GATES:
        ended: datetime = ends[gate.task_id]
        assert ended.timestamp() > cluster.topped_up[gate.round]


def test_no_task_has_failed_for_good(cluster):
    rows = cluster.airflow.query("SELECT task_id, state FROM task_instance WHERE state != 'success'")
    assert not rows


def test_none_is_paid_twice(cluster):
    names = {f"{mode}_{number:02}.png" for mode, count in SPENDING.items() for number in range(count)}

    assert {file.name for file in cluster.images.iterdir()} == names
    assert cluster.simulator.images_made == len(names)
    for mode, count in SPENDING.items():
        statuses = Counter(record.status for record in cluster.calls(f"spending_{mode}", "POST"))
        assert statuses.keys() <= {200, 402}
        assert statuses[200] == count
        assert cluster.simulator.credits(f"spending_{mode}") == COST - 0.5


def test_the_ledger_and_the_books_agree(cluster):
    for mode, count in SPENDING.items():
        conn_id = f"spending_{mode}"
        assert cluster.ledger.credits("posted", conn_id=conn_id) == count * COST
        assert cluster.ledger.credits("held", "unknown", conn_id=conn_id) == 0
    assert {budget.name: budget.used / 1e6 for budget in cluster.ledger.ledger.budgets()} == {
        budget: (1 + tasks_of(budget)) * COST for budget in BUDGETS
    }


def test_nothing_was_paid_for_while_the_budgets_were_used_up(cluster):
    assert cluster.images_without_budget == 0


def most_polls(seconds: float, interval: float, feeds: int) -> float:
    """Return how often feeds may poll that never do so twice in an interval."""
    return feeds * (seconds / interval + 1)


def test_each_triggerer_polls_once_per_interval_while_all_wait(cluster):
    interval, feeds = INTERVALS["deferrable"], cluster.feeds_in_quiet
    polls = len(cluster.polls_in_quiet)

    assert feeds in (1, 2)  # Airflow may give all to one
    assert feeds * (QUIET // interval - 1) <= polls <= most_polls(QUIET, interval, feeds=feeds)


@pytest.mark.parametrize(
    ("dag_id", "interval"), [("gates", INTERVALS["deferrable"]), ("spending", SPENDING_INTERVAL)]
)
def test_each_triggerer_polls_once_per_interval_whatever_is_killed(dag_id, interval, cluster):
    airflow = cluster.airflow
    # A triggerer that starts anew polls at once.
    new = [name for name in (*cluster.killed, *airflow.restarted.elements()) if name.startswith("triggerer")]
    polls = len(cluster.calls(f"{dag_id}_deferrable")) - cluster.looks(dag_id, "deferrable")

    assert polls <= most_polls(cluster.waited, interval, feeds=2) + len(new)


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_a_gate_on_a_worker_looks_once_per_interval(mode, cluster):
    most = most_polls(cluster.waited, INTERVALS[mode], feeds=GATES[mode])

    assert len(cluster.calls(f"gates_{mode}")) <= most + cluster.retries("gates", mode)


def test_no_key_stands_anywhere(cluster):
    places, files, rows = cluster.airflow.places_of(*cluster.every_key)

    assert not places
    assert files > 100
    assert rows > 500


def test_neither_the_rest_api_nor_the_credits_page_tell_a_key(cluster):
    search, url, token = Search(cluster.every_key), cluster.airflow.url, cluster.airflow.token()
    api = RestApi(url, token)
    api.request_all()
    page = requests.get(f"{url}/stability/", headers={"Authorization": f"Bearer {token}"}, timeout=60)

    assert not api.find(search)
    assert not search.find(page.content)
    assert len(api.responses) > 400
    assert "gates_deferrable" in page.text


def test_metrics_tell_no_key(cluster):
    packets = b"\n".join(cluster.metrics.packets)

    assert b"airflow.stability.balance" in packets
    assert not Search(cluster.every_key).find(packets)


@pytest.fixture(scope="module")
def killed_tasks(cluster: Cluster) -> KilledTasks:
    cluster.killed_tasks.play(cluster.airflow, triggerer="triggerer-1", seconds=240)
    return cluster.killed_tasks


# These come last, since the tests before look at all tasks of the cluster.
@pytest.mark.parametrize("killed", tasks(["local"]), ids=lambda killed: killed.name)
def test_a_worker_that_is_killed_around_a_call_has_paid_once_at_most(cluster, killed_tasks, killed):
    killed_tasks.check(cluster.airflow, killed)


def test_a_job_is_paid_once_whatever_becomes_of_a_triggerer(cluster, killed_tasks):
    killed_tasks.check_job(cluster.airflow, triggerers=2)
