"""Spends of whose end the ledger has heard nothing, and what the tasks that follow find out of them."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import fsspec
import pytest
from sqlalchemy import event, select

from airflow_stability.client.durable_folder import Folder
from airflow_stability.client.spend_recorder import LedgerSettings, WantedCredits
from airflow_stability.errors import StabilityLedgerUnavailableError
from airflow_stability.hooks import unreported_spends
from airflow_stability.hooks.durable_folder import AirflowStorage
from airflow_stability.hooks.ledger import open_ledger
from airflow_stability.hooks.spend_recorder import PATIENCE, PAUSE, LedgerRecorder
from airflow_stability.hooks.unreported_spends import is_there, write_what_was_left
from airflow_stability.ledger.ledger import Call, Spender
from airflow_stability.ledger.schema import spends
from tests.versions import IS_LOWEST

# Airflow 2.11.0 loads all hooks for one of them, and modules of that time use what is deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore")] if IS_LOWEST else []

CORE = "stable-image/generate/core"


@pytest.fixture
def ledger(ledger):
    ledger.set_budget("team", 100, "total")
    return ledger


def used(ledger):
    (budget,) = ledger.budgets()
    return budget.used / 1_000_000


def call(ledger, key, output=None):
    ledger.begin_call(Call(key, Spender("default", budget="team", task_id="paint"), CORE, 3, output), None)


def pass_(ledger, **more):
    ledger.time += timedelta(**more)
    ledger.end_leases()


def look(ledger, left=None, outputs=()):
    """Look once; return the keys of the spends whose tasks were asked."""
    asked = []

    def left_by_task(spend):
        asked.append(spend.spend_key)
        word = (left or {}).get(spend.spend_key)
        if isinstance(word, Exception):
            raise word
        return word

    def has_output(output):
        if isinstance(outputs, Exception):
            raise outputs
        return output in outputs

    write_what_was_left(ledger, left_by_task, has_output)
    return sorted(asked)


@pytest.fixture(params=[{"minutes": 6}, {"hours": 3}], ids=["held", "lease ended"])
def since(request):
    return request.param


@pytest.mark.parametrize(("outcome", "counts"), [("posted", 3), ("void", 0)])
def test_what_a_task_has_left_is_written_once(ledger, since, outcome, counts):
    call(ledger, "a")
    pass_(ledger, **since)
    assert used(ledger) == 3

    assert look(ledger, {"a": (outcome, "why")}) == ["a"]

    row = ledger.row("a")
    assert (row.state, row.reason, used(ledger)) == (outcome, "why", counts)
    assert look(ledger, {"a": ("void", None)}) == []
    assert not ledger.end("a", outcome)  # by its worker, which has come back
    assert ledger.row("a") == row
    assert used(ledger) == counts


def test_what_a_worker_wrote_itself_meanwhile_stays(ledger):
    call(ledger, "a")
    pass_(ledger, minutes=6)

    def left_by_task(spend):
        assert ledger.end("a", "posted")
        return "posted", "written again"

    write_what_was_left(ledger, left_by_task, lambda output: False)

    assert (ledger.row("a").state, ledger.row("a").reason, used(ledger)) == ("posted", None, 3)


def test_an_outcome_that_its_task_did_not_know_either_says_why(ledger, since):
    call(ledger, "a")
    pass_(ledger, **since)

    look(ledger, {"a": ("unknown", "No response came.")})

    row = ledger.row("a")
    assert (row.state, row.reason.endswith("No response came."), used(ledger)) == ("unknown", True, 3)
    assert look(ledger) == []


def test_an_output_that_is_there_was_paid_for(ledger, since):
    call(ledger, "a", "/images/a.png")
    call(ledger, "b", "/images/b.png")
    pass_(ledger, **since)

    look(ledger, outputs=["/images/a.png"])

    assert (ledger.row("a").state, ledger.row("a").reason) == ("posted", "Its output was found.")
    assert ledger.row("b").state in ("held", "unknown")
    assert used(ledger) == 6


def test_an_output_that_either_of_two_calls_may_have_made_settles_neither(ledger, since):
    call(ledger, "a", "/images/a.png")
    call(ledger, "b", "/images/a.png")
    pass_(ledger, **since)
    before = {ledger.row(key).state for key in "ab"}

    assert look(ledger, outputs=["/images/a.png"]) == ["a", "b"]

    assert {ledger.row(key).state for key in "ab"} == before
    assert look(ledger, outputs=["/images/a.png"]) == []


@pytest.mark.parametrize(
    ("outputs", "finding"),
    [((), unreported_spends.NOTHING_LEFT), (TimeoutError(), "Its output could not be looked for.")],
)
def test_without_a_finding_each_is_looked_into_twice(ledger, outputs, finding):
    call(ledger, "a", "/images/a.png")
    pass_(ledger, minutes=4)
    assert look(ledger) == []  # it may be under way
    pass_(ledger, minutes=2)
    assert look(ledger, outputs=outputs) == ["a"]
    assert (ledger.row("a").state, ledger.row("a").reason) == ("held", finding)
    assert look(ledger) == []

    pass_(ledger, hours=3)
    assert look(ledger, outputs=outputs) == ["a"]
    assert look(ledger) == []
    row = ledger.row("a")
    assert (row.state, row.reason) == (
        "unknown",
        f"Its lease ended, and its outcome was never reported. {finding}",
    )
    assert used(ledger) == 3
    assert ledger.settle("a", "void", "ann")


def test_the_run_of_a_function_may_take_as_long_as_its_lease(ledger):
    ledger.spend("run", state="held", budget="team")
    ledger.start("run", "team")
    pass_(ledger, minutes=119)
    assert look(ledger) == []
    pass_(ledger, minutes=2)

    assert look(ledger, {"run": ("posted", None)}) == ["run"]
    assert ledger.row("run").state == "posted"


def test_what_became_unknown_otherwise_is_not_looked_into(ledger):
    call(ledger, "a")
    ledger.end("a", "unknown", "The connection broke.")
    pass_(ledger, hours=3)

    assert look(ledger) == []


def test_after_a_week_nobody_looks_any_more(ledger):
    call(ledger, "a")
    pass_(ledger, days=8)

    assert look(ledger) == []


def test_what_cannot_be_read_is_looked_for_again_and_stops_nothing_else(ledger, since):
    call(ledger, "a")
    call(ledger, "b")
    pass_(ledger, **since)

    look(ledger, {"a": PermissionError(), "b": ("posted", None)})
    assert ledger.row("b").state == "posted"

    assert look(ledger, {"a": ("posted", None)}) == ["a"]
    assert ledger.row("a").state == "posted"


def test_a_task_looks_into_no_more_than_ten(ledger):
    for number in range(60):
        call(ledger, f"call-{number}")
        ledger.end(f"call-{number - 30}", "void")
    pass_(ledger, minutes=6)

    asked = [look(ledger) for _ in range(4)]

    assert [len(keys) for keys in asked] == [10, 10, 10, 0]
    assert len({key for keys in asked for key in keys}) == 30


def test_a_task_looks_for_no_more_than_some_seconds(ledger, clock):
    for key in "abc":
        call(ledger, key)
    pass_(ledger, minutes=6)
    asked = []

    def slow(spend):
        asked.append(spend.spend_key)
        clock.sleep(unreported_spends.SECONDS)

    write_what_was_left(ledger, slow, lambda output: False)

    assert len(asked) == 1


def test_a_ledger_that_goes_away_fails_no_task_and_leaves_what_it_held(ledger, clock):
    call(ledger, "a")
    pass_(ledger, minutes=6)
    before = ledger.row("a")

    def away(connection):
        raise StabilityLedgerUnavailableError("away")

    def left_by_task(spend):
        event.listen(ledger.database.engine, "begin", away)
        return "posted", None

    write_what_was_left(ledger, left_by_task, lambda output: False)
    event.remove(ledger.database.engine, "begin", away)

    assert ledger.row("a") == before
    assert look(ledger, {"a": ("posted", None)}) == ["a"]


def test_both_kinds_are_read_from_one_index(ledger):
    statements = []

    @event.listens_for(ledger.database.engine, "before_cursor_execute")
    def note(_connection, _cursor, statement, parameters, *_):
        if statement.startswith("SELECT"):
            statements.append((statement, parameters))

    ledger.unreported(20)
    seen = list(statements)
    with ledger.database.engine.connect() as connection:
        plans = [
            " ".join(str(row) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values))
            for text, values in seen
        ]

    assert len(plans) == 2
    for plan in plans:
        assert "stability_spends_by_state (state=? AND lease_ends_at" in plan
        assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize("file", ["a.b.png", "a.b.filtered.png"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_output_is_found_by_the_address_that_a_call_wrote_down(tmp_path, file, scheme):
    to = f"{scheme}{tmp_path}"
    folder = Folder(to, conn_id=None, name="a.b", ending="png", storage=AirflowStorage())
    output = folder.address(folder.output)
    assert not is_there(output)

    folder.write(file, b"PNG", {})

    assert is_there(output)
    assert not is_there(output.replace("a.b", "b"))


def test_a_storage_that_hangs_is_given_up(tmp_path, monkeypatch):
    ends = threading.Event()
    monkeypatch.setattr(unreported_spends, "SECONDS", 0.05)
    local = type(fsspec.filesystem("file"))
    monkeypatch.setattr(local, "exists", lambda self, path: ends.wait(20))

    with pytest.raises(TimeoutError):
        is_there(f"{tmp_path}/a.png")
    ends.set()


class TaskInstance:
    """Airflow's, as far as an XCom needs it; and when each was pushed."""

    def __init__(self, clock):
        self._clock = clock
        self.fails = False
        self.pushed = []

    def xcom_push(self, key, value):
        self.pushed.append((self._clock.now, key, value))
        if self.fails:
            raise RuntimeError("The API server is away, too.")


@pytest.fixture
def task_instance(clock, monkeypatch):
    made = TaskInstance(clock)
    monkeypatch.setattr(unreported_spends, "get_current_context", lambda: {"ti": made})
    return made


@pytest.fixture
def recorder(monkeypatch, tmp_path):
    """Return the recorder of a ledger that is away."""
    monkeypatch.setenv("AIRFLOW_CONN_NO_LEDGER", f"sqlite:///{tmp_path}/missing/ledger.db")
    return LedgerRecorder(LedgerSettings("no_ledger", None), conn_id="default", organization=None, prices={})


def test_an_outcome_is_left_before_the_task_waits_for_the_ledger(recorder, task_instance, clock, caplog):
    began = clock.now
    recorder.end("a", "unknown", "?" * 300)

    ((when, key, value),) = task_instance.pushed
    assert (key, value) == ("stability_spend_a", {"state": "unknown", "reason": "?" * 200})
    assert when - began < PAUSE
    assert clock.now - began >= PATIENCE
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message.startswith("The ledger does not know that the spend a is unknown. A later task")


def test_an_outcome_that_cannot_be_left_is_in_the_log(recorder, task_instance, caplog):
    task_instance.fails = True
    recorder.end("a", "posted")

    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message.startswith(
        "The ledger does not know that the spend a is posted. The ledger will call the spend unknown"
    )


def test_a_thread_of_the_function_leaves_it_to_the_end_of_the_run(
    recorder, task_instance, monkeypatch, tmp_path
):
    away = os.environ["AIRFLOW_CONN_NO_LEDGER"]
    monkeypatch.setenv("AIRFLOW_CONN_NO_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    open_ledger("no_ledger").database.init()
    recorder.begin_run(WantedCredits(3, None, None, None), itemized=True, hold=None, replays=False)
    call = recorder.begin(CORE, None, None, 60.0)
    monkeypatch.setenv("AIRFLOW_CONN_NO_LEDGER", away)
    thread = threading.Thread(target=recorder.end, args=(call, "posted"))
    thread.start()
    thread.join()
    assert task_instance.pushed == []

    recorder.end_run(completed=True, refused=False)

    assert [value["state"] for _, _, value in task_instance.pushed] == ["posted", "void"]
    assert task_instance.pushed[0][1] == f"stability_spend_{call}"


def test_what_was_accepted_and_is_not_charged_ends_as_void_though_the_ledger_was_away(
    recorder, task_instance, monkeypatch, tmp_path
):
    away = os.environ["AIRFLOW_CONN_NO_LEDGER"]
    there = f"sqlite:///{tmp_path}/ledger.db"
    monkeypatch.setenv("AIRFLOW_CONN_NO_LEDGER", there)
    open_ledger("no_ledger").database.init()
    recorder.begin_run(WantedCredits(3, None, None, None), itemized=True, hold=None, replays=False)
    call = recorder.begin(CORE, None, "s3://bucket/1.png", 60.0)
    monkeypatch.setenv("AIRFLOW_CONN_NO_LEDGER", away)
    recorder.end(call, "posted")
    monkeypatch.setenv("AIRFLOW_CONN_NO_LEDGER", there)
    recorder.not_charged("s3://bucket/1.png", "moderated")
    recorder.end_run(completed=False, refused=False)

    with open_ledger("no_ledger").database.engine.connect() as connection:
        ended = connection.execute(select(spends.c.state).where(spends.c.spend_key == call)).scalar()
    assert ended == "void"


def test_a_connection_that_airflow_does_not_find_may_be_there_later(recorder, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_NO_LEDGER")
    with pytest.raises(StabilityLedgerUnavailableError, match="The ledger's connection cannot be read"):
        recorder.begin_run(WantedCredits(3, None, None, None), itemized=True, hold=None, replays=False)
