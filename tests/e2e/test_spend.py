"""Tasks that spend in a real Airflow with two triggerers: many on one wallet, and a table of outcomes.

One story, told once for each Airflow version; the tests look at what it left.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.simulator import RateLimit, RequestRecord, StabilitySimulator
from tests.conftest import ROOT
from tests.e2e.spending import (
    AFTER_THE_KILL,
    AT_FIRST,
    CASES,
    COST,
    IMAGE_PATH,
    IMAGES,
    LONG_POKE_INTERVAL,
    MANY,
    MAPPED,
    POOL_SLOTS,
    POOLED,
    POOLED_TASKS,
    POOR,
    RICH,
    THEN,
    TOP_UP,
)
from tests.leaks import Search
from tests.real_airflow import COMPONENTS, TASK_INSTANCE, RealAirflow
from tests.statsd_listener import StatsdListener

log = logging.getLogger(__name__)

#: Seconds for the story. pytest's own limit ends this process at once, and would leave Airflow's running.
LIMIT = 600
pytestmark = pytest.mark.timeout(LIMIT + 60)

SETTINGS = {
    # Tasks that start before the API server answers fail.
    "core__dags_are_paused_at_creation": True,
    "core__max_active_tasks_per_dag": 2 * MANY,
    # So that a triggerer that was killed is noticed soon.
    "triggerer__job_heartbeat_sec": 2,
    "triggerer__triggerer_health_check_threshold": 6,
    "scheduler__trigger_timeout_check_interval": 2,
}
#: What a person does with the button "Clear".
CLEAR = f"""
from airflow.models.serialized_dag import SerializedDagModel

run = "scheduled__2026-01-01T00:00:00+00:00"
dag = SerializedDagModel.get_dag("outcomes")
tasks = {[case.task_id for case in CASES if case.outcome.meanwhile == "clear"]}
dag.clear(task_ids=tasks{"" if AIRFLOW_VERSION < (3, 0) else ", run_id=run"})
"""
ENDED = {"success", "failed"}
WAITING = {"deferred", "up_for_reschedule"}
#: How Airflow joins a task with the times that it was rescheduled to.
RESCHEDULED = (
    "task_reschedule.task_id = task_instance.task_id"
    if AIRFLOW_VERSION < (3, 0)
    else "task_reschedule.ti_id = task_instance.id"
)
#: Seconds for which nothing must move until we believe that nothing will.
QUIET = 3.0
#: How many triggers the first triggerer takes.
FULL = (MANY - AT_FIRST) // 2
#: What Airflow's log table calls it when a scheduler sees a worker end with a deferral after the task has
#: resumed. It is tried again then, before it has begun. `MIN_DEFERRAL_SECONDS` is the time that a
#: scheduler has, and a machine that stands still for so long cannot be told from a slow one.
AIRFLOWS_RACE = "state mismatch"
#: The requirement.
FEW_REFUSALS = 40


class Story:
    """What happens, and what it leaves."""

    def __init__(
        self,
        airflow: RealAirflow,
        wallet: StabilitySimulator,
        wallets: StabilitySimulator,
        metrics: StatsdListener,
    ) -> None:
        self.airflow, self.metrics = airflow, metrics
        self.wallet, self.wallets = wallet, wallets
        self.images = Path(airflow.environment[IMAGES])
        self.began = time.monotonic()
        self.labels: dict[str, str] = {}
        self.keys = [wallet.api_key]
        self._waited: set[tuple[str, int]] = set()
        self.given: dict[str, float] = {}
        #: After each step: how many images the many have, and how many tasks are in which state.
        self.steps: list[tuple[int, Counter[str | None]]] = []
        self.images_at_first: set[str] = set()
        #: The triggerer that is killed, and the one that has the trigger of the task to be killed.
        self.first, self.holder = 0, -1
        self.triggers_before: dict[int, int] = {}
        self.triggers_after: dict[int, int] = {}

    def play(self) -> None:
        airflow = self.airflow
        airflow.run("db", "migrate")
        airflow.connect(self._open_wallets())
        airflow.start(*(name for name in COMPONENTS if name != "triggerer"))
        airflow.start("triggerer", options=("--capacity", str(FULL)))
        airflow.wait_for("all components are healthy", airflow.healthy)
        airflow.wait_for("all DAGs are there", lambda: len(airflow.query("SELECT * FROM dag")) == 3)
        airflow.run("pools", "set", "stability", str(POOL_SLOTS), "credits in flight")
        airflow.unpause("pooled", "outcomes")
        stopped = {
            what: [case.task_id for case in CASES if case.outcome.meanwhile == what]
            for what in ("nothing", "clear", "kill")
        }
        waiting = [MAPPED, *(case.task_id for case in CASES if case.outcome.meanwhile)]
        airflow.wait_for("tasks have waited", lambda: self._have_waited(waiting))
        airflow.wait_for("it sleeps", lambda: self._sleeps("cleared-reschedule", seconds=9))
        airflow.execute(CLEAR)
        airflow.wait_for(
            "what was cleared waits again", lambda: all(map(self._waits_again, stopped["clear"]))
        )
        for name in (*stopped["nothing"], *stopped["clear"], MAPPED):
            self._top_up(name)
        self._tell("the table's tasks wait, or have waited")
        airflow.unpause("many")
        # So each of the two gets its share, whichever is quicker; and Airflow does not say which is which.
        airflow.wait_for("a triggerer is full", lambda: FULL in self._triggers().values())
        (self.first,) = self._triggerers()
        airflow.start("triggerer-2")
        self._wait_for_images(AT_FIRST)
        self.images_at_first = {file.name for file in self.images.iterdir()}
        self.wallet.top_up(THEN * COST)
        self._wait_for_images(AT_FIRST + THEN)
        others = [MAPPED, *(case.task_id for case in CASES if case.task_id not in stopped["kill"])]
        airflow.wait_for("others have ended", lambda: all(map(self._ended, others)))
        self._tell("all but the tasks to be killed have ended")
        self._kill()
        for name in stopped["kill"]:
            self._top_up(name)
        self.wallet.top_up(AFTER_THE_KILL * COST)
        self._wait_for_images(AT_FIRST + THEN + AFTER_THE_KILL)
        self.wallet.top_up((MANY - AT_FIRST - THEN - AFTER_THE_KILL) * COST)
        self._wait_for_images(MANY)
        airflow.wait_for("all have ended", lambda: all(map(self._ended, stopped["kill"])))

    def _open_wallets(self) -> dict[str, str]:
        """Give each task of the table an organization, an account and a key; return the connections."""
        uris = {"wallet": f"{self.wallet.connection_uri()}?api_version=v1"}
        for name in (*(case.task_id for case in CASES), MAPPED, "pooled"):
            outcome = next((case.outcome for case in CASES if case.task_id == name), None)
            self.given[name] = RICH if name == "pooled" else POOR if outcome is None else outcome.credits
            self.wallets.add_organization(name, credits=self.given[name])
            self.wallets.add_account(name, "someone@example.org", [name])
            key = self.wallets.add_key(account=name)
            self.keys.append(key)
            uris[name] = f"{self.wallets.connection_uri(key)}?api_version=v1&organization={name}"
            faults = outcome.faults if outcome else ()
            for position, fault in enumerate(faults, start=1):
                for_ever = outcome is not None and outcome.for_ever and position == len(faults)
                self.wallets.inject(fault, times=None if for_ever else 1, path=IMAGE_PATH, key=key)
        self.labels = {key["account"]: key["label"] for key in self.wallets.state()["keys"]}
        return uris

    def _top_up(self, name: str) -> None:
        self.given[name] += TOP_UP
        self.wallets.top_up(TOP_UP, name)

    def _wait_for_images(self, number: int) -> None:
        """Wait until there are as many images, all other tasks wait, and nothing moves any more."""
        quiet_since = time.monotonic()

        def settled() -> bool:
            nonlocal quiet_since
            if self.states() != Counter({"success": number, "deferred": MANY - number}) - Counter():
                quiet_since = time.monotonic()
                return False
            return number == MANY or time.monotonic() - quiet_since > QUIET

        self.airflow.wait_for(f"{number} images", settled, seconds=300)
        self.steps.append((self.wallet.images_made, self.states()))
        self._tell("%d images, %d calls refused", number, self.statuses()[402])

    def _kill(self) -> None:
        """Kill one of two triggerers, and the scheduler, which starts again."""
        airflow = self.airflow
        self.triggers_before = self._triggers()
        ((self.holder,),) = airflow.query(
            "SELECT triggerer_id FROM trigger JOIN task_instance ON trigger.id = trigger_id "
            "WHERE task_id = 'killed-deferrable'"
        )
        airflow.wait_for("it sleeps", lambda: self._sleeps("killed-reschedule", seconds=4))
        airflow.kill("scheduler")
        airflow.kill("triggerer")
        airflow.start("scheduler")
        airflow.wait_for("the other has all triggers", lambda: self.first not in self._triggers())
        self.triggers_after = self._triggers()
        self._tell("triggers before the kill: %s, and after: %s", self.triggers_before, self.triggers_after)

    def _tell(self, text: str, *values: object) -> None:
        log.info(f"after %.0f s: {text}", time.monotonic() - self.began, *values)

    def _triggerers(self) -> list[int]:
        """Return the ids of the triggerers, in the order in which they have started."""
        rows = self.airflow.query(
            "SELECT id FROM job WHERE job_type = 'TriggererJob' AND state = 'running' ORDER BY id"
        )
        return [number for (number,) in rows]

    def _triggers(self) -> dict[int, int]:
        """Return how many triggers each triggerer has."""
        return dict(self.airflow.query("SELECT triggerer_id, count(*) FROM trigger GROUP BY triggerer_id"))

    def _have_waited(self, names: list[str]) -> bool:
        """Tell whether tasks have waited, whatever they do just now."""
        for (name, index), state in self.airflow.states("outcomes").items():
            if state in WAITING:
                self._waited.add((name, index))
        return {(name, index) for name in names for index in self._indices(name)} <= self._waited

    def _waits_again(self, name: str) -> bool:
        return self._state(name) in WAITING and min(self.tries(name)) > 1

    def _sleeps(self, name: str, *, seconds: float) -> bool:
        """Tell whether a task was rescheduled to a time that is as many seconds away."""
        dates = self.airflow.query(
            "SELECT max(reschedule_date) FROM task_reschedule JOIN task_instance ON "
            f"{RESCHEDULED} WHERE task_instance.task_id = :name",
            name=name,
        )
        left = datetime.fromisoformat(dates[0][0]).replace(tzinfo=UTC) - datetime.now(UTC)
        return self._state(name) == "up_for_reschedule" and left.total_seconds() > seconds

    def _state(self, name: str) -> str | None:
        return self.airflow.states("outcomes")[name, -1]

    def _ended(self, name: str) -> bool:
        return all(self.airflow.states("outcomes")[name, index] in ENDED for index in self._indices(name))

    @staticmethod
    def _indices(name: str) -> tuple[int, ...]:
        return (0, 1) if name == MAPPED else (-1,)

    def tries(self, name: str) -> set[int]:
        """Return the number of the last try of a task, or of each of a mapped one."""
        rows = self.airflow.query(f"SELECT try_number FROM {TASK_INSTANCE} WHERE task_id = :name", name=name)
        return {number for (number,) in rows}

    def retried(self, name: str) -> list[Counter[str]]:
        """Return what Airflow's log table tells of each instance of a task that was tried more than once."""
        rows = self.airflow.query(
            f"SELECT log.map_index, log.event FROM log JOIN {TASK_INSTANCE} USING (task_id, map_index) "
            "WHERE task_id = :name AND task_instance.try_number > 1",
            name=name,
        )
        events: dict[int, Counter[str]] = {}
        for index, event in rows:
            events.setdefault(index, Counter())[event] += 1
        return list(events.values())

    def states(self) -> Counter[str | None]:
        """Return how many of the many are in which state."""
        return Counter(self.airflow.states("many").values())

    def statuses(self) -> Counter[int | None]:
        """Return how often the calls of the many that cost were answered with which status."""
        return Counter(record.status for record in self.wallet.requests if record.method == "POST")

    def calls(self, name: str, method: str) -> list[RequestRecord]:
        """Return the calls of a task of the table."""
        return [
            record
            for record in self.wallets.requests
            if record.key_label == self.labels[name] and record.method == method
        ]

    def images_paid(self, name: str) -> float:
        """Return how many images were paid for from the wallet of a task of the table."""
        return (self.given[name] - self.wallets.credits(name)) / COST


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("airflow")
    for name in ("dags", "images", "pooled"):
        (folder / name).mkdir()
    # Alone: Airflow would watch the assets of the others, paused or not.
    shutil.copy(Path(__file__).parent / "dags" / "spend.py", folder / "dags")
    # A fast machine may make more than 150 calls in 10 seconds. What a lock-out does, the table tells.
    generous = RateLimit(requests=1000)
    wallet, wallets = StabilitySimulator(credits=AT_FIRST * COST, rate_limit=generous), StabilitySimulator()
    with wallet, wallets, StatsdListener() as metrics:
        settings = SETTINGS | metrics.settings(statsd_influxdb_enabled=True)
        airflow = RealAirflow(folder, folder / "dags", settings=settings, seconds=LIMIT)
        airflow.environment |= {"PYTHONPATH": str(ROOT), IMAGES: str(folder / "images")}
        airflow.environment[POOLED] = str(folder / "pooled")
        try:
            story = Story(airflow, wallet, wallets, metrics)
            story.play()
            yield story
        finally:
            airflow.end()


def test_each_credit_becomes_an_image_and_the_rest_wait_without_a_worker(story):
    images = [AT_FIRST, AT_FIRST + THEN, AT_FIRST + THEN + AFTER_THE_KILL, MANY]

    assert [made for made, _ in story.steps] == images
    assert [states for _, states in story.steps] == [
        Counter({"success": number, "deferred": MANY - number}) - Counter() for number in images
    ]
    assert len(story.images_at_first) == AT_FIRST


def test_none_is_paid_twice(story):
    names = {f"{index}.png" for index in range(MANY)}

    assert {file.name for file in story.images.iterdir()} == names
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in story.images.iterdir())
    assert story.wallet.images_made == story.statuses()[200] == MANY
    assert story.wallet.credits() == 0


def test_no_task_fails_nor_needs_a_retry(story):
    assert story.states() == Counter(success=MANY)
    assert [told for told in story.retried("paint_one_of_many") if AIRFLOWS_RACE not in told] == []


def test_few_calls_are_refused(story):
    statuses = story.statuses()

    assert statuses.keys() <= {200, 402}
    assert statuses[402] < FEW_REFUSALS


def test_both_triggerers_had_triggers_and_the_one_that_is_left_has_all(story):
    # Of the many, and the one of the table that is to be killed.
    waiting = MANY - AT_FIRST - THEN + 1

    assert len(story.triggers_before) == 2
    assert sum(story.triggers_before.values()) == waiting
    assert story.first == story.holder
    assert list(story.triggers_after.values()) == [waiting]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task_id)
def test_what_becomes_of_a_task_that_spends(case, story):
    outcome, name = case.outcome, case.task_id
    (least, most), text = outcome.posts, outcome.text
    if outcome.no_memory and case.mode == "reschedule":
        (least, most), text = outcome.no_memory

    assert story.airflow.states("outcomes")[name, -1] == outcome.state
    (tries,) = story.tries(name)
    # Airflow 2.11 fails a cleared task that starts just when its old trigger is deleted, whose id it keeps.
    # By reschedule, tasks of the table wait for less than MIN_DEFERRAL_SECONDS.
    more = (outcome.meanwhile == "clear") + sum(told[AIRFLOWS_RACE] for told in story.retried(name))
    assert tries in range(outcome.tries, outcome.tries + 1 + more)
    assert story.images_paid(name) == outcome.images
    assert least <= len(story.calls(name, "POST")) <= most
    assert text.format(mode=case.mode) in story.airflow.task_log("outcomes", name)


@pytest.mark.parametrize("name", ["returns_bytes-deferrable", "returns_Response-deferrable"])
def test_a_picture_that_cannot_be_returned_is_not_in_the_log(name, story):
    log = story.airflow.task_log("outcomes", name)

    assert "XCom cannot hold" in log
    assert "PNG" not in log


def test_a_generator_returns_what_it_returns(story):
    log = story.airflow.task_log("outcomes", "generator-deferrable")

    assert "Returned value was: images/one.png" in log


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.outcome.least_pause], ids=lambda case: case.task_id
)
def test_a_refusal_is_followed_by_a_pause(case, story):
    posts = [record.monotonic for record in story.calls(case.task_id, "POST")]

    assert not [
        later - earlier for earlier, later in pairwise(posts) if later - earlier < case.outcome.least_pause
    ]


def test_mapped_tasks_wait_by_reschedule_too(story):
    states = story.airflow.states("outcomes")

    assert [states[MAPPED, index] for index in range(2)] == ["success"] * 2
    assert story.tries(MAPPED) == {1}
    assert story.images_paid(MAPPED) == len(story.calls(MAPPED, "POST")) == 2


@pytest.mark.parametrize("name", ["topped_up-reschedule", MAPPED])
def test_a_task_that_waits_by_reschedule_looks_once_an_interval(name, story):
    looks = [record.monotonic for record in story.calls(name, "GET")]
    tasks = 2 if name == MAPPED else 1

    # The scheduler minds the time that a task was rescheduled to.
    assert len(looks) > tasks
    assert len(looks) <= tasks * ((looks[-1] - looks[0]) / LONG_POKE_INTERVAL + 2)


def test_a_pool_limits_the_credits_in_flight(story):
    folder = Path(story.airflow.environment[POOLED])
    times = [[float(time) for time in file.read_text().split()] for file in folder.iterdir()]
    most = max(sum(COST for began, ended in times if began <= now < ended) for now, _ in times)

    assert len(times) == POOLED_TASKS
    assert most == POOL_SLOTS // COST * COST


def test_where_metrics_have_tags_the_names_are_short(story):
    names = {metric.name for metric in story.metrics.ours}
    senders = {metric.sender for metric in story.metrics.ours if "stability.balance" in metric.name}

    assert {name.split(",")[0].removeprefix("airflow.stability.") for name in names} == {
        "balance",
        "call",
        "polls",
        "spent",
        "waiting_gates",
    }
    assert "airflow.stability.balance,conn_id=wallet,organization=default" in names
    assert len(senders) > 2  # two triggerers and the workers


def test_what_is_spent_is_counted_by_task(story):
    name = "airflow.stability.spent,conn_id=wallet,dag_id=many,task_id=paint_one_of_many,endpoint="
    spent = [metric.value for metric in story.metrics.ours if metric.name.startswith(name)]

    assert sum(spent) == MANY * COST


def test_no_key_stands_anywhere(story):
    places, files, rows = story.airflow.places_of(*story.keys)
    in_metrics = Search(story.keys).find(b"\n".join(story.metrics.packets))

    assert (places, in_metrics) == ([], [])
    assert files + rows > MANY


def test_the_search_for_keys_would_find_one(story):
    refused, run = "Refused: POST /v2beta/stable-image/generate", "scheduled__2026-01-01T00:00:00+00:00"
    places, _, _ = story.airflow.places_of(refused, run)

    logs = str(story.airflow.task_logs / "dag_id=outcomes")
    assert [place for place in places if place.startswith(logs) and place.endswith("secret 0: itself")]
    assert "table task_instance, column run_id: secret 1: itself" in places
    assert Search(["airflow.stability.balance,conn_id=wallet"]).find(b"\n".join(story.metrics.packets))
    fernet = Fernet(story.airflow.fernet_key)
    passwords = [password for (password,) in story.airflow.query("SELECT password FROM connection")]
    assert {fernet.decrypt(password.encode()).decode() for password in passwords} == set(story.keys)
