"""Functions of all shapes that spend, each in a task of its own.

A shape is what a function looks like, and how a DAG makes a task of it.
"""

from __future__ import annotations

import asyncio
import functools
from datetime import datetime
from typing import Any

from airflow_stability.compat import runs_async_functions
from airflow_stability.operators.spend import StabilitySpendOperator

try:
    from airflow.sdk import DAG, task, task_group
except ImportError:  # Airflow 2.11
    from airflow import DAG
    from airflow.decorators import task, task_group

IMAGE = "/v2beta/stable-image/generate/core"
SPEND: dict[str, Any] = {"credits": 3, "poke_interval": 0.2, "wait_timeout": 60}


def paint(client, what="a fox"):
    client.request("POST", IMAGE, headers={"Accept": "image/*"}, files={"prompt": (None, what)})
    return what


# Where the client is


def client_first(client, what):
    return paint(client, what)


def client_last(what, client):
    return paint(client, what)


def client_in_the_middle(what, client, size):
    return paint(client, f"{what} in {size}")


def client_by_name_only(what, *, client):
    return paint(client, what)


def client_by_position_only(client, /, what):
    return paint(client, what)


def client_with_default(what="a fox", client=None):
    return paint(client, what)


def client_behind_many(*whats, client):
    return paint(client, " and ".join(whats))


def no_client(what):
    return what


# What else the function takes


def defaults(client, what="a fox", *, size="1k"):
    return paint(client, f"{what} in {size}")


def rest_of_the_context(client, **context):
    return paint(client, context["params"]["customer"])


def rest_with_client_last(what, *, client, **context):
    return paint(client, f"{what} for {context['params']['customer']}")


def parts_of_the_context(client, ti=None, params=None):
    return paint(client, f"{ti.task_id} for {params['customer']}")


def templates(client, templates_dict=None):
    return paint(client, templates_dict["what"])


# What kind of a callable it is


class Painter:
    def __init__(self, size):
        self.size = size

    def __call__(self, client, what="a fox"):
        return paint(client, f"{what} in {self.size}")

    def method(self, client, what="a fox"):
        return paint(client, f"{what} in {self.size}")

    def generator_method(self, client, what="a fox"):
        yield
        return paint(client, f"{what} in {self.size}")

    @classmethod
    def class_method(cls, client, what="a fox"):
        return paint(client, f"{what} by {cls.__name__}")

    @staticmethod
    def static_method(client, what="a fox"):
        return paint(client, what)


class AsyncPainter:
    async def __call__(self, client, what="a fox"):
        return paint(client, what)


def closure(size):
    def paint_in_size(client, what="a fox"):
        return paint(client, f"{what} in {size}")

    return paint_in_size


def noted(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return f"{function(*args, **kwargs)}, noted"

    return call


@noted
def decorated(client, what="a fox"):
    return paint(client, what)


def generator(client, what="a fox"):
    yield
    return paint(client, what)


def generator_by_name_only(what="a fox", *, client):
    yield
    yield
    return paint(client, what)


async def coroutine(client, what="a fox"):
    await asyncio.sleep(0)
    return paint(client, what)


async def task_group_of_coroutines(client):
    async with asyncio.TaskGroup() as group:
        painted = group.create_task(coroutine(client))
    return painted.result()


# What it returns


def nothing(client):
    paint(client)


def number(client):
    return len(paint(client))


def several(client):
    return [paint(client), "a boat"]


def items(client):
    return {"small": paint(client), "large": 2}


def annotated_items(client) -> dict[str, Any]:
    return {"small": paint(client), "large": 2}


#: By task: its callable, and further arguments of the operator. What it returns is in the test.
OPERATORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lambda": (lambda client: paint(client), {}),
    "partial": (functools.partial(defaults, size="2k"), {}),
    "partial_of_partial": (functools.partial(functools.partial(defaults, size="2k"), what="a boat"), {}),
    "method": (Painter("4k").method, {}),
    "class_method": (Painter.class_method, {}),
    "static_method": (Painter.static_method, {}),
    "object": (Painter("4k"), {}),
    "generator_method": (Painter("4k").generator_method, {}),
    "partial_generator": (functools.partial(generator, what="a boat"), {}),
    "op_args": (client_first, {"op_args": ["a boat"]}),
    "op_args_for_many": (client_behind_many, {"op_args": ["a boat", "a fox"]}),
    "op_kwargs": (defaults, {"op_kwargs": {"what": "a boat", "size": "4k"}}),
    "op_args_and_op_kwargs": (client_in_the_middle, {"op_args": ["a boat"], "op_kwargs": {"size": "4k"}}),
    "templated_op_args": (client_last, {"op_args": ["{{ params.customer }}"]}),
    "templates_dict": (templates, {"templates_dict": {"what": "{{ params.customer }}"}}),
    "templated_credits": (paint, {"credits": "{{ params.credits }}"}),
    "by_reschedule": (paint, {"deferrable": False}),
    "not_pushed": (paint, {"do_xcom_push": False}),
}
if runs_async_functions():
    OPERATORS |= {
        "async_partial": (functools.partial(coroutine, what="a boat"), {}),
        "async_object": (AsyncPainter(), {}),
        "async_group": (task_group_of_coroutines, {}),
    }

PARAMS = {"customer": "a friend", "credits": 3}
with DAG("shapes", schedule=None, start_date=datetime(2026, 1, 1), params=PARAMS):
    spend = task.stability(**SPEND)

    spend(client_first)("a boat")
    spend(client_last)("a boat")
    spend(client_in_the_middle)("a boat", size="4k")
    spend(client_by_name_only)("a boat")
    spend(client_by_position_only)("a boat")
    spend(client_with_default)()
    spend(client_behind_many)("a boat", "a fox")
    spend(no_client)("a boat")
    spend(defaults)()
    spend(rest_of_the_context)()
    spend(rest_with_client_last)("a boat")
    spend(parts_of_the_context)()
    spend(closure("4k"))()
    spend(decorated)()
    spend(generator)()
    spend(generator_by_name_only)("a boat")
    if runs_async_functions():
        spend(coroutine)()
    spend(nothing)()
    spend(number)()
    task.stability(**SPEND, multiple_outputs=True)(items)()
    spend(annotated_items)()

    spend(client_last).override(task_id="overridden")("a boat")
    spend(client_last).expand(what=["a boat", "a fox"])
    spend(client_in_the_middle).partial(size="4k").expand(what=["a boat", "a fox"])
    spend(client_in_the_middle).override(task_id="kwargs_expanded").expand_kwargs(
        [{"what": "a boat", "size": "4k"}, {"what": "a fox", "size": "1k"}]
    )
    spend(client_last).override(task_id="expanded_over_a_result").expand(what=spend(several)())
    spend(generator).override(task_id="generator_expanded").expand(what=["a boat", "a fox"])

    @task_group
    def group(what):
        spend(client_last).override(task_id="in_a_mapped_group")(what)

    group.expand(what=["a boat", "a fox"])

    task.run_if(lambda context: True)(spend(client_last).override(task_id="run_if"))("a boat")
    task.run_if(lambda context: False)(spend(client_last).override(task_id="not_run_if"))("a boat")
    task.skip_if(lambda context: False)(spend(client_last).override(task_id="not_skip_if"))("a boat")
    task.skip_if(lambda context: True)(spend(client_last).override(task_id="skip_if"))("a boat")

    for task_id, (function, arguments) in OPERATORS.items():
        StabilitySpendOperator(task_id=task_id, python_callable=function, **SPEND | arguments)
    by_operator = StabilitySpendOperator.partial(
        task_id="op_args_expanded", python_callable=client_last, **SPEND
    )
    by_operator.expand(op_args=[["a boat"], ["a fox"]])
    by_operator = StabilitySpendOperator.partial(
        task_id="op_kwargs_expanded", python_callable=defaults, **SPEND
    )
    by_operator.expand(op_kwargs=[{"what": "a boat"}, {"size": "4k"}])
