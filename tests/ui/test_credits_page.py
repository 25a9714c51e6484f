"""The Credits page as a user sees it in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect

from tests.ui.conftest import LIMIT, Site
from tests.ui.waiting import DAG_ID, GATE, GATE_WITHOUT_WORKER, PAINT

pytestmark = pytest.mark.timeout(LIMIT + 60)


def open_credits(page: Page) -> FrameLocator:
    """Open the page from Airflow's navigation, and return its frame."""
    page.get_by_role("link", name="Stability credits").click()
    frame = page.frame_locator("iframe")
    expect(frame.get_by_role("heading", name="Stability credits")).to_be_visible()
    return frame


def test_she_reads_balance_rate_plot_and_who_waits(
    log_in: Callable[[str], Page], take_picture: Callable[[Page, str], None]
) -> None:
    page = log_in("op")
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    frame = open_credits(page)

    wallet = frame.get_by_role("region", name="stability_default the key's default organization")
    expect(wallet).to_contain_text("2.25 credits")
    expect(wallet).to_contain_text("The API answers.")
    # 6, and slightly less with each minute in which the balance does not change.
    expect(wallet).to_contain_text(re.compile(r"(6\.00|5\.[89]\d) credits per hour"))
    expect(wallet.get_by_role("img", name="The balance over time")).to_be_visible()
    rows = wallet.get_by_role("table", name="Tasks that wait").get_by_role("row")
    for name, needs in (
        (f"{DAG_ID} · {GATE}", "more than 50"),
        (f"{DAG_ID} · {GATE_WITHOUT_WORKER}", "more than 50"),
        (f"{DAG_ID} · {PAINT} [0]", "3"),
        (f"{DAG_ID} · {PAINT} [1]", "3"),
    ):
        row = rows.filter(has=frame.get_by_role("link", name=name, exact=True))
        expect(row.get_by_role("cell").first).to_have_text(needs)
        expect(row).to_contain_text("in a triggerer")
    expect(frame.get_by_role("link", name="Buy credits")).to_have_attribute(
        "href", "https://platform.stability.ai/account/credits"
    )
    take_picture(page, "credits-page")
    # The browser would report here what the Content-Security-Policy forbids.
    assert complaints == []


def test_a_task_that_waits_is_one_click_away(log_in: Callable[[str], Page]) -> None:
    page = log_in("op")
    open_credits(page).get_by_role("link", name=f"{DAG_ID} · {GATE}", exact=True).click()

    page.wait_for_url(f"**/tasks/{GATE}")
    expect(page.get_by_role("heading", name=GATE)).to_be_visible()


def test_a_viewer_sees_no_connection_and_no_balance(log_in: Callable[[str], Page]) -> None:
    frame = open_credits(log_in("viewer"))

    expect(frame.get_by_text("There is no Stability connection that you may read.")).to_be_visible()
    expect(frame.get_by_role("link", name=f"{DAG_ID} · {GATE}", exact=True)).to_be_visible()
    expect(frame.get_by_role("img")).to_have_count(0)
    text = frame.locator("html").inner_html()
    assert "stability_default" not in text
    assert "2.25" not in text


def test_who_has_not_logged_in_sees_nothing(site: Site, browser: Browser) -> None:
    stranger = browser.new_context(base_url=site.url)
    answer = stranger.request.get("/stability/")

    assert answer.status == 401
    assert DAG_ID not in answer.text()
    stranger.close()
