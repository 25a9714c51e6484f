"""The Credits page in a real Airflow, with users of several roles.

One story is played once. The tests then look at the page, in the order in this file.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_stability.compat import AIRFLOW_VERSION, HAS_EXTERNAL_VIEWS
from airflow_stability.simulator import Fault, StabilitySimulator
from tests.conftest import ROOT
from tests.leaks import Search
from tests.real_airflow import (
    RENDERED_FIELDS_TABLE,
    XCOM,
    XCOM_TABLE,
    RealAirflow,
    of_tasks,
)
from tests.rest_api import RestApi

#: Seconds for the story; it takes less than one minute on two cores.
LIMIT = 240
pytestmark = [
    pytest.mark.timeout(LIMIT + 60),
    pytest.mark.skipif(not HAS_EXTERNAL_VIEWS, reason="Airflow has pages of plugins from 3.1 on"),
]

#: User names, which are also roles of Airflow's simple auth manager.
USERS = ("admin", "op", "user", "viewer")
HOSTILE_ORGANIZATION = "<script>alert(1)</script>"
HOSTILE_CONNECTION = '"><img src=x onerror=alert(2)>'
HOSTILE_DAG = "<b>dag</b>'\"&"
#: Below a path, as behind many proxies.
PATH = "/some/where"
#: The time between the two balances that the gate read.
APART = timedelta(hours=2)
OF_FIRST_RUN = of_tasks("run_id = 'first'")
XCOM_OF_FIRST_RUN = XCOM_TABLE if AIRFLOW_VERSION < (3, 4) else "xcom_v1"
WAITING = {
    ("deferred", -1): "deferred",
    ("unreadable", -1): "deferred",
    ("aws", -1): "deferred",
    ("rescheduled", -1): "up_for_reschedule",
    ("hostile_organization", -1): "up_for_reschedule",
    ("outage", -1): "deferred",
    ("spend", 0): "deferred",
    ("spend", 1): "deferred",
}


#: What the page shows of the database: a task in a triggerer, one that waits by reschedule, and a balance
#: that the gate has pushed.
IN_TRIGGERER = ">credits_waiting · deferred</a>"
BY_RESCHEDULE = ">credits_waiting · rescheduled</a>"
PUSHED = '<td data-label="Credits">40</td>'
#: For each table or column that Airflow may rename: what the page then says that it could not read, and which
#: texts it lacks.
MISSING: dict[str, tuple[str, set[str]]] = {
    "trigger": ("tasks that wait in a triggerer.", {IN_TRIGGERER}),
    "task_reschedule": ("since when tasks wait by reschedule.", set()),
    XCOM_OF_FIRST_RUN: ("balances in XCom.", {PUSHED}),
    f"{XCOM_OF_FIRST_RUN}.timestamp": ("balances in XCom.", {PUSHED}),
    # The arguments of the first run are taken from the DAG, and here those of all tasks are.
    RENDERED_FIELDS_TABLE: ("rendered arguments of tasks.", set()),
    "serialized_dag": ("arguments of tasks in their DAGs.", {PUSHED}),
    "task_instance": (
        (
            "tasks that wait in a triggerer; tasks that wait by reschedule or on a worker, and tasks that "
            "run; balances in XCom."
        ),
        {IN_TRIGGERER, BY_RESCHEDULE, PUSHED},
    ),
}
if AIRFLOW_VERSION >= (3, 4):
    MISSING |= {
        XCOM_TABLE: ("balances in XCom.", set()),
        "rtif_v1": ("rendered arguments of tasks.", set()),
    }


class Story:
    """An Airflow with tasks that wait for credits, and connections that do not work."""

    def __init__(self, airflow: RealAirflow, simulator: StabilitySimulator) -> None:
        self.airflow, self.simulator = airflow, simulator
        self.url = airflow.url
        self.keys = {}
        for name in ("wallet", "outage", "locked", "hanging", "from_environment"):
            organizations = [f"org-{name}"] + ([HOSTILE_ORGANIZATION] if name == "wallet" else [])
            for organization in organizations:
                simulator.add_organization(organization, credits=40.0)
            simulator.add_account(f"user-{name}", "someone@example.org", organizations)
            self.keys[name] = simulator.add_key(account=f"user-{name}")
        self.labels = {name: f"key-{number}" for number, name in enumerate(self.keys, start=2)}
        airflow.environment["AIRFLOW_CONN_FROM_ENVIRONMENT"] = self.uri("from_environment")
        self.tokens: dict[str, str] = {}
        #: All pages that were requested, with their headers.
        self.pages: list[bytes] = []

    def uri(self, name: str) -> str:
        return f"{self.simulator.connection_uri(self.keys[name])}?api_version=v1&request_timeout=20"

    def play(self) -> None:
        airflow = self.airflow
        airflow.run("db", "migrate")
        uris = {name: self.uri(name) for name in self.keys if name != "from_environment"}
        airflow.connect(uris | {"not_ours": uris["wallet"]})
        airflow.query(
            "INSERT INTO connection (conn_id, conn_type, host, is_encrypted, is_extra_encrypted) "
            "VALUES (:hostile, 'stability', 'localhost', false, false)",
            hostile=HOSTILE_CONNECTION,
        )
        airflow.start()
        airflow.wait_for("all components are healthy", airflow.healthy)
        for user in USERS:
            answer = requests.post(
                f"{self.url}/auth/token", json={"username": user, "password": f"{user}-password"}, timeout=10
            )
            self.tokens[user] = answer.json()["access_token"]
        dags = {"credits_opened", "credits_waiting", "credits_hidden"}
        airflow.wait_for(
            "all DAGs are there", lambda: {row[0] for row in airflow.query("SELECT dag_id FROM dag")} >= dags
        )
        self._run("credits_opened", "first")
        airflow.wait_for("the gate opens", lambda: self._opened("first"))
        self.simulator.set_credits(31.5, "org-wallet")
        for dag_id, run_id in (
            ("credits_opened", "second"),
            ("credits_waiting", "run"),
            ("credits_hidden", "run"),
        ):
            self._run(dag_id, run_id)
        airflow.wait_for(
            "all wait",
            lambda: (
                self._opened("second")
                and airflow.states("credits_waiting") == WAITING
                and airflow.states("credits_hidden") == {("of_a_hidden_dag", -1): "deferred"}
                and airflow.query("SELECT 1 FROM trigger WHERE triggerer_id IS NOT NULL")
            ),
        )
        # A triggerer polls once when its first gate comes. After that it makes no request.
        airflow.wait_for("the first polls", self._is_quiet)
        # Once a trigger cannot be read, Airflow no longer lists tasks.
        self.api = RestApi(self.url, self.tokens["admin"])
        self.api.request_all()
        for component in ("scheduler", "triggerer", "dag-processor"):
            airflow.kill(component)
        # While it is of another type, no task would wait with it.
        airflow.query("UPDATE connection SET conn_type = 'aws' WHERE conn_id = 'not_ours'")
        at = datetime.now(UTC) - APART
        # Airflow's own columns are naive on SQLite.
        airflow.query(
            f"UPDATE {XCOM_TABLE} SET timestamp = :at WHERE {OF_FIRST_RUN}",
            at=f"{at:%Y-%m-%d %H:%M:%S.%f}",
        )
        if AIRFLOW_VERSION >= (3, 4):
            # As after an upgrade from an earlier Airflow.
            airflow.query(
                "INSERT INTO xcom_v1 (dag_run_id, dag_id, run_id, task_id, map_index, key, value, timestamp) "
                "SELECT dag_run.id, dag_id, run_id, task_id, map_index, key, value, timestamp "
                f"FROM {XCOM} JOIN dag_run USING (dag_id, run_id) WHERE run_id = 'first'"
            )
            airflow.query(f"DELETE FROM {XCOM_TABLE} WHERE {OF_FIRST_RUN}")
        # As after the loss of the encryption key.
        airflow.query(
            "UPDATE trigger SET kwargs = 'gAAAAA' "
            "WHERE id = (SELECT trigger_id FROM task_instance WHERE task_id = 'unreadable')"
        )
        # Airflow deletes these for older runs.
        airflow.query(f"DELETE FROM {RENDERED_FIELDS_TABLE} WHERE {OF_FIRST_RUN}")
        airflow.query(
            "UPDATE task_instance SET dag_id = :hostile WHERE task_id = 'hostile_organization'",
            hostile=HOSTILE_DAG,
        )
        if AIRFLOW_VERSION < (3, 4):
            airflow.query(
                f"UPDATE {RENDERED_FIELDS_TABLE} SET dag_id = :hostile "
                "WHERE task_id = 'hostile_organization'",
                hostile=HOSTILE_DAG,
            )
        self.simulator.inject(Fault.status(503), times=None, key=self.keys["outage"])
        self.simulator.inject(Fault.status(429), times=1, key=self.keys["locked"])
        self.simulator.inject(Fault.hang(), times=None, key=self.keys["hanging"])
        self.calls_before = {name: self.calls(name) for name in self.keys}

    def _run(self, dag_id: str, run_id: str) -> None:
        dag = f"{self.url}/api/v2/dags/{dag_id}"
        headers = {"Authorization": f"Bearer {self.tokens['admin']}"}
        requests.patch(dag, json={"is_paused": False}, headers=headers, timeout=10).raise_for_status()
        run = {"dag_run_id": run_id, "logical_date": None}
        requests.post(f"{dag}/dagRuns", json=run, headers=headers, timeout=10).raise_for_status()

    def _opened(self, run_id: str) -> bool:
        state = self.airflow.query(
            "SELECT state FROM task_instance WHERE task_id = 'opened' AND run_id = :run_id", run_id=run_id
        )
        return state == [("success",)]

    def _is_quiet(self) -> bool:
        last = max(record.monotonic for record in self.simulator.requests)
        return time.monotonic() - last > 3

    def calls(self, name: str, organization: str | None = None) -> int:
        return sum(
            record.key_label == self.labels[name] and organization in (None, record.organization)
            for record in self.simulator.requests
        )

    def new_calls(self, name: str) -> int:
        return self.calls(name) - self.calls_before[name]

    def get(self, user: str | None = "op", path: str = "/") -> requests.Response:
        headers = {"Authorization": f"Bearer {self.tokens[user]}"} if user else {}
        while True:
            answer = requests.get(
                f"{self.url}/stability{path}", headers=headers, timeout=30, allow_redirects=False
            )
            self.pages.append(f"{answer.headers}\n".encode() + answer.content)
            if "Still reading" not in answer.text:
                return answer

    def sections(self, user: str = "op") -> dict[str, str]:
        """Return the page's sections by connection; several sections of one connection are joined."""
        found: dict[str, str] = {}
        for section in self.get(user).text.split("<section ")[1:]:
            heading = section.partition("</h2>")[0]
            name = heading.rpartition('">')[2].partition("<small>")[0].strip()
            found[name] = found.get(name, "") + section
        return found


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder, dags = tmp_path_factory.mktemp("airflow"), tmp_path_factory.mktemp("dags")
    shutil.copy(Path(__file__).parent / "dags" / "credits_page.py", dags)
    passwords = folder / "passwords.json"
    passwords.write_text(json.dumps({user: f"{user}-password" for user in USERS}))
    settings: dict[str, Any] = {
        "core__dags_are_paused_at_creation": True,
        "core__auth_manager": "tests.e2e.credits_page.AuthManager",
        "core__simple_auth_manager_users": ",".join(f"{user}:{user}" for user in USERS),
        "core__simple_auth_manager_passwords_file": passwords,
    }
    with StabilitySimulator() as simulator:
        airflow = RealAirflow(folder, dags, settings=settings, seconds=LIMIT)
        airflow.url += PATH
        airflow.environment |= {
            "PYTHONPATH": str(ROOT),
            "AIRFLOW__API__BASE_URL": airflow.url,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{airflow.url}/execution/",
        }
        try:
            story = Story(airflow, simulator)
            story.play()
            yield story
        finally:
            airflow.end()


def test_anonymous_is_refused_on_every_route(story):
    from airflow_stability.page.app import create_app

    paths = [route.path for route in create_app().routes]
    assert paths == ["/"]
    for path in paths:
        answer = story.get(None, path)
        assert answer.status_code == 401
        assert "credits" not in answer.text


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_there_is_no_documentation_of_routes(path, story):
    assert story.get("admin", path).status_code == 404


@pytest.mark.parametrize("user", ["viewer", "user"])
def test_without_permission_on_connections_no_connection_and_no_balance_is_shown(user, story):
    page = story.get(user)

    assert page.status_code == 200
    assert "There is no Stability connection that you may read." in page.text
    for hidden in ("<svg", "31.5", "org-", "script&gt;alert", *(f">{name}" for name in story.keys)):
        assert hidden not in page.text
    assert not any(story.new_calls(name) for name in story.keys)
    # These users may read DAGs.
    assert ">credits_waiting · deferred</a>" in page.text


def test_twenty_reloads_make_one_request(story):
    story.simulator.inject(Fault.slow(1.0), times=1, key=story.keys["wallet"])

    with ThreadPoolExecutor(10) as reloads:
        answers = list(reloads.map(lambda _: story.get(), range(20)))

    assert {answer.status_code for answer in answers} == {200}
    # The connection's own organization, and the one that a task names.
    assert story.new_calls("wallet") == 2
    assert story.new_calls("outage") == story.new_calls("from_environment") == 1
    assert "No balance:" not in story.sections()["wallet"]


def test_no_request_is_made_during_a_lock_out(story):
    section = story.sections()["locked"]

    assert "The API answered with status 429." in section
    assert "The key is locked out for a while" in section
    assert story.new_calls("locked") == 1


def test_balance_rate_and_plot(story):
    section = story.sections()["wallet"]

    assert "31.5 <small>credits</small>" in section
    assert section.count("<svg") == 2
    assert "The API answers." in section
    per_hour = float(section.partition(" <small>credits per hour</small>")[0].rpartition(">")[2])
    assert per_hour == pytest.approx(8.5 / (APART / timedelta(hours=1)), rel=0.05)
    assert "from 40 credits" in section
    assert '<td data-label="Credits">40</td>' in section


def test_a_balance_that_an_operator_read_is_plotted_for_its_organization(story):
    (section,) = [
        section for section in story.get().text.split("<section ") if "organization &lt;script" in section
    ]

    assert "from 40 credits" in section
    assert "No fall was seen in the readings of the last 24 hours." in section


def test_the_waiting_tasks_with_their_needs_and_a_link(story):
    section = story.sections()["wallet"]
    rows = [row for row in section.split("<tr>") if 'target="_top"' in row]

    expected = {
        "credits_waiting · deferred": ("20 beyond 100", "in a triggerer"),
        "credits_waiting · rescheduled": ("more than 100", "by reschedule"),
        "credits_waiting · spend [0]": ("75", "in a triggerer"),
        "credits_waiting · spend [1]": ("75", "in a triggerer"),
    }
    for name, (needs, how) in expected.items():
        (row,) = [row for row in rows if f">{name}</a>" in row]
        assert f'<td data-label="Needs">{needs}</td>' in row
        assert f'<td data-label="Waits">{how}' in row
        assert "<small>for " in row
    assert f'href="{PATH}/dags/credits_waiting/runs/run/tasks/spend/mapped/1"' in section
    assert 'href="https://platform.stability.ai/account/credits"' in story.get().text


def test_a_task_of_a_dag_that_the_user_may_not_read_is_counted_without_a_name(story):
    section = " ".join(story.sections("op")["wallet"].split())
    assert "1 task waits in a DAG that you may not read." in section
    assert "of_a_hidden_dag" not in story.get("op").text
    assert "credits_hidden · of_a_hidden_dag" in story.get("admin").text


def test_an_outage_shows_its_reason_and_the_last_balance_that_a_task_read(story):
    section = story.sections()["outage"]

    assert "Not up to date:" in section
    assert "The API answered with status 503." in section
    assert "40 <small>credits</small>" in section


def test_a_task_whose_trigger_cannot_be_read_is_shown_too(story):
    others = story.get().text.rpartition("<section ")[2]

    assert ">credits_waiting · unreadable</a>" in others


def test_the_password_of_another_type_of_connection_goes_nowhere(story):
    before = story.calls("wallet")
    section = story.sections("admin")["not_ours"]

    assert (
        "Connection &#39;not_ours&#39;: it is of the type &#39;aws&#39;, so its password is sent nowhere"
        in section
    )
    assert story.calls("wallet") == before


def test_a_connection_of_the_environment_is_shown(story):
    assert "40 <small>credits</small>" in story.sections()["from_environment"]


def test_hostile_names_are_escaped(story):
    page = story.get().text

    for hostile in (HOSTILE_ORGANIZATION, HOSTILE_CONNECTION, HOSTILE_DAG, "<img", "<b>"):
        assert hostile not in page
    for harmless in ("&lt;script&gt;alert(1)", "&lt;img src=x", "&lt;b&gt;dag&lt;/b&gt;&#39;&#34;&amp;"):
        assert harmless in page
    assert f"{PATH}/dags/%3Cb%3Edag%3C%2Fb%3E%27%22%26/runs/run" in page


def test_an_api_that_hangs_does_not_hang_the_page(story):
    begun = time.monotonic()
    section = story.sections("admin")["hanging"]

    assert time.monotonic() - begun < 8
    assert "The API has not answered yet. This page reloads itself." in section
    assert "hanging" not in story.sections("op")


def test_the_page_may_be_framed_by_airflow_only_and_loads_nothing(story):
    headers = story.get().headers

    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'self'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    page = story.get().text
    assert " src=" not in page.replace("&lt;img src=", "")
    assert "style=" not in page


def test_the_page_is_in_the_navigation(story):
    answer = requests.get(
        f"{story.url}/api/v2/plugins",
        headers={"Authorization": f"Bearer {story.tokens['admin']}"},
        timeout=10,
    )
    (plugin,) = [plugin for plugin in answer.json()["plugins"] if plugin["name"] == "stability"]
    (view,) = plugin["external_views"]
    assert (view["name"], view["href"], view["destination"]) == ("Stability credits", "stability/", "nav")


@pytest.fixture(scope="module")
def without(story):
    """The page without each of the tables and columns."""
    code = f"from tests.e2e.missing_tables import pages; pages({[*MISSING]}, {story.tokens['op']!r})"
    return json.loads(story.airflow.execute(code))


@pytest.mark.parametrize("name", MISSING)
def test_a_table_that_cannot_be_read_costs_its_part_of_the_page(name, story, without):
    status, page = without[name]
    unread, lacks = MISSING[name]
    _, _, wallet = page.partition(">wallet\n")
    section = wallet.partition("</section>")[0]

    assert status == 200
    assert f"Not read from Airflow's database:</strong> {unread}" in " ".join(page.split())
    assert {text for text in (IN_TRIGGERER, BY_RESCHEDULE, PUSHED) if text not in section} == lacks
    assert "31.5 <small>credits</small>" in section
    assert "Not read from" not in story.get().text
    story.pages.append(page.encode())


def test_no_key_is_in_any_answer(story):
    for user in USERS:
        story.get(user)
    search = Search(story.keys.values())

    assert (search.find(b"\n".join(story.pages)), story.api.find(search)) == ([], [])
    # Both searches find what is there.
    assert Search(["The API answered with status 429."]).find(b"\n".join(story.pages))
    waits = Search(["default organization has 31.5 credits"])
    assert any("/logs/" in place for place in story.api.find(waits))
    told = {path.partition("?")[0] for path, response in story.api.responses.items() if response.ok}
    assert told >= {
        "eventLogs",
        "connections/wallet",
        "dags/~/dagRuns",
        "dags/credits_waiting/dagRuns/run/taskInstances/deferred/-1",
        "dags/credits_opened/dagRuns/second/taskInstances/opened/xcomEntries/return_value",
    }


def test_no_key_stands_in_any_file_or_row(story):
    places, files, rows = story.airflow.places_of(*story.keys.values())

    assert places == []
    assert files + rows > 100
