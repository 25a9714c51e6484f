"""What users of Flask-AppBuilder's roles see on the Credits page, over HTTP."""

from __future__ import annotations

import re

import pytest
import requests

from airflow_stability.errors import CREDITS_URL
from tests.ui.conftest import LIMIT, PATH, Site
from tests.ui.users import OF_ONE_DAG, USERS
from tests.ui.waiting import DAG_ID, GATE, GATE_WITH_BUDGET, GATE_WITHOUT_WORKER, LEDGER, OTHER_DAG_ID, PAINT

pytestmark = pytest.mark.timeout(LIMIT + 60)

OTHERS = {f"{OTHER_DAG_ID} · {GATE}", f"{OTHER_DAG_ID} · {GATE_WITH_BUDGET}"}
ALL = {
    f"{DAG_ID} · {GATE}",
    f"{DAG_ID} · {GATE_WITHOUT_WORKER}",
    f"{DAG_ID} · {PAINT} [0]",
    f"{DAG_ID} · {PAINT} [1]",
    *OTHERS,
}
BALANCE = "2.25 <small>credits</small>"
NO_CONNECTION = "There is no Stability connection that you may read."


@pytest.fixture(scope="module")
def pages(site: Site) -> dict[str, str]:
    """Return the page that each user sees."""
    return {user: open_page(site, user) for user in USERS}


def open_page(site: Site, user: str) -> str:
    credentials = {"username": user, "password": site.passwords[user]}
    answer = requests.post(f"{site.url}/auth/token", json=credentials, timeout=30)
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    while True:
        page = requests.get(f"{site.url}/stability/", headers=headers, timeout=30, allow_redirects=False)
        assert page.status_code == 200
        # As a browser does.
        if 'http-equiv="refresh"' not in page.text:
            return page.text


def tasks(page: str) -> set[str]:
    return {name.strip() for name in re.findall(r'target="_top">([^<]*)</a>', page)}


@pytest.mark.parametrize("user", ["admin", "op"])
def test_who_may_read_connections_sees_the_balance_and_who_waits(user: str, pages: dict[str, str]) -> None:
    page = pages[user]

    assert page.count("<section ") == 3
    assert f"Ledger {LEDGER}" in page
    assert BALANCE in page
    assert "The API answers." in page
    assert tasks(page) == ALL
    assert "that you may not" not in page


@pytest.mark.parametrize("user", ["user", "viewer"])
def test_who_may_read_no_connection_sees_who_waits(user: str, pages: dict[str, str]) -> None:
    page = pages[user]

    assert NO_CONNECTION in page
    assert tasks(page) == ALL
    for hidden in ("stability_default", LEDGER, BALANCE, "<svg", "credits per hour"):
        assert hidden not in page


def test_who_may_read_one_dag_sees_its_tasks_and_how_many_others_wait(pages: dict[str, str]) -> None:
    page = pages[OF_ONE_DAG]

    assert NO_CONNECTION in page
    assert tasks(page) == OTHERS
    assert "4 tasks wait in DAGs that you may not read." in " ".join(page.split())
    for hidden in (DAG_ID, PAINT, "stability_default", LEDGER, BALANCE, "<svg"):
        assert hidden not in page


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Cookie": "_token=x"}])
def test_who_has_not_logged_in_sees_nothing(headers: dict[str, str], site: Site) -> None:
    answer = requests.get(f"{site.url}/stability/", headers=headers, timeout=30, allow_redirects=False)

    assert answer.status_code in (401, 403)
    assert DAG_ID not in answer.text
    assert "credits" not in answer.text


def test_nobody_can_change_anything(pages: dict[str, str], site: Site) -> None:
    for page in pages.values():
        assert not re.search("<(form|button|input)", page)
    assert requests.post(f"{site.url}/stability/", timeout=30).status_code in (401, 405)


def test_every_link_stays_below_the_path_of_the_proxy(pages: dict[str, str]) -> None:
    for page in pages.values():
        links = {*re.findall(r'href="([^"]*)"', page)}
        # Empty is the page itself.
        assert {link for link in links if not link.startswith(f"{PATH}/dags/")} == {CREDITS_URL, ""}
    assert f'href="{PATH}/dags/{DAG_ID}/runs/' in pages["op"]
