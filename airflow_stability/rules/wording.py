"""Wordings that several texts share. How numbers are written is in :mod:`airflow_stability.validation`."""

from __future__ import annotations

from datetime import datetime

from airflow_stability.validation import format_number


def organization_label(organization: str | None) -> str:
    """Return how a text names an organization; None is the API key's default organization."""
    return f"organization {organization}" if organization else "the key's default organization"


def credits_needed(minimum: float, expected: float) -> str:
    """Return how many credits suffice: ``more than 50``, ``30 beyond 50`` or ``30``.

    :param minimum: credits that must be exceeded.
    :param expected: credits that are to be spent; 0.0 where that is not known.
    """
    if not expected:
        return f"more than {format_number(minimum)}"
    return format_number(expected) + (f" beyond {format_number(minimum)}" if minimum else "")


def clock_time(time: datetime) -> str:
    """Return an aware time as log lines show it."""
    return f"{time:%Y-%m-%d %H:%M:%S %Z}"
