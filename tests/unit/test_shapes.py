"""Functions of all shapes, run by the operator on the Airflow that is installed.

What a DAG can make of them, mapped tasks for example, is in tests/integration/test_shapes.py.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import responses

from airflow_stability.compat import runs_async_functions
from airflow_stability.operators.spend import StabilitySpendOperator
from tests import shapes
from tests.shapes import IMAGE, PARAMS, SPEND, AsyncPainter, Painter

try:
    from airflow.sdk import DAG, task
except ImportError:
    from airflow import DAG
    from airflow.decorators import task

ASYNC = pytest.mark.skipif(not runs_async_functions(), reason="this Airflow runs no coroutine")
#: Functions for the decorator, with the arguments of a call in a DAG, and what they return.
DECORATED = [
    (shapes.client_first, ["a boat"], {}, "a boat"),
    (shapes.client_last, ["a boat"], {}, "a boat"),
    (shapes.client_last, [], {"what": "a boat"}, "a boat"),
    (shapes.client_in_the_middle, ["a boat"], {"size": "4k"}, "a boat in 4k"),
    (shapes.client_by_name_only, ["a boat"], {}, "a boat"),
    (shapes.client_by_position_only, ["a boat"], {}, "a boat"),
    (shapes.client_with_default, [], {}, "a fox"),
    (shapes.client_with_default, ["a boat"], {}, "a boat"),
    (shapes.client_behind_many, ["a boat", "a fox"], {}, "a boat and a fox"),
    (shapes.defaults, [], {}, "a fox in 1k"),
    (shapes.defaults, ["a boat"], {"size": "4k"}, "a boat in 4k"),
    (shapes.rest_of_the_context, [], {}, "a friend"),
    (shapes.rest_with_client_last, ["a boat"], {}, "a boat for a friend"),
    (shapes.parts_of_the_context, [], {}, "the task for a friend"),
    (shapes.closure("4k"), [], {}, "a fox in 4k"),
    (shapes.decorated, [], {}, "a fox, noted"),
    (shapes.generator, [], {}, "a fox"),
    (shapes.generator_by_name_only, ["a boat"], {}, "a boat"),
    (shapes.nothing, [], {}, None),
    (shapes.number, [], {}, 5),
    (shapes.several, [], {}, ["a fox", "a boat"]),
    pytest.param(shapes.coroutine, ["a boat"], {}, "a boat", marks=ASYNC),
    pytest.param(shapes.task_group_of_coroutines, [], {}, "a fox", marks=ASYNC),
]
#: What the operator takes, and what comes of it.
CALLABLES = {
    "function": (shapes.paint, {}, "a fox"),
    "lambda": (lambda client: shapes.paint(client), {}, "a fox"),
    "partial": (functools.partial(shapes.defaults, size="2k"), {}, "a fox in 2k"),
    "partial-of-partial": (
        functools.partial(functools.partial(shapes.defaults, size="2k"), what="a boat"),
        {},
        "a boat in 2k",
    ),
    "partial-generator": (functools.partial(shapes.generator, what="a boat"), {}, "a boat"),
    "method": (Painter("4k").method, {}, "a fox in 4k"),
    "class-method": (Painter.class_method, {}, "a fox by Painter"),
    "static-method": (Painter.static_method, {}, "a fox"),
    "generator-method": (Painter("4k").generator_method, {}, "a fox in 4k"),
    "object": (Painter("4k"), {}, "a fox in 4k"),
    "op_args": (shapes.client_first, {"op_args": ["a boat"]}, "a boat"),
    "op_args-for-many": (shapes.client_behind_many, {"op_args": ["a boat", "a fox"]}, "a boat and a fox"),
    "op_kwargs": (shapes.defaults, {"op_kwargs": {"what": "a boat", "size": "4k"}}, "a boat in 4k"),
    "op_args-and-op_kwargs": (
        shapes.client_in_the_middle,
        {"op_args": ["a boat"], "op_kwargs": {"size": "4k"}},
        "a boat in 4k",
    ),
    "templates_dict": (shapes.templates, {"templates_dict": {"what": "a boat"}}, "a boat"),
    "not-pushed": (shapes.paint, {"do_xcom_push": False}, "a fox"),
    "multiple-outputs": (shapes.items, {"multiple_outputs": True}, {"small": "a fox", "large": 2}),
}
ASYNC_CALLABLES = {
    "partial": (functools.partial(shapes.coroutine, what="a boat"), "a boat"),
    "object": (AsyncPainter(), "a fox"),
}


@pytest.fixture
def paid(connection, base_url):
    """Return a function that returns how many images were paid for."""
    with responses.RequestsMock() as mock:
        mock.get(f"{base_url}/v1/user/balance", json={"credits": 5.0})
        image = mock.post(f"{base_url}{IMAGE}")
        yield lambda: image.call_count


def execute(operator):
    shapes.unset_event_loop()
    task_instance = SimpleNamespace(task_id="the task", try_number=1, start_date=None)
    return operator.execute({"ti": task_instance, "params": PARAMS, "outlet_events": {}})


@pytest.mark.parametrize(("function", "args", "kwargs", "returned"), DECORATED)
def test_a_decorated_function_runs_once(paid, function, args, kwargs, returned):
    with DAG("dag", schedule=None):
        operator = task.stability(**SPEND)(function)(*args, **kwargs).operator

    assert (execute(operator), paid()) == (returned, 1)


@pytest.mark.parametrize("shape", CALLABLES)
def test_whatever_can_be_called_runs_once(paid, shape):
    function, arguments, returned = CALLABLES[shape]
    operator = StabilitySpendOperator(task_id="spend", python_callable=function, **SPEND, **arguments)

    assert (execute(operator), paid()) == (returned, 1)


@ASYNC
@pytest.mark.parametrize("shape", ASYNC_CALLABLES)
def test_so_does_what_is_async(paid, shape):
    function, returned = ASYNC_CALLABLES[shape]
    operator = StabilitySpendOperator(task_id="spend", python_callable=function, **SPEND)

    assert (execute(operator), paid()) == (returned, 1)


@pytest.mark.skipif(runs_async_functions(), reason="this Airflow runs coroutines")
@pytest.mark.parametrize("function", [shapes.coroutine, AsyncPainter()], ids=["function", "object"])
def test_an_airflow_that_runs_no_coroutine_says_so_before_the_task_runs(function):
    with pytest.raises(ValueError, match="must not be async"):
        StabilitySpendOperator(task_id="spend", python_callable=function, **SPEND)
