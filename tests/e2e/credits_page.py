"""Who may see what on the Credits page, for the test and for its Airflow."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

#: User names, which are roles of Airflow's simple auth manager as well.
USERS = ("admin", "op", "user", "viewer")


class AuthManager(SimpleAuthManager):
    """Airflow's simple one, with rights on single connections and DAGs, as others have them."""

    def is_authorized_connection(self, *, user: Any, details: Any = None, **kwargs: Any) -> bool:
        if details and details.conn_id == "hanging" and user.username != "admin":
            return False
        return super().is_authorized_connection(user=user, details=details, **kwargs)

    def is_authorized_dag(self, *, user: Any, details: Any = None, **kwargs: Any) -> bool:
        if details and details.id == "credits_hidden" and user.username != "admin":
            return False
        return super().is_authorized_dag(user=user, details=details, **kwargs)
