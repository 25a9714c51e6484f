"""The feed on the simulator: many followers in an event loop, one poll."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace

import pytest
from airflow.triggers.base import TaskSuccessEvent

from airflow_stability.compat import AIRFLOW_VERSION, RENDERS_IN_TRIGGERER, success_event
from airflow_stability.errors import (
    StabilityAuthenticationError,
    StabilityConfigurationError,
    StabilityRateLimitError,
)
from airflow_stability.simulator import Fault, RateLimit, StabilitySimulator
from airflow_stability.triggers.feed import AT_A_TIME, observations
from airflow_stability.triggers.stability import StabilityBalanceTrigger
from tests.triggerer import WHO_LOADS, gate_trigger, output_of, started_anew
from tests.versions import OLDEST_OR_NEWEST

pytestmark = pytest.mark.usefixtures("connection")


async def follow(count, *, interval=0.3, organization=None, conn_id="stability_default", **options):
    """Return as many observations of a feed."""
    found = []
    async with contextlib.aclosing(observations(conn_id, organization, interval, **options)) as feed:
        async for observation in feed:
            found.append(observation)
            if len(found) == count:
                break
    return found


async def only_this_task():
    """Wait until every feed has ended."""
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.01)


def test_a_thousand_followers_share_one_poll(simulator):
    async def main():
        return await asyncio.gather(*(follow(3) for _ in range(1000)))

    found = asyncio.run(main())

    assert len(simulator.requests) == 3
    assert len({id(observation) for follower in found for observation in follower}) == 3
    assert found[0][0].outcome == 25.0
    calls = [record.monotonic for record in simulator.requests]
    assert all(later - earlier >= 0.25 for earlier, later in pairwise(calls))


def test_others_have_their_turn_while_a_thousand_followers_are_told(simulator):
    simulator.inject(Fault.slow(0.3))  # so that all of them wait for it, whatever their organization
    told = Counter()

    async def main():
        rounds = 0

        async def follower(organization):
            await follow(1, interval=60, organization=organization)
            told[rounds] += 1

        organizations = ["org-default", "org-other"] * 500
        followers = [asyncio.create_task(follower(each)) for each in organizations]
        while told.total() < len(followers):
            await asyncio.sleep(0)
            rounds += 1

    asyncio.run(asyncio.wait_for(main(), 30))

    assert max(told.values()) <= AT_A_TIME


LOOKS = """
import contextlib

async def main():
    from airflow_stability.triggers.feed import observations

    sys.meta_path.insert(0, Finder())
    async with contextlib.aclosing(observations("stability_default", None, 1)) as feed:
        print((await anext(feed)).outcome)

asyncio.run(main())
"""


@pytest.mark.starts_python
def test_the_event_loop_loads_no_client(simulator):
    by_loop = 'print(loaded_by["airflow_stability.client"] is threading.main_thread())'

    assert output_of(WHO_LOADS + LOOKS + by_loop).split()[-2:] == ["25.0", "False"]


FAILS_ONCE = """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "airflow_stability.hooks.connection":
            sys.meta_path.remove(self)
            raise ImportError(name)
"""


@pytest.mark.starts_python
def test_a_module_that_cannot_be_loaded_at_first_ends_no_feed(simulator):
    assert output_of(WHO_LOADS + FAILS_ONCE + LOOKS).split()[-1:] == ["25.0"]


def test_the_smallest_interval_counts_for_all(simulator):
    async def main():
        await asyncio.gather(follow(4, interval=60), follow(4, interval=0.2))

    asyncio.run(asyncio.wait_for(main(), 10))

    assert len(simulator.requests) == 4


def test_a_newcomer_gets_the_latest_observation_at_once_while_it_is_fresh(simulator):
    async def main():
        first = asyncio.create_task(follow(2, interval=1))
        await asyncio.sleep(0.5)
        newcomer = await asyncio.wait_for(follow(1, interval=1), 0.2)
        return await first, newcomer

    first, newcomer = asyncio.run(main())

    assert newcomer[0] is first[0]
    assert len(simulator.requests) == 2


def test_a_newcomer_is_not_told_of_a_refusal_from_before_it(simulator, connection):
    async def main():
        simulator.revoke_key(simulator.api_key)
        async with contextlib.aclosing(observations("stability_default", None, 60)) as staying:
            refused = await anext(staying)
            connection(simulator.add_key())
            return refused, *await follow(1, interval=0.5)

    refused, told = asyncio.run(asyncio.wait_for(main(), 10))

    assert isinstance(refused.outcome, StabilityAuthenticationError)
    assert told.outcome == 25.0
    assert [record.status for record in simulator.requests] == [401, 200]


def test_who_takes_its_time_misses_nothing(simulator):
    async def main():
        async with contextlib.aclosing(observations("stability_default", None, 0.2)) as slow:
            found = [await anext(slow)]
            others = await follow(4, interval=0.2)
            return found + [await anext(slow) for _ in others[1:]], others

    found, others = asyncio.run(asyncio.wait_for(main(), 10))

    assert [id(observation) for observation in found] == [id(observation) for observation in others]


def test_the_feed_survives_its_first_follower(simulator):
    async def main():
        first = asyncio.create_task(follow(100))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(follow(3))
        await asyncio.sleep(0.1)
        first.cancel()
        return await asyncio.wait_for(second, 10)

    assert [observation.outcome for observation in asyncio.run(main())] == [25.0] * 3


def test_left_and_followed_again_during_a_call_it_does_not_poll_twice(simulator):
    simulator.inject(Fault.slow(0.6), times=1)

    async def main():
        first = asyncio.create_task(follow(1, interval=30))
        await asyncio.sleep(0.3)
        first.cancel()
        await asyncio.sleep(0)
        return await follow(1, interval=30)

    assert asyncio.run(asyncio.wait_for(main(), 10))[0].outcome == 25.0
    assert len(simulator.requests) == 1


def test_the_feed_ends_with_its_last_follower_in_one_loop_after_the_other(simulator):
    async def main():
        await follow(1)
        await only_this_task()

    for _ in range(3):
        asyncio.run(main())

    assert len(simulator.requests) == 3


def test_organizations_are_polled_apart_and_wait_a_lock_out_out_together(simulator):
    simulator.inject(Fault.status(429, retry_after=1), times=1)

    async def main():
        async with contextlib.aclosing(observations("stability_default", "org-default", 0.3)) as feed:
            first = [await anext(feed)]
            second = asyncio.create_task(follow(1, organization="org-other"))
            first.append(await anext(feed))
            return first, await second

    first, second = asyncio.run(asyncio.wait_for(main(), 10))

    assert isinstance(first[0].outcome, StabilityRateLimitError)
    assert (first[1].outcome, second[0].outcome) == (25.0, 0.0)
    locked_out, *later = [record.monotonic for record in simulator.requests]
    assert all(call - locked_out >= 1.0 for call in later)


def test_a_balance_is_not_fresh_for_as_long_as_a_lock_out_lasts(simulator):
    async def main():
        staying = asyncio.create_task(follow(100, interval=60))
        await follow(1, interval=60)
        await asyncio.sleep(0.5)
        simulator.set_credits(1.5)
        locked_out = asyncio.get_running_loop().time() + 1
        other = asyncio.create_task(follow(1, organization="org-other", not_before=locked_out))
        newcomer = await follow(1, interval=0.3)
        staying.cancel()
        await other
        return newcomer

    assert asyncio.run(asyncio.wait_for(main(), 10))[0].outcome == 1.5


def test_a_lock_out_that_the_worker_met_is_waited_out(simulator):
    async def main():
        not_before = asyncio.get_running_loop().time() + 0.8
        await follow(1, not_before=not_before)
        return not_before

    assert asyncio.run(main()) - 0.01 <= simulator.requests[0].monotonic


def test_a_rotated_key_does_not_wait_for_the_end_of_the_old_ones_lock_out(simulator, connection):
    simulator.inject(Fault.status(429, retry_after=3600), times=1)

    async def main():
        async with contextlib.aclosing(observations("stability_default", None, 0.2)) as feed:
            locked_out = await anext(feed)
            other = asyncio.create_task(follow(1, organization="org-other", interval=0.2))
            await asyncio.sleep(0.5)
            asked = len(simulator.requests)
            connection(simulator.rotate_key(simulator.api_key))
            return locked_out, asked, await anext(feed), *await other

    locked_out, asked, after, other = asyncio.run(asyncio.wait_for(main(), 10))

    assert isinstance(locked_out.outcome, StabilityRateLimitError)
    assert asked == 1
    assert (after.outcome, other.outcome) == (25.0, 0.0)
    assert after.key == locked_out.key + 1
    assert {record.status for record in simulator.requests[1:]} == {200}


def test_a_connection_that_breaks_in_a_workers_lock_out_ends_neither_it_nor_the_feed(
    simulator, connection, monkeypatch
):
    async def main():
        not_before = asyncio.get_running_loop().time() + 3.0
        waiting = asyncio.create_task(follow(1, interval=0.1, not_before=not_before))
        await asyncio.sleep(1.0)
        monkeypatch.delenv("AIRFLOW_CONN_STABILITY_DEFAULT")
        await asyncio.sleep(0.5)
        connection("sk two words")
        await asyncio.sleep(0.5)
        connection()
        return await waiting, not_before

    (observation,), not_before = asyncio.run(asyncio.wait_for(main(), 10))

    assert observation.outcome == 25.0
    assert not_before - 0.01 <= simulator.requests[0].monotonic


@pytest.mark.parametrize("answer_comes_first", [True, False])
def test_a_workers_lock_out_is_over_once_another_worker_got_a_balance(simulator, answer_comes_first):
    """A gateway may name a time in the far future with one single response."""

    async def main():
        now = asyncio.get_running_loop().time()
        locked_out = {"not_before": now + 3600, "deferred_at": now - 20}
        later = {"ignore_before": now - 10, "not_before": now - 9, "deferred_at": now - 9}
        both = [later, locked_out] if answer_comes_first else [locked_out, later]
        return await asyncio.gather(*(follow(1, interval=0.2, **each) for each in both))

    (one,), (other,) = asyncio.run(asyncio.wait_for(main(), 10))

    assert (one.outcome, other.outcome) == (25.0, 25.0)


def test_a_lock_out_that_a_triggerer_met_itself_is_over_once_a_worker_got_a_balance(simulator):
    simulator.inject(Fault.status(429, retry_after=3600), times=1)

    async def main():
        async with contextlib.aclosing(observations("stability_default", None, 0.2)) as feed:
            await anext(feed)
            await asyncio.sleep(0.5)
            assert len(simulator.requests) == 1
            now = asyncio.get_running_loop().time()
            (observation,) = await follow(1, organization="org-other", ignore_before=now - 0.1)
            return observation

    assert asyncio.run(asyncio.wait_for(main(), 10)).outcome == 0.0


def test_a_balance_from_before_a_lock_out_does_not_end_it(simulator):
    async def main():
        now = asyncio.get_running_loop().time()
        earlier = {"ignore_before": now - 10, "not_before": now - 9, "deferred_at": now - 9}
        waiting = asyncio.create_task(follow(1, not_before=now + 1.0, deferred_at=now - 5))
        await asyncio.sleep(0)
        await follow(1, interval=0.2, **earlier)
        await waiting
        return now

    assert asyncio.run(asyncio.wait_for(main(), 10)) + 0.99 <= simulator.requests[0].monotonic


def test_a_key_that_came_after_a_workers_lock_out_does_not_wait_for_its_end(simulator, connection):
    async def main():
        not_before = asyncio.get_running_loop().time() + 3600
        waiting = asyncio.create_task(follow(1, interval=0.2, not_before=not_before))
        await asyncio.sleep(1)
        assert not simulator.requests
        connection(simulator.rotate_key(simulator.api_key))
        return await waiting

    (observation,) = asyncio.run(asyncio.wait_for(main(), 10))

    assert observation.outcome == 25.0


def test_a_key_with_which_a_worker_may_have_met_its_lock_out_waits_for_its_end(simulator, connection):
    async def main():
        async with contextlib.aclosing(observations("stability_default", "org-other", 60)) as staying:
            await anext(staying)
            connection(simulator.rotate_key(simulator.api_key))
            not_before = asyncio.get_running_loop().time() + 1.5
            await follow(1, interval=0.2, not_before=not_before)
            return not_before

    assert asyncio.run(asyncio.wait_for(main(), 10)) - 0.01 <= simulator.requests[1].monotonic


def test_a_key_is_the_same_whatever_was_copied_with_it(simulator, connection):
    key = simulator.api_key

    async def main():
        async with contextlib.aclosing(observations("stability_default", None, 0.2)) as feed:
            before = await anext(feed)
            connection(f" Bearer {key} ")
            simulator.revoke_key(key)
            return before, await anext(feed)

    before, after = asyncio.run(asyncio.wait_for(main(), 10))

    assert isinstance(after.outcome, StabilityAuthenticationError)
    assert after.key == before.key
    assert after.key_has_worked


def test_a_rotated_key_is_used_at_the_next_poll(simulator, connection):
    async def main():
        feed = observations("stability_default", None, 0.2)
        async with contextlib.aclosing(feed):
            before = await anext(feed)
            connection(simulator.rotate_key(simulator.api_key))
            after = await anext(feed)
            once_more = await anext(feed)
        return before, after, once_more

    before, after, once_more = asyncio.run(asyncio.wait_for(main(), 10))

    assert [observation.outcome for observation in (before, after, once_more)] == [25.0] * 3
    assert after.key == once_more.key == before.key + 1
    assert [observation.key_has_worked for observation in (before, after, once_more)] == [False, False, True]


def test_feeds_share_a_connection_that_was_read_but_fail_no_gate_for_its_old_key(simulator, connection):
    async def main():
        async with contextlib.aclosing(observations("stability_default", "org-default", 60)) as staying:
            await anext(staying)
            connection(simulator.rotate_key(simulator.api_key))
            return await follow(1, interval=60, organization="org-other")

    (observation,) = asyncio.run(asyncio.wait_for(main(), 10))

    assert observation.outcome == 0.0
    assert [record.status for record in simulator.requests] == [200, 401, 200]


def test_a_refused_key_is_not_asked_with_twice_while_its_connection_stays(simulator):
    async def main():
        async with contextlib.aclosing(observations("stability_default", "org-default", 60)) as staying:
            await anext(staying)
            simulator.revoke_key(simulator.api_key)
            return await follow(1, interval=60, organization="org-other")

    (observation,) = asyncio.run(asyncio.wait_for(main(), 10))

    assert isinstance(observation.outcome, StabilityAuthenticationError)
    assert [record.status for record in simulator.requests] == [200, 401]


def test_a_connection_that_breaks_during_a_call_does_not_end_the_feed(simulator, connection, monkeypatch):
    """Another feed reads it meanwhile. The balance that comes was requested with the connection before."""
    simulator.inject(Fault.hang(), times=1)

    async def main():
        slow = asyncio.create_task(follow(1, interval=60))
        while not simulator.requests:
            await asyncio.sleep(0.01)
        monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", "stability://:sk-KEY@?request_timeout=soon")
        await asyncio.sleep(0.3)  # so that the other feed does not take the connection as it was read
        (broken,) = await follow(1, interval=0.2, organization="org-default")
        simulator.clear_faults()
        return broken, *(await slow)

    broken, balance = asyncio.run(asyncio.wait_for(main(), 20))

    assert isinstance(broken.outcome, StabilityConfigurationError)
    assert balance.outcome == 25.0


def test_a_feed_never_raises_into_its_followers():
    found = asyncio.run(asyncio.wait_for(follow(2, conn_id="nowhere", interval=0.1), 10))

    assert all(isinstance(observation.outcome, StabilityConfigurationError) for observation in found)
    assert "nowhere" in str(found[0].outcome)


def test_calls_that_hang_do_not_hold_the_loop(simulator):
    simulator.inject(Fault.hang())

    async def main():
        longest = 0.0
        feed = asyncio.create_task(follow(1))
        loop = asyncio.get_running_loop()
        for _ in range(100):
            before = loop.time()
            await asyncio.sleep(0.01)
            longest = max(longest, loop.time() - before)
        simulator.clear_faults()
        await feed
        return longest

    assert asyncio.run(asyncio.wait_for(main(), 10)) < 0.5


def trigger(**changes):
    return gate_trigger(**{"minimum_credits": 30.0, "poke_interval": 0.2, "last_credits": 3.2} | changes)


async def events(trigger):
    return [event async for event in trigger.run()]


async def fire(trigger):
    return [event.payload for event in await events(trigger)]


def test_a_trigger_is_made_anew_from_what_it_serializes():
    first = trigger(last_failure="503.", locked_out=60.0)

    path, arguments = first.serialize()

    assert path == f"{StabilityBalanceTrigger.__module__}.{StabilityBalanceTrigger.__name__}"
    assert StabilityBalanceTrigger(**arguments).serialize() == first.serialize()


def test_a_gate_opens_after_another_ones_worker_met_a_lock_out_without_end(simulator):
    """The worker of this gate got a balance after that."""

    async def main():
        first = trigger(last_credits=None, last_failure="503.", locked_out=86400.0)
        locked_out = asyncio.create_task(fire(first))
        await asyncio.sleep(0.5)
        simulator.top_up(10.5)
        return await asyncio.gather(fire(trigger(last_credits_age=0.1)), locked_out)

    for (event,) in asyncio.run(asyncio.wait_for(main(), 10)):
        assert (event["verdict"], event["credits"]) == ("open", 35.5)


def test_a_gate_that_starts_in_a_lock_out_says_so(simulator, logged):
    async def main():
        first = asyncio.create_task(fire(trigger(last_credits=None, last_failure="503.", locked_out=5.0)))
        await asyncio.sleep(0.2)
        newcomer = asyncio.create_task(fire(trigger(last_credits_age=60.0)))
        while "No poll before 20" not in logged():
            await asyncio.sleep(0.05)
        assert simulator.requests == []
        simulator.top_up(10.5)
        await asyncio.gather(newcomer, first)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_trigger_fires_once_when_there_is_credit(simulator):
    async def main():
        asyncio.get_running_loop().call_later(0.5, simulator.top_up, 10.5)
        return await fire(trigger())

    (event,) = asyncio.run(asyncio.wait_for(main(), 10))

    assert (event["verdict"], event["credits"]) == ("open", 35.5)


def test_a_log_that_nobody_reads_does_not_hold_the_loop(simulator):
    loop_was_free = []

    async def main():
        loop, had_its_turn = asyncio.get_running_loop(), threading.Event()

        def info(*_):
            loop.call_soon_threadsafe(had_its_turn.set)
            loop_was_free.append(had_its_turn.wait(3))

        gate = trigger(minimum_credits=8)
        gate._log = SimpleNamespace(info=info)
        return await fire(gate)

    (event,) = asyncio.run(asyncio.wait_for(main(), 10))

    assert event["verdict"] == "open"
    assert loop_was_free == [True]


def test_a_log_that_takes_its_time_ends_no_gate_that_is_open(simulator):
    gate = trigger(minimum_credits=8, timeout=2.0)
    gate._log = SimpleNamespace(info=lambda *_: time.sleep(2.5))

    (event,) = asyncio.run(asyncio.wait_for(fire(gate), 10))

    assert event["verdict"] == "open"


def test_a_trigger_without_xcom_ends_its_task_with_nothing_else(simulator):
    ending = trigger(minimum_credits=8, end_from_trigger=True, do_xcom_push=False)

    (event,) = asyncio.run(asyncio.wait_for(events(ending), 10))

    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms is None


def test_a_trigger_that_cannot_push_the_balance_leaves_that_to_a_worker(simulator):
    ending = trigger(minimum_credits=8, end_from_trigger=True)

    # It runs in no triggerer here, so there is nothing to push with. Airflow 2.11 pushes what the event has.
    (event,) = asyncio.run(asyncio.wait_for(events(ending), 10))

    if AIRFLOW_VERSION < (3, 0):
        assert event.xcoms == {"return_value": 25.0}
    else:
        assert (event.payload["verdict"], event.payload["credits"]) == ("open", 25.0)


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 0), reason="Airflow 2.11 writes the XCom by itself")
def test_an_xcom_is_written_to_its_end_when_its_trigger_is_cancelled(monkeypatch):
    from airflow.sdk.execution_time.xcom import XCom
    from asgiref.sync import async_to_sync

    written = []

    async def ask_the_supervisor(value):
        await asyncio.sleep(0.3)
        written.append(value)

    # As Airflow 3.0 and 3.1 do it: a request on the triggerer's loop, whose answer somebody has to read.
    monkeypatch.setattr(XCom, "set", lambda *, value, **_: async_to_sync(ask_the_supervisor)(value))
    task_instance = SimpleNamespace(dag_id="dag", task_id="task", run_id="run", map_index=-1)

    async def main():
        writing = asyncio.create_task(success_event(task_instance, 25.5, do_xcom_push=True))
        await asyncio.sleep(0.1)
        writing.cancel()
        await asyncio.wait([writing])
        assert writing.cancelled()
        await asyncio.sleep(0.5)

    asyncio.run(main())

    assert written == [25.5]


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 0), reason="Airflow 2.11 writes the XCom by itself")
def test_an_xcom_that_takes_long_keeps_no_connection_waiting(monkeypatch):
    from airflow.sdk.execution_time.xcom import XCom
    from asgiref.sync import sync_to_async

    written = threading.Event()
    monkeypatch.setattr(XCom, "set", lambda **_: written.wait(5))
    task_instance = SimpleNamespace(dag_id="dag", task_id="task", run_id="run", map_index=-1)

    async def main():
        writing = asyncio.create_task(success_event(task_instance, 25.5, do_xcom_push=True))
        await asyncio.sleep(0.1)
        try:
            # Airflow reads a connection so.
            await asyncio.wait_for(sync_to_async(int)(), 2)
        finally:
            written.set()
            await writing

    asyncio.run(main())


def test_a_trigger_whose_argument_became_unusable_says_so():
    (event,) = asyncio.run(fire(trigger(minimum_credits="many")))

    assert event["verdict"] == "unusable"
    assert "minimum_credits must be a finite number" in event["text"]


@pytest.mark.skipif(not RENDERS_IN_TRIGGERER, reason="this Airflow renders no templates in the triggerer")
def test_a_name_that_is_missing_in_a_condition_is_an_error_in_the_triggerer_too(simulator):
    gate = trigger(minimum_credits="{{ 5000 if params.bigrun else 1 }}", end_from_trigger=True)
    gate.template_fields = ("minimum_credits",)  # Airflow takes them from the task

    gate.render_template_fields({"params": {}})
    (event,) = asyncio.run(asyncio.wait_for(fire(gate), 10))

    assert event["verdict"] == "unusable"
    assert "'dict object' has no attribute 'bigrun'" in event["text"]
    assert not simulator.requests


def test_a_trigger_without_a_minimum_opens_at_a_balance_of_0(simulator):
    simulator.set_credits(-0.5)
    waiting = trigger(minimum_credits=None, expected_credits=0.0)

    async def main():
        asyncio.get_running_loop().call_later(0.5, simulator.top_up, 0.5)
        return await fire(waiting)

    (event,) = asyncio.run(asyncio.wait_for(main(), 20))

    assert (event["verdict"], event["credits"]) == ("open", 0.0)
    assert event["text"].endswith("has 0 credits, needs 0.")


def test_a_trigger_ends_when_its_timeout_is_over(simulator):
    (event,) = asyncio.run(asyncio.wait_for(fire(trigger(timeout=0.5)), 10))

    assert event["verdict"] == "timeout"
    assert event["text"].startswith("Timed out after 0.5 s: ")


def test_a_trigger_keeps_its_deadline_wherever_it_runs(simulator):
    simulator.inject(Fault.status(503))
    waiting = trigger(timeout=110.0, waited=50.0, last_credits_age=30.0)
    read_at = datetime.now(UTC) - timedelta(seconds=55 + 30)

    # Another triggerer has waited for 55 of the 60 seconds that were left. Airflow would wait for longer.
    (event,) = asyncio.run(asyncio.wait_for(fire(started_anew(waiting, seconds_ago=55.0, of=360.0)), 20))

    assert event["verdict"] == "timeout"
    shown = re.search(r"Last balance 3\.2 at (.* UTC)", event["text"])[1]
    shown_at = datetime.strptime(shown, "%Y-%m-%d %H:%M:%S %Z").replace(tzinfo=UTC)
    assert abs(shown_at - read_at) < timedelta(seconds=5)
    assert "answered 503" in event["text"]
    assert 60 <= event["seconds"] < 100


def test_a_cancelled_trigger_leaves_no_poll_running(simulator):
    async def main():
        running = asyncio.create_task(fire(trigger()))
        await asyncio.sleep(0.5)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await only_this_task()
        before = len(simulator.requests)
        await asyncio.sleep(0.5)
        return before

    assert asyncio.run(main()) == len(simulator.requests)


@pytest.fixture
def patient_simulator():
    with StabilitySimulator(rate_limit=RateLimit(requests=1_000_000)) as simulator:
        yield simulator


@pytest.fixture
def no_log():
    # The simulator logs each request, and Airflow 2.11 each connection: pytest would keep the lines.
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.skipif(not OLDEST_OR_NEWEST, reason="it takes a minute: the oldest and newest Airflow do it")
def test_thousands_of_feeds_leak_neither_memory_nor_threads(patient_simulator, no_log, monkeypatch):
    simulator = patient_simulator
    uri = f"{simulator.connection_uri()}?api_version=v1"
    names = [f"wallet_{number}" for number in range(100)]
    for name in names:
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", uri)

    async def open_and_close(feeds):
        for _ in range(feeds // len(names)):
            await asyncio.gather(*(follow(1, conn_id=name) for name in names))
            await only_this_task()
            simulator.clear_requests()
        # The thread of the last poll may not have let go of its client yet, and the simulator not of its
        # end of the connection. On a busy machine, a hundred of these ends are more than the bound below.
        async with asyncio.timeout(20):
            while what_a_poll_leaves() > before:
                await asyncio.sleep(0.01)
        return sys.getallocatedblocks()

    def what_a_poll_leaves():
        gc.collect()
        kinds = ("Feed", "StabilityClient", "_SelectorSocketTransport", "RequestResponseCycle")
        return sum(type(each).__name__ in kinds for each in gc.get_objects())

    before = what_a_poll_leaves()  # of other tests, which may live on in this process

    async def main():
        return [await open_and_close(500) for _ in range(4)]

    blocks = asyncio.run(main())

    # Each connection has one call at a time.
    assert [each.name for each in threading.enumerate()].count("stability-call") <= len(names)
    # Not even one of the hundreds of blocks of memory that a feed with its client takes. A leak grows each
    # time. What other threads of this process do does not.
    assert min(after - before for before, after in pairwise(blocks)) < 500


@pytest.mark.parametrize(
    ("trigger_id", "deferral_timeout", "at_once"),
    [(7, 360.0, False), (7, None, True), (None, 360.0, True)],
    ids=["deferred", "started-here", "without-a-triggerer"],
)
def test_a_task_does_not_resume_before_the_scheduler_has_seen_it_defer(
    simulator, monkeypatch, trigger_id, deferral_timeout, at_once
):
    monkeypatch.setattr("airflow_stability.triggers.stability.MIN_DEFERRAL_SECONDS", 60 if at_once else 1.5)
    gate = trigger(minimum_credits=8, deferral_timeout=deferral_timeout)
    gate.trigger_id = trigger_id
    began = time.monotonic()

    (event,) = asyncio.run(asyncio.wait_for(fire(gate), 20))

    assert event["verdict"] == "open"
    assert at_once or time.monotonic() - began >= 1.5
