"""The command line as Airflow loads it. Every ``airflow`` command does, so loading must be cheap."""

from __future__ import annotations

import subprocess
import sys

from airflow.cli.cli_config import ActionCommand, GroupCommand

from airflow_stability.cli import get_cli_commands
from airflow_stability.hooks.stability import StabilityHook


def test_the_commands_have_the_form_that_airflow_expects():
    (group,) = get_cli_commands()

    assert isinstance(group, GroupCommand)
    assert group.name == "stability"
    assert [command.name for command in group.subcommands] == ["balance", "account", "prices"]
    assert all(isinstance(command, ActionCommand) and callable(command.func) for command in group.subcommands)


def test_the_connection_is_the_hooks_unless_another_is_named():
    (group,) = get_cli_commands()

    for command in group.subcommands[:2]:  # prices needs no connection
        (conn_id,) = [arg for arg in command.args if arg.flags == ("--conn-id",)]
        assert conn_id.kwargs["default"] == StabilityHook.default_conn_name


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
