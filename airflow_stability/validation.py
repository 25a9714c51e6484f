"""Checks of arguments: credits, seconds, times and ids. This module uses no HTTP and no Airflow.

All code that takes arguments uses these functions, so each rule is written once. A DAG file can import them
without loading an HTTP library.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from numbers import Real

#: Defaults of a client's time limits, in seconds. The connection and its form have the same defaults.
DEFAULT_REQUEST_TIMEOUT = 10.0
DEFAULT_RETRY_DEADLINE = 120.0

#: The longest time limit of a client, in seconds: a day.
MAX_CLIENT_SECONDS = 86400.0

#: The longest duration, in seconds: a hundred years. Airflow takes longer ones, but no date that far ahead
#: exists in Python, and no thread sleeps that long.
MAX_SECONDS = 36525 * 86400.0

#: Seconds between two requests for the result of an asynchronous job. The vendor asks for no more than one in
#: 10 seconds.
JOB_POLL_SECONDS = 10.0

#: An organization id: one word that an HTTP header can carry. The vendor's ids look like ``org-123456``, its
#: keys like ``sk-...``. A key pasted here by mistake is refused, because logs and metrics name organizations.
_ORGANIZATION = re.compile(r"(?!sk-)[!-~]{1,256}")

#: What a template renders to when there is no value: Airflow makes strings of what it renders.
_NOTHING = ("", "None")


def check_credits(value: object, *, argument: str = "minimum_credits") -> float:
    """Return a number of credits as a float.

    :param value: a number or a string such as ``"12.5"``.
    :param argument: the name that the error text uses.
    :raises ValueError: it is not a number, is a boolean, is not finite, or is negative.
    """
    number = math.nan
    if isinstance(value, str) or (isinstance(value, (Real, Decimal)) and not isinstance(value, bool)):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number) or number < 0:
        raise ValueError(
            f"{argument} must be a finite number of credits, 0 or more, or a string that is one; "
            f"{_got(value)}."
        )
    return abs(number)  # -0.0 is 0


def check_credits_as_given(value: float | str, *, argument: str = "minimum_credits") -> float | str:
    """Check a number of credits, and return it as a task shows it: a string stays as the user wrote it.

    :raises ValueError: see :func:`check_credits`.
    """
    number = check_credits(value, argument=argument)
    return value if isinstance(value, str) else number


def check_organization(value: object) -> str | None:
    """Return an organization id that fits the ``Organization`` header, or None for the key's default.

    :param value: an id such as ``org-123456``, or None.
    :raises ValueError: it is not a string, is empty, "None" or an API key, or has a character that no
        header carries.
    """
    if value is None:
        return None
    if isinstance(value, str) and _ORGANIZATION.fullmatch(value) and not _is_nothing(value):
        return value
    raise ValueError(
        "organization must be an id such as org-123456, without blanks; leave it out (None) for the key's "
        f"default organization; {_got(value)}."
    )


def check_seconds(
    value: object, *, argument: str, allow_zero: bool = False, maximum: float = MAX_SECONDS
) -> float:
    """Return a duration in seconds as a float.

    :param value: a number of seconds, or a timedelta.
    :param argument: the name that the error text uses.
    :param allow_zero: whether 0 is allowed.
    :param maximum: the most seconds that are allowed; default 100 years.
    :raises ValueError: it is neither of these, or is a boolean, not finite, too small or too large.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, int | float) and not isinstance(seconds, bool):
        large_enough = seconds > 0 or (allow_zero and seconds == 0)
        if large_enough and seconds <= maximum:
            return float(seconds)
    least = "0 or more" if allow_zero else "more than 0"
    raise ValueError(
        f"{argument} must be a finite number of seconds, {least} and at most {format_number(maximum)}; "
        f"got {safe_repr(value)}."
    )


def in_utc(time: datetime) -> datetime:
    """Return a time in UTC. A naive time is taken to be in UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def check_conn_id(value: object) -> str:
    """Return the id of a connection.

    :raises ValueError: it is not a string, is empty, or is "None".
    """
    if isinstance(value, str) and not _is_nothing(value):
        return value
    raise ValueError(f"stability_conn_id must be the id of a connection; {_got(value)}.")


def check_budget(value: object) -> str | None:
    """Return the name of a budget of the ledger, or None for the connection's.

    :raises ValueError: see :func:`check_budget_name`.
    """
    hint = "; leave it out (None) for the connection's"
    return None if value is None else check_budget_name(value, hint=hint)


def check_budget_name(value: object, *, hint: str = "") -> str:
    """Return the name of a budget of the ledger.

    :param hint: what the error text says beside what a name is.
    :raises ValueError: it is no text of 1 to 100 printable characters, or has blanks around it.
    """
    is_name = isinstance(value, str) and value == value.strip() and value.isprintable() and len(value) <= 100
    if is_name and not _is_nothing(value):
        return str(value)
    raise ValueError(
        f"budget must be a name of 1 to 100 printable characters, without blanks around it{hint}; "
        f"{_got(value)}."
    )


def is_template(value: object) -> bool:
    """Tell whether Airflow still has to render a value, so that it cannot be checked yet.

    True for a Jinja template, and for a value that is resolved at run time (an XComArg, a mapped argument).
    """
    return "{{" in value or "{%" in value if isinstance(value, str) else hasattr(value, "resolve")


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in _NOTHING)


def _got(value: object) -> str:
    """Return what was passed, and where nothing may have come from: the end of an error text."""
    hint = ", which is what a template gives that has no value" if _is_nothing(value) else ""
    return f"got {safe_repr(value)}{hint}"


def format_number(number: float) -> str:
    """Return credits or seconds as text, without rounding: ``50``, ``0.6336833840314097``."""
    return repr(float(number) + 0.0).removesuffix(".0")  # -0.0 becomes 0.0


def safe_repr(value: object) -> str:
    """Return a value as error texts show it: quoted, at most 80 characters, with API keys masked."""
    try:
        text = re.sub(r"\bsk-[\w-]{8,}", "sk-***", repr(value))
    except ValueError:  # an integer with more digits than Python writes
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 80 else text[:79] + "…"
