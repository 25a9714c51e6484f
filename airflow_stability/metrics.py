"""What Airflow's metrics are told: the names, the tags, and when. Where they go is Airflow's setting.

Tags go to what takes them: OpenTelemetry, Datadog, StatsD as InfluxDB understands it. Plain StatsD drops
them, and the balances of two organizations would overwrite each other: there the tags' values are part of the
name.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from airflow_stability.compat import conf, stats
from airflow_stability.errors import StabilityError

#: The tag of a balance whose organization is not known by its id: the API key's default one.
DEFAULT_ORGANIZATION = "default"

_log = logging.getLogger(__name__)


def polled(stability_conn_id: str, organization: str | None, outcome: float | StabilityError) -> None:
    """Count a look at a balance by its outcome, and gauge the balance if there was one.

    :param organization: whose balance; None for the key's default organization.
    :param outcome: the credits, or what went wrong.
    """
    wallet = _wallet(stability_conn_id, organization)
    _send("incr", "stability.polls", {**wallet, "outcome": outcome_name(outcome)})
    if not isinstance(outcome, StabilityError):
        _send("gauge", "stability.balance", wallet, outcome)


@contextlib.contextmanager
def timed_call(stability_conn_id: str, organization: str | None) -> Iterator[None]:
    """Time a call for a balance, whether it gets one or not."""
    started = time.monotonic()
    try:
        yield
    finally:
        took = timedelta(seconds=time.monotonic() - started)
        _send("timing", "stability.call", _wallet(stability_conn_id, organization), took)


def waiting(gates: int) -> None:
    """Gauge how many gates wait in this process, which is a triggerer."""
    _send("gauge", "stability.waiting_gates", {"hostname": hostname()}, gates)


@functools.cache
def hostname() -> str:
    """Return what Airflow calls this machine. The first time, Airflow may ask a name server for that."""
    try:
        from airflow.utils.net import get_hostname

        name: str = get_hostname()  # type: ignore[no-untyped-call]  # Airflow's
    except Exception:  # whatever `[core] hostname_callable` raises: no gate fails for it
        return socket.gethostname()
    return name


def outcome_name(outcome: float | StabilityError) -> str:
    """Return ``ok`` for a balance, else the kind of failure, such as ``rate_limit``."""
    if not isinstance(outcome, StabilityError):
        return "ok"
    kind = type(outcome).__name__.removeprefix("Stability").removesuffix("Error")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()


def _wallet(stability_conn_id: str, organization: str | None) -> dict[str, str]:
    return {"conn_id": stability_conn_id, "organization": organization or DEFAULT_ORGANIZATION}


def _send(kind: str, name: str, tags: dict[str, str], *value: Any) -> None:
    try:
        # A dot would begin another level of a StatsD name. Airflow takes no other characters than these, and
        # no more than 250.
        tags = {tag: re.sub(r"[^A-Za-z0-9_-]", "_", text)[:60] for tag, text in tags.items()}
        if _takes_tags():
            getattr(stats(), kind)(name, *value, tags=tags)
        else:
            getattr(stats(), kind)(".".join([name, *tags.values()]), *value)
    except Exception as error:  # whatever a metrics backend raises: no gate fails for it
        _log.debug("The metric %s was not sent: %s.", name, type(error).__name__)


@functools.cache
def _takes_tags() -> bool:
    settings = ("statsd_influxdb_enabled", "statsd_datadog_enabled", "otel_on")
    return any(conf.getboolean("metrics", setting, fallback=False) for setting in settings)
