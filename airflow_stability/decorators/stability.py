"""``@task.stability``: StabilitySpendOperator as a decorator. Airflow finds it by the provider's metadata."""

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
from airflow_stability.operators.spend import StabilitySpendOperator, without_client


class _StabilityDecoratedOperator(DecoratedOperator, StabilitySpendOperator):
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
            # DecoratedOperator keeps these to itself, unless told to pass them on.
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

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on after a deferral, with what DecoratedOperator does around an execution (assets)."""
        self._event = event
        return execute_as(DecoratedOperator, self, context)

    def determine_kwargs(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the function is called with: the client, too."""
        # From Airflow 3.2 on, DecoratedOperator has one of its own, which stands in front.
        return StabilitySpendOperator.determine_kwargs(self, context)


def stability_task(
    python_callable: Callable[..., Any] | None = None, multiple_outputs: bool | None = None, **kwargs: Any
) -> TaskDecorator:
    """Make a task of a function that spends credits: ``@task.stability(credits=3)``.

    The function's argument ``client`` is filled in; a DAG calls it without.

    :param python_callable: the function.
    :param multiple_outputs: push each item of a returned dict as an XCom of its own.
    :param kwargs: arguments of :class:`~airflow_stability.operators.stability.StabilitySpendOperator`, and of
        every operator.
    """

    def decorate(function: Callable[..., Any]) -> TaskDecorator:
        return task_decorator_factory(
            python_callable=without_client(function),
            multiple_outputs=multiple_outputs,
            decorated_operator_class=_StabilityDecoratedOperator,
            **kwargs,
        )

    return decorate if python_callable is None else decorate(python_callable)  # type: ignore[return-value]
