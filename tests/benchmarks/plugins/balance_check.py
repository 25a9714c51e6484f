"""The check that HttpEventTrigger calls. It loads this module anew at every poll: it is kept small."""

from __future__ import annotations

from typing import Any


async def enough(response: Any) -> bool:
    # It is handed nothing but the answer: another threshold is another function.
    return bool(response.json()["credits"] > 10)
