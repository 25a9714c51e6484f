"""Start a pipeline when credit is restored. Until then, no task runs or waits. Needs Airflow 3.

The watcher fires once when the balance rises above the threshold. Before it can fire again, the balance must
have fallen to the threshold minus the margin, or lower: here to 10 credits. So the pipeline does not start
again for each small top-up.
"""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import Asset, AssetWatcher, dag, task

from airflow_stability.triggers.events import StabilityBalanceEventTrigger

credit_restored = Asset(
    "stability_credit_restored",
    watchers=[
        AssetWatcher(
            name="balance",
            trigger=StabilityBalanceEventTrigger(threshold=50, direction="above", margin=40),
        )
    ],
)


@dag(
    schedule=[credit_restored],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["stability"],
    doc_md=__doc__,
)
def stability_credit_restored():
    @task
    def plan_images(triggering_asset_events=None) -> int:
        event = triggering_asset_events[credit_restored][-1].extra["payload"]
        print(f"From {event['previous_credits']} to {event['credits']} credits at {event['time']}.")
        return int(event["credits"] // 3)  # an image costs 3 credits

    @task
    def generate_images(count: int) -> None:
        print(f"There is credit for {count} images.")

    generate_images(plan_images())


stability_credit_restored()
