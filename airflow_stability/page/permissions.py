"""What a user may see. Airflow's permissions on connections and DAGs decide it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import (
    ConnectionDetails,
    DagAccessEntity,
    DagDetails,
)
from airflow.models import Connection, DagModel
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_stability.compat import conf
from airflow_stability.hooks.stability import StabilityHook

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser

_ENV_PREFIX = "AIRFLOW_CONN_"


def visible_connections(used: Iterable[str], user: BaseUser) -> list[str]:
    """Return the ids of the Stability connections that the user may read.

    The candidates are those of the type in the database and in this process's environment, and those that
    tasks use. A secrets backend cannot list its connections.

    :param used: the connection ids that tasks name.
    """
    in_database = select(Connection.conn_id).where(Connection.conn_type == StabilityHook.conn_type)
    with create_session() as session:  # closed before the permission checks, which may be a call each
        conn_ids = {*session.scalars(in_database), *_in_environment(), *used}
    return sorted(conn_id for conn_id in conn_ids if _may_read_connection(conn_id, user))


def visible_dags(dag_ids: Iterable[str], user: BaseUser) -> set[str]:
    """Return those of the DAGs whose task instances the user may read."""
    return {dag_id for dag_id in set(dag_ids) if _may_read_tasks(dag_id, user)}


def _in_environment() -> list[str]:
    return [
        name.removeprefix(_ENV_PREFIX).lower()
        for name, value in os.environ.items()
        if name.startswith(_ENV_PREFIX) and _type_of(value) == StabilityHook.conn_type
    ]


def _type_of(connection: str) -> object:
    """Return the type of a connection in URI or JSON form. Airflow's lookup would ask secrets backends."""
    try:
        fields = json.loads(connection)
    except ValueError:
        return connection.partition("://")[0]
    return fields.get("conn_type") if isinstance(fields, dict) else None


def _may_read_connection(conn_id: str, user: BaseUser) -> bool:
    has_teams = _has_teams()
    if has_teams and "___" in conn_id:
        return False  # a team's connection in the environment; only its name says that it belongs to a team
    team = Connection.get_team_name(conn_id) if has_teams else None
    details = ConnectionDetails(conn_id=conn_id, team_name=team)
    return get_auth_manager().is_authorized_connection(method="GET", details=details, user=user)


def _may_read_tasks(dag_id: str, user: BaseUser) -> bool:
    team = DagModel.get_team_name(dag_id) if _has_teams() else None
    return get_auth_manager().is_authorized_dag(
        method="GET",
        access_entity=DagAccessEntity.TASK_INSTANCE,
        details=DagDetails(id=dag_id, team_name=team),
        user=user,
    )


def _has_teams() -> bool:
    return conf.getboolean("core", "multi_team", fallback=False)
