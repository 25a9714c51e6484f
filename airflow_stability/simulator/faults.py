"""What can go wrong between a client and the API, and whose turn it is.

A `Fault` only describes; `front` makes it happen on the wire.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

NO_BODY = (204, 304)


@dataclass(frozen=True)
class Fault:
    """One way in which an answer goes wrong. Made by the class methods below, not by hand.

    :raises ValueError: from every one of them, for arguments that make no answer.
    """

    kind: Literal["answer", "error", "reset", "hang", "slow", "drip", "truncated"]
    code: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes = b""
    temporary: bool | None = None
    seconds: float = 0.0
    part: Literal["headers", "body"] = "body"
    after_work: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.code, bool) or not isinstance(self.code, int) or not 200 <= self.code <= 599:
            raise ValueError("A fault's status must be a whole number from 200 to 599.")
        if self.code in NO_BODY and self.content:
            raise ValueError(f"An answer with status {self.code} has no body.")
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, int | float):
            raise ValueError("A fault's time must be a number of seconds.")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError("A fault's time must be a finite number of seconds, zero or more.")
        if self.part not in ("headers", "body"):
            raise ValueError("What drips is 'headers' or 'body'.")
        if not isinstance(self.after_work, bool):
            raise ValueError("A fault's after_work must be true or false.")
        if self.temporary is not None and not isinstance(self.temporary, bool):
            raise ValueError("A fault's temporary must be true, false or left out.")
        for name, value in self.headers:
            if not (isinstance(name, str) and name.isascii() and name.replace("-", "").isalnum()):
                raise ValueError("A header's name must be letters, digits and hyphens.")
            if not (isinstance(value, str) and value.isascii() and (value == "" or value.isprintable())):
                raise ValueError("A header's value must be a string of printable ASCII.")

    @classmethod
    def status(
        cls, status: int, *, retry_after: float | str | None = None, temporary: bool | None = None
    ) -> Fault:
        """The API's own JSON error, in the shape of the version that was asked.

        :param status: the HTTP status.
        :param retry_after: the `Retry-After` header: seconds, or literally (an HTTP date); None sends none.
        :param temporary: the body's `temporary`. None: v1alpha says what the status suggests, the others,
            which have no such field, leave it out.
        """
        return cls("error", code=status, headers=retry_after_header(retry_after), temporary=temporary)

    @classmethod
    def body(cls, body: bytes | str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Fault:
        """Any body at all, as `application/json` unless `headers` say otherwise: a malformed balance, for
        one.
        """
        if not isinstance(body, bytes | str):
            raise ValueError("A body must be bytes or a string.")
        content = body.encode() if isinstance(body, str) else body
        sent = {"content-type": "application/json"}
        sent |= {name.lower(): value for name, value in dict(headers or {}).items()}
        return cls("answer", code=status, headers=tuple(sent.items()), content=content)

    @classmethod
    def html(cls, status: int = 502) -> Fault:
        """A page as proxies, load balancers and firewalls show it."""
        title = f"{status} {HTTPStatus(status).phrase if status in set(HTTPStatus) else 'Error'}"
        page = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body>{title}</body></html>\n"
        return cls.body(page, status=status, headers={"content-type": "text/html; charset=utf-8"})

    @classmethod
    def text(cls, text: str, *, status: int = 200) -> Fault:
        """Plain text where JSON was expected."""
        return cls.body(text, status=status, headers={"content-type": "text/plain; charset=utf-8"})

    @classmethod
    def empty(cls, status: int = 200) -> Fault:
        """No body at all."""
        return cls("answer", code=status)

    @classmethod
    def reset(cls, *, after_work: bool = False) -> Fault:
        """The connection is reset (a TCP RST) once the request was read.

        :param after_work: only once what was asked for is done: an image is made and paid for, and lost.
        """
        return cls("reset", after_work=after_work)

    @classmethod
    def hang(cls, *, after_work: bool = False) -> Fault:
        """No answer until the client leaves or the server stops. When faults are cleared, the real one after
        all.

        :param after_work: what was asked for is done at once, whether the client stays or leaves: an image is
            made and paid for.
        """
        return cls("hang", after_work=after_work)

    @classmethod
    def slow(cls, delay: float) -> Fault:
        """The real answer, `delay` seconds late."""
        return cls("slow", seconds=delay)

    @classmethod
    def drip(cls, part: Literal["headers", "body"] = "body", *, interval: float = 1.0) -> Fault:
        """The real answer, its headers or its body one byte every `interval` seconds: no read timeout ever
        fires.
        """
        return cls("drip", part=part, seconds=interval)

    @classmethod
    def truncated(cls) -> Fault:
        """The real answer cut off: half the body that `Content-Length` promises, then the connection is
        closed. What was asked for is done: an image is made and paid for.
        """
        return cls("truncated")


def retry_after_header(value: float | str | None) -> tuple[tuple[str, str], ...]:
    """The `Retry-After` header for seconds or a literal value; no header for None."""
    if value is None:
        return ()
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("Retry-After must be a number of seconds or the literal header.")
    return (("retry-after", value if isinstance(value, str) else f"{value:g}"),)


@dataclass
class _Injection:
    fault: Fault
    left: int | None
    path: str | None
    key: str | None = field(repr=False)

    def fits(self, path: str, key: str | None) -> bool:
        if self.key is not None and self.key != key:
            return False
        # By whole segments: /v1 must not hit /v1alpha.
        return self.path is None or path == self.path or path.startswith(self.path.rstrip("/") + "/")


class FaultQueue:
    """The faults still to come, the first one injected first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Injection] = []
        self.clearings = 0
        """How often faults were cleared: a request that hangs watches it."""

    def inject(self, fault: Fault, times: int | None, path: str | None, key: str | None) -> None:
        """Lines a fault up; `Controls.inject` says how."""
        if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
            raise ValueError("times must be a whole number, one or more, or None for until cleared.")
        if path is not None and not path.startswith("/"):
            raise ValueError("path must start with a slash, such as /v1alpha or /v1/user/balance.")
        with self._lock:
            self._waiting.append(_Injection(fault, times, path, key))

    def take(self, path: str, key: str | None) -> Fault | None:
        """The fault that is due for a request, used up by that if it was its last time."""
        with self._lock:
            for injection in self._waiting:
                if injection.fits(path, key):
                    if injection.left is not None:
                        injection.left -= 1
                        if injection.left == 0:
                            self._waiting.remove(injection)
                    return injection.fault
        return None

    def clear(self) -> None:
        """Takes all faults back, from requests that hang already too."""
        with self._lock:
            self._waiting.clear()
            self.clearings += 1

    def snapshot(self) -> list[dict[str, Any]]:
        """The faults still to come as plain JSON types; of a key only that there is one."""
        with self._lock:
            return [
                {
                    "fault": injection.fault.kind,
                    "times": injection.left,
                    "path": injection.path,
                    "one_key_only": injection.key is not None,
                }
                for injection in self._waiting
            ]
