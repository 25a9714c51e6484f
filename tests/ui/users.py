"""Users for the browser tests: one for each of Flask-AppBuilder's roles, and one whose role has one DAG."""

from __future__ import annotations

from collections.abc import Sequence

from tests.ui.waiting import OTHER_DAG_ID

#: The user of the role that may read one DAG only.
OF_ONE_DAG = "of_one_dag"
USERS = ("admin", "op", "user", "viewer", OF_ONE_DAG)


def create(passwords: Sequence[str]) -> None:
    """Create the users, in the order of USERS. Runs in a process of Airflow's."""
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
    from airflow.providers.fab.www.security import permissions

    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        role = manager.add_role(OF_ONE_DAG)
        for resource in (
            permissions.RESOURCE_WEBSITE,
            permissions.RESOURCE_DAG_RUN,
            permissions.RESOURCE_TASK_INSTANCE,
            permissions.resource_name(OTHER_DAG_ID, permissions.RESOURCE_DAG),
        ):
            permission = manager.create_permission(permissions.ACTION_CAN_READ, resource)
            manager.add_permission_to_role(role, permission)
        for name, password in zip(USERS, passwords, strict=True):
            role = manager.find_role(name if name == OF_ONE_DAG else name.capitalize())
            assert manager.add_user(name, "A", "Person", f"{name}@example.org", role, password)
