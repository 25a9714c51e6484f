"""The page of a waiting task: a user sees why it waits and what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from airflow_stability.polling import LAST_WAIT
from tests.ui.conftest import LIMIT, Site
from tests.ui.waiting import DAG_ID, GATE, GATE_WITHOUT_WORKER, PAINT

pytestmark = pytest.mark.timeout(LIMIT + 60)

BUY_CREDITS = "https://platform.stability.ai/account/credits"
TASKS = [GATE, GATE_WITHOUT_WORKER, PAINT]


def open_task(page: Page, task_id: str) -> None:
    """Go to a task through the list of DAGs, the DAG, and the grid of its runs."""
    page.get_by_test_id("nav-dags-link").click()
    page.get_by_role("link", name=DAG_ID, exact=True).click()
    page.locator(f"a[href*='/runs/'][href*='/tasks/{task_id}']").click()
    if task_id == PAINT:  # its page lists the mapped instances
        page.get_by_role("link", name="1", exact=True).click()
    expect(page.get_by_text("Deferred", exact=True).first).to_be_visible()


@pytest.mark.parametrize("task_id", TASKS)
def test_the_page_of_a_task_that_waits_says_why_and_where_to_buy_credits(
    task_id: str, log_in: Callable[[str], Page], take_picture: Callable[[Page, str], None]
) -> None:
    page = log_in("user")
    open_task(page, task_id)
    needs = "needs 3." if task_id == PAINT else "needs more than 50."
    text = f"Waiting: the key's default organization has 2.25 credits, {needs}"
    expect(page.get_by_text(text).first).to_be_visible()

    if task_id != GATE_WITHOUT_WORKER:  # only workers have this store
        page.get_by_role("link", name="Storage").click()
        expect(page.get_by_role("row").filter(has_text=LAST_WAIT)).to_contain_text(text)

    page.get_by_role("link", name="Details").click()
    link = page.get_by_role("link", name="Buy credits").or_(page.get_by_role("button", name="Buy credits"))
    expect(link).to_have_attribute("href", BUY_CREDITS)
    # In a new tab, which gets no reference to Airflow.
    expect(link).to_have_attribute("target", "_blank")
    expect(link).to_have_attribute("rel", "noopener noreferrer")
    if task_id == GATE:
        take_picture(page, "waiting-gate")


def test_no_worker_has_run_the_gate_that_starts_in_the_triggerer(site: Site) -> None:
    started = set(
        site.airflow.query(
            "SELECT task_id, pid IS NULL FROM task_instance WHERE dag_id = :dag_id", dag_id=DAG_ID
        )
    )

    assert started == {(GATE, 0), (GATE_WITHOUT_WORKER, 1), (PAINT, 0)}
