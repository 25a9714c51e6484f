"""A real Airflow as most deployments have it, with tasks that wait, and a Chromium that opens its pages.

Users of several roles log in by Flask-AppBuilder. Airflow's pages are below a path, behind nginx.

`make test-ui` sets the environment variable CHROMIUM to its path. `make screenshots` also sets SCREENSHOTS to
the folder for the pictures; without it they go into one of pytest's folders.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.ledger.ledger import Hold, Reading, Spender
from airflow_stability.simulator import StabilitySimulator
from tests.conftest import ROOT
from tests.ledgers import LedgerForTests
from tests.real_airflow import RealAirflow
from tests.servers import Nginx
from tests.ui.users import USERS
from tests.ui.waiting import (
    BALANCES_DAG_ID,
    BUDGETS,
    CREDITS,
    DAG_ID,
    GATE,
    GATE_WITHOUT_WORKER,
    HISTORY,
    LEDGER,
    OTHER_DAG_ID,
    PAINT,
    PROMPTS,
    READINGS,
    SPENDS,
    WITH_LEDGER,
)

if AIRFLOW_VERSION < (3, 3):
    pytest.exit("The browser tests know the pages of Airflow 3.3 only: leave AIRFLOW out.", returncode=2)
if not (CHROMIUM := os.environ.get("CHROMIUM")):
    pytest.exit("Run the browser tests with make test-ui, or set CHROMIUM to one's path.", returncode=2)

#: Seconds for all tests together. pytest's own limit would end this process and leave Airflow running.
LIMIT = 600
#: Seconds for a page to show something.
PATIENCE = 30
#: Pixels.
WINDOW = {"width": 1280, "height": 800}
#: Where Airflow's pages are.
PATH = "/team/airflow"
OPTIONS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # No request of a page leaves this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
WAITING = {(GATE, -1), (GATE_WITHOUT_WORKER, -1), *((PAINT, index) for index in range(len(PROMPTS)))}


class Site:
    """The Airflow whose pages are opened, and the simulated Stability API that its tasks call."""

    def __init__(self, airflow: RealAirflow, simulator: StabilitySimulator) -> None:
        self.airflow, self.simulator = airflow, simulator
        self.url = airflow.url
        self.passwords = {user: secrets.token_urlsafe(12) for user in USERS}

    def start(self) -> None:
        """Start Airflow, and return when all tasks wait."""
        airflow = self.airflow
        airflow.run("db", "migrate")
        words = ", ".join(map(repr, self.passwords.values()))
        airflow.execute(f"from tests.ui.users import create; create([{words}])")
        address = f"{self.simulator.connection_uri()}?api_version=v1"
        ledger = airflow.home / "ledger.db"
        airflow.connect(
            {
                "stability_default": address,
                WITH_LEDGER: f"{address}&ledger_conn_id={LEDGER}",
                LEDGER: f"sqlite:///{quote(str(ledger))}",
            }
        )
        fill_ledger(f"sqlite:///{ledger}")
        airflow.start()
        airflow.wait_for("all components are healthy", airflow.healthy)
        airflow.wait_for("all DAGs are there", lambda: len(airflow.query("SELECT * FROM dag")) == 3)
        airflow.unpause(DAG_ID, OTHER_DAG_ID, BALANCES_DAG_ID)
        airflow.wait_for(
            "all tasks wait",
            lambda: {key for key, state in airflow.states(DAG_ID).items() if state == "deferred"} == WAITING,
        )
        airflow.wait_for(
            "the gates of the other DAG wait",
            lambda: {*airflow.states(OTHER_DAG_ID).values()} == {"deferred"},
        )
        airflow.wait_for(
            "the balance was read", lambda: {*airflow.states(BALANCES_DAG_ID).values()} == {"success"}
        )
        self._write_history()

    def _write_history(self) -> None:
        """Change the balances that the tasks read into those of the last day."""
        now = datetime.now(UTC).replace(tzinfo=None)
        for index, (hours, credits) in enumerate(HISTORY):
            self.airflow.query(
                "UPDATE xcom SET timestamp = :at, value = :value "
                "WHERE dag_id = :dag_id AND map_index = :index",
                at=str(now - timedelta(hours=hours)),
                value=json.dumps({"credits": credits, "organization": None}),
                dag_id=BALANCES_DAG_ID,
                index=index,
            )


def fill_ledger(url: str) -> None:
    """Make a ledger with budgets, spends and balances."""
    now = datetime.now(UTC).replace(tzinfo=None)
    ledger = LedgerForTests(url, now)
    for name, (limit, soft) in BUDGETS.items():
        ledger.set_budget(name, limit, "total", soft_percent=soft)
    for number, (dag_id, budget, credits, day) in enumerate(SPENDS):
        at = now - timedelta(days=day, hours=4)
        ledger.spend(str(number), credits, at=at, dag_id=dag_id, budget=budget)
    ledger.spend("killed", 3, "unknown", at=now - timedelta(hours=4), dag_id="image_pipeline")
    for number, credits in enumerate(READINGS):
        ledger.time = now - timedelta(hours=len(READINGS) - number)
        ledger.hold([Hold("waits", Spender(WITH_LEDGER), 1e6)], Reading(credits, 0.0))
    ledger.database.engine.dispose()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("airflow")
    settings = {
        # A task that starts before the API server answers fails.
        "core__dags_are_paused_at_creation": True,
        "core__auth_manager": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
        "core__test_connection": "Enabled",
        "core__hostname_callable": "tests.ui.waiting.host_name",
    }
    airflow = RealAirflow(folder, Path(__file__).parent / "dags", settings=settings, seconds=LIMIT)
    programs = Nginx.installed()
    assert programs, "make test-ui installs nginx"
    with Nginx(programs, airflow.port, PATH) as nginx, StabilitySimulator(credits=CREDITS) as simulator:
        airflow.environment |= {
            "PYTHONPATH": str(ROOT),
            "AIRFLOW__API__BASE_URL": nginx.url,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{airflow.url}{PATH}/execution/",
        }
        airflow.url = nginx.url
        try:
            site = Site(airflow, simulator)
            site.start()
            yield site
        finally:
            airflow.end()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Each browser context has a new and empty profile.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            chromium_sandbox=False,  # which root cannot have
            args=OPTIONS,
        )
        expect.set_options(timeout=1000 * PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def contexts(browser: Browser) -> Iterator[dict[str, BrowserContext]]:
    """A browser context for each user, so that a user logs in once and later pages load faster."""
    contexts: dict[str, BrowserContext] = {}
    yield contexts
    for context in contexts.values():
        context.close()


@pytest.fixture
def log_in(
    site: Site, browser: Browser, contexts: dict[str, BrowserContext], tmp_path: Path
) -> Iterator[Callable[[str], Page]]:
    """Return a function that opens Airflow as a user. The first time, the user logs in on Airflow's page.

    After the test, check that no page requested anything from another machine, or outside Airflow's path.
    """
    pages: list[Page] = []
    requested: list[SplitResult] = []

    def log_in(user: str) -> Page:
        first = user not in contexts
        if first:
            contexts[user] = browser.new_context(base_url=f"{site.url}/", viewport=WINDOW, locale="en-US")
            contexts[user].set_default_timeout(1000 * PATIENCE)
        page = contexts[user].new_page()
        pages.append(page)
        page.on("request", lambda request: requested.append(urlsplit(request.url)))
        page.goto("./")
        if first:
            page.get_by_label("Username").fill(user)
            page.get_by_label("Password").fill(site.passwords[user])
            page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
        return page

    yield log_in
    for page in pages:
        # The last view, to find out why a test failed.
        page.screenshot(path=tmp_path / "last.png")
        page.close()
    # A page may hold a picture or a script in a data or blob URL.
    requested = [url for url in requested if url.scheme not in ("data", "blob")]
    assert {url.netloc for url in requested} == {urlsplit(site.url).netloc}
    assert [url.path for url in requested if not url.path.startswith(f"{PATH}/")] == []


@pytest.fixture
def take_picture(tmp_path: Path) -> Callable[[Page, str], None]:
    """Return a function that takes a screenshot, under a name without suffix."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take_picture(page: Page, name: str) -> None:
        page.screenshot(path=folder / f"{name}.png", animations="disabled", caret="hide")

    return take_picture
