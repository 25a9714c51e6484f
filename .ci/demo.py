"""The demo: `make demo`, or `make demo KEEP=1` (which runs this with `--keep`).

A Stability simulator with too little credit and a real Airflow (scheduler, dag-processor, triggerer,
api-server, SQLite) in `.demo/` run `example_dags/stability_image_pipeline.py`. What happens is told live:
the gate waits, is topped up with too little for all images, and opens; some images are made, one is refused
and waits, as the others do; after another top-up they are made as well; then the account is read. In the end
the tasks, the images and the credits are checked, and the API key is sought in everything that Airflow has
written.

Exit status: 0 only if all of that is as it should be, else 1; after Ctrl-C 130, after SIGTERM 143. What it
has started is gone afterwards in each case. With `--keep`, Airflow's pages stay up until Ctrl-C.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import requests
from cryptography.fernet import Fernet
from sqlalchemy.exc import SQLAlchemyError

from airflow_stability.simulator import Fault, StabilitySimulator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.real_airflow import (  # noqa: E402 (a script finds what stands beside it, and not the checkout)
    COMPONENTS,
    AirflowError,
    RealAirflow,
    descendants,
    last_lines,
)

DEMO = ROOT / ".demo"
HOME = DEMO / "airflow"
IMAGES = DEMO / "images"
LOGS = DEMO / "logs"
TASK_LOGS = HOME / "logs"
USER = "admin"
PASSWORD_FILE = DEMO / "password.json"
PIPELINE = "stability_image_pipeline"
ACCOUNT = "stability_account"
RUN = "demo"

SETTINGS = {
    # Only the two DAGs that are shown are unpaused.
    "core__dags_are_paused_at_creation": True,
    "core__auth_manager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    "core__simple_auth_manager_users": f"{USER}:admin",
    "core__simple_auth_manager_passwords_file": PASSWORD_FILE,
    "core__test_connection": "Enabled",
}

PROMPTS = (
    "a lighthouse in a storm",
    "a paper boat on a calm lake",
    "a fox reading a newspaper",
    "an owl with a lantern",
    "a tram in the rain",
)
CREDITS_PER_IMAGE = 3
#: Images that the example asks for at the same time.
AT_ONCE = 2
IMAGE_CALL = "/v2beta/stable-image/generate/core"
#: How texts begin that Airflow itself says in the name of a gate or of a task that spends.
SAID_BY_AIRFLOW = ("Success criteria met. Exiting.", "Done. Returned value was: ")
TOO_LITTLE = 2.0
#: The first suffices for the gate and for three images: of the second two that are asked for, one is refused.
#: The second is more than the rest costs: a triggerer counts what it let a task go for as spent for a minute,
#: though the balance may show that already.
TOP_UPS = (8.0, 12.0)

#: Seconds after which the demo gives up, wherever it is; it takes about a minute on two cores.
TIME_LIMIT = 600
#: Seconds between two looks at anything that is waited for.
LOOK_EVERY = 0.5

T = TypeVar("T")


class DemoError(Exception):
    """The demo has not shown what it should; the text says why."""


class Ended(Exception):  # noqa: N818 (no error)
    """The demo was told to end by a signal."""


# --- What is seen -------------------------------------------------------------------------------------


COLOURS = {"gate": "33", "simulator": "35", "image": "36", "done": "1;32", "failed": "1;31"}


class Terminal:
    """One line per fact, with the time and who it is about; a passing line while something takes long."""

    def __init__(self) -> None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = self.live and not os.environ.get("NO_COLOR")
        self.unread = False
        self._passing = False
        self._told_at = 0.0

    def say(self, who: str, text: str) -> None:
        """Tell one fact."""
        head = f"{time.strftime('%H:%M:%S')}  {who:<10} "
        if self.colour and (colour := COLOURS.get(who.partition(" ")[0])):
            text = f"\033[{colour}m{text}\033[0m"
        self._write(f"{head}{text}\n")
        self._told_at = time.monotonic()

    def pass_time(self, what: str, since: float) -> None:
        """Show that something still goes on: in a line that the next one replaces, or now and then.

        :raises DemoError: there is nobody to show it to.
        """
        if self.unread:
            raise DemoError("its output could not be written")
        now = time.monotonic()
        text = f"{what} ... {now - since:.0f} s"
        if self.live:
            self._write(f"{time.strftime('%H:%M:%S')}  {'':<10} {text}"[: _columns() - 1], passing=True)
        elif now - self._told_at >= 10:
            self.say("...", text)

    def _write(self, text: str, *, passing: bool = False) -> None:
        if self._passing:
            text = f"\r\033[K{text}"
        self._passing = passing
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:  # nobody reads any more, but what was started has to be ended nevertheless
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.unread = True


def _columns() -> int:
    return shutil.get_terminal_size().columns


def shown(path: Path | str) -> str:
    """Return a path of the demo's the short way where that is enough: below the repository, when there."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if Path.cwd() == ROOT and path.is_relative_to(ROOT) else str(path)


# --- What ends it -------------------------------------------------------------------------------------


class Signals:
    """Remembers the first signal that asks the demo to end. It interrupts nothing: whoever waits looks here.

    So what is started is also known, and tidying up cannot be interrupted by a second Ctrl-C.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup make demo
                signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: object) -> None:
        self.received = self.received or number

    def pause(self) -> None:
        """Wait a moment.

        :raises Ended: one of the signals has come.
        """
        if self.received is None:
            time.sleep(LOOK_EVERY)
        if self.received is not None:
            raise Ended


# --- Airflow ------------------------------------------------------------------------------------------


class Api:
    """Airflow's REST API, as its user `admin`."""

    def __init__(self, url: str, password: str) -> None:
        self.url = url
        self._password = password
        self._session = requests.Session()
        self._session.trust_env = False  # neither proxies nor a .netrc: it is on this machine

    def log_in(self) -> None:
        """Get the token that everything else needs."""
        answer = self.call("POST", "/auth/token", {"username": USER, "password": self._password})
        self._session.headers["Authorization"] = f"Bearer {answer['access_token']}"

    def get(self, path: str) -> Any:
        """Read something; None when it is not there, or the server does not answer just now."""
        try:
            answer = self._session.get(f"{self.url}{path}", timeout=10)
        except requests.RequestException:
            return None
        return answer.json() if answer.ok else None

    def call(self, method: str, path: str, body: object) -> Any:
        """Change something.

        :raises DemoError: it was refused. The text does not repeat the body, which may hold a key.
        """
        try:
            answer = self._session.request(method, f"{self.url}{path}", json=body, timeout=60)
        except requests.RequestException as error:
            raise DemoError(f"Airflow did not answer {method} {path}: {type(error).__name__}") from None
        if not answer.ok:
            log = last_lines(LOGS / "api-server.log")
            raise DemoError(f"Airflow answered {method} {path} with status {answer.status_code}; {log}")
        return answer.json() if answer.content else None

    def tasks(self, dag: str) -> dict[tuple[str, int], str | None]:
        """The state of each task of the demo's run of a DAG, by task and map index."""
        answer = self.get(f"/api/v2/dags/{dag}/dagRuns/{RUN}/taskInstances") or {"task_instances": []}
        return {(each["task_id"], each["map_index"]): each["state"] for each in answer["task_instances"]}

    def xcom(self, dag: str, task: str, map_index: int = -1) -> Any:
        """What a task has returned; None when that is nothing."""
        path = f"/api/v2/dags/{dag}/dagRuns/{RUN}/taskInstances/{task}/xcomEntries/return_value"
        entry = self.get(f"{path}?map_index={map_index}")
        return entry and entry["value"]


class TaskLog:
    """What a task of the demo's run of a DAG says in its latest try, read on as it grows."""

    def __init__(self, dag: str, task: str, map_index: int = -1) -> None:
        folder = TASK_LOGS / f"dag_id={dag}" / f"run_id={RUN}" / f"task_id={task}"
        if map_index >= 0:
            folder /= f"map_index={map_index}"
        self.path = max(folder.glob("attempt=?.log"), default=folder / "attempt=1.log")
        self._read = 0
        #: What was told of it last.
        self.told = ""

    def news(self) -> Iterator[str]:
        """Yield what the provider has said anew. It may say in a worker what it has said in a triggerer."""
        for text in self.new_lines(logger="airflow_stability"):
            if text != self.told and not text.startswith(SAID_BY_AIRFLOW):
                self.told = text
                yield text

    def new_lines(self, **wanted: str) -> Iterator[str]:
        """Yield each text that was not seen yet, if its record's fields hold what is wanted of them."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    return
                self._read += len(line)
                if not line.startswith(b"{"):
                    continue
                record = json.loads(line)
                if all(value in str(record.get(name)) for name, value in wanted.items()):
                    errors = [
                        f"{each['exc_type']}: {each['exc_value']}"
                        for each in record.get("error_detail") or []
                    ]
                    yield " ".join([record["event"], *errors])


@dataclass
class Story:
    """What was told of the pipeline's run."""

    gate: TaskLog = field(default_factory=lambda: TaskLog(PIPELINE, "wait_for_credit"))
    images: list[TaskLog] = field(
        default_factory=lambda: [TaskLog(PIPELINE, "generate_image", index) for index in range(len(PROMPTS))]
    )
    made: set[int] = field(default_factory=set)
    let_through: int = 0
    top_ups: int = 0
    report: TaskLog = field(default_factory=lambda: TaskLog(PIPELINE, "report"))


# --- The demo -----------------------------------------------------------------------------------------


class Demo:
    """The demo, step by step. Each step returns when what it is about has happened, or raises DemoError."""

    def __init__(
        self, terminal: Terminal, signals: Signals, simulator: StabilitySimulator, *, keep: bool
    ) -> None:
        self.keep = keep
        self.terminal = terminal
        self.signals = signals
        self.simulator = simulator
        self.say = terminal.say
        self.began = time.monotonic()
        self.password = secrets.token_urlsafe(12)
        self.stays = False
        make_room(self.password)
        self.airflow = RealAirflow(DEMO, ROOT / "example_dags", settings=SETTINGS)
        self.api = Api(self.airflow.url, self.password)

    def run(self) -> None:
        """All of it."""
        self.say(
            "simulator", f"a Stability API at {self.simulator.url}, with {self.simulator.credits():g} credits"
        )
        self.start_airflow()
        self.make_connection()
        self.run_pipeline()
        self.read_account()
        if not self.keep:
            self.end_airflow()
        self.check_tasks()
        self.check_images()
        self.check_credits()
        self.check_key()
        took = time.monotonic() - self.began
        self.say("done", f"The demo succeeded, in {took:.0f} s. Images: {shown(IMAGES)}, logs: {shown(LOGS)}")
        if self.keep:
            self.stay()

    def wait_for(self, what: str, look: Callable[[], T | None]) -> T:
        """Look again and again until there is something to see.

        :raises DemoError: a process has died, or the demo's time is over.
        """
        since = time.monotonic()
        while not (seen := look()):
            self.airflow.check()
            if time.monotonic() - self.began > TIME_LIMIT:
                raise DemoError(f"time is over after {TIME_LIMIT} s, while {what}; logs: {shown(LOGS)}")
            self.terminal.pass_time(what, since)
            self.signals.pause()
        return seen

    # Airflow

    def start_airflow(self) -> None:
        """Make Airflow's database and start its processes, until all of them are well."""
        self.say("airflow", f"{version('apache-airflow')} in {shown(DEMO)}: making its database")
        migrate = self.airflow.command("db-migrate", "db", "migrate")
        self.wait_for("Making Airflow's database", lambda: self.airflow.finished("db-migrate", migrate))
        self.say("airflow", f"database made; starting {', '.join(COMPONENTS)}")
        self.airflow.start()
        self.wait_for("Waiting for the api-server", lambda: self.api.get("/api/v2/monitor/health"))
        self.say("airflow", f"api-server answers at {self.api.url}")
        self.api.log_in()
        healthy: set[str] = set()
        self.wait_for("Waiting for the others", lambda: self._all_healthy(healthy))
        self.wait_for("Waiting for the DAGs", self._dags_there)
        self.say("airflow", f"DAGs {PIPELINE} and {ACCOUNT} are there")

    def _all_healthy(self, healthy: set[str]) -> bool:
        health = self.api.get("/api/v2/monitor/health") or {}
        for name in COMPONENTS[:-1]:
            status = (health.get(name.replace("-", "_")) or {}).get("status")
            if status == "healthy" and name not in healthy:
                healthy.add(name)
                self.say("airflow", f"{name} is healthy")
        return len(healthy) == len(COMPONENTS) - 1

    def _dags_there(self) -> bool:
        for error in (self.api.get("/api/v2/importErrors") or {}).get("import_errors", []):
            if Path(error["filename"]).stem in (PIPELINE, ACCOUNT):
                raise DemoError(f"{error['filename']} could not be loaded:\n{error['stack_trace']}")
        return all(self.api.get(f"/api/v2/dags/{dag}") for dag in (PIPELINE, ACCOUNT))

    def make_connection(self) -> None:
        """Make the connection with the API key: over the REST API, so that the key is on no command line, in
        no file and in nobody's environment.
        """
        host, port = self.simulator.url.removeprefix("http://").rsplit(":", 1)
        connection = {
            "connection_id": "stability_default",
            "conn_type": "stability",
            "host": host,
            "port": int(port),
            "schema": "http",
            "password": self.simulator.api_key,
        }
        self.api.call("POST", "/api/v2/connections", connection)
        self.say("airflow", "connection stability_default made: the API key is in it, encrypted")

    def start_run(self, dag: str, conf: dict[str, object]) -> None:
        """Start the demo's run of a DAG."""
        self.api.call("PATCH", f"/api/v2/dags/{dag}", {"is_paused": False})
        run = {"dag_run_id": RUN, "logical_date": None, "conf": conf}
        self.api.call("POST", f"/api/v2/dags/{dag}/dagRuns", run)

    def succeeded(self, dag: str) -> bool:
        """Whether the run has succeeded.

        :raises DemoError: it has failed.
        """
        state = (self.api.get(f"/api/v2/dags/{dag}/dagRuns/{RUN}") or {}).get("state")
        if state == "failed":
            raise DemoError(f"the run of {dag} failed; {self._what_failed(dag)}")
        return state == "success"

    def _what_failed(self, dag: str) -> str:
        for (task, index), state in self.api.tasks(dag).items():
            if state == "failed":
                log = TaskLog(dag, task, index)
                errors = [f"\n    {text}" for text in log.new_lines(level="error")]
                return f"its task {task} says, in {shown(log.path)}:{''.join(errors)}"
        return f"logs: {shown(LOGS)}"

    def returned(self, dag: str, task: str, map_index: int = -1) -> Any:
        """What a task that has succeeded has put into XCom."""
        return self.wait_for(f"Reading the XCom of {task}", lambda: self.api.xcom(dag, task, map_index))

    # The pipeline

    def run_pipeline(self) -> None:
        """Run the image pipeline and tell what happens, as it happens."""
        # No image is made before two tasks have asked for one: both have seen enough credit for theirs then,
        # on a machine of any speed.
        self.simulator.inject(Fault.hang(), path=IMAGE_CALL)
        self.start_run(PIPELINE, {"prompts": list(PROMPTS), "output_folder": str(IMAGES)})
        self.say("pipeline", f"started: {len(PROMPTS)} images for {CREDITS_PER_IMAGE} credits each")
        if self.keep:
            self.say("", f"to be seen at {self.api.url}/dags/{PIPELINE}/runs/{RUN} ({USER}, {self.password})")
        story = Story()
        self.wait_for("Running the pipeline", lambda: self._follow(story))
        if story.top_ups < len(TOP_UPS):
            raise DemoError("not all was seen waiting that should wait")
        self.say("pipeline", "the run succeeded")

    def _follow(self, story: Story) -> bool:
        """Tell what is new, and top up where all wait. Returns whether the run is over."""
        over = self.succeeded(PIPELINE)
        tasks = self.api.tasks(PIPELINE)
        for text in story.gate.news():
            self.say("gate", text)
        for index, log in enumerate(story.images):
            for text in log.news():
                self.say(f"image {index + 1}", text)
            if index not in story.made and tasks.get(("generate_image", index)) == "success":
                self._tell_image(index)
                story.made.add(index)
        for text in story.report.new_lines(logger="task.stdout"):
            if "credits left" in text:  # the paths that follow were told already
                self.say("report", text.rstrip(":"))
        self._top_up_if_all_wait(story, tasks)
        self._let_images_through(story)
        return over and len(story.made) == len(PROMPTS)

    def _top_up_if_all_wait(self, story: Story, tasks: dict[tuple[str, int], str | None]) -> None:
        if story.top_ups == 0:
            if tasks.get(("wait_for_credit", -1)) == "deferred" and story.gate.told:
                self.say("gate", "holds no worker while it waits: deferred to the triggerer")
                self._top_up(story)
        elif story.top_ups == 1:
            waiting = [
                log
                for index, log in enumerate(story.images)
                if tasks.get(("generate_image", index)) == "deferred"
            ]
            all_wait = waiting and len(waiting) + len(story.made) == len(PROMPTS)
            if all_wait and all(log.told for log in waiting):
                self.say("image", f"{len(waiting)} tasks hold no worker while they wait: deferred, too")
                self._top_up(story)
                self.simulator.clear_faults()

    def _top_up(self, story: Story) -> None:
        credits = TOP_UPS[story.top_ups]
        story.top_ups += 1
        self.simulator.top_up(credits)
        self.say("simulator", f"topped up with {credits:g} credits: now {self.simulator.credits():g}")

    def _let_images_through(self, story: Story) -> None:
        asked = len(self.image_calls())
        if story.top_ups == 1 and asked - story.let_through == AT_ONCE:
            story.let_through = asked
            left = self.simulator.credits()
            self.say("simulator", f"{AT_ONCE} images are asked for at once, and {left:g} credits are there")
            self.simulator.clear_faults()
            self.simulator.inject(Fault.hang(), path=IMAGE_CALL)

    def image_calls(self) -> list[int | None]:
        """The status of each image call that was sent to the simulator; None for one not answered yet."""
        return [each.status for each in self.simulator.requests if each.path == IMAGE_CALL]

    def _tell_image(self, index: int) -> None:
        path = Path(self.returned(PIPELINE, "generate_image", index))
        self.say(f"image {index + 1}", f"{shown(path)} ({path.stat().st_size} bytes): {PROMPTS[index]}")

    def read_account(self) -> None:
        """Run the DAG that reads the account, and show what it has put into XCom."""
        self.start_run(ACCOUNT, {})
        self.wait_for("Reading the account", lambda: self.succeeded(ACCOUNT))
        for who, task in (("account", "read_account"), ("balance", "read_balance"), ("", "summarize")):
            value = self.returned(ACCOUNT, task)
            self.say(who, value if isinstance(value, str) else f"XCom: {json.dumps(value)}")

    # What has to hold

    def check_tasks(self) -> None:
        """No task has failed or was retried."""
        tasks = self.airflow.query("SELECT task_id, state, try_number FROM task_instance")
        wrong = [str(tuple(task)) for task in tasks if tuple(task)[1:] != ("success", 1)]
        if wrong:
            raise DemoError(f"not all tasks succeeded in their first try: {', '.join(wrong)}")
        self.say("check", f"all {len(tasks)} tasks succeeded in their first try")

    def check_images(self) -> None:
        """As many PNG files as prompts."""
        files = list(IMAGES.iterdir()) if IMAGES.exists() else []
        wrong = [file.name for file in files if not file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")]
        if wrong or len(files) != len(PROMPTS):
            raise DemoError(f"{len(files)} files for {len(PROMPTS)} prompts in {IMAGES}; no PNG: {wrong}")
        self.say("check", f"{len(files)} PNG files in {shown(IMAGES)}, one for each prompt")

    def check_credits(self) -> None:
        """The simulator has sold each image once, their price is what is gone, and it has refused a call."""
        made, left, calls = self.simulator.images_made, self.simulator.credits(), self.image_calls()
        should = TOO_LITTLE + sum(TOP_UPS) - len(PROMPTS) * CREDITS_PER_IMAGE
        if made != len(PROMPTS) or left != should:
            raise DemoError(f"the simulator made {made} images and has {left:g} credits, not {should:g}")
        refused = calls.count(402)
        if calls.count(200) != len(PROMPTS) or not refused:
            raise DemoError(f"the simulator answered image calls with {calls}: none refused, or not all made")
        self.say(
            "check",
            f"the simulator sold {made} images, refused {refused} for want of credit, and has {left:g} "
            "credits left, as it should",
        )

    def check_key(self) -> None:
        """The key stands nowhere but in the connection, and there it is encrypted; nor does a half of it, nor
        any coding of it.
        """
        key = self.simulator.api_key
        places, files, rows = self.airflow.places_of(key)
        [(encrypted,)] = self.airflow.query("SELECT password FROM connection")
        if Fernet(self.airflow.fernet_key).decrypt(encrypted.encode()).decode() != key:
            raise DemoError("the connection in Airflow's database does not hold the key")
        if places:
            where = "; ".join(sorted({shown(place) for place in places}))
            raise DemoError(f"the API key stands in {where}")
        self.say(
            "check",
            f"the key, its halves and what it is in base64, hex or a URL were sought in {files} files and in "
            f"all {rows} rows of the database: found nowhere, but encrypted in its connection",
        )

    # The end

    def stay(self) -> None:
        """Leave Airflow up until Ctrl-C.

        :raises Ended: then.
        """
        self.stays = True
        self.say("airflow", f"{self.api.url}  user: {USER}  password: {self.password}  (Ctrl-C ends it)")
        while True:
            self.airflow.check()
            self.signals.pause()

    def end_airflow(self) -> None:
        """End all that was started.

        :raises DemoError: something cannot be ended.
        """
        if not descendants():
            return
        since = time.monotonic()
        self.airflow.end()
        if left := descendants():
            raise DemoError(f"these processes could not be ended: {', '.join(str(each) for each in left)}")
        self.say("airflow", f"all that was started is gone ({time.monotonic() - since:.0f} s)")


def make_room(password: str) -> None:
    """Empty the demo's directory, and put there what is needed from the start."""
    if DEMO.exists():
        shutil.rmtree(DEMO)
    for directory in (DEMO, LOGS, HOME):
        directory.mkdir()
    PASSWORD_FILE.touch(mode=0o600)
    PASSWORD_FILE.write_text(json.dumps({USER: password}))


def show(terminal: Terminal, signals: Signals, *, keep: bool) -> int:
    """Show the demo, and end what it has started. Returns the exit status."""
    with StabilitySimulator(credits=TOO_LITTLE) as simulator:
        demo = Demo(terminal, signals, simulator, keep=keep)
        try:
            status = tell(terminal, demo, signals)
        finally:
            demo.end_airflow()
    return status


def tell(terminal: Terminal, demo: Demo, signals: Signals) -> int:
    """Run the demo, and say why where it does not reach its end. Returns the exit status."""
    try:
        demo.run()
    except Ended:
        name = signal.Signals(signals.received or 0).name
        terminal.say("ended", f"by {name}, after {time.monotonic() - demo.began:.0f} s")
        if demo.stays and signals.received == signal.SIGINT:
            return 0
        return 128 + (signals.received or 0)
    except (DemoError, AirflowError, OSError, SQLAlchemyError) as error:
        terminal.say("failed", f"The demo failed: {error}")
        return 1
    return 0


def main() -> int:
    """Run the demo. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Show the provider at work in a real Airflow.")
    parser.add_argument("--keep", action="store_true", help="leave Airflow's pages up until Ctrl-C")
    options = parser.parse_args()
    terminal, signals = Terminal(), Signals()
    with Path(__file__).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            terminal.say("failed", f"Another demo runs in {DEMO}: end that one first.")
            return 1
        try:
            return show(terminal, signals, keep=options.keep)
        except (DemoError, OSError) as error:
            terminal.say("failed", f"The demo failed to make or tidy up its folder: {error}")
            return 1


if __name__ == "__main__":
    sys.exit(main())
