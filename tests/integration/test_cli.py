"""The command line against the simulator: its output, its exit status and its errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.prices import DATE, PRICES, SOURCE
from airflow_stability.simulator import Fault

OURS = [sys.executable, "-m", "airflow_stability"]


@pytest.fixture
def key(simulator, connection):
    """Make the default connection, and return its API key."""
    return simulator.api_key


@pytest.mark.parametrize(("output", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
@pytest.mark.parametrize("credits", [25.0, 0.6336833840314097, -1.5, 1e22])
def test_a_program_gets_the_balance_as_the_number_that_was_sent(
    output, parse, credits, run, simulator, connection
):
    simulator.set_credits(credits)

    status, out, err = run("balance", "--output", output)

    assert (status, err) == (0, "")
    assert parse(out) == [{"credits": credits, "organization": None}]
    assert type(parse(out)[0]["credits"]) is float


@pytest.mark.parametrize("output", ["table", "plain"])
def test_a_person_gets_the_balance_unrounded(output, run, simulator, connection):
    simulator.set_credits(12345678.8765432)

    status, out, err = run("balance", "-o", output)

    assert (status, err) == (0, "")
    assert "12345678.8765432 " in out
    assert "(the key's default)" in out


def test_the_balance_is_that_of_the_organization_that_is_named(run, simulator, monkeypatch):
    simulator.set_credits(7.25, "org-other")
    uri = f"{simulator.connection_uri()}?api_version=v1&organization=org-other"
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", uri)

    of_the_connection = run("balance", "--conn-id", "other", "-o", "json")
    of_the_argument = run("balance", "--conn-id", "other", "--organization", "org-default", "-o", "json")

    assert json.loads(of_the_connection[1]) == [{"credits": 7.25, "organization": "org-other"}]
    assert json.loads(of_the_argument[1]) == [{"credits": 25.0, "organization": "org-default"}]


@pytest.mark.parametrize(
    ("minimum", "status"), [("24.99", 0), ("0", 0), ("2.4e1", 0), ("25", 3), ("25.01", 3), ("1e9", 3)]
)
def test_the_exit_status_tells_whether_there_are_more_credits_than_the_minimum(
    minimum, status, run, connection
):
    ended, out, err = run("balance", "--minimum", minimum, "-o", "json")

    assert (ended, err) == (status, "")
    assert json.loads(out) == [{"credits": 25.0, "organization": None}]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--minimum", "many"),
        ("--minimum", "-1"),
        ("--minimum", "nan"),
        ("--minimum", ""),
        ("--organization", "my org"),
        ("--organization", ""),
    ],
)
def test_an_argument_that_cannot_work_is_an_error_before_anything_is_asked(
    arguments, run, simulator, connection
):
    status, out, err = run("balance", *arguments)

    assert (status, out) == (1, "")
    assert f"{arguments[0].removeprefix('--')} must be " in err
    assert repr(arguments[1]) in err
    assert err.count("\n") == 1
    assert simulator.requests == []


def test_what_the_parser_refuses_is_status_2(run):
    for arguments in ([], ["buy"], ["ledger"], ["balance", "--output", "xml"], ["account", "--minimum", "1"]):
        status, out, err = run(*arguments)

        assert (status, out) == (2, "")
        assert err.startswith("usage: python -m airflow_stability")


@pytest.mark.parametrize(("output", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_a_program_gets_the_prices_as_numbers_with_their_date_and_source(output, parse, run):
    status, out, err = run("prices", "--output", output)

    assert (status, err) == (0, "")
    prices = parse(out)
    assert {(it["endpoint"], it["model"]): it["credits"] for it in prices} == PRICES
    assert {(it["date"], it["source"]) for it in prices} == {(DATE, SOURCE)}


@pytest.mark.parametrize("output", ["table", "plain"])
def test_a_person_gets_the_prices_with_their_date_and_no_connection_is_needed(output, run):
    status, out, err = run("prices", "-o", output)

    assert (status, err) == (0, "")
    assert out.count(DATE) == len(PRICES)


@pytest.mark.parametrize("command", ["balance", "account"])
def test_a_failure_is_one_line_and_is_not_tried_again(command, run, simulator, key):
    simulator.inject(Fault.status(503), times=1)

    status, out, err = run(command, "--output", "json")

    assert (status, out) == (1, "")
    assert f"GET /v1/user/{command} answered 503" in err
    assert err.count("\n") == 1
    assert len(simulator.requests) == 1


@pytest.mark.parametrize("command", ["balance", "account"])
def test_a_missing_connection_is_an_error_that_says_what_to_do(command, run):
    status, out, err = run(command, "--conn-id", "no\nwhere")

    assert (status, out) == (1, "")
    assert (
        "`no where` isn't defined. Make the connection, or name another one; if it is there, Airflow" in err
    )
    assert err.count("\n") == 1


def test_a_connection_that_cannot_work_is_an_error(run, monkeypatch):
    connection = {"conn_type": "stability", "password": "sk secret", "host": "127.0.0.1", "schema": "http"}
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", json.dumps(connection))

    status, out, err = run("account")

    assert (status, out) == (1, "")
    assert err.startswith("Connection 'stability_default': ")
    assert "secret" not in err


def test_a_connection_in_airflows_database_is_found(run, simulator, set_connection):
    set_connection("in_the_database", f"{simulator.connection_uri()}?api_version=v1")

    assert run("balance", "--conn-id", "in_the_database", "-o", "plain") == (
        0,
        "credits    organization\n25         (the key's default)\n",
        "",
    )


@pytest.mark.parametrize(("output", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_a_program_gets_the_account_with_its_organizations_and_no_more(output, parse, run, connection):
    status, out, err = run("account", "-o", output)

    assert (status, err) == (0, "")
    assert parse(out) == [
        {
            "id": "user-1",
            "email": "user-1@example.com",
            "organizations": [
                {
                    "id": "org-default",
                    "name": "Default Organization",
                    "role": "MEMBER",
                    "is_default": True,
                },
                {"id": "org-other", "name": "Other Organization", "role": "MEMBER", "is_default": False},
            ],
        }
    ]


def test_a_person_gets_the_account_as_one_row_for_each_organization(run, connection):
    status, out, err = run("account")

    rows = [[cell.strip() for cell in line.split("|")] for line in out.splitlines() if "|" in line]
    assert (status, err) == (0, "")
    assert rows == [
        ["account", "email", "organization", "name", "role", "default"],
        ["user-1", "user-1@example.com", "org-default", "Default Organization", "MEMBER", "yes"],
        ["user-1", "user-1@example.com", "org-other", "Other Organization", "MEMBER", "no"],
    ]


def test_an_account_without_organizations_is_shown_too(run, simulator, connection):
    account = {"id": "user-9", "email": "nine@example.com", "organizations": []}
    simulator.inject(Fault.body(json.dumps(account)))

    assert run("account", "-o", "plain")[1].splitlines()[1].split() == ["user-9", "nine@example.com"]


@pytest.mark.parametrize("output", ["table", "plain"])
def test_a_name_is_shown_as_it_is_and_commands_no_terminal(output, run, simulator, connection):
    organization = {"id": "org-1e5", "name": "[red]Käse[/] :+1: \x1b[2J", "role": "R", "is_default": True}
    account = {"id": "user-9", "email": "nine@example.com", "organizations": [organization]}
    simulator.inject(Fault.body(json.dumps(account)))

    status, out, err = run("account", "-o", output)

    assert (status, err) == (0, "")
    assert "[red]Käse[/] :+1: ?[2J" in out
    assert "\x1b" not in out


# The following tests run real processes, for logs, signals and an output that nobody reads.


def end_of(command, **environment):
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_a_process_prints_the_output_and_nothing_else(simulator, key):
    status, out, err = end_of([*OURS, "balance", "--minimum", "25", "--output", "json"])

    assert (status, err) == (3, "")
    assert json.loads(out) == [{"credits": 25.0, "organization": None}]


def test_a_process_that_fails_says_one_thing_and_keeps_the_key_to_itself(simulator, connection):
    connection("sk-refused")

    status, out, err = end_of([*OURS, "account", "--output", "json"])

    assert (status, out) == (1, "")
    assert "GET /v1/user/account answered 401" in err
    assert err.count("\n") == 1
    assert "refused" not in err


@pytest.mark.skipif(AIRFLOW_VERSION < (3, 2), reason="Airflow reads providers' commands from 3.2 on")
def test_airflow_has_the_commands(simulator, key):
    status, out, err = end_of(
        [sys.executable, "-m", "airflow", "stability", "balance", "--minimum", "25", "-o", "json"]
    )

    assert (status, err) == (3, "")
    assert json.loads(out) == [{"credits": 25.0, "organization": None}]


def test_airflow_tests_the_connection(simulator, key):
    command = [sys.executable, "-m", "airflow", "connections", "test", "stability_default"]

    status, out, _ = end_of(command, AIRFLOW__CORE__TEST_CONNECTION="Enabled")

    assert status == 0
    assert "Connection success!" in out
    assert [request.path for request in simulator.requests] == ["/v1/user/account", "/v1/user/balance"]


@pytest.mark.parametrize("output", ["json", "plain"])
def test_an_output_that_nobody_reads_is_an_error(output, simulator, key):
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [*OURS, "balance", "--output", output],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONUNBUFFERED": ""},  # Python's default
        )
    finally:
        os.close(write)

    assert ended.returncode == 1
    assert ended.stderr == "The output could not be written: Broken pipe.\n"


def test_ctrl_c_ends_it_at_once(simulator, key):
    simulator.inject(Fault.hang())
    command = [*OURS, "balance"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not simulator.requests:
            assert process.poll() is None
            time.sleep(0.05)
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)

    assert time.monotonic() - pressed < 5  # the request timeout is 10
    assert (process.returncode, out, err) == (1, "", "Interrupted.\n")
