"""``@task.stability``: StabilitySpendOperator as a decorator. Airflow finds it in the provider's metadata."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from airflow_stability.compat import (
    Context,
    DecoratedOperator,
    TaskDecorator,
    execute_as,
    task_decorator_factory,
)
from airflow_stability.operators.client_argument import without_client
from airflow_stability.operators.spend import StabilitySpendOperator


class StabilityDecoratedOperator(DecoratedOperator, StabilitySpendOperator):
    """The operator of a task that is made with ``@task.stability``."""

    template_fields: Sequence[str] = StabilitySpendOperator.template_fields
    template_fields_renderers = StabilitySpendOperator.template_fields_renderers
    custom_operator_name = "@task.stability"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            # DecoratedOperator passes these on only if they are named here.
            kwargs_to_upstream={
                "python_callable": python_callable,
                "op_args": op_args,
                "op_kwargs": op_kwargs,
            },
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            **kwargs,
        )

    def resume(self, context: Context) -> Any:
        """Go on after a deferral. A DecoratedOperator handles the assets around an execution."""
        return execute_as(DecoratedOperator, self, context)

    def determine_kwargs(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments of the function, the client among them."""
        # From Airflow 3.2 on, DecoratedOperator has a method of this name, which would come first.
        return StabilitySpendOperator.determine_kwargs(self, context)


def stability_task(
    python_callable: Callable[..., Any] | None = None, multiple_outputs: bool | None = None, **kwargs: Any
) -> TaskDecorator:
    """Return the decorator that makes a task of a function that spends credits.

    Write ``@task.stability(credits=3)``. The operator fills in the function's argument ``client``; a DAG
    calls the function without it.

    :param python_callable: the function.
    :param multiple_outputs: push each item of a returned dict as an XCom of its own.
    :param kwargs: arguments of :class:`~airflow_stability.operators.spend.StabilitySpendOperator`, and of
        every operator.
    """

    def decorate(function: Callable[..., Any]) -> TaskDecorator:
        return task_decorator_factory(
            python_callable=without_client(function),
            multiple_outputs=multiple_outputs,
            decorated_operator_class=StabilityDecoratedOperator,
            **kwargs,
        )

    return decorate if python_callable is None else decorate(python_callable)  # type: ignore[return-value]
