"""The commands of the ledger on a database in a file: their output, their exit status and their errors."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.ledger.ledger import Hold, Reading, Spender
from tests.conftest import HOME
from tests.ledgers import LedgerForTests
from tests.versions import IS_LOWEST

# Airflow 2.11.0 loads all hooks for one of them, and modules of that time use what is deprecated.
pytestmark = [pytest.mark.filterwarnings("ignore")] if IS_LOWEST else []


SECRET = "sk-0123456789abcdef"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Return the file of a ledger that the default connection names. It does not exist yet."""
    file = tmp_path / "ledger.db"
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", f"sqlite:///{file}")
    connect(monkeypatch, {"ledger_conn_id": "ledger"})
    return file


@pytest.fixture
def ledger(file):
    """Return a ledger that the commands read, too."""
    made = LedgerForTests(f"sqlite:///{file}", ago())
    yield made
    made.database.engine.dispose()


@pytest.fixture
def spends(ledger):
    """Make spends of all kinds."""
    ledger.set_budget("team", 1000, "month")
    ledger.spend("1", 3, at=ago(hours=1))
    ledger.spend("2", 0.1, budget="team", at=ago(hours=1))
    ledger.spend("3", 0.2, budget="team", task_id="upscale")
    ledger.spend("4", 8, "unknown", dag_id="[red]other[/]", at=ago(hours=3))
    ledger.spend("5", 2.5, "held", dag_id=None, task_id=None, run_id=None)
    ledger.spend("6", 500, "void")
    ledger.spend("7", 40, at=ago(days=6))
    ledger.spend("8", 500, at=ago(days=8))


def ago(**how_long):
    """Return a time before now, in UTC without a time zone."""
    return datetime.now(UTC).replace(tzinfo=None) - timedelta(**how_long)


def connect(monkeypatch, extra):
    connection = {"conn_type": "stability", "password": SECRET, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", json.dumps(connection))


def output_of(result):
    """Return what a command has printed as JSON, and check that it has ended well."""
    status, out, err = result
    assert (status, err) == (0, "")
    return json.loads(out)


def rows_of(result):
    """Return the cells of a table that a command has printed."""
    return [[cell.strip() for cell in line.split("|")] for line in result[1].splitlines() if "|" in line]


def test_init_makes_the_tables_once_and_says_where(file, run):
    assert run("ledger", "check")[::2] == (
        1,
        "The ledger has no tables in connection 'ledger': run `airflow stability ledger init` once.\n",
    )
    for _ in range(2):
        assert output_of(run("ledger", "init", "-o", "json")) == [
            {"ledger": "connection 'ledger'", "version": 1}
        ]

    assert output_of(run("budget", "list", "-o", "json")) == []


def test_airflows_own_database_is_refused(airflow_database, run, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", f"sqlite:///{HOME / 'airflow.db'}")

    status, out, err = run("ledger", "init", "--ledger-conn-id", "ledger")

    assert (status, out) == (1, "")
    assert err.startswith("connection 'ledger' is Airflow's own database, which a ledger must not share")


def test_a_budget_is_set_listed_and_deleted(ledger, run):
    words = "budget set marketing --limit 12.5 --every month --timezone Europe/Paris --soft 80 -o json"
    (made,) = output_of(run(*words.split()))
    ledger.spend("1", 0.1, budget="marketing")
    output_of(
        run(*["budget", "set", "ever", "--limit", "5", "--every", "total", "--soft", "50%", "-o", "json"])
    )

    ever, marketing = output_of(run("budget", "list", "-o", "json"))
    assert (made["used"], made["left"]) == (0, 12.5)
    assert marketing == made | {"used": 0.1, "left": 12.4}
    assert {name: marketing[name] for name in ("name", "limit", "every", "timezone", "soft_percent")} == {
        "name": "marketing",
        "limit": 12.5,
        "every": "month",
        "timezone": "Europe/Paris",
        "soft_percent": 80,
    }
    ends = datetime.fromisoformat(marketing["ends_at"])
    assert datetime.fromisoformat(marketing["starts_at"]) < datetime.now(UTC) < ends
    assert (ever["soft_percent"], ever["starts_at"], ever["ends_at"]) == (50, None, None)

    heading, *rows = rows_of(run("budget", "list"))
    assert heading == ["name", "limit", "used", "left", "every", "renews", "soft"]
    assert rows[0] == ["ever", "5", "0", "5", "total", "does not renew", "50%"]
    assert rows[1][:5] == ["marketing", "12.5", "0.1", "12.4", "month"]
    assert rows[1][5].endswith(("CET", "CEST"))

    assert output_of(run("budget", "delete", "ever", "-o", "json")) == [{"deleted": "ever"}]
    assert run("budget", "delete", "ever") == (1, "", "There is no budget 'ever' in the ledger.\n")
    assert run("budget", "list", "-o", "plain")[1].splitlines()[1].split()[0] == "marketing"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("team --limit many --every day", "limit must be a finite number of credits, 0 or more"),
        ("team --limit -1 --every day", "limit must be a finite number of credits, 0 or more"),
        ("team --limit 1e300 --every day", "limit must be at most 1000000000000 credits; got '1e300'"),
        ("team --limit 5 --every day --timezone Mars/Base", "timezone must be the name of a time zone"),
        ("team --limit 5 --every day --soft 101", "soft must be a whole percent from 1 to 100; got 101"),
        ("team --limit 5 --every day --soft half", "soft must be a whole percent from 1 to 100; got 'half'"),
        (f"{'x' * 101} --limit 5 --every day", "budget must be a name of 1 to 100 printable characters"),
    ],
)
def test_a_budget_that_cannot_be_is_an_error(arguments, text, ledger, run):
    status, out, err = run("budget", "set", *arguments.split())

    assert (status, out) == (1, "")
    assert err.startswith(text)
    assert err.count("\n") == 1
    assert ledger.budgets() == []


@pytest.mark.parametrize(("output", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_a_program_gets_what_each_dag_has_spent_in_the_last_week(output, parse, spends, run):
    status, out, err = run("spend", "--output", output)

    assert (status, err) == (0, "")
    assert parse(out) == [
        {"dag_id": "images", "posted": 43.3, "held": 0.0, "unknown": 0.0, "spends": 4},
        {"dag_id": "[red]other[/]", "posted": 0.0, "held": 0.0, "unknown": 8.0, "spends": 1},
        {"dag_id": None, "posted": 0.0, "held": 2.5, "unknown": 0.0, "spends": 1},
    ]


@pytest.mark.parametrize("output", ["table", "plain"])
def test_a_person_gets_it_as_a_table(output, spends, run):
    status, out, err = run("spend", "--since", "2h", "--output", output)

    assert (status, err) == (0, "")
    assert [
        line.replace("|", " ").split() for line in out.splitlines() if "=" not in line and line.strip()
    ] == [
        ["dag_id", "posted", "held", "unknown", "spends"],
        ["images", "3.3", "0", "0", "3"],
        ["0", "2.5", "0", "1"],
    ]


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (
            "task",
            [("images", "generate"), ("[red]other[/]", "generate"), (None, None), ("images", "upscale")],
        ),
        ("run", [("images", "run-1"), ("[red]other[/]", "run-1"), (None, None)]),
        ("budget", [(None,), ("team",)]),
        ("wallet", [("connection stability_default",)]),
        (
            "day",
            sorted({(str(ago(hours=hours).date()),) for hours in (0, 1, 3, 144)}),
        ),
    ],
)
def test_it_is_summed_up_by_what_is_asked_for(by, names, spends, run):
    found = output_of(run("spend", "--by", by, "-o", "json"))

    counts = ("posted", "held", "unknown", "spends", "remainder")
    assert [tuple(value for name, value in row.items() if name not in counts) for row in found] == names
    assert sum(row["spends"] for row in found) == 6


def test_the_remainder_of_a_wallet_is_shown_where_it_is_known(ledger, run):
    ledger.spend("1", 3, organization="org-1")
    ledger.spend("2", 5, organization="org-2")
    for hours, credits in ((-2, 100), (-1, 80)):
        now, ledger.time = ledger.time, ledger.time + timedelta(hours=hours)
        for organization in ("org-1", "org-3"):
            hold = Hold("waits", Spender("stability_default", organization), 1e6)
            ledger.hold([hold], Reading(credits, 0.0))
        ledger.time = now

    assert output_of(run("spend", "--by", "wallet", "-o", "json")) == [
        {"wallet": "org-2", "posted": 5, "held": 0, "unknown": 0, "spends": 1, "remainder": None},
        {"wallet": "org-1", "posted": 3, "held": 0, "unknown": 0, "spends": 1, "remainder": 20},
        {"wallet": "org-3", "posted": 0, "held": 0, "unknown": 0, "spends": 0, "remainder": 20},
    ]


def test_nothing_spent_is_no_error(ledger, run):
    assert run("spend", "-o", "json") == (0, "[]\n", "")
    for output in ("table", "plain"):
        assert run("spend", "-o", output) == (0, "No data found\n", "")


def test_a_ledger_in_which_nothing_is_to_be_done_has_status_0(ledger, run):
    ledger.set_budget("team", 10, "month", soft_percent=50)
    ledger.set_budget("full", 3, "month")
    ledger.spend("1", 5, budget="team")
    ledger.spend("2", 3, budget="full")
    ledger.spend("3", state="held", runs=False, at=ago(days=2))

    status, out, err = run("ledger", "check")

    assert (status, err) == (0, "")
    rows = rows_of((status, out, err))[1:]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("ok", "tables", ""),
        ("ok", "clock", ""),
        ("note", "budget full", "It is used up: its tasks wait."),
        ("note", "budget team", "It has reached 50 % of its limit."),
        ("note", "spend 3", "Its worker may be gone. It becomes void when the next task spends."),
    ]
    assert "5 of 10 credits used or held, renews " in out
    assert "3 credits held for 2 d, beyond the lease, DAG images, task generate, run run-1" in out


def test_a_check_shows_what_is_to_be_done_and_has_status_3(ledger, run):
    now, ledger.time = ledger.time, ago(days=40)
    ledger.set_budget("team", 10, "month")
    ledger.spend("2", 2.5, "unknown", budget="team", map_index=7)
    ledger.time = now
    ledger.spend("1", 5, budget="team")
    ledger.set_budget("team", 4, "month")
    ledger.spend("3", 1, "held", at=ago(days=2))

    status, out, err = run("ledger", "check", "-o", "plain")

    assert (status, err) == (3, "")
    for line in (
        "to do +budget team +5 of 4 credits used or held, .* +Its limit was lowered below what is used",
        (
            r"to do +spend 2 +2\.5 credits unknown, held 40 d ago, DAG images, task generate, run run-1, "
            "map index 7  "
        ),
        "  Find out whether it was paid for, then settle it as posted or as void",
        "note +spend 3 +1 credits held for 2 d, beyond the lease, .* becomes unknown when the next",
    ):
        assert len(re.findall(line, out)) == 1

    status, out, err = run("ledger", "check", "-o", "json")
    (found,) = json.loads(out)
    assert (status, err, found["version"]) == (3, "", 1)
    assert abs(found["clock_ahead"]) < 1
    assert [(budget["name"], budget["left"]) for budget in found["budgets"]] == [("team", -1)]
    assert [(each["key"], each["state"], each["credits"]) for each in found["open"]] == [
        ("2", "unknown", 2.5),
        ("3", "held", 1),
    ]


def test_what_can_be_settled_is_listed_with_its_keys(ledger, run):
    ledger.spend("a", 2.5, "unknown", map_index=7, at=ago(hours=5))
    ledger.spend("b", 3)
    ledger.spend("c", 3, "held")

    heading, *rows = rows_of(run("ledger", "settle"))
    (found,) = output_of(run("ledger", "settle", "-o", "json"))

    assert dict(zip(heading, rows[0], strict=True)) == {
        "key": "a",
        "state": "unknown",
        "credits": "2.5",
        "age": "5 h",
        "dag_id": "images",
        "task_id": "generate",
        "run_id": "run-1",
        "map_index": "7",
        "reason": "",
    }
    assert len(rows) == 1
    assert (found["key"], found["credits"]) == ("a", 2.5)
    assert abs(found["age"] - 5 * 3600) < 60


def test_spends_are_settled_once_and_the_ledger_knows_by_whom(ledger, run, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ann")
    for key in ("a", "b"):
        ledger.spend(key, state="unknown")

    first = output_of(
        run("ledger", "settle", "a", "--as", "void", "--reason", "not in the folder", "-o", "json")
    )
    again = output_of(run("ledger", "settle", "a", "b", "a", "--as", "void", "-o", "json"))

    assert first == [{"key": "a", "state": "void", "settled": "now"}]
    assert again == [
        {"key": "a", "state": "void", "settled": "before"},
        {"key": "b", "state": "void", "settled": "now"},
    ]
    assert ledger.row("a").reason == "Settled by ann: not in the folder"
    assert ledger.row("b").reason == "Settled by ann."


def test_what_cannot_be_settled_hinders_no_other(ledger, run):
    for key, state in (("a", "unknown"), ("b", "void"), ("c", "held")):
        ledger.spend(key, state=state)

    status, out, err = run("ledger", "settle", *"bcda", "--as", "posted", "-o", "json")

    assert status == 1
    assert json.loads(out) == [{"key": "a", "state": "posted", "settled": "now"}]
    assert err.count("\n") == 1
    assert "Spend 'b' is void already, so it cannot become posted." in err
    assert "Spend 'c' is held until " in err
    assert "There is no spend 'd' in the ledger" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "ledger settle a",
            "Say how they ended: --as posted if they were paid for, --as void if they were not.",
        ),
        (
            "ledger settle --as void",
            "Name the KEY of each spend to settle; without --as, this command lists them.",
        ),
        ("ledger prune --before 23h", "Only what is older than a day can be deleted: give a time up to "),
        (
            "ledger prune --before soon",
            "--before must be a time before now such as 7d, 24h or 30m, or a date ",
        ),
        ("spend --since 1w", "--since must be a time before now such as 7d, 24h or 30m, or a date "),
    ],
)
def test_what_makes_no_sense_is_an_error(arguments, text, ledger, run):
    status, out, err = run(*arguments.split())

    assert (status, out) == (1, "")
    assert err.startswith(text)
    assert err.count("\n") == 1


def test_what_ended_long_ago_is_pruned(spends, run):
    (found,) = output_of(run("ledger", "prune", "--before", "7d", "-o", "json"))

    before = datetime.fromisoformat(found.pop("before"))
    assert abs(before - ago(days=7).replace(tzinfo=UTC)) < timedelta(minutes=1)
    assert found == {
        "spends_deleted": 1,
        "balances_deleted": 0,
        "open_spends_kept": 0,
        "ended_spends_kept": 0,
    }


# Which ledger


def test_the_ledger_may_be_named_itself(ledger, run, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_STABILITY_DEFAULT")

    assert output_of(run("budget", "list", "--ledger-conn-id", "ledger", "-o", "json")) == []


def test_the_ledger_is_that_of_the_connection_that_is_named(ledger, run, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", os.environ["AIRFLOW_CONN_STABILITY_DEFAULT"])
    connect(monkeypatch, {})

    assert output_of(run("budget", "list", "--conn-id", "other", "-o", "json")) == []


def test_connections_in_airflows_database_are_found(ledger, run, monkeypatch, set_connection):
    set_connection("stability_ledger", f"stability://:{SECRET}@?ledger_conn_id=ledger_in_the_database")
    set_connection("ledger_in_the_database", os.environ["AIRFLOW_CONN_LEDGER"])

    assert output_of(run("budget", "list", "--conn-id", "stability_ledger", "-o", "json")) == []


@pytest.mark.parametrize("extra", [{}, {"ledger_conn_id": ""}])
def test_a_connection_that_names_no_ledger_is_an_error_that_says_what_to_do(extra, run, monkeypatch):
    connect(monkeypatch, extra)

    status, out, err = run("spend")

    assert (status, out) == (1, "")
    assert err == (
        "Connection 'stability_default' names no ledger: set ledger_conn_id in its extra to the id of a "
        "connection to a database, or name that connection with --ledger-conn-id.\n"
    )


@pytest.mark.parametrize("arguments", [["--conn-id", "nowhere"], ["--ledger-conn-id", "nowhere"]])
def test_a_missing_connection_is_an_error(arguments, run):
    status, out, err = run("ledger", "check", *arguments)

    assert (status, out) == (1, "")
    assert "`nowhere` isn't defined. Make the connection, or name another one" in err
    assert err.count("\n") == 1


def test_a_ledger_needs_a_database(run, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", f"http://user:{SECRET}@localhost")

    status, out, err = run("ledger", "check", "--ledger-conn-id", "ledger")

    assert (status, out) == (1, "")
    assert err.startswith("The ledger's connection 'ledger' is of type 'http', and a ledger needs a database")
    assert SECRET not in err


@pytest.mark.skipif(IS_LOWEST, reason="Airflow 2.11.0 does not load PostgreSQL's hook of that time")
def test_a_database_out_of_reach_is_an_error_without_its_password(run, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", f"postgres://user:{SECRET}@127.0.0.1:{port}/ledger")

    status, out, err = run("spend", "--ledger-conn-id", "ledger")

    assert (status, out) == (1, "")
    assert err.startswith("The ledger in connection 'ledger' is out of reach: OperationalError: ")
    assert SECRET not in err
    assert err.count("\n") == 1


def test_what_the_parser_refuses_is_status_2(ledger, run):
    for arguments in (
        "budget set team --every day",
        "budget set team --limit 5 --every year",
        "spend --by person",
        "ledger settle a --as unknown",
        "ledger prune",
        "ledger upgrade",
    ):
        status, out, err = run(*arguments.split())

        assert (status, out) == (2, "")
        assert err.startswith("usage: python -m airflow_stability")


# Real processes


WAYS = [[sys.executable, "-m", "airflow_stability"]]
if AIRFLOW_VERSION >= (3, 2):
    WAYS.append([sys.executable, "-m", "airflow", "stability"])


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[2])
def test_processes_print_the_output_and_nothing_else(way, file):
    def end_of(arguments):
        ended = subprocess.run([*way, *arguments.split()], capture_output=True, text=True, timeout=120)
        assert ended.stderr == ""
        return ended.returncode, ended.stdout

    assert end_of("ledger init -o plain") == (0, "ledger               version\nconnection 'ledger'  1\n")
    status, out = end_of("budget set team --limit 10 --every week -o json")
    assert (status, json.loads(out)[0]["name"]) == (0, "team")
    made = LedgerForTests(f"sqlite:///{file}", ago())
    made.spend("a", 2.5, "unknown", budget="team")
    made.database.engine.dispose()
    status, out = end_of("ledger check -o json")
    assert (status, json.loads(out)[0]["budgets"][0]["used"]) == (3, 2.5)
