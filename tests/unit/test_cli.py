"""The command line as Airflow loads it. Every ``airflow`` command does, so loading must be cheap."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta
from importlib import import_module

import pytest
from airflow.cli.cli_config import ActionCommand, GroupCommand

from airflow_stability.cli import get_cli_commands
from airflow_stability.cli.ledger import time_of
from airflow_stability.hooks.stability import StabilityHook
from airflow_stability.ledger.report import BY
from airflow_stability.rules.budget_periods import EVERY


def commands():
    """Return all commands by their names."""
    (group,) = get_cli_commands()
    found = {}
    for command in group.subcommands:
        if isinstance(command, GroupCommand):
            found |= {f"{command.name} {each.name}": each for each in command.subcommands}
        else:
            found[command.name] = command
    return found


def argument(command, flag):
    """Return an argument of a command, as the parser gets it."""
    (found,) = [arg for arg in commands()[command].args if arg.flags == (flag,)]
    return found.kwargs


def test_the_commands_have_the_form_that_airflow_expects():
    (group,) = get_cli_commands()

    assert isinstance(group, GroupCommand)
    assert group.name == "stability"
    assert list(commands()) == [
        "balance",
        "account",
        "prices",
        "spend",
        "budget set",
        "budget list",
        "budget delete",
        "ledger init",
        "ledger check",
        "ledger settle",
        "ledger prune",
    ]
    assert all(isinstance(command, ActionCommand) for command in commands().values())


def test_the_connection_is_the_hooks_unless_another_is_named():
    for name in commands():
        if name != "prices":  # which needs no connection
            assert argument(name, "--conn-id")["default"] == StabilityHook.default_conn_name


def test_what_can_be_chosen_is_what_the_ledger_knows():
    assert argument("spend", "--by")["choices"] == tuple(BY)
    assert argument("budget set", "--every")["choices"] == EVERY


@pytest.mark.parametrize("name", commands())
def test_each_command_has_a_function_that_is_there(name):
    module, _, function = commands()[name].func.args[0].rpartition(".")

    assert callable(getattr(import_module(f"airflow_stability.cli.{module}"), function))
    assert commands()[name].help


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("7d", timedelta(days=7)),
        ("24h", timedelta(days=1)),
        ("30m", timedelta(minutes=30)),
        ("2026-11-30", datetime(2026, 11, 30)),
        ("2026-11-30T12:00+01:00", datetime(2026, 11, 30, 11)),
        ("2026-11-30 12:00", datetime(2026, 11, 30, 12)),
        ("2026-11-30T12:00:00Z", datetime(2026, 11, 30, 12)),
    ],
)
def test_a_time_is_how_long_ago_or_a_date_in_utc(text, time):
    assert time_of(text, argument="--since") == time


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "d",
        "-7d",
        "7 d",
        "7w",
        "1e3d",
        "9999999d",
        "yesterday",
        "2026-02-30",
        "0001-01-01T00:00+01:00",
    ],
)
def test_what_is_no_time_is_an_error_that_says_what_is(text):
    with pytest.raises(
        ValueError, match=r"^--since must be a time before now such as 7d, 24h or 30m"
    ) as error:
        time_of(text, argument="--since")

    assert str(error.value).endswith(f"got {text!r}.")


def test_airflows_command_line_loads_nothing_more_than_this_one_module():
    script = (
        "import sys, airflow_stability\n"
        "before = set(sys.modules)\n"
        "import airflow_stability.cli\n"
        "loaded = set(sys.modules) - before\n"
        "import airflow.cli.cli_config\n"
        "airflows = set(sys.modules)\n"
        "airflow_stability.cli.get_cli_commands()\n"
        "loaded |= set(sys.modules) - airflows\n"
        "print(*[name for name in loaded if name.split('.')[0] not in sys.stdlib_module_names])"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    assert loaded == ["airflow_stability.cli"]
