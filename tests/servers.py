"""PostgreSQL, Redis and nginx servers for tests and benchmarks.

Each server has a temporary folder, and listens on loopback on a free port. PostgreSQL and Redis have a
password. After a stop, a server can be started again, on the same port.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import psutil

from tests.real_airflow import free_port, last_lines

#: Where distributions install PostgreSQL's server programs. Only its clients are on the PATH.
PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
#: Seconds that a server gets to start, or to stop.
PATIENCE = 30


class Server(ABC):
    """A server that runs from `start` to `stop`. The `with` block stops it and deletes its folder."""

    name: str
    #: The name of its Debian package.
    package: str
    #: The signal that stops it without waiting for its clients.
    ends_at: signal.Signals

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix=f"airflow-stability-{self.name}-"))
        self.log = self.folder / "log"
        self.port = free_port()
        self.password = secrets.token_hex(16)
        # PostgreSQL refuses to run as root, and no other server needs to.
        self.user = unprivileged() if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(self.folder, self.user)
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _prepare(self) -> None:
        """Create the files that the server needs before its first start."""

    @abstractmethod
    def _command(self) -> list[str | Path]:
        """Return the command that starts the server."""

    def _ready(self) -> bool:
        """Return whether the server accepts connections."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    @property
    @abstractmethod
    def url(self) -> str:
        """The server's URL, with the password."""

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the server, and return once it accepts connections.

        :raises OSError: it does not accept any.
        """
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(),
                user=self.user,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the test, which ends Airflow first
            )
        give_up = time.monotonic() + PATIENCE
        while self._process.poll() is None and time.monotonic() < give_up:
            if self._ready():
                return
            time.sleep(0.1)
        raise OSError(f"{self.name} does not answer; {last_lines(self.log)}")

    def stop(self) -> None:
        """Stop the server, and disconnect its clients. Does nothing if it does not run."""
        if self._process is None:
            return
        self._process.send_signal(self.ends_at)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class PostgreSQL(Server):
    """A PostgreSQL server with an empty database."""

    name = package = "postgresql"
    ends_at = signal.SIGINT

    @staticmethod
    def installed() -> Path | None:
        """Return the folder of its programs; None if there are none, or if this user cannot run them."""
        if found := shutil.which("initdb"):
            folders = [Path(found).resolve().parent, Path(found).parent]
        else:
            folders = sorted(folder for place in PLACES for folder in Path("/").glob(place.removeprefix("/")))
        folders = [
            folder for folder in folders if (folder / "postgres").exists() and (folder / "initdb").exists()
        ]
        return folders[-1] if folders and (os.geteuid() or unprivileged()) else None

    @staticmethod
    def version(programs: Path) -> str:
        """Return its version, such as `15.14`."""
        output = subprocess.run(
            [programs / "postgres", "--version"], text=True, capture_output=True, check=True
        )
        return output.stdout.split()[2]

    @property
    def url(self) -> str:
        """The database's URL for SQLAlchemy."""
        return f"postgresql+psycopg2://airflow:{self.password}@127.0.0.1:{self.port}/postgres"

    def kill(self) -> None:
        """Kill all its processes, as a machine that loses its power would."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        server.suspend()  # it would start others
        family = [*server.children(recursive=True), server]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait()
        psutil.wait_procs(family, PATIENCE)
        self._process = None
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)  # it says that the server is ready

    def _prepare(self) -> None:
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(self.password)
        if self.user:
            shutil.chown(password, self.user)
        command = [
            self.programs / "initdb",
            f"--pgdata={self.folder / 'data'}",
            "--username=airflow",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
        ]
        subprocess.run(command, user=self.user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def _command(self) -> list[str | Path]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 300,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self.programs / "postgres", "-D", self.folder / "data", *options]

    def _ready(self) -> bool:
        # PostgreSQL listens before it has recovered. pg_ctl reads this file for the same reason.
        with contextlib.suppress(OSError):
            return (self.folder / "data" / "postmaster.pid").read_text().rstrip().endswith("\nready")
        return False


class Redis(Server):
    """A Redis server that keeps nothing on disk."""

    name = "redis"
    package = "redis-server"
    ends_at = signal.SIGTERM

    @staticmethod
    def installed() -> Path | None:
        """Return the folder of its program; None if there is none."""
        found = shutil.which("redis-server")
        return Path(found).parent if found else None

    @property
    def url(self) -> str:
        """The URL of its first database."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def _prepare(self) -> None:
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "requirepass": self.password,
            "save": '""',
            "dir": self.folder,
        }
        configuration = self.folder / "redis.conf"
        configuration.touch(mode=0o600)
        configuration.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        if self.user:
            shutil.chown(configuration, self.user)

    def _command(self) -> list[str | Path]:
        return [self.programs / "redis-server", self.folder / "redis.conf"]


class Nginx(Server):
    """An nginx in front of another server on this machine, which it shows below a path.

    Everywhere else, it answers 404.

    :param programs: the folder of its program.
    :param port: the port of the other server.
    :param path: with a leading slash, and without one at its end. The other server gets it, too.
    """

    name = package = "nginx"
    ends_at = signal.SIGTERM

    def __init__(self, programs: Path, port: int, path: str) -> None:
        super().__init__(programs)
        self.behind, self.path = port, path

    @staticmethod
    def installed() -> Path | None:
        """Return the folder of its program; None if there is none."""
        # Debian puts it where only root's PATH leads.
        found = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
        return Path(found).parent if found else None

    @property
    def url(self) -> str:
        """The URL of the other server, below the path."""
        return f"http://127.0.0.1:{self.port}{self.path}"

    def _prepare(self) -> None:
        temporary = "\n".join(
            f"    {kind}_temp_path {self.folder / kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # As Airflow's documentation has it, with nothing that the machine has configured.
        configuration = f"""
daemon off;
error_log stderr;
pid {self.folder / "pid"};
events {{}}
http {{
    access_log off;
{temporary}
    server {{
        listen 127.0.0.1:{self.port};
        location {self.path}/ {{
            proxy_pass http://127.0.0.1:{self.behind};
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_http_version 1.1;
            proxy_redirect off;
        }}
        location / {{
            return 404;
        }}
    }}
}}
"""
        (self.folder / "nginx.conf").write_text(configuration)

    def _command(self) -> list[str | Path]:
        return [self.programs / "nginx", "-p", self.folder, "-c", self.folder / "nginx.conf"]


def unprivileged() -> str | None:
    """Return a user for the servers that root starts; None if there is none."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None


if __name__ == "__main__":
    # For .ci/find-servers: print the packages of those servers that are not installed.
    wanted = [each for each in (PostgreSQL, Redis, Nginx) if each.name in sys.argv[1:]]
    sys.stdout.write(" ".join(each.package for each in wanted if each.installed() is None))
