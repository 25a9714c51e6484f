from __future__ import annotations

import asyncio
import threading

import pytest

from airflow_stability.page import background
from airflow_stability.page.background import KEEP_SECONDS, BackgroundPages


class Making:
    """A page that is made once the test lets it, with a number of its own."""

    def __init__(self) -> None:
        self.count = 0
        self.release = threading.Event()

    def __call__(self) -> str:
        self.count += 1
        self.release.wait(10)
        return f"page {self.count}"


@pytest.fixture
def making():
    making = Making()
    yield making
    making.release.set()


@pytest.fixture
def pages(monkeypatch):
    # One page after another: once the next one is made, so is the one before it.
    monkeypatch.setattr(background, "MAX_PAGES", 1)
    return BackgroundPages()


def test_a_page_that_takes_longer_than_it_is_kept_reaches_who_reloads(pages, making, clock):
    async def reload() -> None:
        for _ in range(20):
            assert await pages.get("she", making, wait_seconds=0) is None
            clock.now += KEEP_SECONDS / 10
        making.release.set()
        await pages.get("he", lambda: "next", wait_seconds=10)
        assert await pages.get("she", making, wait_seconds=10) == "page 1"

    asyncio.run(reload())


def test_a_page_for_which_nobody_came_back_is_made_anew(pages, making, clock):
    async def come_back() -> None:
        assert await pages.get("she", making, wait_seconds=0) is None
        making.release.set()
        await pages.get("he", lambda: "next", wait_seconds=10)
        while not pages._pages["she"][0].done():  # its thread ends a moment after the page was made
            await asyncio.sleep(0)
        clock.now += KEEP_SECONDS + 1
        assert await pages.get("she", making, wait_seconds=10) == "page 2"

    asyncio.run(come_back())


def test_each_user_gets_a_page_of_their_own(clock):
    pages = BackgroundPages()

    async def open_all() -> list[str | None]:
        users = ("she", "he", "she")
        return await asyncio.gather(
            *(pages.get(user, lambda user=user: f"of {user}", wait_seconds=10) for user in users)
        )

    assert asyncio.run(open_all()) == ["of she", "of he", "of she"]
