"""Waiting gates live through a minute of each kind of trouble: in real time, with the calls counted.

All of them wait at once: those of mode poke in threads, those of mode reschedule as one DAG.
"""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise

import pytest

from airflow_stability.sensors.stability import StabilityBalanceSensor
from airflow_stability.simulator import Fault, StabilitySimulator
from tests.integration.conftest import let_thread_execute_operators
from tests.integration.trouble import LASTS, POKE_INTERVAL, REQUEST_TIMEOUT, TIMEOUT, TROUBLES
from tests.integration.written import PASSWORDS, Written

#: Seconds for a run that takes one minute on an idle machine.
pytestmark = pytest.mark.timeout(600)

MODES = ("poke", "reschedule")
LOCK_OUT = 60.0
#: Seconds that the start of a rescheduled task may take on a machine that runs other tests beside it.
BUSY = 3.0


class Gates:
    """What became of the gates, and the calls that they made."""

    def __init__(self) -> None:
        self.balances: dict[str, object] = {}
        self.calls: dict[str, list[float]] = {}
        self.healed_at: dict[str, float] = {}
        self.keys: list[str] = []
        self.written: Written | None = None


@pytest.fixture(scope="module")
def gates(request, run_dag, keep_connection):
    gates = Gates()
    simulators = {(trouble, mode): StabilitySimulator(credits=25.5) for trouble in TROUBLES for mode in MODES}
    for (trouble, mode), simulator in simulators.items():
        simulator.start()
        gates.keys.append(simulator.api_key)
        fault = TROUBLES[trouble] or Fault.status(503)
        simulator.inject(fault, times=1 if fault.code == 429 else None)
        uri = f"{simulator.connection_uri()}?api_version=v1&request_timeout={REQUEST_TIMEOUT}"
        if mode == "reschedule":
            keep_connection(f"{trouble}-{mode}", uri)
        else:
            os.environ[f"AIRFLOW_CONN_{trouble}-{mode}".upper()] = uri

    def wait_for_a_call_of_each(*modes):
        give_up = time.monotonic() + 240
        these = [simulator for (_, mode), simulator in simulators.items() if mode in modes]
        while not all(each.requests for each in these) and time.monotonic() < give_up:
            time.sleep(0.05)

    def last_and_heal():
        wait_for_a_call_of_each(*MODES)
        for mode in MODES:
            simulators["refused", mode].stop()
        time.sleep(LASTS)
        for (trouble, mode), simulator in simulators.items():
            gates.healed_at[f"{trouble}-{mode}"] = time.monotonic()
            simulator.clear_faults()
            if trouble == "refused":
                simulator.start()

    def poke(trouble):
        let_thread_execute_operators()
        gates.balances[f"{trouble}-poke"] = StabilityBalanceSensor(
            task_id="gate",
            minimum_credits=8,
            stability_conn_id=f"{trouble}-poke",
            poke_interval=POKE_INTERVAL,
            timeout=TIMEOUT,
        ).execute({})

    lasting = threading.Thread(target=last_and_heal)
    threads = [lasting, *(threading.Thread(target=poke, args=(trouble,)) for trouble in TROUBLES)]
    for thread in threads:
        thread.start()
    # Airflow runs tasks in this process then, and only one thread may ask it for a connection.
    wait_for_a_call_of_each("poke")
    result = run_dag("a_minute_of_trouble")
    for thread in threads:
        thread.join()
    for trouble in TROUBLES:
        gates.balances[f"{trouble}-reschedule"] = result.xcom(f"{trouble}-reschedule")
    for (trouble, mode), simulator in simulators.items():
        gates.calls[f"{trouble}-{mode}"] = [record.monotonic for record in simulator.requests]
        simulator.stop()
        os.environ.pop(f"AIRFLOW_CONN_{trouble}-{mode}".upper(), None)
    gates.written = Written(request.config)
    return gates


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_gate_lives_through_a_minute_of(trouble, mode, gates):
    name = f"{trouble}-{mode}"
    calls = gates.calls[name]

    assert gates.balances[name] == 25.5
    if TROUBLES[trouble] and TROUBLES[trouble].code == 429:
        # One call that was locked out, one when the lock-out was over.
        assert len(calls) == 2
        assert calls[1] - calls[0] >= LOCK_OUT
    else:
        # One attempt a poll: no two calls closer than the interval, and no more than fit into the time.
        assert all(later - earlier >= POKE_INTERVAL * 0.99 for earlier, later in pairwise(calls))
        lasted = gates.healed_at[name] - calls[0]
        assert len(calls) <= lasted / POKE_INTERVAL + 2
        if trouble != "refused":
            # It goes on asking at its interval. One with pauses that double would have asked five times.
            assert len(calls) >= lasted / (POKE_INTERVAL + 2 * REQUEST_TIMEOUT + BUSY)
        # The one that succeeded: a call that hung when the trouble ended was answered then.
        assert calls[-1] >= gates.healed_at[name] - REQUEST_TIMEOUT


def test_no_key_stands_anywhere_but_in_its_connection(gates):
    places = gates.written.places_of(*gates.keys)

    assert [place for place in places if not place.startswith(PASSWORDS)] == []
    # Those of one mode are in the database.
    assert len([place for place in places if place.endswith(": itself")]) == len(TROUBLES)
