"""Tell somebody when credit runs low, before pipelines have to wait. Needs Airflow 3.

The watcher fires once when the balance falls to the threshold or below. It fires again only after the balance
has been above the threshold by more than the margin.
"""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import Asset, AssetWatcher, dag, task

from airflow_stability.triggers.events import StabilityBalanceEventTrigger

credit_low = Asset(
    "stability_credit_low",
    watchers=[
        AssetWatcher(
            name="balance",
            trigger=StabilityBalanceEventTrigger(threshold=100, direction="below", margin=20),
        )
    ],
)


@dag(
    schedule=[credit_low],
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["stability"],
    doc_md=__doc__,
)
def stability_credit_low():
    @task
    def alert(triggering_asset_events=None) -> str:
        event = triggering_asset_events[credit_low][-1].extra["payload"]
        whose = event["organization"] or "the default organization"
        text = f"At {event['time']} {whose} had {event['credits']} credits left."
        print(text)  # replace this by a message to your team: mail, chat, a pager
        return text

    alert()


stability_credit_low()
