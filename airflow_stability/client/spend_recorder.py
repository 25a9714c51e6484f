"""Calls that may be charged, written down in a ledger before they are sent.

This module knows no ledger. It says what a ledger's recorder must do, and tells the recorder how each call
ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import requests

from airflow_stability.errors import StabilityError, StabilityOutcomeUnknownError

#: The outcomes of a call, which are the ledger's states.
POSTED, VOID, UNKNOWN = "posted", "void", "unknown"


class LedgerSettings(NamedTuple):
    """What a connection says about its ledger.

    :param conn_id: the connection to the ledger's database.
    :param budget: the budget for tasks that name none; None if the connection names none, either.
    """

    conn_id: str
    budget: str | None


class WantedCredits(NamedTuple):
    """Credits that a task wants to hold.

    :param credits: what it will spend.
    :param budget: the task's own; None for the connection's.
    :param organization: whose balance was read.
    :param balance: the balance and its age in seconds; None if none was read.
    """

    credits: float
    budget: str | None
    organization: str | None
    balance: tuple[float, float] | None


class Recorder(Protocol):
    """Writes down the calls of a client. Several threads may use it."""

    def begin(self, endpoint: str, model: str | None, output: str | None, seconds: float) -> str:
        """Write down a call before it is sent, and return its key.

        :param endpoint: the path below ``/v2beta/``, or the whole path.
        :param model: the model that the request names; None for none.
        :param output: where the output of a durable call will be; None for another call.
        :param seconds: how long the call may take.
        :raises StabilityError: it could not be written down, and must not be sent.
        """

    def end(self, key: str, outcome: str, reason: str | None = None) -> None:
        """Write down how a call ended. It raises nothing: what cannot be written now is written later."""

    def begin_run(
        self, wanted: WantedCredits, *, itemized: bool, hold: str | None, replays: bool
    ) -> str | None:
        """Hold the credits of a run of a task, which begins at once; return why it must wait, or None.

        :param itemized: whether every payment of the run is a call of this client.
        :param hold: the key of what a trigger has held for the run; None if none has.
        :param replays: whether the task has had a run before. The durable calls of that run are not paid for
            again, so their credits are not held.
        :raises StabilityLedgerUnavailableError: the ledger is out of reach.
        :raises StabilityConfigurationError: there is no such budget, or the run can never fit into it.
        """

    def reserve(self, wanted: WantedCredits, *, minimum: float | None, seconds: float) -> str | None:
        """Hold credits for the run behind a gate for some time; return why the gate must wait, or None.

        :param minimum: the credits that the balance must exceed; None if the wanted credits are enough.
        :param seconds: how long they are held.
        :raises StabilityError: see :meth:`begin_run`.
        """

    def end_run(self, *, completed: bool, refused: bool) -> None:
        """Give back what a run has not spent.

        :param completed: whether the function returned.
        :param refused: whether the function failed with an error that means that nothing was accepted.
        """

    def output_found(self, address: str) -> None:
        """Take note that the output of an earlier call was found. It raises nothing."""

    def not_charged(self, address: str, reason: str) -> None:
        """Take note that the API has not charged a call that it had accepted. It raises nothing."""


def recorded(
    recorder: Recorder,
    send: Callable[[], requests.Response],
    endpoint: str,
    model: str | None,
    output: str | None,
    seconds: float,
) -> requests.Response:
    """Send a request that may be charged, and record it; see :meth:`Recorder.begin` for the arguments."""
    key = recorder.begin(endpoint, model, output, seconds)
    try:
        response = send()
    except StabilityOutcomeUnknownError as error:
        recorder.end(key, UNKNOWN, str(error))
        raise
    except StabilityError as error:
        recorder.end(key, VOID, f"{type(error).__name__}: {error.name or error.status or 'not sent'}")
        raise
    except BaseException as error:  # Airflow's timeout of a task, for example
        recorder.end(key, UNKNOWN, f"Cut off by {type(error).__name__}.")
        raise
    recorder.end(key, POSTED)
    return response


def model_of(request: Mapping[str, Any]) -> str | None:
    """Return the model that a request names in its form or in its JSON; None if it names none."""
    for argument in ("files", "data", "json"):
        fields = request.get(argument)
        found = fields.get("model") if isinstance(fields, Mapping) else None
        if isinstance(found, tuple) and len(found) > 1:  # a field of a multipart form
            found = found[1]
        if isinstance(found, str):
            return found
    return None
