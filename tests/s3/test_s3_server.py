"""The S3 server of the tests does what the tests of durable calls stand on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Literal

import pytest

from tests.conftest import ROOT
from tests.s3_server import Request, S3Server


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


def start(server: S3Server, step: str, key: str = "images/a.png") -> subprocess.Popen[str]:
    """Start a process that takes one step, outside of any task."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.s3.client", step, f"s3://{server.bucket}/{key}"],
        env={**os.environ, "AIRFLOW_CONN_AWS_DEFAULT": server.connection},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(server: S3Server, step: str, key: str = "images/a.png") -> tuple[int, str, str]:
    """Return the exit status of a step, and what it has written to stdout and stderr."""
    with start(server, step, key) as client:
        output, errors = client.communicate(timeout=120)
    return client.returncode, output, errors


def test_a_process_outside_of_tasks_writes_and_reads_with_a_connection(server: S3Server) -> None:
    status, _, errors = run(server, "write")
    assert status == 0, errors
    assert server.objects() == {"images/a.png": b"by the client"}

    status, output, errors = run(server, "read")
    assert status == 0, errors
    assert output.endswith("by the client")


def test_an_output_is_found_by_its_address_which_names_the_connection(server: S3Server) -> None:
    assert run(server, "find")[1].endswith("there: False")

    server.put("images/a.png", b"by another")

    assert run(server, "find")[1].endswith("there: True")


def test_an_exclusive_write_does_not_overwrite(server: S3Server) -> None:
    server.put("images/a.png", b"by another")

    status, _, errors = run(server, "create")

    assert status == 1
    assert "FileExistsError" in errors
    assert server.objects() == {"images/a.png": b"by another"}
    assert server.requests == [Request("PUT", "images/a.png", "", "*", 412)]


def test_of_exclusive_writes_at_once_one_succeeds(server: S3Server) -> None:
    clients = [start(server, "create") for _ in range(2)]
    for client in clients:
        with client:
            client.communicate(timeout=120)

    assert sorted(client.returncode for client in clients) == [0, 1]
    assert sorted(request.status or 0 for request in server.requests) == [200, 412]


@pytest.mark.parametrize(("when", "written"), [("before", False), ("after", True)])
def test_a_client_is_killed_at_its_request(
    server: S3Server, when: Literal["before", "after"], written: bool
) -> None:
    server.kill_at("PUT", "a.png", when)

    status, _, _ = run(server, "write")

    assert status == -signal.SIGKILL
    assert ("images/a.png" in server.objects()) == written
    assert [request.status for request in server.requests] == [200 if written else None]
    assert len(server.killed) == 1
    assert run(server, "write")[0] == 0, "the second client is left alone"


def test_other_requests_kill_nobody(server: S3Server) -> None:
    server.kill_at("PUT", "b.png")
    server.kill_at("DELETE", "a.png")

    assert run(server, "write")[0] == 0
    assert server.killed == []


def test_the_test_itself_is_not_killed(server: S3Server) -> None:
    server.kill_at("GET", "a.png")

    with pytest.raises(urllib.error.HTTPError, match="500"):
        urllib.request.urlopen(f"{server.url}/{server.bucket}/a.png", timeout=10)

    assert server.killed == []


def test_half_an_upload_leaves_nothing(server: S3Server) -> None:
    with socket.create_connection(server.address, timeout=10) as client:
        head = f"PUT /{server.bucket}/a.png HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
        client.sendall(head.encode() + b"half")
        client.shutdown(socket.SHUT_WR)
        client.recv(1000)

    assert server.objects() == {}


def test_what_a_server_held_is_gone_with_it() -> None:
    with S3Server() as first:
        first.put("a.png", b"content")
    with S3Server() as second:
        assert second.objects() == {}
