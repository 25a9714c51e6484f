"""The check that HttpEventTrigger calls. The module is small: the trigger reloads it at every poll."""

from __future__ import annotations

from typing import Any


async def enough(response: Any) -> bool:
    # It gets nothing but the response, so that each threshold needs a function of its own.
    return bool(response.json()["credits"] > 10)
