"""The argument ``client`` of a function that spends: the operator fills it in, and a DAG does not see it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

#: The name of the argument.
CLIENT = "client"


def without_client(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function as a DAG calls it: without the argument ``client``, which the operator fills in.

    Airflow checks the DAG's arguments against the signature, before there is a client.
    """
    if not callable(function) or takes_client(function):
        return function
    signature = inspect.signature(function)
    if CLIENT not in signature.parameters:
        return function
    others = [each for each in signature.parameters.values() if each.name != CLIENT]
    visible = signature.replace(parameters=others)

    def bound(args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        given = {CLIENT: kwargs.pop(CLIENT), **visible.bind(*args, **kwargs).arguments}
        in_order = {name: given[name] for name in signature.parameters if name in given}
        return inspect.BoundArguments(signature, in_order)

    # Airflow looks at the kind of a function to find out how to run it.
    if is_async(function):

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            arguments = bound(args, kwargs)
            return await function(*arguments.args, **arguments.kwargs)
    elif inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            arguments = bound(args, kwargs)
            return (yield from function(*arguments.args, **arguments.kwargs))
    else:

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            arguments = bound(args, kwargs)
            return function(*arguments.args, **arguments.kwargs)

    call.__signature__ = visible  # type: ignore[attr-defined]
    call.takes_client = True  # type: ignore[attr-defined]
    return call


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether a function, or an object that can be called, is ``async``."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def takes_client(function: Callable[..., Any]) -> bool:
    """Tell whether a function that :func:`without_client` returned takes the client."""
    return bool(getattr(function, "takes_client", False))
