"""The signals that stop the demo: Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import signal


class StopRequested(Exception):  # noqa: N818 (not an error)
    """A signal has asked the demo to stop.

    :param number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignals:
    """Remembers the first signal that asks the demo to stop.

    A signal interrupts nothing. Code that waits calls `check` instead. So the demo always knows which
    processes it has started, and a second Ctrl-C cannot interrupt the clean-up.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup make demo` ignores SIGHUP, and so does the demo then.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: object) -> None:
        self._received = self._received or number

    def check(self) -> None:
        """Return if no signal has come.

        :raises StopRequested: a signal has come.
        """
        if self._received is not None:
            raise StopRequested(self._received)
