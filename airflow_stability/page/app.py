"""The Credits page: a FastAPI app that Airflow mounts below its own and shows in a frame.

Airflow does not authenticate requests to a plugin's app, so each route here requires a user itself.

Airflow's permissions, its database and the API block, and may be slow, so the page is made in the background.
A request that comes too early gets a page that says so and reloads itself.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.api_fastapi.core_api.security import GetUserDep, requires_authenticated
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from airflow_stability.compat import conf
from airflow_stability.errors import CREDITS_URL
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.page.background import BackgroundPages
from airflow_stability.page.balance_cache import (
    MAX_ORGANIZATIONS,
    WAIT_SECONDS,
    BalanceCache,
    CachedBalance,
    CachedConnection,
)
from airflow_stability.page.burn_rate import downsample, estimate_burn_rate, merge_readings
from airflow_stability.page.ledgers import Ledgers
from airflow_stability.page.permissions import visible_connections, visible_dags
from airflow_stability.page.plot import plot
from airflow_stability.page.queries import HISTORY, QueryResult, query_database
from airflow_stability.page.shared_read import SharedRead
from airflow_stability.page.waiting_tasks import WaitingTask, Wallet, task_list
from airflow_stability.rules.wording import organization_label
from airflow_stability.validation import format_number

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser

    from airflow_stability.client import StabilityClient

#: Where Airflow mounts the app.
URL_PREFIX = "/stability"

#: Seconds after which a page that is not complete reloads itself.
RELOAD_SECONDS = 3

#: The longest request timeout of the page, in seconds.
MAX_REQUEST_TIMEOUT = 10.0

#: How many readings a section shows at most.
MAX_SHOWN_READINGS = 40


def _read_database(now: datetime) -> QueryResult:
    with create_session() as session:
        return query_database(session, now)


def connect(conn_id: str) -> StabilityClient:
    """Make the client of a connection, as the hook does.

    :raises StabilityError: the connection cannot be read, is of another type, or has an unusable field.
    """
    client = StabilityHook(conn_id, retry_deadline=0).get_conn()
    # A user waits, and so do the other requests with this connection.
    client.request_timeout = min(client.request_timeout, MAX_REQUEST_TIMEOUT)
    return client


def create_app() -> FastAPI:
    """Return the app. It caches balances, ledgers and query results as long as it lives."""
    # Without an OpenAPI document, FastAPI serves no documentation either.
    app = FastAPI(dependencies=[Depends(requires_authenticated())], openapi_url=None)
    balances, queries, ledgers = BalanceCache(connect), SharedRead(_read_database), Ledgers()
    pages: BackgroundPages[tuple[str, str]] = BackgroundPages()
    template = _templates().get_template("credits.html")

    def render(content: dict[str, Any]) -> tuple[str, str]:
        nonce = secrets.token_urlsafe(16)
        now = datetime.now(UTC)
        html = template.render(
            content,
            nonce=nonce,
            credits_url=CREDITS_URL,
            now=now,
            days=HISTORY.days,
            reload_seconds=RELOAD_SECONDS,
        )
        return html, nonce

    def make(user: BaseUser) -> tuple[str, str]:
        return render(_content(queries, balances, ledgers, user))

    @app.get("/", response_class=HTMLResponse)
    async def page(user: GetUserDep) -> HTMLResponse:
        html, nonce = await pages.get(user.get_id(), partial(make, user)) or render({"reading": True})
        return HTMLResponse(html, headers=_headers(nonce))

    return app


def _headers(nonce: str) -> dict[str, str]:
    """Return the security headers: the page loads nothing, no other site frames it, and nobody caches it."""
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; frame-ancestors 'self'; "
        "base-uri 'none'; form-action 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "SAMEORIGIN",
    }


def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=format_number,
        rate=rate,
        duration=duration,
        clock=lambda at: f"{at:%Y-%m-%d %H:%M UTC}",
        url=task_url,
    )
    return environment


def _content(
    queries: SharedRead[QueryResult], balances: BalanceCache, ledgers: Ledgers, user: BaseUser
) -> dict[str, Any]:
    """Return what the template shows to this user."""
    result, queried_at = queries.get(WAIT_SECONDS, wait_for_first=True)
    assert result is not None
    conn_ids = visible_connections({wallet.conn_id for wallet in result.wallets}, user)
    wanted: dict[str, set[str]] = {conn_id: set() for conn_id in conn_ids}
    for wallet in result.wallets:
        if wallet.organization and wallet.conn_id in wanted:
            wanted[wallet.conn_id].add(wallet.organization)
    # Taken before the wait: a balance that is fresh now is not requested.
    now, began = datetime.now(UTC), time.monotonic()
    connections = balances.get(wanted)
    ledger_parts = ledgers.get(connections, WAIT_SECONDS - (time.monotonic() - began))
    named = [
        *(task.dag_id for task in result.tasks),
        *(each for part in ledger_parts for each in part.dag_ids),
    ]
    dag_ids = visible_dags(named, user)
    sections = []
    for conn_id, connection in connections.items():
        own = connection.organization
        for organization in [own, *sorted(wanted[conn_id] - {own})]:
            sections.append(_section(conn_id, organization, connection, result, dag_ids, now, began))
    others = [task for task in result.tasks if task.wallet is None or task.wallet.conn_id not in wanted]
    return {
        "reading": False,
        "queried_at": queried_at,
        "pending": (
            queried_at is not None
            or any(each.pending for each in connections.values())
            or any(part.pending for part in ledger_parts)
        ),
        "sections": sections,
        "ledgers": [part.content(result.tasks, dag_ids) for part in ledger_parts],
        "others": task_list(others, dag_ids),
        "complete": result.complete,
        "unread": result.unread,
    }


def _section(
    conn_id: str,
    organization: str | None,
    connection: CachedConnection,
    result: QueryResult,
    dag_ids: set[str],
    now: datetime,
    began: float,
) -> dict[str, Any]:
    """Return what the template shows of one connection and organization.

    :param began: when the balances were asked for, by the monotonic clock.
    """
    balance = connection.balances.get(organization, CachedBalance())
    wallets = {Wallet(conn_id, organization)}
    # A task that names no organization uses the connection's own.
    if organization == connection.organization:
        wallets.add(Wallet(conn_id, None))
    seen = [reading for wallet in wallets for reading in result.readings.get(wallet, ())]
    known = [each for each in [*seen, *balance.readings] if now - each.at <= HISTORY]
    readings = merge_readings(known)
    problem = _problem(connection, organization, now, began)
    last = balance.last
    if problem or last is None:
        last = max(known, default=last)
    return {
        "conn_id": conn_id,
        "organization": organization_label(organization),
        "last": last,
        "problem": problem,
        "burn_rate": estimate_burn_rate(readings, now),
        "plot": plot(readings),
        "readings": readings,
        "table": downsample(readings, MAX_SHOWN_READINGS)[::-1],
        "tasks": task_list([task for task in result.tasks if task.wallet in wallets], dag_ids),
    }


def _problem(
    connection: CachedConnection, organization: str | None, now: datetime, began: float
) -> str | None:
    """Return why a balance is out of date, in a few sentences; None if it is not."""
    balance = connection.balances.get(organization, CachedBalance())
    lock_out = ""
    if connection.locked_until:
        date = "" if connection.locked_until.date() == now.date() else "%Y-%m-%d "
        until = connection.locked_until.strftime(f"{date}%H:%M:%S UTC")
        lock_out = f"The server allows no call with this API key before {until}."
    if failure := connection.failure or balance.failure:
        return f"{failure} {lock_out}".rstrip()
    if not balance.is_stale(began):
        return None
    if connection.pending:
        return "The API has not answered yet. This page reloads itself."
    if lock_out:
        return lock_out
    if why := connection.skipped.get(organization):
        return why
    return (
        "This balance was not requested: either the organization is new, or tasks name more than "
        f"{MAX_ORGANIZATIONS} organizations."
    )


def task_url(task: WaitingTask) -> str:
    """Return the path of a task instance's page in Airflow."""
    base = urlsplit(conf.get("api", "base_url", fallback="") or "/").path.rstrip("/")
    dag_id, run_id, task_id = (quote(each, safe="") for each in (task.dag_id, task.run_id, task.task_id))
    mapped = f"/mapped/{task.map_index}" if task.map_index >= 0 else ""
    return f"{base}/dags/{dag_id}/runs/{run_id}/tasks/{task_id}{mapped}"


def rate(credits: float) -> str:
    """Write credits per hour with two decimals, or with two significant digits below 0.01."""
    return f"{credits:,.2f}" if credits >= 0.01 else f"{credits:.2g}"


def duration(time: timedelta) -> str:
    """Write a time in its two largest units: ``2 days 3 h``, ``5 h 20 min``, ``12 min``, ``40 s``."""
    seconds = max(int(time.total_seconds()), 0)
    if seconds < 60:
        return f"{seconds} s"
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    parts = {"day" if days == 1 else "days": days, "h": hours} if days else {"h": hours, "min": minutes}
    return " ".join(f"{number} {unit}" for unit, number in parts.items() if number)
