"""What the clock of another machine does, an hour or a day behind or ahead: the table of `docs/cluster.md`.

Each measure returns seconds. The table says by how many of them the skew changes the measure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import selectors
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from types import SimpleNamespace

import pytest
import responses

from airflow_stability import daemon_threads
from airflow_stability.client import StabilityClient
from airflow_stability.client.responses import error_from_response
from airflow_stability.compat import AIRFLOW_VERSION, AirflowRescheduleException, TaskDeferred
from airflow_stability.deferral import BACKSTOP, seconds_since_deferral
from airflow_stability.errors import StabilityAuthenticationError, StabilityOutcomeUnknownError
from airflow_stability.operators.spend import StabilitySpendOperator
from airflow_stability.page.balance_cache import BalanceCache
from airflow_stability.rules.crossing import ThresholdWatch
from airflow_stability.rules.gate import Gate, Verdict
from airflow_stability.rules.lockout import MAX_LOCKOUT_SECONDS, Lockout
from airflow_stability.rules.log_throttle import LogThrottle
from airflow_stability.rules.spending import SpendState
from airflow_stability.sensors.stability import StabilityBalanceSensor
from airflow_stability.triggers.feed import observations
from airflow_stability.triggers.stability import StabilityBalanceTrigger
from tests.triggerer import started_anew

HOUR, DAY = 3600.0, 86400.0
SKEWS = {"a day behind": -DAY, "an hour behind": -HOUR, "an hour ahead": HOUR, "a day ahead": DAY}


class InstantLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only by waiting, at once. Calls in threads take real time."""

    def __init__(self):
        loop, self._passed = self, 0.0

        class Selector(selectors.DefaultSelector):
            def select(self, timeout=None):
                while calls_are_under_way():
                    if events := super().select(0.001):
                        return events
                events = super().select(0)
                loop._passed += 0.0 if events else timeout or 0.0
                return events

        super().__init__(Selector())

    def time(self):
        return 1000.0 + self._passed

    def run_in_executor(self, executor, function, *arguments):
        done = self.create_future()
        try:
            done.set_result(function(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


def calls_are_under_way():
    threads = [thread for thread in threading.enumerate() if thread.name == daemon_threads.THREAD_NAME]
    return len(threads) > len(daemon_threads.idle_threads)


def run(main):
    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        return runner.run(main)


class Machine:
    """The wall clock of the machine that runs this package, and its API."""

    def __init__(self, monkeypatch, mock, base_url):
        self._monkeypatch = monkeypatch
        self._skew = 0.0
        self.base_url = base_url
        mock.add_callback("GET", f"{base_url}/v1/user/balance", self._answer)
        self.answers(credits=2.0)

    def answers(self, status=200, credits=0.0):
        """Set the answer to each request for the balance."""
        self._status, self._credits = status, credits

    def _answer(self, request):
        body = {"credits": self._credits} if self._status == 200 else {"id": "1", "name": "failed"}
        return self._status, {"Content-Type": "application/json"}, json.dumps(body)

    @contextlib.contextmanager
    def clock(self, skew):
        """Let the clock be ahead for as long as the block runs."""

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(seconds=skew)

        with self._monkeypatch.context() as patch:
            for name, module in list(sys.modules.items()):
                if name.startswith("airflow_stability.") and getattr(module, "datetime", None) is datetime:
                    patch.setattr(module, "datetime", Clock)
            patch.setattr(self, "_skew", skew)
            yield

    def defer(self, task, *, resuming=None):
        """Run a task until it defers; return its trigger, as a triggerer reads it.

        :param resuming: the payload of an event.
        """
        start = datetime.now(UTC) + timedelta(seconds=self._skew)  # Airflow notes it by this clock
        context = {"ti": SimpleNamespace(try_number=1, start_date=start), "outlet_events": {}}
        arguments = [context] if resuming is None else ["execute_complete", {"event": resuming}, context]
        with pytest.raises(TaskDeferred) as raised:
            (task.execute if resuming is None else task.resume_execution)(*arguments)
        return StabilityBalanceTrigger(**json.loads(json.dumps(raised.value.trigger.serialize()[1])))


@pytest.fixture
def machine(monkeypatch, connection, base_url):
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield Machine(monkeypatch, mock, base_url)


def gate(**arguments):
    arguments = {"minimum_credits": 8, "timeout": 10 * HOUR, "poke_interval": 1800, **arguments}
    return StabilityBalanceSensor(task_id="gate", deferrable=True, **arguments)


def spender(function=lambda: "done", **arguments):
    arguments = {"credits": 3, "wait_timeout": 10 * HOUR, "poke_interval": 300, **arguments}
    return StabilitySpendOperator(task_id="spend", python_callable=function, **arguments)


async def event_of(trigger):
    """Return the payload of a trigger's event, and after how many seconds it came."""
    began = asyncio.get_running_loop().time()
    (event,) = [event async for event in trigger.run()]
    return event.payload, asyncio.get_running_loop().time() - began


# The measures. The skew is that of the machine that comes first in the name.


def worker_to_triggerer_lock_out(machine, skew):
    """The seconds until a gate opens after its worker met a 429."""
    machine.answers(429)
    with machine.clock(skew):
        trigger = machine.defer(gate())
    machine.answers(credits=9.0)
    event, seconds = run(event_of(trigger))
    assert event["verdict"] == "open"
    return seconds


def worker_to_triggerer_timeout(machine, skew):
    """The seconds until a gate times out."""
    with machine.clock(skew):
        trigger = machine.defer(gate())
    event, seconds = run(event_of(trigger))
    assert event["verdict"] == "timeout"
    return seconds


def worker_to_triggerer_pause(machine, skew):
    """The seconds until a spending task resumes that got no answer on its worker."""
    machine.answers(503)
    with machine.clock(skew):
        trigger = machine.defer(spender())
    machine.answers(credits=9.0)
    return run(event_of(trigger))[1]


def worker_to_triggerer_last_balance(machine, skew):
    """How long ago the balance was read, by the text of a timeout."""
    with machine.clock(skew):
        trigger = machine.defer(gate())
    machine.answers(503)
    text = run(event_of(trigger))[0]["text"]
    read_at = datetime.strptime(re.search(r"Last balance 2 at (.*?);", text)[1], "%Y-%m-%d %H:%M:%S %Z")
    return (datetime.now(UTC) - read_at.replace(tzinfo=UTC)).total_seconds()


def worker_to_triggerer_own_poll(machine, skew):
    """The seconds until a gate opens whose worker has seen less than the triggerer before."""

    async def main():
        machine.answers(credits=9.0)
        async with contextlib.aclosing(observations("stability_default", None, 1800)) as feed:
            await anext(feed)
            await asyncio.sleep(100)
            machine.answers(credits=2.0)
            with machine.clock(skew):
                trigger = machine.defer(gate())
            machine.answers(credits=9.0)
            return (await event_of(trigger))[1]

    return run(main())


def worker_to_triggerer_turn(machine, skew):
    """100 if a later gate is let go before an earlier one, else 0."""
    first = machine.defer(gate(minimum_credits=0, expected_credits=5))
    with machine.clock(skew):
        second = machine.defer(gate(minimum_credits=0, expected_credits=5))

    async def main():
        waiting = [asyncio.create_task(event_of(each)) for each in (first, second)]
        await asyncio.sleep(100)
        machine.answers(credits=6.0)
        (done,), rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in rest:
            each.cancel()
        return 100 * waiting.index(done)

    return run(main())


def worker_to_worker_wait_timeout(machine, skew):
    """The seconds of `wait_timeout` that count after a wait of 300 s."""
    trigger = machine.defer(spender())

    async def main():
        waiting = asyncio.create_task(event_of(trigger))
        await asyncio.sleep(200)
        machine.answers(credits=9.0)
        return await waiting

    event, seconds = run(main())
    assert (event["verdict"], seconds) == ("open", pytest.approx(300))
    machine.answers(credits=2.0)
    with machine.clock(skew):
        return machine.defer(spender(), resuming=event).waited


def worker_to_worker_wait_timeout_by_reschedule(machine, skew):
    """The same for a task that waits by reschedule since 600 s."""
    now = datetime(2026, 11, 30, tzinfo=UTC)
    return SpendState.rescheduled(now - timedelta(seconds=600), now + timedelta(seconds=skew)).seconds_waited


def worker_to_scheduler_reschedule(machine, skew):
    """The seconds until the scheduler starts a task again that waits by reschedule."""
    if AIRFLOW_VERSION < (3, 0):
        pytest.skip("this Airflow asks its database for the first start")
    task_instance = SimpleNamespace(try_number=1, get_first_reschedule_date=lambda context: None)
    with machine.clock(skew), pytest.raises(AirflowRescheduleException) as raised:
        spender(deferrable=False).execute({"ti": task_instance})
    return (raised.value.reschedule_date - datetime.now(UTC)).total_seconds()


def triggerer_to_database_timeout(machine, skew, *, seconds_ago=0.0):
    """The seconds until a gate times out, whose deferral Airflow's database limits, too."""
    trigger = machine.defer(gate())
    database = datetime.now(UTC) - timedelta(seconds=skew)
    kept = started_anew(trigger, seconds_ago=seconds_ago, of=trigger.deferral_timeout, now=database)
    return run(event_of(kept))[1]


def triggerer_to_database_timeout_after_an_hour(machine, skew):
    """The same for a gate that another triggerer has kept for an hour."""
    return triggerer_to_database_timeout(machine, skew, seconds_ago=HOUR)


def server_to_worker_retry_after(machine, skew, *, has_date=True):
    """The seconds of a lock-out that a server has named by a date, a minute from now."""
    now = datetime.now(UTC)
    headers = {"Retry-After": format_datetime(now + timedelta(seconds=60), usegmt=True)}
    if has_date:
        headers["Date"] = format_datetime(now, usegmt=True)
    with machine.clock(-skew):
        return error_from_response(429, headers, b"{}", call="GET /", secrets=()).retry_after


def server_to_worker_retry_after_without_date(machine, skew):
    """The same, by a server that does not tell its own time."""
    return server_to_worker_retry_after(machine, skew, has_date=False)


def worker_to_worker_marker(machine, skew):
    """The seconds for which the marker of a running call counts, which another machine has written."""
    began = datetime.now(UTC) + timedelta(seconds=skew)
    marker = {"id": "m", "began": began.isoformat(), "timeout": 120, "host": "elsewhere", "pid": 1}
    return waits_for_marker(machine, marker)


def waits_for_marker(machine, marker):
    (machine.folder / "cat.png.paying.json").write_text(json.dumps(marker))
    before = time.monotonic()
    client = StabilityClient("sk-1", base_url=machine.base_url)
    with client, pytest.raises(StabilityOutcomeUnknownError, match="may have been paid for already"):
        client.generate("stable-image/generate/core", to=machine.folder, name="cat", prompt="a")
    return time.monotonic() - before


def worker_to_page_reading(machine, skew):
    """The age of a balance on the Credits page that was pushed 600 s ago."""
    queries = pytest.importorskip("airflow_stability.page.queries", exc_type=ImportError)
    now = datetime(2026, 11, 30, tzinfo=UTC)
    reading = queries._reading(5.0, now + timedelta(seconds=skew - 600), now)
    return (now - reading.at).total_seconds()


# A clock that is set while a process runs.

NOW = datetime(2026, 11, 30, tzinfo=UTC)


def until(is_over, skew):
    """Return after how many seconds something is over if the clock is set after the first second."""
    seconds = 1
    while not is_over(NOW + timedelta(seconds=seconds + skew)):
        seconds += 10
        assert seconds < 3 * DAY
    return seconds


def set_clock_lock_out(machine, skew):
    """The seconds of a lock-out of 600 s."""
    lockout = Lockout()
    lockout.extend(600, NOW.timestamp())
    return until(lambda now: not lockout.seconds_left(now.timestamp()), skew)


def set_clock_log_throttle(machine, skew):
    """The seconds until the next log line of a gate for which nothing changes."""
    throttle = LogThrottle()
    throttle.should_log("low", NOW)
    return until(lambda now: throttle.should_log("low", now), skew)


def set_clock_page(machine, skew):
    """The seconds until the page requests a balance again."""
    time_of_day, passed = NOW, 0.0
    client = partial(StabilityClient, "sk-1", base_url=machine.base_url, api_version="v1")
    page = BalanceCache(lambda conn_id: client(), now=lambda: time_of_day, monotonic=lambda: passed)
    first = page.get({"wallet": []}, wait_seconds=60)["wallet"].balances[None]

    def is_requested(now):
        nonlocal time_of_day, passed
        time_of_day, passed = now, (now - NOW).total_seconds() - skew
        balance = page.get({"wallet": []}, wait_seconds=60)["wallet"].balances[None]
        return balance.requested_at != first.requested_at

    return until(is_requested, skew)


def set_clock_grace(machine, skew):
    """The seconds for which a gate bears with a refused key."""
    one = Gate(8)
    one.key_has_worked()
    one.observe_failure(StabilityAuthenticationError(""), NOW)
    refused = StabilityAuthenticationError("")
    return until(lambda now: one.observe_failure(refused, now).verdict is Verdict.FAIL, skew)


#: By how many seconds a clock changes each measure: if it is a day behind, an hour behind, an hour ahead, a
#: day ahead. Where a clock is set, it is set by so much.
NOTHING = (0, 0, 0, 0)
TABLE = {
    worker_to_triggerer_lock_out: NOTHING,
    worker_to_triggerer_timeout: NOTHING,
    worker_to_triggerer_pause: NOTHING,
    worker_to_triggerer_last_balance: NOTHING,
    worker_to_triggerer_own_poll: NOTHING,
    worker_to_triggerer_turn: NOTHING,
    worker_to_worker_wait_timeout: NOTHING,
    worker_to_worker_marker: NOTHING,
    server_to_worker_retry_after: NOTHING,
    # Airflow's own timeout is not believed if Airflow itself would have ended the wait by it.
    triggerer_to_database_timeout: (0, 0, -HOUR, 0),
    # The time is waited for anew, and Airflow's own timeout ends it.
    triggerer_to_database_timeout_after_an_hour: (HOUR, HOUR, -HOUR, HOUR),
    # Airflow takes dates here, and nothing else is remembered.
    worker_to_worker_wait_timeout_by_reschedule: (-600, -600, HOUR, DAY),
    worker_to_scheduler_reschedule: (-DAY, -HOUR, HOUR, DAY),
    # RFC 9110 wants a Date from each server that has a clock. A lock-out is no longer than a day in all.
    server_to_worker_retry_after_without_date: (-60, -60, HOUR, DAY - 60),
    worker_to_page_reading: (DAY, HOUR, -600, -600),
    set_clock_lock_out: (0, 0, -600, -600),
    set_clock_log_throttle: (-HOUR, -HOUR, -HOUR, -HOUR),
    set_clock_page: NOTHING,
    set_clock_grace: (0, 0, -600, -600),
}


@pytest.mark.parametrize(
    ("measure", "skew", "effect"),
    [
        pytest.param(measure, skew, effect, id=f"{measure.__name__}-{name}".replace(" ", "_"))
        for measure, effects in TABLE.items()
        for (name, skew), effect in zip(SKEWS.items(), effects, strict=True)
    ],
)
def test_the_effect_of_a_clock(machine, clock, tmp_path, measure, skew, effect):
    machine.folder = tmp_path

    with_skew = measure(machine, skew)
    machine.answers(credits=2.0)
    assert with_skew - measure(machine, 0.0) == pytest.approx(effect, abs=10)


def times_in(value):
    """Return what looks like a time of day in a value of plain JSON types."""
    # Ten digits may also stand within the random id of a hold.
    return re.findall(r"\d{4}-\d\d-\d\d|(?<![.\w])\d{10,}(?!\w)", json.dumps(value))


@pytest.mark.parametrize("status", [200, 429, 503])
@pytest.mark.parametrize("task", [gate, spender])
def test_no_time_of_day_is_handed_over(machine, status, task):
    machine.answers(status)

    assert times_in(machine.defer(task()).serialize()[1]) == []


def test_a_watcher_remembers_no_time_of_day():
    watch = ThresholdWatch(50, "above")
    watch.observe_balance(40.0, NOW)

    assert times_in(watch.state) == []


@pytest.mark.parametrize("seconds", ["1" + "0" * 400, format_datetime(NOW + timedelta(days=36500))])
def test_no_lock_out_is_longer_than_a_server_may_name(seconds):
    named = error_from_response(429, {"Retry-After": seconds}, b"{}", call="GET /", secrets=()).retry_after
    handed_over = Lockout()
    handed_over.extend(1e12, 0.0)

    assert named == handed_over.seconds_left(0.0) == MAX_LOCKOUT_SECONDS


@pytest.mark.parametrize("timeout", ["NaN", "Infinity", "1e300", "-5", "0", '"5"', "true", "null"])
def test_a_marker_with_a_timeout_that_no_call_has_counts_as_one_of_this_call(
    machine, clock, tmp_path, timeout
):
    machine.folder = tmp_path

    assert waits_for_marker(machine, {"id": "m", "timeout": json.loads(timeout)}) == pytest.approx(250, abs=2)


def test_an_execution_timeout_is_not_taken_for_time_that_has_passed(machine):
    trigger = machine.defer(spender(execution_timeout=timedelta(hours=2)))
    # Airflow 2.11 ends the deferral by the execution_timeout, Airflow 3 by the timeout of the deferral.
    ends_in = 2 * HOUR if AIRFLOW_VERSION < (3, 0) else 10 * HOUR + BACKSTOP.total_seconds()

    expected = trigger.deferral_timeout
    trigger = started_anew(trigger, seconds_ago=0.0, of=ends_in)
    trigger.deferral_timeout = expected

    # Without the timeout, the trigger would not wait for the scheduler.
    assert expected == pytest.approx(ends_in, abs=5.0)
    assert seconds_since_deferral(trigger, datetime.now(UTC)) == pytest.approx(0.0, abs=5.0)


@pytest.mark.parametrize("execution_timeout", [2 * HOUR, 80.0])
@pytest.mark.parametrize("task", [gate, spender])
def test_a_wait_that_an_execution_timeout_limits_ends_with_its_reason(machine, task, execution_timeout):
    limit = execution_timeout
    if AIRFLOW_VERSION < (3, 0):  # Airflow ends the task itself then, so it must have resumed before
        limit -= min(60.0, execution_timeout / 2)
    elif task is spender:  # Airflow 3 does not limit the wait by it
        limit = 10 * HOUR
    trigger = machine.defer(task(execution_timeout=timedelta(seconds=execution_timeout)))
    event, seconds = run(event_of(trigger))

    assert event["verdict"] == "timeout"
    assert seconds == pytest.approx(limit, abs=5)
    assert trigger.deferral_timeout > seconds + 30
    assert re.match(
        r"Timed out after \d+ s: the key's default organization has 2 credits, needs ", event["text"]
    )
