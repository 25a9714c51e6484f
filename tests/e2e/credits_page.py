"""An auth manager for the test of the Credits page."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class AuthManager(SimpleAuthManager):
    """Airflow's simple auth manager, with permissions on single connections and DAGs."""

    def is_authorized_connection(self, *, user: Any, details: Any = None, **kwargs: Any) -> bool:
        if details and details.conn_id == "hanging" and user.username != "admin":
            return False
        return super().is_authorized_connection(user=user, details=details, **kwargs)

    def is_authorized_dag(self, *, user: Any, details: Any = None, **kwargs: Any) -> bool:
        if details and details.id == "credits_hidden" and user.username != "admin":
            return False
        return super().is_authorized_dag(user=user, details=details, **kwargs)
