"""The Credits page on a real server, while something that it reads is slow, and what it asks an auth manager.

tests/e2e/test_credits_page.py has the page in a whole Airflow.
"""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from airflow_stability.compat import AIRFLOW_VERSION, HAS_EXTERNAL_VIEWS
from airflow_stability.daemon_threads import THREAD_NAME
from airflow_stability.simulator import Fault, StabilitySimulator

if not HAS_EXTERNAL_VIEWS:
    pytest.skip("Airflow has pages of plugins from 3.1 on", allow_module_level=True)

import uvicorn
from airflow.api_fastapi import app
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models import Connection
from airflow.utils.session import create_session
from fastapi import FastAPI

from airflow_stability.page.queries import query_database
from tests.dead_host import DeadHost
from tests.real_airflow import free_port

#: More than the 40 requests that a server works on in threads.
REQUESTS = 50
#: Seconds that a test waits for what should come at once.
PATIENCE = 30
#: Airflow keeps the first one of a process.
JWT_SECRET = secrets.token_hex(64)


class AuthManager(SimpleAuthManager):
    """Airflow's simple auth manager, with the questions that it was asked. It can be slow, and fail.

    Users whose names start with `one-` may read one connection and one DAG.
    """

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[str] = []
        self.answers = threading.Event()
        self.answers.set()
        self.broken = False

    def _ask(self, question: str, user: Any, names: list[str]) -> set[str]:
        self.questions.append(question)
        self.answers.wait(PATIENCE)
        if self.broken:
            raise OSError("The server of the auth manager does not answer.")
        return {name for name in names if not user.username.startswith("one-") or name.endswith("-1")}

    def is_authorized_connection(self, *, method: Any, user: Any, details: Any = None) -> bool:
        return bool(self._ask("connection", user, [details.conn_id]))

    def batch_is_authorized_connection(self, requests: Any, *, user: Any) -> bool:
        names = [request["details"].conn_id for request in requests]
        return self._ask("connections, all", user, names) == {*names}

    def filter_authorized_connections(self, *, conn_ids: set[str], user: Any, **kwargs: Any) -> set[str]:
        return self._ask("connections", user, [*conn_ids])

    def is_authorized_dag(self, *, user: Any, details: Any = None, **kwargs: Any) -> bool:
        return bool(self._ask("DAG", user, [details.id]))

    def batch_is_authorized_dag(self, requests: Any, *, user: Any) -> bool:
        assert {str(request["access_entity"]) for request in requests} == {"DagAccessEntity.TASK_INSTANCE"}
        names = [request["details"].id for request in requests]
        return self._ask("tasks of DAGs, all", user, names) == {*names}

    def filter_authorized_dag_ids(self, *, dag_ids: set[str], user: Any, **kwargs: Any) -> set[str]:
        return self._ask("DAGs", user, [*dag_ids])


@pytest.fixture
def auth_manager(airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> AuthManager:
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", f"{__name__}.AuthManager")
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", JWT_SECRET)
    # Where Airflow keeps the auth manager of the process.
    kept = (app, "auth_manager") if AIRFLOW_VERSION < (3, 2) else (app._AuthManagerState, "instance")
    monkeypatch.setattr(*kept, None)
    with create_session() as session:
        session.query(Connection).delete()  # what other tests have left
    manager: Any = app.create_auth_manager()
    assert type(manager) is AuthManager
    return manager


# While something is slow


def get_page(url: str, user: str, auth_manager: AuthManager) -> requests.Response:
    token = auth_manager.generate_jwt(SimpleAuthManagerUser(username=user, role="OP"))
    headers = {"Authorization": f"Bearer {token}"}
    return requests.get(f"{url}/stability/", headers=headers, timeout=PATIENCE)


class Site:
    """A server with the page, and with another one that needs a thread of the server."""

    def __init__(self, port: int, auth_manager: AuthManager, simulator: StabilitySimulator) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.auth_manager, self.simulator = auth_manager, simulator

    def get(self, user: str) -> requests.Response:
        return get_page(self.url, user, self.auth_manager)

    def get_other(self) -> str:
        return requests.get(f"{self.url}/other", timeout=PATIENCE).text


@pytest.fixture
def site(auth_manager: AuthManager, simulator: StabilitySimulator, connection: Any) -> Iterator[Site]:
    from airflow_stability.page.app import create_app

    simulator.set_credits(40.0)
    pages = FastAPI()
    pages.mount("/stability", create_app())
    pages.get("/other")(lambda: "here")  # not async, like most of Airflow's routes
    port = free_port()
    settings = uvicorn.Config(pages, host="127.0.0.1", port=port, ws="none", log_level="critical")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield Site(port, auth_manager, simulator)
    server.should_exit = True
    thread.join()


@contextmanager
def slow_api(site: Site) -> Iterator[None]:
    site.simulator.inject(Fault.hang(), times=None)
    yield
    site.simulator.clear_faults()


@contextmanager
def slow_database(site: Site) -> Iterator[None]:
    from airflow.settings import engine
    from sqlalchemy import event

    answers = threading.Event()

    def hold(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "task_instance" in statement:
            answers.wait(PATIENCE)

    event.listen(engine, "before_cursor_execute", hold)
    yield
    event.remove(engine, "before_cursor_execute", hold)
    answers.set()


@contextmanager
def slow_auth_manager(site: Site) -> Iterator[None]:
    site.auth_manager.answers.clear()
    yield
    site.auth_manager.answers.set()


@pytest.mark.parametrize("slow", [slow_api, slow_database, slow_auth_manager])
def test_a_slow_read_delays_no_other_page_and_is_done_once_for_all(
    slow: Callable[[Site], AbstractContextManager[None]], site: Site
) -> None:
    users = [f"user-{number % 25}" for number in range(REQUESTS)]
    with create_session() as session:
        # Other tests have left tasks in the database, which name connections.
        wallets = query_database(session, datetime.now(UTC)).wallets
    number_of_connections = len({wallet.conn_id for wallet in wallets} | {"stability_default"})
    threads = {*threading.enumerate()}
    with ThreadPoolExecutor(REQUESTS) as browsers, slow(site):
        under_way = threading.Semaphore(0)

        def load(user: str) -> requests.Response:
            under_way.release()
            return site.get(user)

        loading = [browsers.submit(load, user) for user in users]
        for _ in users:
            under_way.acquire()
        assert site.get_other() == '"here"'
        pages = [page.result() for page in loading]
        assert site.get_other() == '"here"'
        threads = {*threading.enumerate()} - threads
        # One for each user, one for the database and one for each connection.
        most = 25 + 1 + number_of_connections
        assert len([each for each in threads if each.name == THREAD_NAME]) <= most
    for page in pages:
        assert page.status_code == 200
        # Less than 2 on a machine that has nothing else to do.
        assert page.elapsed.total_seconds() < 10
        assert "40 <small>credits" not in page.text
        assert '<meta http-equiv="refresh" content="3">' in page.text
        assert "This page reloads itself." in page.text

    until(lambda: all("40 <small>credits" in site.get(user).text for user in {*users}))
    page = site.get(users[0])
    assert "reload" not in page.text.partition("</header>")[2]
    assert "refresh" not in page.text
    # Other tests have left tasks in the database, which name organizations.
    assert [request.organization for request in site.simulator.requests].count(None) == 1


def test_a_page_that_was_made_too_late_is_shown_to_its_user_only(site: Site) -> None:
    with slow_auth_manager(site):
        assert "Still reading" in site.get("user-1").text
        assert "Still reading" in site.get("one-user").text
    until(lambda: "Still reading" not in site.get("one-user").text)

    assert "stability_default" not in site.get("one-user").text
    assert "stability_default" in site.get("user-1").text


def test_a_failure_ends_the_reloads(site: Site) -> None:
    with slow_auth_manager(site):
        assert "Still reading" in site.get("user-1").text
        site.auth_manager.broken = True

    until(lambda: site.get("user-1").status_code == 500)
    site.auth_manager.broken = False
    until(lambda: "40 <small>credits" in site.get("user-1").text)


@pytest.mark.parametrize("skew", [-timedelta(days=1), timedelta(days=1)])
def test_a_clock_that_is_set_does_not_change_how_often_the_database_is_read(
    site: Site, monkeypatch: pytest.MonkeyPatch, skew: timedelta
) -> None:
    from airflow_stability.page import app as page
    from airflow_stability.page import shared_read

    passed = 0.0
    reads = []
    query = page.query_database
    monkeypatch.setattr(shared_read, "time", SimpleNamespace(monotonic=lambda: 1000.0 + passed))
    monkeypatch.setattr(page, "query_database", lambda *args: reads.append(args) or query(*args))
    site.get("user-1")

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + skew

    monkeypatch.setattr(page, "datetime", Clock)
    monkeypatch.setattr(shared_read, "datetime", Clock)
    passed = 14.0
    site.get("user-1")
    assert len(reads) == 1
    passed = 60.0
    site.get("user-1")
    assert len(reads) == 2


# When the server ends

AIRFLOWS_AUTH_MANAGER = f"{SimpleAuthManager.__module__}.{SimpleAuthManager.__name__}"
SERVER = """
import sys, threading
import uvicorn
from airflow.api_fastapi import app
from fastapi import FastAPI
from airflow_stability.page.app import create_app

app.create_auth_manager()
pages = FastAPI()
pages.mount("/stability", create_app())
server = uvicorn.Server(uvicorn.Config(pages, port=int(sys.argv[1]), ws="none", log_level="critical"))

def end():
    sys.stdin.read()
    server.should_exit = True

threading.Thread(target=end, daemon=True).start()
server.run()
"""


@pytest.mark.starts_python
@pytest.mark.parametrize("how", ["SIGTERM", "return"])
def test_what_hangs_does_not_hold_a_process(
    auth_manager: AuthManager, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", AIRFLOWS_AUTH_MANAGER)
    # A byte every now and then makes the request take as long as one can: 20 seconds.
    with DeadHost(drip=0.5) as host:
        monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", host.connection(request_timeout=3600))
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(port)],
            stdin=subprocess.PIPE,
        )
        with process:
            try:
                assert process.stdin
                until(lambda: accepts(port))
                page = get_page(f"http://127.0.0.1:{port}", "she", auth_manager)
                assert page.status_code == 200
                until(lambda: host.calls)
                if how == "SIGTERM":
                    process.send_signal(signal.SIGTERM)
                process.stdin.close()
                process.wait(12)
            finally:
                process.kill()


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def until(look: Callable[[], object]) -> None:
    """Wait until a function returns something true."""
    give_up = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < give_up
        time.sleep(0.1)


# What it asks


@pytest.mark.parametrize("number", [1, 50])
def test_the_number_of_questions_does_not_depend_on_the_number_of_ids(
    number: int, auth_manager: AuthManager
) -> None:
    from airflow_stability.page.permissions import visible_connections, visible_dags

    user = SimpleAuthManagerUser(username="she", role="VIEWER")
    names = {f"name-{each}" for each in range(1, number + 1)}

    assert visible_connections(names, user) == sorted(names)
    one = "connections" if AIRFLOW_VERSION >= (3, 2) else "connections, all"
    assert auth_manager.questions == [one]
    assert visible_dags(names, user) == names
    assert auth_manager.questions == [one, "DAGs", "tasks of DAGs, all"]


def test_a_user_with_one_connection_and_one_dag_sees_no_other(auth_manager: AuthManager) -> None:
    from airflow_stability.page.permissions import visible_connections, visible_dags

    user = SimpleAuthManagerUser(username="one-user", role="VIEWER")
    names = {f"name-{each}" for each in range(50)}

    assert visible_connections(names, user) == ["name-1"]
    assert visible_dags(names, user) == {"name-1"}
    if AIRFLOW_VERSION >= (3, 2):
        assert len(auth_manager.questions) == 3


def test_nothing_is_asked_about_nothing(auth_manager: AuthManager) -> None:
    from airflow_stability.page.permissions import visible_connections, visible_dags

    user = SimpleAuthManagerUser(username="she", role="VIEWER")

    assert (visible_connections([], user), visible_dags([], user)) == ([], set())
    assert auth_manager.questions == []
