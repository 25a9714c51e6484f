"""A PostgreSQL of our own: in a folder that goes with it, on loopback, on a free port, with a password."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.real_airflow import free_port, last_lines

#: Where distributions put the server's programs, of which only clients are on the PATH.
PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")


def installed() -> Path | None:
    """Return the folder of PostgreSQL's programs; None where there is none that can be run."""
    if found := shutil.which("initdb"):
        folders = [Path(found).resolve().parent, Path(found).parent]
    else:
        folders = sorted(folder for place in PLACES for folder in Path("/").glob(place.removeprefix("/")))
    folders = [
        folder for folder in folders if (folder / "postgres").exists() and (folder / "initdb").exists()
    ]
    return folders[-1] if folders and (os.geteuid() or _unprivileged()) else None


def version(programs: Path) -> str:
    """Return the server's version, such as `15.14`."""
    said = subprocess.run([programs / "postgres", "--version"], text=True, capture_output=True, check=True)
    return said.stdout.split()[2]


@contextlib.contextmanager
def cluster(programs: Path) -> Iterator[str]:
    """Run one, and yield SQLAlchemy's URL of its empty database."""
    folder = Path(tempfile.mkdtemp(prefix="bench-postgres-"))
    # The server refuses to run as root.
    user = _unprivileged() if os.geteuid() == 0 else None
    password, port = secrets.token_hex(16), free_port()
    password_file, data, log = folder / "password", folder / "data", folder / "log"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    if user:
        for path in (folder, password_file):
            shutil.chown(path, user)
    server: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(
            [
                programs / "initdb",
                f"--pgdata={data}",
                "--username=airflow",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
            ],
            user=user,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "max_connections": 200,
        }
        with log.open("wb") as output:
            server = subprocess.Popen(
                [
                    programs / "postgres",
                    "-D",
                    data,
                    *(f"--{name}={value}" for name, value in settings.items()),
                ],
                user=user,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the benchmark, which ends Airflow first
            )
        _wait_for(server, port, log)
        yield f"postgresql+psycopg2://airflow:{password}@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # its fast shutdown: it does not wait for clients
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up = time.monotonic() + 30
    while server.poll() is None and time.monotonic() < give_up:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise OSError(f"PostgreSQL does not answer; {last_lines(log)}")


def _unprivileged() -> str | None:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None
