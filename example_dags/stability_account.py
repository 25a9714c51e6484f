"""Push the account and the balance to XCom, and use both in another task."""

from __future__ import annotations

from datetime import datetime

from airflow_stability.operators.stability import StabilityAccountOperator, StabilityBalanceOperator

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2.11
    from airflow.decorators import dag, task


@dag(
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["stability"],
    doc_md=__doc__,
)
def stability_account():
    account = StabilityAccountOperator(task_id="read_account", redact_email=True)
    balance = StabilityBalanceOperator(task_id="read_balance")

    @task
    def summarize(account: dict, balance: dict) -> str:
        names = ", ".join(organization["name"] for organization in account["organizations"])
        return f"{account['id']} is in {names} and has {balance['credits']} credits."

    summarize(account.output, balance.output)


stability_account()
