"""PostgreSQL of a stack: its programs, its first start, its databases."""

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignflow.errors import ConfigError, StackError
from alignflow.stack.config import HOST
from alignflow.stack.credentials import USER

_INSTALLED = Path("/usr/lib/postgresql")  # Debian's place; the programs are not on the path
_ROOT_RUNS_AS = "postgres"
_ANSWER_TIMEOUT_S = 3


def programs(version: str | None) -> Path | None:
    """Return the folder of PostgreSQL's programs, of one major version where one is asked for."""
    found = sorted(_INSTALLED.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    folders = [path.parent for path in found if version in (None, path.parts[-3])]
    if folders:
        return folders[-1]
    on_path = shutil.which("postgres")
    return Path(on_path).resolve().parent if on_path else None


@dataclass(frozen=True)
class Database:
    """A PostgreSQL server in a folder; its owner is `alignflow`, with a password."""

    folder: Path
    port: int
    password: str = field(repr=False)

    @property
    def user(self) -> str | None:
        """Who it runs as: root is what it refuses to be."""
        return _ROOT_RUNS_AS if os.geteuid() == 0 else None

    def command(self) -> list[str]:
        """Return the command of the server.

        Raises:
            ConfigError: PostgreSQL is not installed, or not in the version that made the folder.
        """
        return [
            *(str(self._programs() / "postgres"), "-D", str(self._data), "-p", str(self.port)),
            *("-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories="),
        ]

    def prepare(self) -> None:
        """Make the data folder at the first start.

        Raises:
            ConfigError: The user that it runs as can't reach the folder.
            StackError: `initdb` failed.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self.user:
            shutil.chown(self.folder, self.user, self.user)
            self._check_reach(self.user)
        if self._version() is not None:
            return
        # A first start that was cut short leaves a folder that initdb refuses.
        shutil.rmtree(self._data, ignore_errors=True)
        with tempfile.NamedTemporaryFile("w", dir=self.folder) as file:
            file.write(self.password)
            file.flush()
            if self.user:
                shutil.chown(file.name, self.user, self.user)
            self._initdb(file.name)

    def why_silent(self) -> str | None:
        """Return why the server takes no connection, None while it does."""
        import psycopg2

        try:
            self._connect("postgres").close()
        except psycopg2.OperationalError as error:
            return str(error).strip().splitlines()[-1]
        return None

    def make_databases(self, *names: str) -> None:
        """Make those databases that aren't there."""
        connection = self._connect("postgres")
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT datname FROM pg_database")
                there = {name for (name,) in cursor.fetchall()}
                for name in names:
                    if name not in there:
                        cursor.execute(f'CREATE DATABASE "{name}"')
        finally:
            connection.close()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _version(self) -> str | None:
        """Return the major version that made the data folder, None where none has yet."""
        try:
            return (self._data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return None

    def _programs(self) -> Path:
        version = self._version()
        folder = programs(version)
        if folder is None:
            wanted = f"PostgreSQL {version}" if version else "PostgreSQL"
            raise ConfigError(f"--full needs {wanted}; install it: apt install postgresql.")
        return folder

    def _initdb(self, password_file: str) -> None:
        done = subprocess.run(
            [
                *(str(self._programs() / "initdb"), "-D", str(self._data), "-U", USER),
                *("-E", "UTF8", "--locale=C.UTF-8", "-A", "scram-sha-256"),
                *("--pwfile", password_file),
            ],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            user=self.user,
            group=self.user,
            extra_groups=[] if self.user else None,
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise StackError(f"PostgreSQL's initdb failed:\n{done.stderr.strip()}")

    def _check_reach(self, user: str) -> None:
        try:
            pwd.getpwnam(user)
        except KeyError:
            raise ConfigError(
                f"PostgreSQL doesn't run as root, and there is no user {user}; start the stack as "
                "another user."
            ) from None
        look = ["test", "-x", str(self.folder)]
        if subprocess.run(look, user=user, group=user, extra_groups=[], check=False).returncode:
            raise ConfigError(
                f"PostgreSQL doesn't run as root, and user {user} can't reach {self.folder}; give "
                "a --workspace whose parent folders all may enter, or start the stack as another "
                "user."
            )

    def _connect(self, database: str) -> Any:
        import psycopg2

        return psycopg2.connect(
            host=HOST,
            port=self.port,
            user=USER,
            password=self.password,
            dbname=database,
            connect_timeout=_ANSWER_TIMEOUT_S,
        )
