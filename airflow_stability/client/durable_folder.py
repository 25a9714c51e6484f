"""The folder of durable calls: which outputs are there, and which calls are under way. Stands on fsspec.

A call has one name in its folder, and up to four kinds of files::

    NAME.png               the output
    NAME.filtered.png      the output, if the API blurred it
    NAME.png.json          facts about the output: its seed, the id of the request
    NAME.png.paying.json   a marker: a call is about to be paid for, or has been. NAME.png.paying-2.json and
                           so on are those of a caller who chose to pay again

Knows no HTTP and nothing of Airflow. A file appears whole or not at all. Only a marker may be cut short, if
its writer dies.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from airflow_stability.errors import (
    StabilityConfigurationError,
    StabilityError,
    StabilityOutcomeUnknownError,
)
from airflow_stability.validation import safe_repr

_log = logging.getLogger(__name__)


class Storage:
    """Opens folders, and tells who calls. This one is for use without Airflow."""

    def open_url(self, url: str, conn_id: str | None) -> Any:
        """Return the path object of a URL such as ``s3://bucket/images/``.

        :param conn_id: an Airflow connection.
        """
        if conn_id is not None:
            raise StabilityConfigurationError(
                "conn_id names an Airflow connection, but this client was made without Airflow; got "
                f"{safe_repr(conn_id)}. Use the client of StabilityHook().get_conn(), or leave conn_id out."
            )
        from upath import UPath

        return UPath(url)

    def caller(self) -> Mapping[str, Any]:
        """Return who calls, as plain JSON types, for a marker."""
        return {}


@dataclass(frozen=True)
class Marker:
    """The marker of a call, as it was read or written.

    :param file: its path.
    :param number: 1, or more for a call that is paid for again.
    :param facts: what it says; empty if it cannot be read.
    """

    file: str
    number: int
    facts: Mapping[str, Any]

    @property
    def job_id(self) -> str | None:
        """The id of the asynchronous job that was started; None for no job, or if it is not known yet."""
        found = self.facts.get("job_id")
        return found if isinstance(found, str) else None


class Folder:
    """The files of one call in its folder.

    :param to: the folder: a path, a URL, or a path object such as Airflow's ObjectStoragePath.
    :param conn_id: the Airflow connection for a URL.
    :param name: the name of the call.
    :param ending: the ending of its output, such as ``png``.
    :raises StabilityConfigurationError: the folder cannot be used.
    """

    def __init__(self, to: Any, *, conn_id: str | None, name: str, ending: str, storage: Storage) -> None:
        is_url = isinstance(to, str) and "://" in to
        if conn_id is not None and not is_url:
            raise StabilityConfigurationError(
                "conn_id belongs to a URL such as s3://bucket/images/, but the argument 'to' is no URL; got "
                f"{safe_repr(to)}. Leave conn_id out, or name the folder by its URL."
            )
        if not hasattr(to, "fs") and isinstance(to, Path) and re.match(r"[a-z][a-z0-9+.-]+:/", str(to)):
            raise StabilityConfigurationError(
                f"A URL must not be a Path, which makes a local folder of it; got {_shown(to)}. Name the "
                "folder by a string, or by an ObjectStoragePath."
            )
        with before_paying(to):
            folder = storage.open_url(to, conn_id) if is_url else to
            if hasattr(folder, "fs"):
                files, root = folder.fs, str(folder.path).rstrip("/")
            else:
                folder = Path(folder).absolute()
                files, root = fsspec.filesystem("file"), str(folder)
        self._name, self._ending, self._folder = name, ending, folder
        self._files: Any = files
        self._root = root

    # Outputs

    @property
    def output(self) -> str:
        """The file name of the output."""
        return f"{self._name}.{self._ending}"

    @property
    def filtered(self) -> str:
        """The file name of the output, if the API blurred it."""
        return f"{self._name}.filtered.{self._ending}"

    def find(self) -> str | None:
        """Return the file name of the output that is there; None if there is none."""
        # A process that listed the folder before may have the list in a cache.
        self._files.invalidate_cache(self._root)
        return next(
            (each for each in (self.output, self.filtered) if self._files.exists(self._path(each))), None
        )

    def write(self, file: str, content: bytes, facts: Mapping[str, Any]) -> None:
        """Write an output with the facts about it. The facts come first: others look for the output."""
        self._write_whole(self._facts_file, _to_json(facts))
        self._write_whole(file, content)

    def read(self, file: str) -> bytes:
        """Return the content of a file."""
        self._files.invalidate_cache(self._root)
        content: bytes = self._files.cat_file(self._path(file))
        return content

    def read_facts(self) -> Mapping[str, Any]:
        """Return the facts about the output; none if they are not there."""
        return self._read_json(self._facts_file) or {}

    def address(self, file: str) -> str:
        """Return the address of a file as a user may open it."""
        return str(self._folder / file)

    # Markers

    def mark(self, number: int, facts: Mapping[str, Any]) -> Marker | None:
        """Write a new marker; return None if there is one of that number.

        The store is asked to create it only if it is not there, so that one of two callers gets it.

        :param facts: what it says, with an ``id`` of its own.
        """
        marker = Marker(self._marker_file(number), number, facts)
        try:
            self._create(marker.file, _to_json(facts))
        except Exception as error:  # stores say in different ways that it is there
            found = self.find_marker(number)
            if found is None and not isinstance(error, FileExistsError):
                raise
            # The response to our own request may have been lost: a library that repeats it finds our file.
            return marker if found and found.facts.get("id") == facts["id"] else None
        return marker

    def find_marker(self, number: int) -> Marker | None:
        """Return a marker that is there; None if there is none of that number."""
        self._files.invalidate_cache(self._root)
        facts = self._read_json(self._marker_file(number))
        return None if facts is None else Marker(self._marker_file(number), number, facts)

    def update(self, marker: Marker, **facts: Any) -> Marker:
        """Write more facts into a marker."""
        facts = {**marker.facts, **facts}
        self._write_whole(marker.file, _to_json(facts))
        return Marker(marker.file, marker.number, facts)

    def unmark(self, *numbers: int) -> None:
        """Remove markers of calls that were not paid for, or whose output is there.

        One that cannot be removed stays. No call pays because of it. But if there is no output, the next call
        reports an unknown outcome.
        """
        for number in numbers:
            file = self._marker_file(number)
            try:
                self._files.rm_file(self._path(file))
            except FileNotFoundError:
                pass  # somebody else has removed it
            except Exception as error:  # whatever the store raises
                _log.warning(
                    "The marker %s could not be removed (%s). If there is no output of that name, the call "
                    "was not paid for: delete the marker.",
                    self.address(file),
                    type(error).__name__,
                )

    def marker_addresses(self, marker: Marker) -> str:
        """Return the addresses of a marker and those before it."""
        return ", ".join(self.address(self._marker_file(number)) for number in range(1, marker.number + 1))

    @property
    def _facts_file(self) -> str:
        return f"{self.output}.json"

    def _marker_file(self, number: int) -> str:
        return f"{self.output}.paying{f'-{number}' if number > 1 else ''}.json"

    def _path(self, file: str) -> str:
        return f"{self._root}/{file}"

    def _read_json(self, file: str) -> Mapping[str, Any] | None:
        try:
            content = json.loads(self._files.cat_file(self._path(file)))
        except FileNotFoundError:
            return None
        except ValueError:  # cut short
            return {}
        return content if isinstance(content, dict) else {}

    def _create(self, file: str, content: bytes) -> None:
        """Write a file that is not there yet. Object stores make it a conditional write.

        :raises FileExistsError: it is there.
        """
        path = self._path(file)
        try:
            opened = self._open_new(path)
        except (ValueError, NotImplementedError):  # a store that creates nothing exclusively
            if self._files.exists(path):
                raise FileExistsError(path) from None
            self._write_whole(file, content)
            return
        try:
            with opened:
                opened.write(content)
        except BaseException:
            if isinstance(self._files, LocalFileSystem):
                self._files.rm_file(path)  # created above, and cut short
            raise

    def _open_new(self, path: str) -> Any:
        try:
            # Not pipe_file(mode="create"): on a local disk it looks first, and then overwrites.
            return self._files.open(path, "xb")
        except FileNotFoundError:
            self._files.makedirs(self._root, exist_ok=True)
            return self._files.open(path, "xb")

    def _write_whole(self, file: str, content: bytes) -> None:
        """Write a file, or replace it, so that nobody sees a part of it."""
        path = self._path(file)
        # A store without a move of its own is an object store: an upload appears when it is complete.
        if getattr(self._files.mv, "__func__", None) is fsspec.AbstractFileSystem.mv:
            self._files.pipe_file(path, content)
            return
        # Several callers may write the output of one job.
        part = self._path(f"{uuid.uuid4().hex[:8]}.{file}.part")
        self._files.pipe_file(part, content)
        self._files.mv(part, path)


def _to_json(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, indent=1).encode()


@contextlib.contextmanager
def before_paying(to: Any, what: str = "folder") -> Iterator[None]:
    """Turn what a store raises into an error that says that this call has paid nothing.

    :param to: the folder, or the file of a field, as the user gave it.
    :param what: ``folder`` or ``file``, for the text.
    """
    try:
        yield
    except StabilityError:
        raise
    except Exception as error:  # whatever the store or its library raises
        raise StabilityConfigurationError(
            f"The {what} {_shown(to)} cannot be used ({type(error).__name__}: {error}). Nothing was paid for "
            "by this call. Check the address, the connection, and the rights: to read a file; to read, write "
            "and delete in a folder."
        ) from error


@contextlib.contextmanager
def after_paying(what: str, to: Any) -> Iterator[None]:
    """Turn what a store raises into an error that says that something was paid for.

    :param what: what was paid for, for the text.
    :param to: the folder as the user gave it.
    """
    try:
        yield
    except Exception as error:  # whatever the store or its library raises
        raise StabilityOutcomeUnknownError(
            f"{what} was paid for, but could not be stored in {_shown(to)} ({type(error).__name__}: "
            f"{error}). The marker stays there, so that no retry pays again. Repair the storage. To pay "
            "again, delete the marker, and make the call again."
        ) from error


def _shown(to: Any) -> str:
    return safe_repr(re.sub(r"(://[^/:@]*):[^/@]*@", r"\1:***@", str(to)))  # a URL may hold a password
