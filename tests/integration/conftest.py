"""Airflow in this process, with a database of its own, and simulators on real sockets."""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from airflow_stability.compat import AIRFLOW_VERSION
from airflow_stability.simulator import StabilitySimulator
from tests.conftest import HOME, ROOT
from tests.real_airflow import XCOM

#: Examples of event-driven DAGs, which Airflow 2.11 does not have: there they cannot be imported.
NEED_AIRFLOW_3 = ("stability_credit_restored.py", "stability_credit_low.py")


@pytest.fixture
def simulator() -> Iterator[StabilitySimulator]:
    with StabilitySimulator() as simulator:
        yield simulator


@pytest.fixture
def connection(simulator: StabilitySimulator, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the default connection one to the simulator, and return a function that makes it anew."""

    def connect(key: str | None = None) -> None:
        uri = f"{simulator.connection_uri(key)}?api_version=v1"
        monkeypatch.setenv("AIRFLOW_CONN_STABILITY_DEFAULT", uri)

    connect()
    return connect


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs a command in this process: its exit status, stdout and stderr."""
    from airflow_stability.__main__ import main

    # A command marks its process as one that may read Airflow's database. Undo that afterwards.
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")
    monkeypatch.delenv("_AIRFLOW_PROCESS_CONTEXT")
    # The simulator runs in this process too, and would log into the command's output.
    for name in ("airflow_stability.simulator", "uvicorn.error"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)

    def run(*arguments: str) -> tuple[Any, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Return a function that returns what was logged: Airflow 3 writes the log of a trigger to stdout.

    Reading pytest's file this way takes nothing out of it: `readouterr` loses what is written meanwhile.
    """
    return lambda: os.pread(1, os.fstat(1).st_size, 0).decode()


@pytest.fixture(scope="session")
def airflow_database(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make Airflow's database, and a folder of DAGs: the examples and those of the tests.

    The first of pytest's processes makes an empty database for all of them, each takes a copy.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    empty, unfinished, mine = shared / "empty.db", shared / "unfinished.db", HOME / "airflow.db"
    with (shared / "empty.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if empty.exists():
            _copy_database(empty, mine)
        else:
            command = [sys.executable, "-m", "airflow", "db", "migrate"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            _copy_database(mine, unfinished)
            unfinished.rename(empty)
    dags = HOME / "dags"
    dags.mkdir()
    for folder in (ROOT / "example_dags", Path(__file__).parent / "dags"):
        for file in folder.glob("*.py"):
            if AIRFLOW_VERSION >= (3, 0) or file.name not in NEED_AIRFLOW_3:
                shutil.copy(file, dags)


def _copy_database(source: Path, target: Path) -> None:
    """Copy what is in its log of writes, too, and to where this process may have a database open already."""
    with closing(sqlite3.connect(source)) as reader, closing(sqlite3.connect(target)) as writer:
        reader.backup(writer)


@pytest.fixture(scope="session")
def keep_connection(airflow_database: None) -> Callable[[str, str], None]:
    """Return a function that puts a connection, given as a URI, into Airflow's database for good."""
    return _put_connection


@pytest.fixture
def set_connection(airflow_database: None) -> Iterator[Callable[[str, str], None]]:
    """Return a function that puts a connection, given as a URI, into Airflow's database for this test."""
    conn_ids = set()

    def set_connection(conn_id: str, uri: str) -> None:
        conn_ids.add(conn_id)
        _put_connection(conn_id, uri)

    yield set_connection
    for conn_id in conn_ids:
        _put_connection(conn_id, None)


def _put_connection(conn_id: str, uri: str | None) -> None:
    """Put a connection into Airflow's database, instead of one with this id; None only deletes that."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(Connection).filter(Connection.conn_id == conn_id).delete()
        if uri is not None:
            session.add(Connection(conn_id=conn_id, uri=uri))


@pytest.fixture(scope="session")
def run_dag(airflow_database: None) -> Callable[..., DagRunResult]:
    """Return a function that runs a DAG of the DAG folder to its end in this process."""
    if (3, 0) <= AIRFLOW_VERSION < (3, 3):
        make_up_for_dag_test()

    def run_dag(dag_id: str, conf: dict[str, Any] | None = None) -> DagRunResult:
        with ErrorsOfDagTest() as errors:
            return DagRunResult(load_dag(dag_id).test(run_conf=conf), errors.found)

    return run_dag


class ErrorsOfDagTest(logging.Handler):
    """Collects the errors of ``DAG.test()`` itself within its ``with`` block; they fail a task, too."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()).startswith("[DAG TEST]"):
            self.found.append(f"{text}: {record.exc_info and record.exc_info[1]!r}")

    def __enter__(self) -> ErrorsOfDagTest:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger().removeHandler(self)


def make_up_for_dag_test() -> None:
    """Make up for what ``DAG.test()`` of Airflow 3.0 to 3.2 lacks beside their workers, and be quick."""
    from airflow.sdk.execution_time import supervisor, task_runner

    # A new API server for every task and every trigger takes seconds each.
    supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)

    # A worker's main() tells the callbacks what went wrong; InProcessTestSupervisor.start() does not.
    finalize = task_runner.finalize

    def finalize_with_exception(ti: Any, state: Any, context: Any, log: Any, error: Any = None) -> None:
        if error:
            context["exception"] = error
        finalize(ti, state, context, log, error)

    task_runner.finalize = finalize_with_exception

    if AIRFLOW_VERSION < (3, 1):
        make_up_for_dag_test_of_3_0()


def make_up_for_dag_test_of_3_0() -> None:
    """Make up for what only 3.0 lacks."""
    import structlog
    from airflow.sdk.execution_time.comms import TaskRescheduleStartDate
    from airflow.sdk.execution_time.supervisor import InProcessTestSupervisor

    # A worker parses what the supervisor sends; here a sensor would get the date as Client made it: a string.
    send_msg = InProcessTestSupervisor.send_msg

    def send_parsed(self: Any, msg: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(msg, TaskRescheduleStartDate):
            msg = TaskRescheduleStartDate.model_validate(dict(msg))
        send_msg(self, msg, *args, **kwargs)

    InProcessTestSupervisor.send_msg = send_parsed

    # The whole DAG is serialized for every task; of the last DAG once is enough.
    InProcessTestSupervisor._api_client = staticmethod(
        functools.lru_cache(maxsize=1)(InProcessTestSupervisor._api_client)
    )

    # Nobody has set up structlog, which then draws every traceback with all variables, seconds each.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        processors=[
            *structlog.get_config()["processors"][:-1],
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ],
    )


class DagRunResult:
    """What a finished DAG run left in Airflow's database."""

    def __init__(self, dag_run: Any, errors: Sequence[str]) -> None:
        self.errors = errors
        self.dag_id, self.run_id = dag_run.dag_id, dag_run.run_id
        self.state = str(dag_run.state)
        self.states = {ti.task_id: str(ti.state) for ti in dag_run.get_task_instances()}
        self.tries = {ti.task_id: ti.try_number for ti in dag_run.get_task_instances()}

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        """Return what a task pushed."""
        return self.xcoms(task_id, key)[0]

    def xcoms(self, task_id: str, key: str = "return_value") -> list[Any]:
        """Return what the instances of a mapped task pushed."""
        from airflow.utils.session import create_session
        from sqlalchemy import text

        query = text(
            f"SELECT value FROM {XCOM} WHERE dag_id = :dag_id AND run_id = :run_id AND task_id = :task_id "
            "AND key = :key ORDER BY map_index"
        )
        wanted = {"dag_id": self.dag_id, "run_id": self.run_id, "task_id": task_id, "key": key}
        with create_session() as session:
            # SQLite keeps a bare JSON number as a number.
            rows = [value for (value,) in session.execute(query, wanted)]
            return [value if isinstance(value, int | float) else json.loads(value) for value in rows]


def redact(text: str) -> str:
    """Return what Airflow's log would show of a text."""
    if AIRFLOW_VERSION >= (3, 1):
        from airflow.sdk.log import redact as redact_text
    elif AIRFLOW_VERSION >= (3, 0):
        from airflow.sdk.execution_time.secrets_masker import redact as redact_text
    else:
        from airflow.utils.log.secrets_masker import redact as redact_text
    return str(redact_text(text))


def let_thread_execute_operators() -> None:
    """Let this thread call an operator's execute, as a worker's main thread may."""
    if AIRFLOW_VERSION < (3, 0):
        from airflow.models.baseoperator import ExecutorSafeguard

        # Airflow notes per thread who calls execute, and prepares that for the main thread only.
        ExecutorSafeguard._sentinel.callers = {}


def load_dag(dag_id: str) -> Any:
    """Return a DAG of the DAG folder."""
    if AIRFLOW_VERSION >= (3, 2):
        from airflow.dag_processing.dagbag import DagBag
    else:
        from airflow.models.dagbag import DagBag
    bag = DagBag(dag_folder=str(HOME / "dags"))
    assert not bag.import_errors
    return bag.dags[dag_id]
