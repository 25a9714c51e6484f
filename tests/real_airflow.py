"""A real Airflow in a folder of its own: a database, and the processes of a deployment.

The end-to-end tests, the benchmark and the demo use it. It is independent of any other Airflow on the
machine, listens on loopback only, and can stop every process that it has started.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import psutil

from tests.leaks import Search

#: From the package's metadata, because importing Airflow would create its home folder.
AIRFLOW_VERSION = tuple(map(int, version("apache-airflow").split(".")[:2]))
#: The processes of a deployment. On Airflow 2.11 the scheduler also parses the DAG files.
COMPONENTS = (
    ("scheduler", "triggerer")
    if AIRFLOW_VERSION < (3, 0)
    else ("scheduler", "dag-processor", "triggerer", "api-server")
)
#: The first request about a task takes the API server five seconds of processor time, since it makes its
#: routes then. On a busy machine, workers give up before that. A request for this path makes them, too.
READY_FOR_WORKERS = "/execution/health"
#: The provider's commands, which Airflow knows from 3.2 on.
STABILITY = ("airflow", "stability") if AIRFLOW_VERSION >= (3, 2) else ("airflow_stability",)
#: Where XComs and rendered arguments are.
XCOM_TABLE, RENDERED_FIELDS_TABLE = "xcom", "rendered_task_instance_fields"
#: What stands after FROM to query a table under the name and with the columns that it had before Airflow 3.4.
TASK_INSTANCE, XCOM = "task_instance", XCOM_TABLE
if AIRFLOW_VERSION >= (3, 4):
    XCOM_TABLE, RENDERED_FIELDS_TABLE = "xcom_v2", "rtif_v2"
    # Each try of a task has a row here, and that of the last one is in the working set.
    TASK_INSTANCE = (
        "(SELECT *, region_index AS map_index FROM task_instance WHERE working_set) AS task_instance"
    )
    XCOM = (
        "(SELECT key, value, timestamp, dag_id, run_id, task_id, map_index "
        f"FROM {XCOM_TABLE} JOIN {TASK_INSTANCE} ON task_instance.id = task_instance_id) AS xcom"
    )


def of_tasks(condition: str) -> str:
    """Return what stands after WHERE for the XComs, or the rendered arguments, of some task instances."""
    if AIRFLOW_VERSION >= (3, 4):
        return f"task_instance_id IN (SELECT id FROM task_instance WHERE {condition})"
    return condition


#: Seconds that processes get to end after SIGTERM before they are killed.
TIME_TO_END = 7

T = TypeVar("T")


class AirflowError(Exception):
    """Airflow has not done what it should. The text says why."""


class RealAirflow:
    """One Airflow. Create its database with ``run("db", "migrate")``, call ``start``, and always ``end``.

    :param folder: for its home, database and logs; created if it does not exist.
    :param dags: the folder of its DAG files.
    :param database: the database's URL for SQLAlchemy; None for SQLite in the folder.
    :param settings: Airflow's settings, as ``section__name``.
    :param seconds: after which every wait for this Airflow fails.
    :param restarts: restart components that end by themselves, as a service manager does.
    """

    def __init__(
        self,
        folder: Path,
        dags: Path,
        *,
        database: str | None = None,
        settings: Mapping[str, object] = {},
        seconds: float = math.inf,
        restarts: bool = False,
    ) -> None:
        self.restarts = restarts
        #: The number of restarts of each component.
        self.restarted: Counter[str] = Counter()
        self.give_up = time.monotonic() + seconds
        self.home = folder / "airflow"
        self.logs = folder / "logs"
        self.task_logs = self.home / "logs"
        for directory in (folder, self.home, self.logs):
            directory.mkdir(exist_ok=True)
        self.database = database or f"sqlite:///{self.home / 'airflow.db'}"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.fernet_key = urlsafe_b64encode(secrets.token_bytes(32)).decode()
        self.environment = self._environment(dags, settings)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._options: dict[str, Sequence[str]] = {}
        self._engine: Any = None
        if sys.platform == "linux":
            # Airflow runs tasks in sessions of their own. An orphaned process becomes a child of this one,
            # so that ``end`` finds it. (36 is PR_SET_CHILD_SUBREAPER.)
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)

    def _environment(self, dags: Path, settings: Mapping[str, object]) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            # Without compiled modules every process takes twice as long to start.
            if not name.lstrip("_").startswith("AIRFLOW") and name != "PYTHONDONTWRITEBYTECODE"
        }
        for name in ("NO_PROXY", "no_proxy"):
            inherited[name] = ",".join([*filter(None, [inherited.get(name)]), "127.0.0.1", "localhost"])
        # Airflow 2.11 starts tasks with the command `airflow`.
        inherited["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', os.defpath)}"
        all_settings = {
            "core__dags_folder": dags,
            "core__load_examples": False,
            "core__executor": "LocalExecutor",
            "core__parallelism": 4,
            "core__hostname_callable": "socket.gethostname",
            "core__fernet_key": self.fernet_key,
            "core__execution_api_server_url": f"{self.url}/execution/",
            "database__sql_alchemy_conn": self.database,
            "logging__base_log_folder": self.task_logs,
            "metrics__timer_unit_consistency": True,
            "api__host": "127.0.0.1",
            "api__port": self.port,
            "api__base_url": self.url,
            "api__workers": 1,
            "api__secret_key": secrets.token_hex(32),
            "api_auth__jwt_secret": secrets.token_hex(32),
            # A worker notices the end of its task only at a heartbeat, and takes no other task before.
            "workers__min_heartbeat_interval": 1,
            "scheduler__scheduler_idle_sleep_time": 0.5,
            "scheduler__enable_health_check": False,
            "dag_processor__parsing_processes": 1,
            "usage_data_collection__enabled": False,
            **settings,
        }
        return {
            **inherited,
            "AIRFLOW_HOME": str(self.home),
            # Airflow 2.11 refuses LocalExecutor with SQLite, which is good enough for tests.
            "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
            **{f"AIRFLOW__{name}".upper(): str(value) for name, value in all_settings.items()},
        }

    # Its processes

    def start(self, *components: str, options: Sequence[str] = ()) -> None:
        """Start components, by default all of them.

        :param components: their names. A number at the end, as in ``triggerer-2``, starts another one of the
            same kind. ``worker`` is a Celery worker.
        :param options: for each component's command.
        """
        for name in components or COMPONENTS:
            kind = name.rstrip("0123456789").removesuffix("-")
            # Their log servers are not needed on one machine, and would listen on all network interfaces.
            quiet = ["--skip-serve-logs"] if kind in ("scheduler", "triggerer", "worker") else []
            words = ["celery", "worker", "--celery-hostname", name] if kind == "worker" else [kind]
            self._running[name] = self.command(name, *words, *quiet, *options)
            self._options[name] = options

    def kill(self, component: str) -> None:
        """Kill a component and all its child processes with SIGKILL."""
        started = self._running.pop(component)
        process = psutil.Process(started.pid)
        family = process.children(recursive=True)
        _send(signal.SIGKILL, [process, *family])
        started.wait()
        psutil.wait_procs(family, timeout=TIME_TO_END)

    def process(self, component: str) -> psutil.Process:
        """Return the process of a component."""
        return psutil.Process(self._running[component].pid)

    def command(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `airflow ARGUMENTS` in a session of its own, with its output in the log NAME."""
        return self._python(name, "-m", "airflow", *arguments)

    def stability(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command of the provider, with its output in a pipe and its errors in the log NAME."""
        return self._python(name, "-m", *STABILITY, *arguments, output=subprocess.PIPE)

    def _python(self, name: str, *arguments: str, output: int | None = None) -> subprocess.Popen[bytes]:
        """Start Python with Airflow's settings in its environment.

        :param output: where its output goes; None for the log.
        """
        with self.log_of(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log if output is None else output,
                stderr=log,
                start_new_session=True,
            )

    def run(self, *arguments: str) -> None:
        """Run `airflow ARGUMENTS`, and return when the command has ended.

        :raises AirflowError: the command failed.
        """
        name = arguments[0]
        command = self.command(name, *arguments)
        self.wait_for(f"airflow {' '.join(arguments[:2])}", lambda: self.finished(name, command))

    def execute(self, code: str) -> str:
        """Run Python code with Airflow's settings in its environment, and return its last line of output.

        :raises AirflowError: the code failed.
        """
        command = self._python("code", "-c", code)
        self.wait_for("code", lambda: self.finished("code", command))
        return self.log_of("code").read_text().rstrip().rpartition("\n")[2]

    def finished(self, name: str, command: subprocess.Popen[bytes]) -> bool:
        """Return whether a command has ended.

        :raises AirflowError: the command failed.
        """
        status = command.poll()
        if status:
            raise self._failure(name, status)
        return status == 0

    def check(self) -> None:
        """Check that all components run. With ``restarts``, restart those that have ended.

        :raises AirflowError: a component has ended, and ``restarts`` is off.
        """
        for name, process in list(self._running.items()):
            if (status := process.poll()) is not None:
                if not self.restarts:
                    raise self._failure(name, status)
                self.restarted[name] += 1
                self.start(name, options=self._options[name])

    def wait_for(self, what: str, look: Callable[[], T | None], *, seconds: float = 240) -> T:
        """Call a function until it returns something true, and return that.

        :raises AirflowError: a component has ended, or the time is over.
        """
        give_up = min(time.monotonic() + seconds, self.give_up)
        while not (seen := look()):
            self.check()
            if time.monotonic() > give_up:
                raise AirflowError(f"{what}: not in time; logs: {self.logs}")
            time.sleep(0.2)
        return seen

    def end(self) -> None:
        """Stop all components and their child processes: with SIGTERM, then with SIGKILL."""
        if self._engine is not None:
            self._engine.dispose()
        give_up = time.monotonic() + 3 * TIME_TO_END
        _send(signal.SIGTERM, left := descendants())
        psutil.wait_procs(left, timeout=TIME_TO_END)
        while (left := descendants()) and time.monotonic() < give_up:
            _send(signal.SIGKILL, left)
            psutil.wait_procs(left, timeout=1)
        for process in self._running.values():
            process.poll()
        self._running.clear()

    def log_of(self, name: str) -> Path:
        """Return the file that holds the output of a component or command."""
        return self.logs / f"{name}.log"

    def _failure(self, name: str, status: int) -> AirflowError:
        how = f"was ended by signal {-status}" if status < 0 else f"ended by itself with status {status}"
        return AirflowError(f"Airflow's {name} {how}; {last_lines(self.log_of(name))}")

    # Its state

    def healthy(self) -> bool:
        """Return whether all components report that they are healthy, and tasks may start.

        Airflow 2.11 runs here without its web server, and so has no report: then it is always True.
        """
        if "api-server" not in COMPONENTS:
            return True
        with contextlib.suppress(URLError, OSError, ValueError):
            self._get(READY_FOR_WORKERS, seconds=60)
            health = self._get("/api/v2/monitor/health", seconds=5)
            return all(
                (health.get(name.replace("-", "_")) or {}).get("status") == "healthy"
                for name in COMPONENTS[:-1]
            )
        return False

    def token(self) -> str:
        """Return a token for the REST API. Needs ``core__simple_auth_manager_all_admins``."""
        token: str = self._get("/auth/token", seconds=30)["access_token"]
        return token

    def _get(self, path: str, *, seconds: float) -> Any:
        """Return JSON from the API server, without a proxy."""
        with build_opener(ProxyHandler({})).open(f"{self.url}{path}", timeout=seconds) as response:
            return json.load(response)

    def connect(self, uris: Mapping[str, str]) -> None:
        """Put connections, given as URIs, into the database. Existing ones of the same id are replaced."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(dict(uris), file)
            file.flush()
            self.run("connections", "import", "--overwrite", file.name)

    def unpause(self, *dag_ids: str) -> None:
        """Unpause DAGs, without the seconds that `airflow dags unpause` takes for each."""
        for dag_id in dag_ids:
            self.query("UPDATE dag SET is_paused = false WHERE dag_id = :dag_id", dag_id=dag_id)

    def query(self, sql: str, **values: object) -> list[Any]:
        """Execute a statement on the database and return its rows, if it has any."""
        import sqlalchemy

        if self._engine is None:
            # The database server may have been restarted since the last query.
            self._engine = sqlalchemy.create_engine(self.database, pool_pre_ping=True)
        with self._engine.begin() as connection:
            result = connection.execute(sqlalchemy.text(sql), values)
            return list(result) if result.returns_rows else []

    def places_of(self, *texts: str) -> tuple[list[str], int, int]:
        """Search all files of this Airflow and all rows of its database for texts, in all their forms.

        :returns: the places where a text was found, the number of files searched, and the number of rows.
        """
        search = Search(texts)
        in_files, files = search.find_in_files(self.home.parent)
        self.query("SELECT 1")
        in_rows, rows = search.find_in_database(self._engine)
        return in_files + in_rows, files, rows

    def states(self, dag_id: str) -> dict[tuple[str, int], str | None]:
        """Return the state of each task instance of a DAG, by task id and map index."""
        rows = self.query(
            f"SELECT task_id, map_index, state FROM {TASK_INSTANCE} WHERE dag_id = :dag_id", dag_id=dag_id
        )
        return {(task_id, map_index): state for task_id, map_index, state in rows}

    def task_log(self, dag_id: str, task_id: str) -> str:
        """Return the logs of a task, from workers and triggerers."""
        files = self.task_logs.glob(f"dag_id={dag_id}/*/task_id={task_id}/**/attempt=*")
        return "\n".join(file.read_text(errors="replace") for file in sorted(files))


def free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def descendants() -> list[psutil.Process]:
    """Return all child processes of this process, and theirs."""
    return psutil.Process().children(recursive=True)


def last_lines(log: Path, count: int = 12) -> str:
    """Return the last lines of a log, to be printed."""
    lines = log.read_text(errors="replace").rstrip().splitlines()[-count:] if log.exists() else []
    return "\n".join([f"the last lines of {log}:", *(f"    {line[:500]}" for line in lines)])


def _send(number: int, processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
