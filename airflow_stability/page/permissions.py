"""What a user may see. Airflow's permissions on connections and DAGs decide it.

Some auth managers ask a server. So there is one question for all connections and two for all DAGs, however
many there are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import (
    ConnectionDetails,
    DagAccessEntity,
    DagDetails,
)
from airflow.models import Connection, DagModel
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_stability.compat import CAN_FILTER_CONNECTIONS, conf
from airflow_stability.hooks.stability import StabilityHook

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
    from airflow.api_fastapi.auth.managers.models.batch_apis import (
        IsAuthorizedConnectionRequest,
        IsAuthorizedDagRequest,
    )

Request = TypeVar("Request")

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
    if _has_teams():
        # A team's connection in the environment. Only its name says that it belongs to a team.
        conn_ids = {conn_id for conn_id in conn_ids if "___" not in conn_id}
    return sorted(
        conn_id
        for team, ids in _by_team(conn_ids, lambda ids: Connection.get_conn_id_to_team_name_mapping(ids))
        for conn_id in _readable_connections(ids, user, team)
    )


def visible_dags(dag_ids: Iterable[str], user: BaseUser) -> set[str]:
    """Return those of the DAGs whose task instances the user may read."""
    return {
        dag_id
        for team, ids in _by_team({*dag_ids}, lambda ids: DagModel.get_dag_id_to_team_name_mapping(ids))
        for dag_id in _dags_with_readable_tasks(ids, user, team)
    }


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
        return connection.partition("://")[0].lower()
    return fields.get("conn_type") if isinstance(fields, dict) else None


def _readable_connections(conn_ids: set[str], user: BaseUser, team: str | None) -> set[str]:
    manager = get_auth_manager()
    if CAN_FILTER_CONNECTIONS:
        # Not get_authorized_connections(): some auth managers leave the decision about all to the caller.
        return manager.filter_authorized_connections(conn_ids=conn_ids, user=user, **_named(team))
    requests: dict[str, IsAuthorizedConnectionRequest] = {
        conn_id: {"method": "GET", "details": ConnectionDetails(conn_id=conn_id, team_name=team)}
        for conn_id in conn_ids
    }
    return _allowed(requests, partial(manager.batch_is_authorized_connection, user=user))


def _dags_with_readable_tasks(dag_ids: set[str], user: BaseUser, team: str | None) -> set[str]:
    manager = get_auth_manager()
    readable = manager.filter_authorized_dag_ids(dag_ids=dag_ids, user=user, **_named(team))
    requests: dict[str, IsAuthorizedDagRequest] = {
        dag_id: {
            "method": "GET",
            "access_entity": DagAccessEntity.TASK_INSTANCE,
            "details": DagDetails(id=dag_id, team_name=team),
        }
        for dag_id in readable
    }
    return _allowed(requests, partial(manager.batch_is_authorized_dag, user=user))


def _named(team: str | None) -> dict[str, Any]:
    # Without teams, auth managers need not know the argument; those for Airflow 3.1 do not.
    return {"team_name": team} if team else {}


def _allowed(requests: Mapping[str, Request], are_authorized: Callable[[list[Request]], bool]) -> set[str]:
    """Return the ids of the requests that are authorized.

    An auth manager tells in one call whether all are. If not, each is a call.
    """
    if not requests or are_authorized([*requests.values()]):
        return {*requests}
    return {each for each, request in requests.items() if are_authorized([request])}


def _by_team(
    ids: set[str], teams_of: Callable[[list[str]], dict[str, str | None]]
) -> Iterator[tuple[str | None, set[str]]]:
    """Yield the ids of each team, and those of none. Without any id, yield nothing.

    :param teams_of: returns the teams. Called only where Airflow has teams.
    """
    teams = teams_of([*ids]) if _has_teams() else {}
    for team in {teams.get(each) for each in ids}:
        yield team, {each for each in ids if teams.get(each) == team}


def _has_teams() -> bool:
    return conf.getboolean("core", "multi_team", fallback=False)
