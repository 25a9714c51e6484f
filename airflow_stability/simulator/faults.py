"""The faults that a test injects, and the requests that get them. Knows no HTTP.

A ``Fault`` only describes: the module ``middleware`` carries it out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

#: Statuses whose responses have no body.
NO_BODY = (204, 304)

#: The class methods of ``Fault`` by name, as the controls over HTTP and the command line call them.
FaultKind = Literal["status", "body", "html", "text", "empty", "reset", "hang", "slow", "drip", "truncated"]


@dataclass(frozen=True)
class Fault:
    """One way in which a response goes wrong. Use the class methods to create one.

    :raises ValueError: in each class method, for arguments that no response can have.
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
            raise ValueError(f"A response with status {self.code} has no body.")
        time = self.seconds
        if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < math.inf:
            raise ValueError("A fault's time must be a finite number of seconds, zero or more.")
        if self.part not in ("headers", "body"):
            raise ValueError("What drips is 'headers' or 'body'.")
        if not isinstance(self.after_work, bool):
            raise ValueError("A fault's after_work must be true or false.")
        if not isinstance(self.temporary, bool | None):
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
        """The API's own JSON error, in the format of the version that was called.

        :param status: the HTTP status.
        :param retry_after: the ``Retry-After`` header, in seconds or literally (an HTTP date); None omits it.
        :param temporary: the body's ``temporary``. With None, v1alpha derives it from the status; the other
            versions, which have no such field, leave it out.
        """
        return cls("error", code=status, headers=retry_after_header(retry_after), temporary=temporary)

    @classmethod
    def body(cls, body: bytes | str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Fault:
        """Any body, for example a malformed balance. Its type is ``application/json`` unless ``headers`` name
        another.
        """
        if not isinstance(body, bytes | str):
            raise ValueError("A body must be bytes or a string.")
        content = body.encode() if isinstance(body, str) else body
        sent = {"content-type": "application/json"}
        sent |= {name.lower(): value for name, value in dict(headers or {}).items()}
        return cls("answer", code=status, headers=tuple(sent.items()), content=content)

    @classmethod
    def html(cls, status: int = 502) -> Fault:
        """An HTML page, as proxies, load balancers and firewalls send it."""
        title = f"{status} {HTTPStatus(status).phrase if status in set(HTTPStatus) else 'Error'}"
        page = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body>{title}</body></html>\n"
        return cls.body(page, status=status, headers={"content-type": "text/html; charset=utf-8"})

    @classmethod
    def text(cls, text: str, *, status: int = 200) -> Fault:
        """Plain text in place of JSON."""
        return cls.body(text, status=status, headers={"content-type": "text/plain; charset=utf-8"})

    @classmethod
    def empty(cls, status: int = 200) -> Fault:
        """A response without a body."""
        return cls("answer", code=status)

    @classmethod
    def reset(cls, *, after_work: bool = False) -> Fault:
        """A reset of the connection (a TCP RST) after the request was read.

        :param after_work: do the work of the request first: an image is made, paid for and lost.
        """
        return cls("reset", after_work=after_work)

    @classmethod
    def hang(cls, *, after_work: bool = False) -> Fault:
        """No response until the client disconnects or the server stops. When faults are cleared, the client
        gets the normal response after all.

        :param after_work: do the work of the request first, even if the client disconnects later: an image is
            made and paid for.
        """
        return cls("hang", after_work=after_work)

    @classmethod
    def slow(cls, delay: float) -> Fault:
        """The normal response, ``delay`` seconds late."""
        return cls("slow", seconds=delay)

    @classmethod
    def drip(cls, part: Literal["headers", "body"] = "body", *, interval: float = 1.0) -> Fault:
        """The normal response, with its headers or its body sent as one byte every ``interval`` seconds. No
        read timeout ever fires.
        """
        return cls("drip", part=part, seconds=interval)

    @classmethod
    def truncated(cls) -> Fault:
        """The normal response cut off: half the body that ``Content-Length`` promises, then the connection is
        closed. The work of the request is done: an image is made and paid for.
        """
        return cls("truncated")


def retry_after_header(value: float | str | None) -> tuple[tuple[str, str], ...]:
    """Return the ``Retry-After`` header for seconds or a literal value; no header for None."""
    if value is None:
        return ()
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("Retry-After must be a number of seconds or the literal header.")
    return (("retry-after", value if isinstance(value, str) else f"{value:g}"),)


@dataclass
class Injection:
    """A fault with the requests that get it, as ``StabilitySimulator.inject`` describes them."""

    fault: Fault
    times: int | None
    path: str | None
    key_label: str | None

    def __post_init__(self) -> None:
        times = self.times
        if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
            raise ValueError("times must be a whole number, one or more, or None for until cleared.")
        if self.path is not None and not self.path.startswith("/"):
            raise ValueError("path must start with a slash, such as /v1alpha or /v1/user/balance.")

    def matches(self, path: str, key_label: str) -> bool:
        """Tell whether a request gets the fault."""
        if self.key_label is not None and self.key_label != key_label:
            return False
        # By whole segments: /v1 must not match /v1alpha.
        return self.path is None or path == self.path or path.startswith(self.path.rstrip("/") + "/")
