"""The Credits page: a FastAPI app that Airflow mounts below its own, and shows in a frame.

Airflow mounts a plugin's app without asking anybody who they are: each route here demands a user itself.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.api_fastapi.core_api.security import GetUserDep, requires_authenticated
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from airflow_stability.compat import conf
from airflow_stability.errors import CREDITS_URL, StabilityConfigurationError
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.page.balance_cache import MOST_ORGANIZATIONS, Answer, Balances, Known
from airflow_stability.page.burn_rate import Burn, Reading, burn, in_order, thinned
from airflow_stability.page.permissions import visible_connections, visible_dags
from airflow_stability.page.plot import Plot, plot
from airflow_stability.page.queries import HISTORY, Records, Waiter, Wallet, read, wallets_of
from airflow_stability.validation import format_number

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser

    from airflow_stability.client import StabilityClient

#: Where Airflow mounts the app.
URL_PREFIX = "/stability"

#: How long what was read from the database is shown: a page that is reloaded must not keep it busy.
RECORDS_FRESH = timedelta(seconds=15)

#: Seconds that a call may take to connect, and to be answered.
LONGEST_CALL = 10.0

#: Of each wallet, at the most.
SHOWN_WAITERS = 50
SHOWN_READINGS = 40


@dataclass(frozen=True)
class ShownWaiter:
    """A waiting task as the page shows it."""

    waiter: Waiter
    url: str


@dataclass(frozen=True)
class Waiters:
    """Tasks that wait.

    :param shown: those with names.
    :param more: how many others there are whose DAGs the user may read.
    :param hidden: how many there are whose DAGs the user may not read.
    """

    shown: tuple[ShownWaiter, ...]
    more: int
    hidden: int


@dataclass(frozen=True)
class Section:
    """What the page shows of one connection and organization.

    :param organization: None for the key's default.
    :param problem: why the balance is not what it is just now, in one sentence.
    """

    conn_id: str
    organization: str | None
    last: Reading | None
    problem: str | None
    burn: Burn | None
    plot: Plot | None
    readings: tuple[Reading, ...]
    table: tuple[Reading, ...]
    waiters: Waiters


class _Recorder:
    """What the database knows, read again after a few seconds: the same for all who ask at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: Records | None = None
        self._fresh_until = datetime.min.replace(tzinfo=UTC)

    def get(self) -> Records:
        # While one request reads, the others are shown what was read before, if anything was.
        if self._lock.acquire(blocking=self._records is None):
            try:
                self._read()
            finally:
                self._lock.release()
        assert self._records is not None
        return self._records

    def _read(self) -> None:
        now = datetime.now(UTC)
        if now < self._fresh_until:
            return
        with create_session() as session:
            self._records = read(session, now)
        # A large database is not kept busy with this, however often the page is reloaded.
        took = datetime.now(UTC) - now
        self._fresh_until = now + max(RECORDS_FRESH, 10 * took)


def connect(conn_id: str) -> StabilityClient:
    """Make the client of a connection, as the hook does.

    :raises StabilityError: it cannot be read, or makes no client.
    """
    hook = StabilityHook(conn_id, retry_deadline=0)
    client = hook.get_conn()
    if hook.get_connection(conn_id).conn_type == StabilityHook.conn_type:
        # Nobody waits here for as long as a task would, and calls of others wait behind this one.
        client.request_timeout = min(client.request_timeout, LONGEST_CALL)
        return client
    client.close()
    # A task may name any connection; its password is not for the Stability API.
    raise StabilityConfigurationError(f"Connection {conn_id!r} is not of the type stability.")


def create_app() -> FastAPI:
    """Return the app. Balances are remembered as long as it lives."""
    app = FastAPI(
        title="Stability credits",
        dependencies=[Depends(requires_authenticated())],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    balances, recorder = Balances(connect), _Recorder()
    template = _templates().get_template("credits.html")

    # Not async, here and below: Airflow's rights, its database and the API are all waited for in a thread.
    @app.get("/", response_class=HTMLResponse)
    def page(user: GetUserDep) -> HTMLResponse:
        records = recorder.get()
        nonce = secrets.token_urlsafe(16)
        content = template.render(
            **_content(records, balances, user), nonce=nonce, credits_url=CREDITS_URL, now=datetime.now(UTC)
        )
        return HTMLResponse(content, headers=_headers(nonce))

    return app


def _headers(nonce: str) -> dict[str, str]:
    """Return what keeps the page from others: nothing is loaded, no other site frames it, nobody keeps it."""
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
        number=format_number, rate=rate, duration=duration, clock=lambda at: f"{at:%Y-%m-%d %H:%M UTC}"
    )
    return environment


def _content(records: Records, balances: Balances, user: BaseUser) -> dict[str, Any]:
    """Return what the template shows this user."""
    wallets = wallets_of(records)
    conn_ids = visible_connections({wallet.conn_id for wallet in wallets}, user)
    dag_ids = visible_dags((waiter.dag_id for waiter in records.waiters), user)
    wanted: dict[str, set[str | None]] = {conn_id: {None} for conn_id in conn_ids}
    for wallet in wallets:
        if wallet.conn_id in wanted:
            wanted[wallet.conn_id].add(wallet.organization)
    now = datetime.now(UTC)  # before waiting for answers: what is fresh now is not asked for
    answers = balances.get(wanted)
    sections = [
        _section(conn_id, organization, answers[conn_id], records, dag_ids, now)
        for conn_id in conn_ids
        for organization in _organizations(answers[conn_id], wanted[conn_id])
    ]
    others = [each for each in records.waiters if each.wallet is None or each.wallet.conn_id not in wanted]
    return {
        "sections": sections,
        "others": _waiters(others, dag_ids),
        "days": HISTORY.days,
        "complete": records.complete,
    }


def _organizations(answer: Answer, named: set[str | None]) -> list[str | None]:
    """Return the organizations of a connection, its own first."""
    return [answer.organization, *sorted({each for each in named if each} - {answer.organization})]


def _section(
    conn_id: str,
    organization: str | None,
    answer: Answer,
    records: Records,
    dag_ids: set[str],
    now: datetime,
) -> Section:
    known = answer.balances.get(organization, Known())
    # A task that names no organization means the connection's own.
    names = {Wallet(conn_id, organization)}
    if organization == answer.organization:
        names.add(Wallet(conn_id, None))
    seen = [reading for name in names for reading in records.readings.get(name, ())]
    readings = in_order(each for each in [*seen, *known.readings] if now - each.at <= HISTORY)
    last = known.last or (readings[-1] if readings else None)
    return Section(
        conn_id,
        organization,
        last,
        _problem(answer, known, now),
        burn(readings, now),
        plot(readings),
        tuple(readings),
        tuple(reversed(thinned(readings, SHOWN_READINGS))),
        _waiters((each for each in records.waiters if each.wallet in names), dag_ids),
    )


def _problem(answer: Answer, known: Known, now: datetime) -> str | None:
    if answer.failure or known.failure:
        return answer.failure or known.failure
    if not known.is_stale(now):
        return None
    if answer.pending:
        return "The API has not answered yet; reload the page in a while."
    if answer.not_before and now < answer.not_before:
        return f"The server allows no call with this key before {answer.not_before:%H:%M:%S} UTC."
    return f"Not asked for: it is new, or one of more than {MOST_ORGANIZATIONS} that tasks name."


def _waiters(waiters: Iterable[Waiter], dag_ids: set[str]) -> Waiters:
    waiters = list(waiters)
    readable = [waiter for waiter in waiters if waiter.dag_id in dag_ids]
    shown = tuple(ShownWaiter(waiter, task_url(waiter)) for waiter in readable[:SHOWN_WAITERS])
    return Waiters(shown, len(readable) - len(shown), len(waiters) - len(readable))


def task_url(waiter: Waiter) -> str:
    """Return the path of a task instance's page in Airflow."""
    base = urlsplit(conf.get("api", "base_url", fallback="") or "/").path.rstrip("/")
    dag_id, run_id, task_id = (
        quote(each, safe="") for each in (waiter.dag_id, waiter.run_id, waiter.task_id)
    )
    mapped = f"/mapped/{waiter.map_index}" if waiter.map_index >= 0 else ""
    return f"{base}/dags/{dag_id}/runs/{run_id}/tasks/{task_id}{mapped}"


def rate(credits: float) -> str:
    """Write credits per hour, which are an estimate: two decimals, more where nothing would be left."""
    return f"{credits:,.2f}" if credits >= 0.01 else f"{credits:.2g}"


def duration(time: timedelta) -> str:
    """Write a time in its two largest units: ``2 days 3 h``, ``5 h 20 min``, ``12 min``, ``40 s``."""
    seconds = max(int(time.total_seconds()), 0)
    if seconds < 60:
        return f"{seconds} s"
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    parts = {"day" if days == 1 else "days": days, "h": hours} if days else {"h": hours, "min": minutes}
    return " ".join(f"{number} {unit}" for unit, number in parts.items() if number)
