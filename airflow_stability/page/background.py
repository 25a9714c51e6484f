"""Pages that are made in threads of their own, one for each user. This module uses no Airflow.

Airflow's API server has 40 threads for the requests of all its pages. A page that waits in one of them, for
the API, the database or the auth manager, takes it from everybody else. A process that ends waits for none.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

from airflow_stability.daemon_threads import start_in_thread

Page = TypeVar("Page")

#: How many pages are made at the same time.
MAX_PAGES = 8

#: Seconds after which a request is answered, whether or not its page is made.
WAIT_SECONDS = 1.8

#: Seconds after a user's latest request for which a page is kept that was made too late for it.
KEEP_SECONDS = 30.0


class BackgroundPages(Generic[Page]):
    """The pages that are being made.

    Requests of a user that come meanwhile share one page. A page that is made too late for them is kept for
    the user's next request.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._room = threading.Semaphore(MAX_PAGES)
        self._pages: dict[str, tuple[Future[Page], float]] = {}  # by user, with the latest request's time

    async def get(
        self, user_id: str, make: Callable[[], Page], *, wait_seconds: float = WAIT_SECONDS
    ) -> Page | None:
        """Return the page of a user; None if that takes too long.

        :param make: makes the page. Called in a thread, if no page is being made or kept for the user.
        :raises Exception: what ``make`` raised.
        """
        page = self._start(user_id, make)
        made = asyncio.wrap_future(page)
        # asyncio logs an exception that nobody retrieves. Here, the user's next request raises it.
        made.add_done_callback(lambda made: made.cancelled() or made.exception())
        await asyncio.wait([made], timeout=wait_seconds)
        if not made.done():
            return None
        with self._lock:
            if user_id in self._pages and self._pages[user_id][0] is page:
                del self._pages[user_id]
        return made.result()

    def _start(self, user_id: str, make: Callable[[], Page]) -> Future[Page]:
        now = time.monotonic()
        with self._lock:
            for each, (page, requested_at) in list(self._pages.items()):
                if page.done() and now - requested_at > KEEP_SECONDS:
                    del self._pages[each]
            if user_id in self._pages:
                page, _ = self._pages[user_id]
            else:
                page = start_in_thread(partial(contextvars.copy_context().run, self._make, make))
            self._pages[user_id] = page, now
            return page

    def _make(self, make: Callable[[], Page]) -> Page:
        with self._room:
            return make()
