from __future__ import annotations

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task


def test_the_function_is_given_the_client_on_every_airflow():
    def paint(prompt, client):
        return prompt, client

    with DAG("dag", schedule=None):
        operator = task.stability(credits=3)(paint)("a fox").operator
    operator._client = "the client"

    assert operator.determine_kwargs({}) == {"client": "the client"}
