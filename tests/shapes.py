"""Functions of all shapes that spend. Each pays for one image, except where its name says otherwise."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

IMAGE = "/v2beta/stable-image/generate/core"
#: What the params of the DAG are, and the arguments of each task.
PARAMS = {"customer": "a friend", "credits": 3}
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


def unset_event_loop() -> None:
    """Let Airflow make the event loop of an ``async`` function, and close it.

    Otherwise, Python makes one for Airflow, with a warning, and Airflow leaves it open.
    """
    asyncio.set_event_loop(None)
