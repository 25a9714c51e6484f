"""The connection form: a user makes a connection and tests it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from airflow_stability.hooks.form import FIELDS
from tests.ui.conftest import LIMIT, Site

#: Pixels.
PHONE = {"width": 390, "height": 740}
pytestmark = pytest.mark.timeout(LIMIT + 60)


@pytest.fixture(autouse=True)
def no_other_connections(site: Site) -> Iterator[None]:
    """Delete the connections of a test; the Credits page would show them."""
    (last,) = site.airflow.query("SELECT max(id) FROM connection")[0]
    yield
    site.airflow.query("DELETE FROM connection WHERE id > :last", last=last)


def open_form(page: Page) -> Locator:
    """Go to the connections through the menu, and open the form for a new one."""
    page.get_by_role("button", name="Admin").click()
    page.get_by_role("menuitem", name="Connections").click()
    return open_new(page)


def open_new(page: Page) -> Locator:
    """Open the form for a new connection of our type, on the page of the connections."""
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.get_by_role("combobox").click()
    page.get_by_role("option", name="Stability AI").click()
    return form


def fill_in(form: Locator, conn_id: str, site: Site, key: str) -> None:
    form.get_by_label("Connection ID").fill(conn_id)
    form.get_by_label("API key").fill(key)
    # Airflow 3.3.2 refuses to test a stored connection without a port (apache/airflow#73298).
    form.get_by_label("API host").fill("127.0.0.1")
    form.get_by_label("Port").fill(str(site.simulator.port))
    form.get_by_label("Scheme").fill("http")


def open_extra(form: Locator) -> None:
    form.get_by_role("button", name="Extra Fields", exact=True).click()


def expect_on_screen(field: Locator) -> None:
    """Check that a field can be scrolled to downwards, and is not wider than a phone."""
    field.scroll_into_view_if_needed()
    box = field.bounding_box()
    assert box
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]


def save(form: Locator) -> None:
    form.get_by_role("button", name="Save").click()
    form.wait_for(state="hidden")


def row_of(page: Page, conn_id: str) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("cell", name=conn_id, exact=True))


def try_it(page: Page, conn_id: str) -> Locator:
    """Press the Test button, and return the message that Airflow shows."""
    row_of(page, conn_id).get_by_role("button", name="Test Connection").click()
    return page.get_by_role("status").filter(has_text=re.compile("Test Connection (Successful|Failed)"))


def edit(page: Page, conn_id: str) -> Locator:
    row_of(page, conn_id).get_by_role("button", name="Edit Connection").click()
    form = page.get_by_role("dialog")
    expect(form.get_by_label("API host")).not_to_have_value("")
    return form


def values(form: Locator) -> list[str]:
    """Return the values of the form's fields, including the folded ones."""
    fields = form.locator("input:not([type=checkbox]), textarea")
    return [field.input_value() for field in fields.all()]


def test_the_form_has_our_fields_with_labels_and_help(
    log_in: Callable[[str], Page], take_picture: Callable[[Page, str], None]
) -> None:
    page = log_in("admin")
    form = open_form(page)

    expect(form.get_by_label("API key")).to_have_attribute("type", "password")
    for label in ("API host", "Port", "Scheme"):
        expect(form.get_by_label(label)).to_be_visible()
    expect(form.locator("[name=description]")).to_be_visible()
    # There is no user name.
    expect(form.locator("[name=login]")).to_have_count(0)
    expect(form.get_by_text("Login")).to_have_count(0)
    form.get_by_label("Connection ID").fill("stability_default")
    form.get_by_label("API key").fill("sk-" + 24 * "x")
    take_picture(page, "connection-form")

    open_extra(form)
    take_picture(page, "connection-extra-fields")
    for name, field in FIELDS.items():
        expect(form.locator(f"[name=element_{name}]")).to_have_count(1)
        expect(form.get_by_text(field["label"], exact=True)).to_be_visible()
        expect(form.get_by_text(field["description"], exact=True)).to_be_visible()
    expect(form.locator("[name=element_proxy]")).to_have_attribute("type", "password")

    form.get_by_role("combobox").nth(1).click()
    expect(page.get_by_role("option")).to_have_text(["auto", "v1alpha", "v1"])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_form_fits_on_a_phone(
    theme: Literal["light", "dark"], site: Site, browser: Browser, log_in: Callable[[str], Page]
) -> None:
    airflow = log_in("admin")
    context = browser.new_context(
        storage_state=airflow.context.storage_state(), viewport=PHONE, color_scheme=theme, locale="en-US"
    )
    page = context.new_page()
    page.goto(f"{airflow.url}connections")
    form = open_new(page)
    fill_in(form, "on_a_phone", site, "sk-1")
    for label in ("API key", "API host", "Port", "Scheme"):
        expect_on_screen(form.get_by_label(label))
    open_extra(form)
    for label in ("Request timeout", "Retry deadline"):
        expect_on_screen(form.get_by_label(label))
    context.close()


def test_she_makes_a_connection_and_the_test_button_tells_whose_account_it_is(
    site: Site, log_in: Callable[[str], Page]
) -> None:
    key = site.simulator.add_key()
    page = log_in("admin")
    form = open_form(page)
    fill_in(form, "studio", site, key)
    open_extra(form)
    form.get_by_role("combobox").nth(1).click()
    page.get_by_role("option", name="v1", exact=True).click()
    form.get_by_label("Request timeout").fill("7")
    form.get_by_label("Retry deadline").fill("30")
    save(form)

    expect(try_it(page, "studio")).to_contain_text(
        "Account user-1 (user-1@example.com). Organizations: Default Organization (org-default, default), "
        "Other Organization (org-other). Balance of org-default: 2.25 credits. API version v1 answered."
    )
    stored = page.request.get("api/v2/connections/studio").json()
    assert (stored["host"], stored["port"], stored["password"]) == ("127.0.0.1", site.simulator.port, "***")
    extra = {name: value for name, value in json.loads(stored["extra"]).items() if value is not None}
    assert extra == {"api_version": "v1", "request_timeout": 7, "retry_deadline": 30}


def test_the_key_is_nowhere_afterwards(site: Site, log_in: Callable[[str], Page]) -> None:
    key = site.simulator.add_key()
    page = log_in("admin")
    form = open_form(page)
    fill_in(form, "kept_secret", site, key)
    save(form)
    expect(try_it(page, "kept_secret")).to_contain_text("Successful")
    shown = [page.content()]

    form = edit(page, "kept_secret")
    form.get_by_role("button", name="Show value").click()
    expect(form.get_by_label("API key")).to_have_attribute("type", "text")
    shown += [page.content(), *values(form)]

    page.goto("events")
    expect(page.get_by_text("post_connection").first).to_be_visible()
    shown.append(page.content())
    for path in ("connections", "connections/kept_secret", "eventLogs?limit=100"):
        answer = page.request.get(f"api/v2/{path}")
        assert answer.ok
        shown.append(answer.text())

    assert any("kept_secret" in text for text in shown)
    assert not [text for text in shown if key in text]
    places, files, rows = site.airflow.places_of(key)
    assert files
    assert rows
    assert places == []


def test_an_edit_keeps_the_key(site: Site, log_in: Callable[[str], Page]) -> None:
    page = log_in("op")
    form = open_form(page)
    fill_in(form, "edited", site, site.simulator.add_key())
    save(form)
    form = edit(page, "edited")
    form.locator("[name=description]").fill("For the studio")
    save(form)

    expect(row_of(page, "edited")).to_contain_text("For the studio")
    expect(try_it(page, "edited")).to_contain_text("Account user-1")


def test_a_refused_key_is_told_with_what_to_do(site: Site, log_in: Callable[[str], Page]) -> None:
    key = site.simulator.add_key()
    site.simulator.revoke_key(key)
    page = log_in("op")
    form = open_form(page)
    fill_in(form, "refused", site, key)
    save(form)

    said = try_it(page, "refused")
    expect(said).to_contain_text("Test Connection Failed")
    expect(said).to_contain_text(
        "Check the API key; keys are made at https://platform.stability.ai/account/keys."
    )
    assert key not in page.content()


def test_a_proxy_with_a_password_is_hidden_too(site: Site, log_in: Callable[[str], Page]) -> None:
    page = log_in("op")
    form = open_form(page)
    fill_in(form, "behind_proxy", site, site.simulator.add_key())
    open_extra(form)
    form.locator("[name=element_proxy]").fill("http://me:correct-horse@proxy.example.com:3128")
    save(form)
    form = edit(page, "behind_proxy")

    assert page.request.get("api/v2/connections/behind_proxy").text().count("***") == 2
    for text in (page.content(), *values(form), page.request.get("api/v2/connections").text()):
        assert "correct-horse" not in text


def test_a_viewer_sees_no_connection(log_in: Callable[[str], Page]) -> None:
    page = log_in("viewer")
    page.goto("connections")

    expect(page.get_by_text("403 Forbidden")).to_be_visible()
    assert "stability_default" not in page.content()
