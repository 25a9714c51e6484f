"""Metrics of balances and of what is spent, sent through Airflow: their names, tags and values.

Backends that support tags get them: OpenTelemetry, Datadog, and StatsD with InfluxDB's syntax. Plain StatsD
drops tags, so two organizations' balances would overwrite each other. There, the metric names contain the
tags' values.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from airflow_stability.compat import conf, stats
from airflow_stability.errors import StabilityError

#: The tag's value for the API key's default organization. Dashboards select by it, so it is one short word
#: rather than the label that texts use.
DEFAULT_ORGANIZATION = "default"

_log = logging.getLogger(__name__)


def polled(stability_conn_id: str, organization: str | None, outcome: float | StabilityError) -> None:
    """Count a poll by its outcome, and gauge the balance if there is one.

    :param organization: whose balance; None for the API key's default organization.
    :param outcome: the credits, or the failure.
    """
    tags = _tags(stability_conn_id, organization)
    _send("incr", "stability.polls", {**tags, "outcome": outcome_name(outcome)})
    if not isinstance(outcome, StabilityError):
        _send("gauge", "stability.balance", tags, outcome)


@contextlib.contextmanager
def timed_call(stability_conn_id: str, organization: str | None) -> Iterator[None]:
    """Time a call for a balance, whether it succeeds or not."""
    started = time.monotonic()
    try:
        yield
    finally:
        took = timedelta(seconds=time.monotonic() - started)
        _send("timing", "stability.call", _tags(stability_conn_id, organization), took)


def waiting(gates: int) -> None:
    """Gauge how many gates wait in this process, a triggerer."""
    _send("gauge", "stability.waiting_gates", {"hostname": hostname()}, gates)


def spent(stability_conn_id: str, caller: Mapping[str, Any], endpoint: str, credits: float) -> None:
    """Count the credits of a call that was paid for.

    :param caller: the task that has made the call, by ``dag_id`` and ``task_id``; empty outside of a task.
    :param endpoint: the path below ``/v2beta/``, or the whole path.
    :param credits: its price.
    """
    tags = {"conn_id": stability_conn_id}
    tags |= {name: str(caller.get(name) or "none") for name in ("dag_id", "task_id")}
    _send("incr", "stability.spent", {**tags, "endpoint": endpoint.strip("/")}, credits)


def budget(name: str, used: float, limit: float) -> None:
    """Gauge how many credits of a budget are used or held, and how many it has."""
    _send("gauge", "stability.budget_used", {"budget": name}, used)
    _send("gauge", "stability.budget_limit", {"budget": name}, limit)


def soft_limit(name: str) -> None:
    """Count that a budget has reached its soft limit."""
    _send("incr", "stability.budget_soft_limit", {"budget": name})


@functools.cache
def hostname() -> str:
    """Return Airflow's name for this machine. The first call may query a name server."""
    try:
        from airflow.utils.net import get_hostname

        return get_hostname()  # type: ignore[no-any-return, no-untyped-call]  # Airflow's
    except Exception:  # anything that `[core] hostname_callable` raises; it must not fail a gate
        return socket.gethostname()


def outcome_name(outcome: float | StabilityError) -> str:
    """Return ``ok`` for a balance, else the kind of failure, such as ``rate_limit``."""
    if not isinstance(outcome, StabilityError):
        return "ok"
    name = type(outcome).__name__.removeprefix("Stability").removesuffix("Error")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _tags(stability_conn_id: str, organization: str | None) -> dict[str, str]:
    return {"conn_id": stability_conn_id, "organization": organization or DEFAULT_ORGANIZATION}


def _send(kind: str, name: str, tags: dict[str, str], *value: Any) -> None:
    try:
        # A dot would start a new level in a StatsD name. Airflow allows only these characters, at most 250.
        tags = {tag: re.sub(r"[^A-Za-z0-9_-]", "_", text)[:60] for tag, text in tags.items()}
        if _supports_tags():
            getattr(stats(), kind)(name, *value, tags=tags)
        else:
            getattr(stats(), kind)(".".join([name, *tags.values()]), *value)
    except Exception as error:  # anything that a metrics backend raises; it must not fail a gate
        _log.debug("The metric %s was not sent: %s.", name, type(error).__name__)


@functools.cache
def _supports_tags() -> bool:
    settings = ("statsd_influxdb_enabled", "statsd_datadog_enabled", "otel_on")
    return any(conf.getboolean("metrics", setting, fallback=False) for setting in settings)
