"""The Credits page as a user sees it in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect

from airflow_stability.simulator import Fault
from tests.ui.conftest import LIMIT, WINDOW, Site
from tests.ui.waiting import (
    CREDITS,
    DAG_ID,
    GATE,
    GATE_WITH_BUDGET,
    GATE_WITHOUT_WORKER,
    LEDGER,
    OTHER_DAG_ID,
    PAINT,
    READINGS,
)

pytestmark = pytest.mark.timeout(LIMIT + 60)

#: A connection whose balance the API does not answer at first.
SLOW = "slow_api"
#: JavaScript: each visible text with its background and the contrast between the two.
CONTRASTS = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => color.slice(0, 3)
    .map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const backgroundOf = (element) => {
    const color = numbers(getComputedStyle(element).backgroundColor);
    return color[3] === 0 && element.parentElement ? backgroundOf(element.parentElement) : color;
  };
  return [...document.body.querySelectorAll("*")]
    .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .filter((element) => element.checkVisibility() && !element.closest("svg"))
    .map((element) => {
      const background = backgroundOf(element);
      const both = [numbers(getComputedStyle(element).color), background].map(luminance);
      const [low, high] = both.sort((a, b) => a - b);
      return { text: element.textContent, background, contrast: (high + 0.05) / (low + 0.05) };
    });
}"""


def open_credits(page: Page) -> FrameLocator:
    """Open the page from Airflow's navigation, and return its frame."""
    page.get_by_role("link", name="Stability credits").click()
    frame = page.frame_locator("iframe")
    expect(frame.get_by_role("heading", name="Stability credits")).to_be_visible()
    return frame


def complaints_of(page: Page) -> list[str]:
    """Return a list to which the page's errors are added, and what the browser forbids it."""
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return complaints


def test_she_reads_balance_rate_plot_and_who_waits(
    log_in: Callable[[str], Page], take_picture: Callable[[Page, str], None]
) -> None:
    page = log_in("op")
    complaints = complaints_of(page)
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


def test_she_sees_who_spent_what_which_budget_is_nearly_used_up_and_who_waits_for_it(
    log_in: Callable[[str], Page], take_picture: Callable[[Page, str], None]
) -> None:
    page = log_in("op")
    complaints = complaints_of(page)
    ledger = open_credits(page).get_by_role("region", name=f"Ledger {LEDGER}")

    budgets = ledger.get_by_role("table", name="Budgets").get_by_role("row")
    expect(budgets.filter(has_text="marketing")).to_contain_text("nearly used up: 80 % or more")
    expect(budgets.filter(has_text="marketing")).to_contain_text("739.5 of 900 credits used or held")
    expect(budgets.filter(has_text="research")).to_contain_text("120 of 400 credits used or held")
    expect(budgets.filter(has_text="research")).not_to_contain_text("nearly used up")
    meter = ledger.get_by_role("meter", name="used of the limit of marketing")
    expect(meter).to_have_js_property("value", 739.5)
    waits = ledger.get_by_role("table", name="Tasks that wait for credits of this budget").get_by_role("row")
    expect(waits.last).to_contain_text(f"{OTHER_DAG_ID} · {GATE_WITH_BUDGET}")
    dags = ledger.get_by_role("table", name="Credits by DAG").get_by_role("row")
    expect(dags.filter(has_text="image_pipeline").get_by_role("cell").last).to_have_text("742.5 3 unknown")
    expect(dags.last.get_by_role("cell").last).to_have_text("870.5 3 unknown")
    expect(ledger).to_contain_text("airflow stability ledger settle")
    expect(ledger.get_by_role("img", name="Credits per day")).to_be_visible()
    rest = ledger.get_by_role("table", name="The remainder").get_by_role("row").last
    # The gate of the ledger has read the balance, too.
    expect(rest.get_by_role("cell").last).to_have_text(f"{READINGS[0] - CREDITS:g}")
    ledger.get_by_role("heading", name="Budgets").scroll_into_view_if_needed()
    take_picture(page, "credits-page-ledger")
    assert complaints == []


def test_a_task_that_waits_is_one_click_away(log_in: Callable[[str], Page]) -> None:
    page = log_in("op")
    open_credits(page).get_by_role("link", name=f"{DAG_ID} · {GATE}", exact=True).click()

    page.wait_for_url(f"**/tasks/{GATE}")
    expect(page.get_by_role("heading", name=GATE)).to_be_visible()


def test_a_viewer_sees_no_connection_and_no_balance(log_in: Callable[[str], Page]) -> None:
    page = log_in("viewer")
    # Airflow lists pages of plugins for users who may read plugins.
    expect(page.get_by_role("link", name="Stability credits")).to_have_count(0)
    page.goto("stability/")

    expect(page.get_by_text("There is no Stability connection that you may read.")).to_be_visible()
    expect(page.get_by_role("link", name=f"{DAG_ID} · {GATE}", exact=True)).to_be_visible()
    expect(page.get_by_role("img")).to_have_count(0)
    text = page.content()
    assert "stability_default" not in text
    assert "2.25" not in text
    assert LEDGER not in text
    assert "marketing" not in text


def test_a_page_that_came_before_the_answer_of_the_api_completes_itself(
    site: Site, log_in: Callable[[str], Page]
) -> None:
    page = log_in("op")
    key = site.simulator.add_key()
    site.simulator.inject(Fault.hang(), times=None, key=key)
    answer = page.request.post(
        "api/v2/connections",
        data={
            "connection_id": SLOW,
            "conn_type": "stability",
            "host": site.simulator.url,
            "password": key,
            "extra": '{"api_version": "v1"}',
        },
    )
    assert answer.ok
    try:
        wallet = open_credits(page).get_by_role("region", name=SLOW)
        expect(wallet).to_contain_text("The API has not answered yet. This page reloads itself.")

        site.simulator.clear_faults()
        expect(wallet).to_contain_text("2.25 credits")
        expect(wallet).to_contain_text("The API answers.")
    finally:
        site.simulator.clear_faults()
        site.airflow.query("DELETE FROM connection WHERE conn_id = :slow", slow=SLOW)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_can_be_read_on_a_phone_and_in_both_themes(
    width: int, theme: Literal["light", "dark"], browser: Browser, log_in: Callable[[str], Page]
) -> None:
    airflow = log_in("op")
    context = browser.new_context(
        storage_state=airflow.context.storage_state(),
        viewport={"width": width, "height": WINDOW["height"]},
        color_scheme=theme,
    )
    page = context.new_page()
    page.goto(f"{airflow.url}stability/")
    expect(page.get_by_text("2.25 credits").first).to_be_visible()
    page.get_by_role("region", name="stability_default").get_by_text("The balances in numbers").click()
    expect(page.get_by_role("cell", name="62.25")).to_be_visible()

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    seen = page.evaluate(CONTRASTS)
    assert len(seen) > 20
    # What the Web Content Accessibility Guidelines ask for.
    assert [each for each in seen if each["contrast"] < 4.5] == []
    assert (seen[0]["background"][0] < 128) == (theme == "dark")
    context.close()


def test_in_airflows_frame_it_follows_airflows_theme(log_in: Callable[[str], Page]) -> None:
    page = log_in("op")
    frame = open_credits(page)
    for theme in ("dark", "light"):
        # As Airflow's own switch does.
        page.evaluate("theme => { document.documentElement.className = theme }", theme)

        expect(frame.locator("html")).to_have_class(theme)
        expect(frame.locator("body")).to_have_css(
            "background-color", "rgb(17, 19, 24)" if theme == "dark" else "rgb(255, 255, 255)"
        )
