"""generate(): a call that makes an image, a model or a sound, and pays once for it.

A durable call has a folder. Before the request is sent, a marker is written there. After the response, the
output is written, and then the marker is removed. The next call after a crash finds one of four things:

- the output: the call returns it, and pays nothing;
- a marker with the id of a job: the call asks for the result of that job, and pays nothing;
- another marker: an earlier call may have paid. A person must decide;
- neither an output nor a marker: nothing was paid, and the call is made.

This module knows nothing of Airflow, of retries, and of how files are stored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mimetypes
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import requests

from airflow_stability.client.durable_folder import Folder, Marker, Storage, after_paying, before_paying
from airflow_stability.client.responses import clean
from airflow_stability.errors import (
    StabilityConfigurationError,
    StabilityContentFilteredError,
    StabilityError,
    StabilityJobPendingError,
    StabilityModeratedError,
    StabilityNotFoundError,
    StabilityOutcomeUnknownError,
)
from airflow_stability.rules.wording import clock_time
from airflow_stability.validation import JOB_POLL_SECONDS, MAX_CLIENT_SECONDS, safe_repr

if TYPE_CHECKING:
    from airflow_stability.client.client import StabilityClient

_log = logging.getLogger(__name__)

#: Seconds after which a caller stops waiting for a job in place. The job goes on.
MAX_JOB_SECONDS = 3600.0

#: Seconds for writing an output, after which a marker without one is taken for that of a dead caller.
WRITING_SECONDS = 10.0

#: Seconds between two looks at the marker of a call that is under way elsewhere.
MARKER_POLL_SECONDS = 1.0

#: Endings of outputs, and the Accept header, by the first segment of the endpoint.
_FORMATS = {"3d": ("glb", "*/*"), "audio": ("mp3", "audio/*")}
_IMAGES = ("png", "image/*")

_ENDPOINT = re.compile(r"(?!v\d)[a-z0-9][a-z0-9-]*(/[a-z0-9-]+)+")

_CONTENT_FILTERED = "CONTENT_FILTERED"


class Generation(dict[str, Any]):
    """An output, as a dict of plain JSON types, which is what XCom gets. The content is no part of it.

    Its keys are ``path``, ``content_type``, ``seed``, ``finish_reason``, ``request_id`` and ``reused``.
    """

    def __init__(self, facts: Mapping[str, Any], read: Callable[[], bytes]) -> None:
        super().__init__(facts)
        self._read = read

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process gets the plain dict.
        return dict, (dict(self),)

    @property
    def path(self) -> str | None:
        """The address of the output, such as ``s3://bucket/images/2f1c.png``; None without a folder."""
        return self["path"]  # type: ignore[no-any-return]

    @property
    def content(self) -> bytes:
        """The output itself. For a call with a folder, it is read from there each time."""
        return self._read()

    @property
    def content_type(self) -> str:
        """The type of the content, such as ``image/png``."""
        return self["content_type"]  # type: ignore[no-any-return]

    @property
    def seed(self) -> int | None:
        """The seed that was used; None if the API named none."""
        return self["seed"]  # type: ignore[no-any-return]

    @property
    def finish_reason(self) -> str | None:
        """``SUCCESS``, or ``CONTENT_FILTERED`` for a blurred image; None if the API named none."""
        return self["finish_reason"]  # type: ignore[no-any-return]

    @property
    def request_id(self) -> str | None:
        """The vendor's id of the request; None if the API named none."""
        return self["request_id"]  # type: ignore[no-any-return]

    @property
    def reused(self) -> bool:
        """Whether the output was there before this call."""
        return self["reused"]  # type: ignore[no-any-return]


class Request:
    """A request to an endpoint of ``/v2beta/``, and the name of its output.

    :param endpoint: the path below ``/v2beta/``.
    :param fields: the fields of the form. Values of bytes, and objects with ``read_bytes``, are files.
    :raises StabilityConfigurationError: one of them cannot be sent.
    """

    def __init__(self, endpoint: str, fields: Mapping[str, Any]) -> None:
        if not isinstance(endpoint, str) or not _ENDPOINT.fullmatch(endpoint):
            raise StabilityConfigurationError(
                "endpoint must be the path below /v2beta/, such as stable-image/generate/core; "
                f"got {safe_repr(endpoint)}."
            )
        self.endpoint = endpoint
        self._texts: dict[str, str] = {}
        self._files: dict[str, bytes] = {}
        for name, value in fields.items():
            if value is not None:
                self._add(name, value)
        ending, self.accept = _FORMATS.get(endpoint.split("/")[0], _IMAGES)
        self.ending = self._texts.get("output_format", ending)
        if not re.fullmatch(r"[a-z0-9]{1,10}", self.ending):
            raise StabilityConfigurationError(
                f"output_format must be a format such as png; got {safe_repr(self.ending)}."
            )

    @property
    def form(self) -> dict[str, tuple[str | None, str | bytes]]:
        """The fields as requests takes them, so that it sends multipart/form-data even without a file."""
        texts = {name: (None, text) for name, text in self._texts.items()}
        files = {name: (name, content) for name, content in self._files.items()}
        return {**texts, **files} or {"none": (None, "")}

    @property
    def digest(self) -> str:
        """A hash of the endpoint, the fields and the content of files: the same in each release."""
        files = {name: hashlib.sha256(content).hexdigest() for name, content in self._files.items()}
        parts = json.dumps([self.endpoint, self._texts, files], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:40]

    @property
    def path(self) -> str:
        """The path of the request."""
        return f"/v2beta/{self.endpoint}"

    def result_path(self, job_id: str) -> str:
        """Return the path of the result of a job that this request has started."""
        return f"/v2beta/{'audio/' if self.endpoint.startswith('audio/') else ''}results/{job_id}"

    def _add(self, name: str, value: Any) -> None:
        if isinstance(value, bool):
            self._texts[name] = str(value).lower()
        elif isinstance(value, str | int | float):
            self._texts[name] = str(value)
        elif isinstance(value, bytes | bytearray):
            self._files[name] = bytes(value)
        elif hasattr(value, "read_bytes"):
            with before_paying(value, what="file"):
                self._files[name] = value.read_bytes()
        else:
            raise StabilityConfigurationError(
                f"The field {name} must be text, a number, a boolean, bytes or a path; "
                f"got {type(value).__name__}."
            )


def generate(
    client: StabilityClient,
    endpoint: str,
    *,
    to: Any,
    name: str | None,
    conn_id: str | None,
    on_unknown: str,
    filtered: str,
    timeout: float,
    fields: Mapping[str, Any],
) -> Generation:
    """Make an output; see :meth:`StabilityClient.generate`."""
    _check_choice("on_unknown", on_unknown, ("fail", "pay_again"))
    _check_choice("filtered", filtered, ("fail", "keep"))
    request = Request(endpoint, fields)
    if to is None:
        for argument, value in (("name", name), ("conn_id", conn_id)):
            if value is not None:
                raise StabilityConfigurationError(
                    f"{argument} needs a folder, but the argument 'to' is missing; got {argument}="
                    f"{safe_repr(value)}. Name a folder with 'to', or leave {argument} out."
                )
        return _Call(client, request, filtered, timeout).make()
    if name is not None and not re.fullmatch(r"[\w-][\w.-]{0,99}", name, re.ASCII):
        raise StabilityConfigurationError(
            "name must be 1 to 100 letters, digits and ._- without the ending, and not begin with a dot; "
            f"got {safe_repr(name)}."
        )
    storage = client.storage() if client.storage else Storage()
    folder = Folder(to, conn_id=conn_id, name=name or request.digest, ending=request.ending, storage=storage)
    return _DurableCall(client, request, filtered, timeout, folder, to, storage, on_unknown).make()


class _Call:
    """One call without a folder."""

    def __init__(self, client: StabilityClient, request: Request, filtered: str, timeout: float) -> None:
        self.client = client
        self.request = request
        self.filtered = filtered
        self.timeout = timeout

    def make(self) -> Generation:
        """Make the call, and return its output."""
        response = self.client.request(
            "POST",
            self.request.path,
            timeout=self.timeout,
            headers=self.headers,
            files=self.request.form,
        )
        if (job_id := _job_id(response)) is not None:
            response = self.wait_for_job(job_id, f"The job {job_id}")
        facts = self.facts_of(response)
        if facts["finish_reason"] == _CONTENT_FILTERED and self.filtered == "fail":
            raise self.filtered_error(None)
        content = response.content
        return Generation({"path": None, **facts, "reused": False}, lambda: content)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the request, and of one for the result of a job."""
        return {"Accept": self.request.accept}

    def ask_for_job(self, job_id: str) -> requests.Response | None:
        """Ask for the result of a job, which costs nothing; return None while it is not finished."""
        path = self.request.result_path(job_id)
        try:
            response = self.client.request("GET", path, timeout=self.timeout, headers=self.headers)
        except StabilityNotFoundError as error:
            failure = StabilityNotFoundError(
                f"{str(error).removesuffix(error.advice)}The job {job_id} was paid for. Its result is kept "
                "for 24 hours, and only for the API key that started it. If the key was rotated since, call "
                "once more with the old one. After 24 hours, the result is lost. To pay again then, delete "
                "the marker in the folder: on_unknown does not apply to a job.",
                status=error.status,
                error_id=error.error_id,
                name=error.name,
                message=error.message,
            )
        else:
            return None if response.status_code == 202 else response
        raise failure

    def wait_for_job(self, job_id: str, what: str) -> requests.Response:
        """Wait for the result of a job in place.

        :param what: the job, for the text of the error.
        :raises StabilityJobPendingError: it is not finished within an hour.
        """
        deadline = time.monotonic() + MAX_JOB_SECONDS
        while (response := self.ask_for_job(job_id)) is None:
            if time.monotonic() > deadline:
                raise self.pending_error(job_id, f"{what} is not finished after {MAX_JOB_SECONDS:g} s")
            time.sleep(JOB_POLL_SECONDS)
        return response

    def pending_error(self, job_id: str, text: str) -> StabilityJobPendingError:
        """Return the error for a job that is not finished."""
        error = StabilityJobPendingError(
            f"{text}. {StabilityJobPendingError.advice}", retry_after=JOB_POLL_SECONDS
        )
        error.job_id, error.result_path = job_id, self.request.result_path(job_id)
        return error

    def facts_of(self, response: requests.Response) -> dict[str, Any]:
        """Return the facts about an output in a response.

        :raises StabilityOutcomeUnknownError: the response is no output. It may have been paid for.
        """
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if (
            not response.content
            or content_type in ("", "application/json")
            or content_type.startswith("text/")
        ):
            shown = clean(content_type, self.client.secrets) or "no content type"
            raise StabilityOutcomeUnknownError(
                f"POST {self.request.path} answered {response.status_code}, but with no output ({shown}, "
                f"{len(response.content)} bytes). {StabilityOutcomeUnknownError.advice}",
                status=response.status_code,
            )
        header = response.headers.get
        seed, finish_reason = header("seed", ""), header("finish-reason")
        return {
            "content_type": content_type,
            "seed": int(seed) if re.fullmatch(r"\d{1,20}", seed, re.ASCII) else None,
            "finish_reason": finish_reason and clean(finish_reason, self.client.secrets),
            "request_id": clean(header("x-request-id", ""), self.client.secrets) or None,
        }

    def filtered_error(self, path: str | None) -> StabilityContentFilteredError:
        """Return the error for a blurred image."""
        kept = f" It is kept as {path}, and the same call finds it there without paying." if path else ""
        error = StabilityContentFilteredError(
            f"POST {self.request.path} answered 200 with a blurred image (finish-reason "
            f"{_CONTENT_FILTERED}). It may have been charged.{kept} {StabilityContentFilteredError.advice}",
            status=200,
        )
        error.path = path
        return error


class _DurableCall(_Call):
    """One call with a folder."""

    def __init__(
        self,
        client: StabilityClient,
        request: Request,
        filtered: str,
        timeout: float,
        folder: Folder,
        to: Any,
        storage: Storage,
        on_unknown: str,
    ) -> None:
        super().__init__(client, request, filtered, timeout)
        self.folder = folder
        self.to = to
        self.storage = storage
        self.on_unknown = on_unknown

    def make(self) -> Generation:
        """Return the output that is there, or pay for one."""
        number, patience = 1, _Patience()
        while True:
            with before_paying(self.to):
                if (file := self.folder.find()) is not None:
                    return self.found(file)
                # Looked for first: a store may take a new marker for one that replaces the old one.
                other = self.folder.find_marker(number)
            if other is None:
                if (marker := self.claim(number)) is not None:
                    return self.pay(marker)
                patience.wait()  # another caller was faster
            elif other.job_id is not None:
                self.note_output()  # a job that was started is paid for
                return self.finish_job(other, other.job_id)
            elif patience.allows(other, self.timeout, by_process=self.on_unknown == "fail"):
                patience.wait()
            elif self.on_unknown == "pay_again":
                number += 1
            elif not self.is_there():  # its caller may have died just after it was written
                raise self.unknown_error(other)

    def is_there(self) -> bool:
        """Tell whether there is an output."""
        with before_paying(self.to):
            return self.folder.find() is not None

    def claim(self, number: int) -> Marker | None:
        """Write a marker; return None if another caller has one now, or has finished."""
        facts = self.marker_facts()
        _under_way.add(facts["id"])
        claimed = False
        try:
            with before_paying(self.to):
                marker = self.folder.mark(number, facts)
                if marker is not None:
                    try:
                        claimed = self.folder.find() is None
                    finally:
                        if not claimed:
                            self.folder.unmark(number)
            return marker if claimed else None
        finally:
            if not claimed:
                _under_way.discard(facts["id"])

    def pay(self, marker: Marker) -> Generation:
        """Send the request, and write its output."""
        try:
            response = self.post_durably(marker)
            if (job_id := _job_id(response)) is None:
                return self.keep(response, marker)
            with after_paying(f"The job {job_id}", self.to):
                marker = self.folder.update(marker, job_id=job_id)
            return self.finish_job(marker, job_id)
        finally:
            _under_way.discard(marker.facts["id"])

    def post_durably(self, marker: Marker) -> requests.Response:
        """Send the request, and remove the marker if it was surely not paid for."""
        try:
            return self.client.post_durably(
                self.request.path,
                self.folder.address(self.folder.output),
                timeout=self.timeout,
                headers=self.headers,
                files=self.request.form,
            )
        except StabilityOutcomeUnknownError:
            raise
        except StabilityError:
            self.folder.unmark(marker.number)
            raise

    def finish_job(self, marker: Marker, job_id: str) -> Generation:
        """Get the output of a job that was started, by this call or by an earlier one."""
        what = f"The job {job_id} of {self.request.endpoint}"
        try:
            # Without a folder, an earlier call of this client would be paid for again after a wait elsewhere.
            if self.client.waits_for_jobs or self.client.maybe_paid > self.client.maybe_paid_durably:
                response = self.wait_for_job(job_id, what)
            elif (found := self.ask_for_job(job_id)) is not None:
                response = found
            else:
                raise self.pending_error(job_id, f"{what} is not finished")
        except StabilityModeratedError:
            self.folder.unmark(marker.number)  # not charged, says the server
            if self.client.recorder is not None:
                self.client.recorder.not_charged(
                    self.folder.address(self.folder.output), "Moderated: not charged, says the server."
                )
            raise
        return self.keep(response, marker)

    def keep(self, response: requests.Response, marker: Marker) -> Generation:
        """Write the output, and remove the marker."""
        facts = self.facts_of(response)
        blurred = facts["finish_reason"] == _CONTENT_FILTERED
        file = self.folder.filtered if blurred else self.folder.output
        with after_paying(f"The output of POST {self.request.path}", self.to):
            self.folder.write(file, response.content, facts)
        self.folder.unmark(*range(marker.number, 0, -1))
        return self.generation(file, facts, reused=False)

    def found(self, file: str) -> Generation:
        """Return an output that was there before, and remove the marker of a caller that died after it."""
        self.folder.unmark(1)
        self.note_output()
        guessed = mimetypes.guess_type(file)[0] or "application/octet-stream"
        facts = {"content_type": guessed, "seed": None, "finish_reason": None, "request_id": None}
        return self.generation(file, {**facts, **self.folder.read_facts()}, reused=True)

    def generation(self, file: str, facts: Mapping[str, Any], *, reused: bool) -> Generation:
        """Return an output of the folder, or raise the error for a blurred one."""
        path = self.folder.address(file)
        if file == self.folder.filtered and self.filtered == "fail":
            raise self.filtered_error(path)
        return Generation({"path": path, **facts, "reused": reused}, lambda: self.folder.read(file))

    def note_output(self) -> None:
        """Let a ledger know that the output of an earlier call was found."""
        if self.client.recorder is not None:
            self.client.recorder.output_found(self.folder.address(self.folder.output))

    def marker_facts(self) -> dict[str, Any]:
        """Return what a marker says. It holds no key and no prompt."""
        return {
            "id": uuid.uuid4().hex,
            "endpoint": self.request.endpoint,
            "began": datetime.now(UTC).isoformat(),
            "timeout": self.timeout,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **self.storage.caller(),
        }

    def unknown_error(self, marker: Marker) -> StabilityOutcomeUnknownError:
        """Return the error for a marker whose call has left no output."""
        return StabilityOutcomeUnknownError(
            f"POST {self.request.path} may have been paid for already, and its output is not there: "
            f"{_who(marker.facts)} was about to pay. Look at the balance. To pay again, delete the marker "
            f'{self.folder.marker_addresses(marker)}, or set on_unknown="pay_again".'
        )


class _Patience:
    """For how long the marker of another caller is taken for that of a call that is still under way.

    The time counts from when this caller has found the marker. The time in the marker is for people: it is
    another machine's, whose clock may be wrong, and a call that is under way would be taken for a dead one.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, float] = {}

    def wait(self) -> None:
        """Wait until the next look."""
        time.sleep(MARKER_POLL_SECONDS)

    def allows(self, marker: Marker, timeout: float, *, by_process: bool) -> bool:
        """Tell whether to wait on.

        :param timeout: this caller's, for a marker that names none.
        :param by_process: whether the process that the marker names counts, too. Another container may have
            the name of this one. So it may end the wait early if that leads to an error, not if it leads to a
            payment.
        """
        named = marker.facts.get("timeout")
        if isinstance(named, int | float) and not isinstance(named, bool) and 0 < named <= MAX_CLIENT_SECONDS:
            timeout = named
        limit = 2 * timeout + WRITING_SECONDS  # a call may take twice its timeout
        identity = marker.number, marker.facts.get("id")
        if identity not in self._seen:
            _log.info("Waiting for another call of the same name: %s.", _who(marker.facts).rstrip(","))
        if by_process and _has_died(marker.facts):
            return False
        return time.monotonic() - self._seen.setdefault(identity, time.monotonic()) < limit


def _job_id(response: requests.Response) -> str | None:
    """Return the id of the job that a response says was started; None for another response."""
    if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        return None
    try:
        found = json.loads(response.content)
    except (ValueError, RecursionError):
        return None
    job_id = found.get("id") if isinstance(found, dict) else None
    # It becomes part of a path.
    return job_id if isinstance(job_id, str) and re.fullmatch(r"[\w-]{1,200}", job_id, re.ASCII) else None


def _who(facts: Mapping[str, Any]) -> str:
    """Return who wrote a marker, and when."""
    words = [f"{label} {facts[key]}" for key, label in _CALLER.items() if facts.get(key) not in (None, -1)]
    began = _began(facts)
    return f"{', '.join(words) or 'a call'}, begun {clock_time(began) if began else 'at an unknown time'},"


#: The facts about a caller that a text names, with their labels.
_CALLER = {
    "task_id": "task",
    "map_index": "map index",
    "try_number": "try",
    "dag_id": "DAG",
    "run_id": "run",
    "host": "host",
}


#: The ids of the markers whose calls are under way in this process.
_under_way: set[Any] = set()


def _has_died(facts: Mapping[str, Any]) -> bool:
    """Tell whether a marker names a process of this machine, or a call of this process, that has ended."""
    process = facts.get("pid")
    if facts.get("host") != socket.gethostname() or not isinstance(process, int):
        return False
    if process == os.getpid():
        return facts.get("id") not in _under_way
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it belongs to somebody else
        return False
    return False


def _began(facts: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(facts["began"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError):
        return None


def _check_choice(argument: str, value: object, choices: tuple[str, str]) -> None:
    if value not in choices:
        raise StabilityConfigurationError(
            f"{argument} must be {choices[0]!r} or {choices[1]!r}; got {safe_repr(value)}."
        )
