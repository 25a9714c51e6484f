"""The plugin for Airflow's web pages. Airflow finds it by the entry point ``airflow.plugins``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.plugins_manager import AirflowPlugin

from airflow_stability.compat import HAS_EXTERNAL_VIEWS, BaseOperator, BaseOperatorLink
from airflow_stability.errors import CREDITS_URL

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey


class BuyCreditsLink(BaseOperatorLink):
    """A button on the page of each task that waits for credit.

    The plugin offers it. A link in an operator's own ``operator_extra_links`` is stored by the worker that
    runs the task, and a task may wait and end without a worker.
    """

    name = "Buy credits"

    @property
    def operators(self) -> list[type[BaseOperator]]:  # type: ignore[override]  # Airflow reads it as it is
        """The operators whose tasks have the button. They are loaded when the web server asks for them."""
        from airflow_stability.decorators.stability import StabilityDecoratedOperator
        from airflow_stability.operators.spend import StabilitySpendOperator
        from airflow_stability.sensors.stability import StabilityBalanceSensor

        return [StabilityBalanceSensor, StabilitySpendOperator, StabilityDecoratedOperator]

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL where credits are bought."""
        return CREDITS_URL


#: A coin, in a colour that is visible on light and dark backgrounds.
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24' fill='none' "
    "stroke='%238b7fd6' stroke-width='2'%3E%3Ccircle cx='12' cy='12' r='9'/%3E"
    "%3Cpath d='M15 9.5a3.5 3.5 0 1 0 0 5'/%3E%3C/svg%3E"
)


class StabilityPlugin(AirflowPlugin):
    """The plugin for :class:`BuyCreditsLink` and for the Credits page (:mod:`airflow_stability.page`).

    Every Airflow process loads it, so the page's app is made only when the API server asks for it.
    """

    name = "stability"
    operator_extra_links = [BuyCreditsLink()]  # noqa: RUF012  # as Airflow wants it

    if HAS_EXTERNAL_VIEWS:
        external_views = [
            {
                "name": "Stability credits",
                # Without a leading slash, it is relative to Airflow's base_url, which may have a path.
                "href": "stability/",
                "url_route": "stability-credits",
                "destination": "nav",
                "icon": _ICON,
            }
        ]

        @property
        def fastapi_apps(self) -> list[Any]:  # type: ignore[override]  # Airflow asks an instance
            """The Credits page, for the API server."""
            from airflow_stability.page.app import URL_PREFIX, create_app

            return [{"app": create_app(), "url_prefix": URL_PREFIX, "name": "Stability credits"}]
