"""The demo's own error."""

from __future__ import annotations


class DemoError(Exception):
    """The demo has not shown what it should. The text says why."""
