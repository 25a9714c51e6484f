"""What callers may pass: credits, seconds, ids. Knows no HTTP and no Airflow.

All that takes arguments checks with these, so each rule stands once; a DAG file can load them without loading
an HTTP library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real

#: What an HTTP header can carry as one word. The vendor's ids look like ``org-123456``, its keys like
#: ``sk-...``: one that was pasted here by mistake would get into logs and metrics, which name organizations.
_ORGANIZATION = re.compile(r"(?!sk-)[!-~]{1,256}")


def check_credits(value: object, *, argument: str = "minimum_credits") -> float:
    """Return a number of credits, or of a string that is a number, as a float.

    :param value: a number or a string such as ``"12.5"``.
    :param argument: the name that the error text uses.
    :raises ValueError: it is no number, a boolean, not finite, or negative.
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
            f"got {safe_repr(value)}."
        )
    return abs(number)  # -0.0 is 0


def check_credits_as_given(value: float | str, *, argument: str = "minimum_credits") -> float | str:
    """Return a number of credits as what a task shows of it: a string stays one, as its user wrote it.

    :raises ValueError: see :func:`check_credits`.
    """
    number = check_credits(value, argument=argument)
    return value if isinstance(value, str) else number


def check_organization(value: object) -> str | None:
    """Return an organization id fit for the ``Organization`` header, or None for "the key's default".

    :param value: an id such as ``org-123456``, or None.
    :raises ValueError: it is no string, empty, an API key, or holds what a header cannot carry.
    """
    if value is None:
        return None
    if isinstance(value, str) and _ORGANIZATION.fullmatch(value):
        return value
    raise ValueError(
        "organization must be an id such as org-123456, without blanks; leave it out (None) for the key's "
        f"default organization; got {safe_repr(value)}."
    )


def check_seconds(value: object, *, argument: str) -> float:
    """Return a time in seconds as a float.

    :param value: a number.
    :param argument: the name that the error text uses.
    :raises ValueError: it is no number, a boolean, not finite, or not more than 0.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError(f"{argument} must be a finite number of seconds, more than 0; got {safe_repr(value)}.")


def check_conn_id(value: object) -> str:
    """Return the id of a connection.

    :raises ValueError: it is no string, or empty.
    """
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"stability_conn_id must be the id of a connection; got {safe_repr(value)}.")


def is_template(value: object) -> bool:
    """Tell whether Airflow still has to render this value, so that it cannot be checked yet.

    True for a Jinja template and for whatever resolves at run time (an XComArg, a mapped argument).
    """
    return "{{" in value or "{%" in value if isinstance(value, str) else hasattr(value, "resolve")


def format_number(number: float) -> str:
    """Write credits or seconds without rounding: ``50``, ``0.6336833840314097``."""
    return repr(float(number) + 0.0).removesuffix(".0")  # -0.0 becomes 0.0


def check_later(later: Mapping[str, object], version: int, known: int, *, of: str) -> None:
    """Refuse the arguments of a trigger that no release knows; a later one may know more than this.

    :param later: those that are not known here.
    :param version: of all its arguments.
    :param known: the version that this release writes.
    :param of: the trigger's name.
    :raises TypeError: there are some, of a version that is known.
    """
    if later and version <= known:
        raise TypeError(f"{of} has no argument {', '.join(sorted(later))}")


def safe_repr(value: object) -> str:
    """Return a value as error texts show it: quoted, at most 80 characters, no API key in a wrong place."""
    try:
        text = re.sub(r"\bsk-[\w-]{8,}", "sk-***", repr(value))
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 80 else text[:79] + "…"
