"""Unit tests have no network and never sleep: whoever tries fails."""

from __future__ import annotations

import itertools
import json
import socket
import time

import pytest
from hypothesis import HealthCheck, settings

KEY = "sk-THIS0is0SECRET0aBcDeFgH"

_numbers = itertools.count()

# How long an example takes, or its making, tells how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a unit test opens a connection: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch):
    def refuse(seconds):
        raise AssertionError(f"a unit test sleeps for {seconds} s")

    monkeypatch.setattr(time, "sleep", refuse)


@pytest.fixture(autouse=True)
def _no_proxies_of_this_machine(monkeypatch):
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "requests_ca_bundle",
        "curl_ca_bundle",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Clock:
    """Time that passes only by sleeping, at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch, _no_sleep) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made.monotonic)
    monkeypatch.setattr(time, "sleep", made.sleep)
    return made


@pytest.fixture
def key() -> str:
    return KEY


@pytest.fixture
def base_url() -> str:
    """Return an address of its own: what `auto` found out is remembered per address and process."""
    return f"https://stability-{next(_numbers)}.example"


@pytest.fixture
def connection(monkeypatch, base_url) -> None:
    """Make the default connection one to that address."""
    connection = {
        "conn_type": "stability",
        "password": "sk-1",
        "host": base_url,
        "extra": {"api_version": "v1"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", json.dumps(connection))


@pytest.fixture
def ledger():
    """Return a ledger in memory."""
    from tests.ledgers import LedgerForTests

    made = LedgerForTests()
    yield made
    made.database.engine.dispose()
