"""StabilityJobTrigger: waits for asynchronous jobs, all those of a connection together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest

from airflow_stability.client import StabilityClient
from airflow_stability.deferral import DeferralEvent
from airflow_stability.errors import StabilityAuthenticationError, StabilityJobPendingError
from airflow_stability.simulator import Fault, RateLimit, StabilitySimulator
from airflow_stability.triggers import http_calls, jobs
from airflow_stability.triggers.feed import loop_state, observations
from airflow_stability.triggers.jobs import StabilityJobTrigger
from tests.dead_host import DeadHost

CREATIVE = "stable-image/upscale/creative"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(jobs, "JOB_POLL_SECONDS", 0.3)
    monkeypatch.setattr(jobs, "GAP_SECONDS", 0.02)


@pytest.fixture
def simulator(monkeypatch):
    generous = RateLimit(requests=100_000)
    with StabilitySimulator(credits=10_000, rate_limit=generous, job_seconds=3600) as simulator:
        monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", f"{simulator.connection_uri()}?api_version=v1")
        yield simulator


@pytest.fixture
def start(simulator, tmp_path):
    """Start jobs, and return a trigger for each."""

    def start_one(name="job", *, seconds=60.0, memory=None):
        with StabilityClient(simulator.api_key, base_url=simulator.url) as client:
            client.waits_for_jobs = False
            with pytest.raises(StabilityJobPendingError) as pending:
                client.generate(CREATIVE, to=tmp_path, name=name, image=b"picture", prompt="sharp")
        return StabilityJobTrigger(
            stability_conn_id="stability_default",
            job_id=pending.value.job_id,
            result_path=pending.value.result_path,
            timeout=seconds,
            memory=memory,
        )

    return start_one


async def event_of(trigger):
    (event,) = [event async for event in trigger.run()]
    return DeferralEvent.from_payload(event.payload)


def asked(simulator):
    return [record for record in simulator.requests if record.method == "GET"]


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def test_it_fires_when_the_job_is_finished_and_hands_the_memory_back(simulator, start):
    trigger = start(memory={"refusals": 1})
    simulator.clear_requests()

    async def main():
        waiting = asyncio.create_task(event_of(trigger))
        await until(lambda: len(asked(simulator)) == 3)
        assert not waiting.done()
        simulator.job_seconds = 0.0
        return await waiting

    event = asyncio.run(main())

    assert replace(event, seconds=0.0) == DeferralEvent(
        DeferralEvent.JOB, "The job is finished.", memory={"refusals": 1}
    )
    assert event.seconds > 0
    assert {record.status for record in asked(simulator)} == {202, 200}
    assert all(later.monotonic - earlier.monotonic > 0.3 for earlier, later in pairwise(asked(simulator)))


def test_all_that_it_needs_is_in_what_airflow_stores(start):
    trigger = start(memory={"a": 1})
    path, arguments = trigger.serialize()

    assert path == f"{StabilityJobTrigger.__module__}.{StabilityJobTrigger.__name__}"
    assert StabilityJobTrigger(**arguments).serialize() == (path, arguments)
    later = StabilityJobTrigger(**arguments, of_a_later_release=1)
    assert later.serialize() == (path, arguments | {"of_a_later_release": 1})


def test_it_ends_at_its_deadline_and_says_that_the_job_was_paid_for(start):
    trigger = start(seconds=0.5)
    event = asyncio.run(event_of(trigger))

    assert event.verdict == DeferralEvent.TIMEOUT
    assert event.text == (
        f"The job {trigger.job_id} is not finished, and the task may wait for 0.5 s in total. The job has "
        "been paid for, and its result is kept for 24 hours: clear the task to wait for it again."
    )


def test_a_result_that_is_not_found_sends_the_task_back_to_find_out(simulator, start, monkeypatch):
    trigger = start()
    new = simulator.rotate_key(simulator.api_key)
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", simulator.connection_uri(new))
    event = asyncio.run(event_of(trigger))

    assert event.verdict == DeferralEvent.JOB
    assert "answered 404" in event.text


@pytest.mark.parametrize("fault", [Fault.status(503), Fault.reset(), Fault.html(502), Fault.status(401)])
def test_a_failure_that_may_pass_is_waited_out(simulator, start, fault):
    trigger = start()
    simulator.job_seconds = 0.0
    simulator.clear_requests()
    simulator.inject(fault, times=2, path="/v2beta/results")
    event = asyncio.run(event_of(trigger))

    assert event.text == "The job is finished."
    assert len(asked(simulator)) == 3


def test_a_refusal_of_the_key_that_stays_sends_the_task_back(simulator, start, monkeypatch):
    trigger = start()
    monkeypatch.setattr(jobs, "GRACE", timedelta(seconds=0.5))
    simulator.inject(Fault.status(401), path="/v2beta/results")
    event = asyncio.run(event_of(trigger))

    assert event.verdict == DeferralEvent.JOB
    assert "answered 401" in event.text


@pytest.mark.parametrize("status", [400, 500])
def test_a_job_that_has_failed_sends_the_task_back_while_others_wait(simulator, start, status):
    failed, waiting = start("failed"), start("waiting")
    simulator.inject(Fault.status(status), path=failed.result_path)

    async def main():
        other = asyncio.create_task(event_of(waiting))
        event = await event_of(failed)
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        return event

    assert f"answered {status}" in asyncio.run(main()).text


def test_a_key_that_is_refused_for_one_job_sends_its_task_back_while_others_wait(
    simulator, start, monkeypatch
):
    monkeypatch.setattr(jobs, "GRACE", timedelta(seconds=0.5))
    refused, waiting = start("refused"), start("waiting")
    simulator.inject(Fault.status(401), path=refused.result_path)

    async def main():
        other = asyncio.create_task(event_of(waiting))
        event = await asyncio.wait_for(event_of(refused), 20)
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        return event

    assert "answered 401" in asyncio.run(main()).text


def test_a_lock_out_is_waited_out_by_all_jobs_of_the_connection(simulator, start):
    triggers = [start(f"job-{number}") for number in range(3)]
    simulator.job_seconds = 0.0
    simulator.clear_requests()
    simulator.inject(Fault.status(429, retry_after=2), times=1, path="/v2beta/results")

    async def main():
        return await asyncio.gather(*map(event_of, triggers))

    events = asyncio.run(main())

    assert {event.text for event in events} == {"The job is finished."}
    first, second, *_ = asked(simulator)
    assert (first.status, second.status) == (429, 200)
    assert second.monotonic - first.monotonic >= 2


def test_a_rotated_key_does_not_wait_for_the_end_of_the_old_ones_lock_out(simulator, start, monkeypatch):
    trigger = start()
    simulator.job_seconds = 0.0
    simulator.clear_requests()
    simulator.inject(Fault.status(429, retry_after=3600), times=1, path="/v2beta/results")

    async def main():
        waiting = asyncio.create_task(event_of(trigger))
        await until(lambda: asked(simulator))
        uri = f"{simulator.connection_uri(simulator.add_key())}?api_version=v1"
        monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", uri)
        return await asyncio.wait_for(waiting, 20)

    asyncio.run(main())
    assert len(asked(simulator)) == 2


@pytest.mark.parametrize("drip", [None, 0.05], ids=["says-nothing", "drips"])
def test_a_request_that_hangs_ends_whatever_the_request_timeout_is(monkeypatch, drip):
    monkeypatch.setattr(http_calls, "POLL_SECONDS", 0.5)
    trigger = StabilityJobTrigger(
        stability_conn_id="dead", job_id="job", result_path="/v2beta/results/job", timeout=60.0
    )

    async def main():
        waiting = asyncio.create_task(event_of(trigger))
        await until(lambda: host.all_calls > 2)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: host.calls == 0)  # the request itself has ended, too

    with DeadHost(drip) as host:
        monkeypatch.setenv("AIRFLOW_CONN_DEAD", host.connection(request_timeout=3600))
        asyncio.run(main())


def test_an_error_that_nobody_expects_takes_its_grace_from_no_gate(simulator):
    unusable = StabilityJobTrigger(
        stability_conn_id="stability_default", job_id="job", result_path=None, timeout=60.0
    )

    async def main():
        async with contextlib.aclosing(observations("stability_default", None, 0.3)) as feed:
            before = await anext(feed)
            event = await event_of(unusable)
            simulator.revoke_key(simulator.api_key)
            while (after := await anext(feed)).outcome == 10_000:
                pass
            return event, before, after

    event, before, after = asyncio.run(asyncio.wait_for(main(), 20))

    assert event.text.startswith("The triggerer could not ask for the result (")
    assert isinstance(after.outcome, StabilityAuthenticationError)
    assert after.key == before.key
    assert after.key_has_worked


def test_many_jobs_are_asked_for_one_after_another(simulator, start, monkeypatch):
    monkeypatch.setattr(jobs, "GAP_SECONDS", 0.1)
    triggers = [start(f"job-{number}") for number in range(20)]
    simulator.clear_requests()

    async def main():
        waiting = [asyncio.create_task(event_of(trigger)) for trigger in triggers]
        await until(lambda: len(asked(simulator)) == 40)
        simulator.job_seconds = 0.0
        return await asyncio.gather(*waiting)

    events = asyncio.run(main())

    assert {event.verdict for event in events} == {DeferralEvent.JOB}
    records = asked(simulator)
    assert all(later.monotonic - earlier.monotonic > 0.09 for earlier, later in pairwise(records))
    paths = [record.path for record in records[:20]]
    assert len(set(paths)) == 20
    assert [record.path for record in records[20:40]] == paths


def test_jobs_do_not_wait_for_calls_of_a_connection_that_hangs(simulator, start, monkeypatch):
    trigger = start()
    simulator.job_seconds = 0.0

    async def hang(organization):
        async with contextlib.aclosing(observations("dead", organization, 60)) as feed:
            await anext(feed)

    async def main():
        hanging = [asyncio.create_task(hang(f"org-{number}")) for number in range(20)]
        await until(lambda: dead_host.calls >= 2)
        event = await asyncio.wait_for(event_of(trigger), 15)
        assert not any(task.done() for task in hanging)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        return event

    with DeadHost() as dead_host:
        monkeypatch.setenv("AIRFLOW_CONN_DEAD", dead_host.connection(request_timeout=3600))
        assert asyncio.run(main()).text == "The job is finished."


def test_a_cancelled_trigger_is_asked_for_no_more_and_leaves_nothing_behind(simulator, start):
    trigger = start()
    simulator.clear_requests()

    async def main():
        waiting = asyncio.create_task(event_of(trigger))
        await until(lambda: len(asked(simulator)) == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: not loop_state().jobs and not loop_state().connections)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    time.sleep(0.5)

    assert len(asked(simulator)) == 1
