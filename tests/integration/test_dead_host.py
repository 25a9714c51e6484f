"""A host that accepts calls and never answers: it delays no other connection, and no process that ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from airflow_stability import daemon_threads
from airflow_stability.errors import StabilityTimeoutError
from airflow_stability.triggers import http_calls
from airflow_stability.triggers.feed import observations
from tests.dead_host import DeadHost

pytestmark = pytest.mark.usefixtures("connection")

#: Seconds that a test waits for what must happen. No call to a dead host ends that soon.
PATIENCE = 15


@pytest.fixture
def dead_host():
    with DeadHost() as host:
        yield host


@pytest.fixture
def connect(monkeypatch):
    def connect(conn_id, host, **extra):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", host.connection(**extra))

    return connect


@contextlib.asynccontextmanager
async def following(conn_id, organizations=40, interval=60.0):
    """Follow feeds of a connection, and provide the list of their observations."""
    found = []

    async def follow(organization):
        async with contextlib.aclosing(observations(conn_id, organization, interval)) as feed:
            async for observation in feed:
                found.append(observation)

    tasks = [asyncio.create_task(follow(f"org-{number}")) for number in range(organizations)]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def balance():
    async with contextlib.aclosing(observations("stability_default", None, 60.0)) as feed:
        return (await anext(feed)).outcome


async def until(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_connection_that_hangs_delays_no_other(simulator, dead_host, connect):
    connect("dead", dead_host, request_timeout=3600)

    async def main():
        async with following("dead") as failures:
            await until(lambda: dead_host.calls >= 2)
            found = await asyncio.wait_for(balance(), PATIENCE)
            return found, failures, dead_host.calls

    assert asyncio.run(main()) == (25.0, [], 2)


def test_twenty_connections_that_hang_delay_no_other(simulator, dead_host, connect):
    for number in range(20):
        connect(f"dead_{number}", dead_host, request_timeout=3600)

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            failures = [
                await stack.enter_async_context(following(f"dead_{number}", organizations=3))
                for number in range(20)
            ]
            await until(lambda: dead_host.calls == 40)
            return await asyncio.wait_for(balance(), PATIENCE), any(failures)

    assert asyncio.run(main()) == (25.0, False)
    assert dead_host.most_calls == 40


@pytest.mark.parametrize("drip", [None, 0.05], ids=["says-nothing", "drips"])
def test_a_poll_ends_whatever_the_request_timeout_is(connect, monkeypatch, drip):
    assert http_calls.POLL_SECONDS == 20
    monkeypatch.setattr(http_calls, "POLL_SECONDS", 0.5)

    async def main():
        async with following("dead", organizations=1) as found:
            await until(lambda: found)
            await until(lambda: host.calls == 0)  # the call itself has ended, too
            return found

    with DeadHost(drip) as host:
        connect("dead", host, request_timeout=3600)
        (observation,) = asyncio.run(main())

    assert isinstance(observation.outcome, StabilityTimeoutError)
    assert "0.5 s" in str(observation.outcome)


def test_a_name_server_that_hangs_ends_no_call_but_its_polls_and_no_third_call_begins(monkeypatch):
    monkeypatch.setattr(http_calls, "POLL_SECONDS", 0.5)
    monkeypatch.setenv("AIRFLOW_CONN_DEAD", "stability://:sk-KEY@dead.example")
    answered, lookups = threading.Event(), []

    def look_up(*_args, **_kwargs):
        lookups.append(threading.current_thread())
        answered.wait(60)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def main():
        async with following("dead", organizations=3, interval=0.1) as found:
            try:
                await until(lambda: len(found) == 2)
                await asyncio.sleep(0.5)
                assert len(found) == len(lookups) == 2
            finally:
                answered.set()
            await until(lambda: len(found) > 4)
            return found

    found = asyncio.run(main())
    assert [type(observation.outcome) for observation in found[:2]] == [StabilityTimeoutError] * 2


def test_connections_that_hang_have_few_threads_in_all(simulator, dead_host, connect, monkeypatch):
    monkeypatch.setattr(http_calls, "POLL_SECONDS", 0.3)
    monkeypatch.setattr(http_calls, "MAX_LATE_CALLS", 3)
    for number in range(6):
        connect(f"dead_{number}", dead_host)

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            failures = [
                await stack.enter_async_context(following(f"dead_{number}", organizations=2, interval=0.1))
                for number in range(6)
            ]
            await until(lambda: all(len(found) > 4 for found in failures))
            dead_host.most_calls = dead_host.calls
            assert await asyncio.wait_for(balance(), PATIENCE) == 25.0
            before = dead_host.all_calls
            await until(lambda: dead_host.all_calls > before + 9)

    asyncio.run(main())
    assert dead_host.most_calls <= 3


END = """
import asyncio, contextlib, os, signal, sys
from airflow_stability.triggers.feed import observations

async def follow(organization):
    async with contextlib.aclosing(observations("dead", organization, 60)) as feed:
        await anext(feed)

async def main():
    following = [asyncio.create_task(follow(f"org-{number}")) for number in range(40)]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    if sys.argv[1] == "SIGTERM":
        await stop.wait()
    else:
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@pytest.mark.starts_python
@pytest.mark.parametrize("how", ["SIGTERM", "return"])
def test_calls_that_hang_do_not_hold_a_process(dead_host, how):
    environment = os.environ | {"AIRFLOW_CONN_DEAD": dead_host.connection(request_timeout=3600)}
    process = subprocess.Popen(
        [sys.executable, "-c", END, how],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout.readline() == "ready\n"
            asyncio.run(until(lambda: dead_host.calls >= 2))
            if how == "SIGTERM":
                process.send_signal(signal.SIGTERM)
            process.stdin.close()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def test_a_thread_serves_one_call_after_another_and_ends_when_none_comes(monkeypatch):
    monkeypatch.setattr(daemon_threads, "IDLE_SECONDS", 0.2)

    async def main():
        threads = [
            await asyncio.wrap_future(daemon_threads.start_in_thread(threading.current_thread))
            for _ in range(50)
        ]
        # A thread is free a moment after its result is there.
        assert len(set(threads)) < 10
        assert all(thread.daemon for thread in threads)
        await until(lambda: not any(thread.is_alive() for thread in threads))

    asyncio.run(main())
