"""StabilityJobTrigger: waits in a triggerer until an asynchronous job is finished.

A thousand jobs that are asked for every ten seconds would lock out their key. So all jobs of one connection
and event loop are asked for by one task, one after another.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_stability.deferral import DeferralEvent
from airflow_stability.errors import (
    StabilityAuthenticationError,
    StabilityError,
    StabilityPermissionError,
    StabilityTimeoutError,
    StabilityTransientError,
)
from airflow_stability.rules.gate import GRACE
from airflow_stability.rules.wording import job_timeout_text
from airflow_stability.triggers import http_calls
from airflow_stability.triggers.feed import LoopState, loop_state
from airflow_stability.triggers.shared_connection import FeedClient, SharedConnection
from airflow_stability.triggers.stability import Deferral
from airflow_stability.validation import JOB_POLL_SECONDS

#: The path of the class, as Airflow stores it.
JOB_TRIGGER_PATH = "airflow_stability.triggers.jobs.StabilityJobTrigger"

#: Seconds between the requests for two jobs, at least. This is a fifth of the rate that locks the key out.
GAP_SECONDS = 0.33


class StabilityJobTrigger(BaseTrigger):
    """A trigger that fires once: when a job is finished, or when its time is over.

    The payload of its event is a :class:`~airflow_stability.deferral.DeferralEvent`. A failure that waiting
    cannot help fires it, too: the task asks for the result itself and reports the failure. After a refusal of
    the API key, it goes on asking for ten minutes, since a key may be rotated.

    :param stability_conn_id: a connection of type ``stability``. Never a key.
    :param job_id: the id of the job, for the text.
    :param result_path: the path of its result.
    :param timeout: seconds that the task may wait in all.
    :param waited: seconds of these for which the task had waited before.
    :param deferral_timeout: seconds after which Airflow itself ends the deferral.
    :param memory: what the task has to remember, as plain JSON types: the event hands it back.
    :param unknown_arguments: arguments of another release. They are kept, handed on and ignored.
    """

    def __init__(
        self,
        *,
        stability_conn_id: str,
        job_id: str,
        result_path: str,
        timeout: float,
        waited: float = 0.0,
        deferral_timeout: float | None = None,
        memory: dict[str, Any] | None = None,
        **unknown_arguments: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.stability_conn_id = stability_conn_id
        self.job_id = job_id
        self.result_path = result_path
        self.timeout = timeout
        self.waited = waited
        self.deferral_timeout = deferral_timeout
        self.memory = memory
        self.unknown_arguments = unknown_arguments

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, as Airflow stores them."""
        arguments = {
            "stability_conn_id": self.stability_conn_id,
            "job_id": self.job_id,
            "result_path": self.result_path,
            "timeout": self.timeout,
            "waited": self.waited,
            "deferral_timeout": self.deferral_timeout,
            "memory": self.memory,
        }
        return JOB_TRIGGER_PATH, arguments | self.unknown_arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait until the job is finished, or its time is over."""
        deferral = Deferral(self)
        try:
            async with asyncio.timeout_at(deferral.began + self.timeout - self.waited):
                text = await _until_finished(self.stability_conn_id, self.result_path)
            verdict = DeferralEvent.JOB
        except TimeoutError:
            verdict = DeferralEvent.TIMEOUT
            text = job_timeout_text(self.job_id, self.timeout)
        await asyncio.to_thread(self.log.info, "Job %s: %s", self.job_id, text)
        await deferral.wait_for_scheduler()
        event = DeferralEvent(verdict, text, memory=self.memory, seconds=deferral.seconds)
        yield TriggerEvent(event.to_payload())  # type: ignore[no-untyped-call]  # Airflow's


async def _until_finished(conn_id: str, path: str) -> str:
    """Return once there is something to learn about a job, in words for the log."""
    state = loop_state()
    if conn_id not in state.jobs:
        state.jobs[conn_id] = JobPolls(state, state.connection(conn_id))
    return await state.jobs[conn_id].follow(path)


class JobPolls:
    """The jobs of one connection in one event loop, and the requests for their results.

    :param state: the state of the event loop.
    :param connection: the connection to ask with.
    """

    def __init__(self, state: LoopState, connection: SharedConnection) -> None:
        self._state = state
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._followers: dict[asyncio.Future[str], str] = {}
        self._client = FeedClient(connection)
        #: Since when the key has been refused for a result, by its path.
        self._refused_since: dict[str, float] = {}
        # With the caller's context, its log lines would go into the log of the first task.
        self._task = self._loop.create_task(self._run(), context=contextvars.Context())

    async def follow(self, path: str) -> str:
        """Return once there is something to learn about a job, in words for the log.

        :param path: the path of its result.
        """
        follower: asyncio.Future[str] = self._loop.create_future()
        self._followers[follower] = path
        try:
            return await follower
        finally:
            del self._followers[follower]
            self._refused_since.pop(path, None)

    async def _run(self) -> None:
        try:
            await self._state.prepare()
            while self._followers:
                began = self._loop.time()
                await asyncio.sleep(JOB_POLL_SECONDS)  # whoever follows a job has just asked for it
                for follower, path in list(self._followers.items()):
                    if follower in self._followers:
                        await self._wait_for_turn()
                        if (news := await self._ask(path, since=began)) is not None and not follower.done():
                            follower.set_result(news)
        finally:
            # Nothing is awaited between the last check for followers and this, so nobody joins in between.
            self._client.close()
            self._state.jobs_ended(self._connection.conn_id)
            for follower in self._followers:
                follower.cancel()  # Airflow starts the trigger anew

    async def _wait_for_turn(self) -> None:
        """Wait until the next request may be sent. In a lock-out, look for another key meanwhile."""
        await asyncio.sleep(GAP_SECONDS)
        while self._followers and (seconds := self._connection.seconds_locked_out()) > 0:
            began = self._loop.time()
            await asyncio.sleep(min(seconds, JOB_POLL_SECONDS))
            await self._client.look_for_another_key(since=began)

    async def _ask(self, path: str, *, since: float) -> str | None:
        """Ask for a result; return what is new, or None if it is not finished or could not be reached."""
        try:
            async with self._connection.calls.turn() as run:
                await self._connection.read(since)
                client = self._client.get()
                # Without an end of its own, a request would go on when nobody waits for it any more. It may
                # take twice its timeout in all.
                timeout = min(client.request_timeout, (http_calls.POLL_SECONDS + 1) / 2)
                ask = functools.partial(
                    client.request, "GET", path, timeout=timeout, headers={"Accept": "*/*"}
                )
                if self._connection.seconds_locked_out():  # it began before this turn
                    return None
                # The result is read and dropped here, since the API has no other way to ask.
                response = await run(ask, seconds=http_calls.POLL_SECONDS)
            self._refused_since.pop(path, None)
            return None if response.status_code == 202 else "The job is finished."
        except (StabilityAuthenticationError, StabilityPermissionError) as error:
            now = self._loop.time()
            refused_since = self._refused_since.setdefault(path, now)
            return str(error) if now - refused_since > GRACE.total_seconds() else None
        except StabilityTransientError as error:
            self._client.lock_out(error.retry_after)
            if isinstance(error, StabilityTimeoutError):
                self._client.close()  # the call may still use it
            # An error of the API itself, not of a gateway: the job has failed.
            is_the_jobs_own = error.status == 500 and error.error_id is not None
            return str(error) if is_the_jobs_own else None
        except StabilityError as error:
            return str(error)
        except Exception as error:  # it must never fail: a thousand jobs would
            return f"The triggerer could not ask for the result ({type(error).__name__}). The task asks now."
