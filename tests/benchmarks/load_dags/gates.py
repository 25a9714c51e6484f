"""The gates of the load test that start in the triggerer, a DAG for each organization.

Another DAG has gates on a connection that hangs, and one starts to watch the triggerer's event loop.
"""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG, BaseOperator
from airflow.triggers.base import StartTriggerArgs

from airflow_stability.sensors.stability import StabilityBalanceSensor


class WatchTheLoop(BaseOperator):
    """A task that starts to watch the triggerer's event loop: see plugins/loop_watch.py."""

    start_from_trigger = True
    start_trigger_args = StartTriggerArgs(
        trigger_cls="loop_watch.LoopWatch",
        trigger_kwargs={},
        next_method="execute",
        timeout=timedelta(minutes=5),
    )


with DAG("watch_the_loop", schedule=None):
    WatchTheLoop(task_id="watch")

with DAG("hanging", schedule=None, max_active_runs=10_000):
    StabilityBalanceSensor(
        task_id="gate",
        stability_conn_id="hanging",
        organization="{{ dag_run.conf['organization'] }}",
        minimum_credits=10,
        deferrable=True,
        start_from_trigger=True,
        end_from_trigger=True,
        poke_interval=5,
        timeout=4 * 3600,
    )

for number in range(int(os.environ["BENCH_ORGANIZATIONS"])):
    with DAG(f"gate_{number}", schedule=None, max_active_runs=10_000):
        StabilityBalanceSensor(
            task_id="gate",
            organization=f"org-{number}",
            minimum_credits=10,
            # The gates of every second organization are paced.
            expected_credits=1 if number % 2 else None,
            deferrable=True,
            start_from_trigger=True,
            end_from_trigger=True,
            poke_interval=5,
            timeout=4 * 3600,
        )
