"""A PostgreSQL server of the tests' own, that they may also stop and start again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import sqlalchemy as sa


class PostgresServer:
    """A fresh cluster in a temporary folder.

    The server refuses to run as root: then it runs as the account that Debian's package makes for it.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._user = "postgres" if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="ftp-postgres-"))
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._run("initdb", "-D", self._data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()
        self._databases = 0

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self._port} -k {self._folder} -c max_connections=200"
        waits = ("-w", "-t", "500")  # on a busy machine, it may recover for more than the minute that is usual
        self._run("pg_ctl", "start", *waits, "-D", self._data, "-l", str(self._folder / "log"), "-o", options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self._data)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """The URL of an empty database, with a password that no error may show."""
        self._databases += 1
        name = f"studies_{self._databases}"
        admin = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        admin.dispose()
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://tester:secret@127.0.0.1:{self._port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        # Its output must not be a pipe: the server that pg_ctl starts would keep it open.
        with open(os.devnull, "wb") as nowhere:
            subprocess.run(
                [self._programs / program, *arguments],
                check=True,
                stdout=nowhere,
                stderr=nowhere,
                cwd="/",
                user=self._user,
            )
