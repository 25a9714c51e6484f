"""What a DAG can make of a function that spends."""

from __future__ import annotations

from datetime import datetime

from airflow_stability.compat import runs_async_functions
from airflow_stability.operators.spend import StabilitySpendOperator
from tests import shapes
from tests.shapes import PARAMS, SPEND

try:
    from airflow.sdk import DAG, task, task_group
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task, task_group

with DAG("shapes", schedule=None, start_date=datetime(2026, 1, 1), params=PARAMS):
    spend = task.stability(**SPEND)

    def named(task_id, function=shapes.client_last):
        return spend(function).override(task_id=task_id)

    named("overridden")("a boat")
    named("expanded").expand(what=["a boat", "a fox"])
    named("partly_expanded", shapes.client_in_the_middle).partial(size="4k").expand(what=["a boat", "a fox"])
    named("kwargs_expanded", shapes.client_in_the_middle).expand_kwargs(
        [{"what": "a boat", "size": "4k"}, {"what": "a fox", "size": "1k"}]
    )
    named("expanded_over_a_result").expand(what=spend(shapes.several)())
    named("generator_expanded", shapes.generator).expand(what=["a boat", "a fox"])
    if runs_async_functions():
        named("async_expanded", shapes.coroutine).expand(what=["a boat", "a fox"])

    @task_group
    def group(what):
        named("in_a_mapped_group")(what)

    group.expand(what=["a boat", "a fox"])

    task.run_if(lambda context: True)(named("run_if"))("a boat")
    task.run_if(lambda context: False)(named("not_run_if"))("a boat")
    task.skip_if(lambda context: False)(named("not_skip_if"))("a boat")
    task.skip_if(lambda context: True)(named("skip_if"))("a boat")

    task.stability(**SPEND, multiple_outputs=True)(shapes.items)()
    spend(shapes.annotated_items)()

    def operator(task_id, function):
        return StabilitySpendOperator.partial(task_id=task_id, python_callable=function, **SPEND)

    operator("op_args_expanded", shapes.client_last).expand(op_args=[["a boat"], ["a fox"]])
    operator("op_kwargs_expanded", shapes.defaults).expand(op_kwargs=[{"what": "a boat"}, {"size": "4k"}])
    StabilitySpendOperator(
        task_id="templates",
        python_callable=shapes.templates,
        templates_dict={"what": "{{ params.customer }}"},
        **SPEND | {"credits": "{{ params.credits }}"},
    )
