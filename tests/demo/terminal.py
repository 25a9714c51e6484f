"""The demo's output: a line for each event, with the time and its source."""

from __future__ import annotations

import os
import shutil
import sys
import time

from tests.demo.errors import DemoError

COLOURS = {"gate": "33", "simulator": "35", "image": "36", "ledger": "34", "done": "1;32", "failed": "1;31"}
#: Seconds between two lines of progress where the output is not a terminal.
PROGRESS_EVERY = 10


class Terminal:
    """Prints events, and progress while a step takes long.

    On a terminal, the next line overwrites a line of progress. Elsewhere, such as in a log of CI, a line of
    progress is printed now and then and stays.
    """

    def __init__(self) -> None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        self._live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._closed = False
        self._overwrite = False
        self._last_event = 0.0

    def say(self, source: str, text: str) -> None:
        """Print an event.

        :param source: a word for who did it, and perhaps a number, as in `image 3`.
        """
        colour = COLOURS.get(source.partition(" ")[0]) if self._colour else None
        text = f"\033[{colour}m{text}\033[0m" if colour else text
        self._write(f"{_head(source)}{text}\n")
        self._last_event = time.monotonic()

    def show_progress(self, what: str, since: float) -> None:
        """Print that a step goes on.

        :param since: when the step began, as `time.monotonic()`.
        :raises DemoError: nobody reads the output any more.
        """
        if self._closed:
            raise DemoError("its output could not be written")
        now = time.monotonic()
        text = f"{what} ... {now - since:.0f} s"
        if self._live:
            columns = shutil.get_terminal_size().columns
            self._write(f"{_head('')}{text}"[: columns - 1], overwrite=True)
        elif now - self._last_event >= PROGRESS_EVERY:
            self.say("...", text)

    def _write(self, text: str, *, overwrite: bool = False) -> None:
        """Write text.

        :param overwrite: let the next text overwrite this one.
        """
        if self._overwrite:
            text = f"\r\033[K{text}"
        self._overwrite = overwrite
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:
            # Nobody reads the output any more, but the processes must be stopped nevertheless.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._closed = True


def _head(source: str) -> str:
    return f"{time.strftime('%H:%M:%S')}  {source:<10} "
