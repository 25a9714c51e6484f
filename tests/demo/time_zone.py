"""Time zones that the demo makes, so that nobody has to wait for hours until a budget's midnight.

Python looks for time zones in the folders that the environment variable `PYTHONTZPATH` names. A process reads
a time zone of one name only once. So each time zone that the demo makes has a name of its own.
"""

from __future__ import annotations

import os
import struct
import zoneinfo
from datetime import UTC, datetime, timedelta
from pathlib import Path

DAY = timedelta(days=1)


def search_path(folder: Path) -> str:
    """Return the `PYTHONTZPATH` with which Python also finds the time zones of a folder."""
    return os.pathsep.join([str(folder), *zoneinfo.TZPATH])


def make_time_zone(folder: Path, name: str, midnight: datetime) -> None:
    """Make a time zone in which a day begins at a given time.

    :param name: such as `Demo/Soon`. The abbreviation of the time zone is then SOON: "00:00 SOON".
    :param midnight: an aware time, a whole second.
    """
    since_midnight = midnight.astimezone(UTC) - midnight.astimezone(UTC).replace(hour=0, minute=0, second=0)
    ahead = -since_midnight if since_midnight < DAY / 2 else DAY - since_midnight
    path = folder / name
    abbreviation = path.name.upper().encode() + b"\0"
    # The format of RFC 9636: a header, which says that there is one type of local time; then that type.
    header = struct.pack(">4s16x6l", b"TZif", 0, 0, 0, 0, 1, len(abbreviation))
    local_time = struct.pack(">lBB", int(ahead.total_seconds()), 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + local_time + abbreviation)
