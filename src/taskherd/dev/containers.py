"""RabbitMQ and PostgreSQL from Docker, through testcontainers, for machines without their binaries.

The data live in a volume named after the data folder, so that a second start on it finds the first one's. So is the
container: one that a crash left behind is removed by the next start, which needs no reaper container for that. A
container can be killed and frozen as a private node can.
"""

from __future__ import annotations

import io
import json
import secrets
import tarfile
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from taskherd.dev import docker_engine, ports, postgres, rabbitmq
from taskherd.errors import Unavailable

RABBITMQ_IMAGE: Final = "rabbitmq:4-management"
POSTGRES_IMAGE: Final = "postgres:17"
_PLUGINS: Final = ("/etc/rabbitmq/enabled_plugins", b"[rabbitmq_management,rabbitmq_consistent_hash_exchange].\n")
_DEFINITIONS: Final = "definitions.json"
_STARTS_WITHIN: Final = 180.0
_STOPS_WITHIN: Final = 30
_ANSWERS_WITHIN: Final = 300
"""Seconds that the engine may take for one request; a command in a container has a limit of its own."""

_POLL: Final = 0.1


@dataclass(slots=True)
class ContainerIdentity:
    """What a container keeps over restarts, beside where a private node's data would be."""

    password: str
    port: int | None = None


class Container(ABC):
    """The container of the folder `home`; with `keep` its data outlive it, for the next one on the same folder."""

    image: ClassVar[str]
    port: ClassVar[int]
    data: ClassVar[str]

    def __init__(self, home: Path, *, keep: bool) -> None:
        self.home = home.absolute()
        self._keep = keep
        self._identity = _identity(self.home)
        self._made: Any = None

    @property
    def described(self) -> str:
        """One line that says what runs where."""
        return f"Docker, image {self.image}, on {ports.HOST}:{self._identity.port}"

    @property
    def pid(self) -> int | None:
        """The server's process id, as the engine's machine counts, while it runs."""
        if self._made is None:
            return None
        self._container.reload()
        return int(self._container.attrs["State"]["Pid"]) or None

    def start(self, *, within: float = _STARTS_WITHIN) -> None:
        """Start the container, a new one the first time, and wait until its server takes connections.

        What a crash left of it is removed first.

        Raises:
            Unavailable: when it can't be had, or does not come up within `within` seconds.
        """
        try:
            if self._made is None:
                self._make()
            else:
                self._container.start()
            self._await_ready(within)
        except Exception as error:  # docker and testcontainers share no base class for "it did not start"
            with suppress(Exception):
                self.stop()
            raise Unavailable(f"Docker could not start {self.image}: {error}") from error

    def stop(self) -> None:
        """Stop and remove the container, in order if its data are kept; a volume that has a name stays."""
        if self._made is not None:
            if self._keep:
                self._container.stop(timeout=_STOPS_WITHIN)
            self._made.stop(delete_volume=True)
            self._made = None

    def kill(self) -> None:
        """Kill -9 the server, as a crash would."""
        self._end("SIGKILL")

    def restart(self) -> None:
        """Start the server again with its data, on the same port; a live one is stopped first."""
        self._container.stop(timeout=_STOPS_WITHIN)
        self.start()

    def freeze(self) -> None:
        """Hold every process where it is: connections stay open and nothing answers."""
        self._container.pause()

    def thaw(self) -> None:
        """Let the processes go on."""
        self._container.unpause()

    @property
    def _container(self) -> Any:
        return self._made.get_wrapped_container()

    @abstractmethod
    def _configure(self, made: Any) -> dict[str, Any]:
        """Tell the image what it wants to know; returns options for the engine."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether the server takes connections."""

    def _make(self) -> None:
        from testcontainers.core.config import testcontainers_config  # noqa: PLC0415 - an optional dependency
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - as above

        testcontainers_config.ryuk_disabled = True
        with docker_engine.holding(self.home) as leftovers:
            for leftover in leftovers:
                leftover.remove(force=True, v=True)
        if not _kept(self.home).exists():  # a volume outlives its folder, but then nobody knows its password
            docker_engine.forget(self.home)
        (self._identity.port,) = ports.claim([self._identity.port])
        _keep(self.home, self._identity)
        made: Any = DockerContainer(self.image, docker_client_kw={"timeout": _ANSWERS_WITHIN})
        made.with_name(docker_engine.name(self.home)).with_kwargs(**self._configure(made))
        # A port of our own choice, since the engine would choose another one at each start.
        made.ports[f"{self.port}/tcp"] = (ports.HOST, self._identity.port)
        if self._keep:
            made.with_volume_mapping(docker_engine.name(self.home), self.data, "rw")
        self._made = made
        made.start()

    def _await_ready(self, within: float) -> None:
        deadline = time.monotonic() + within
        while not self._is_ready():
            if self.pid is None:
                raise Unavailable(f"it ended while starting; its log ends with:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise Unavailable(f"it was not ready within {within:.0f} s; its log ends with:\n{self._tail()}")
            time.sleep(_POLL)

    def _tail(self, lines: int = 15) -> str:
        return str(self._container.logs(tail=lines).decode(errors="replace"))

    def _end(self, signal: str) -> None:
        """Send the server a signal that ends it, and wait until it has."""
        self._container.kill(signal)
        self._container.wait(timeout=_STOPS_WITHIN)

    def _run(self, *command: str, within: float) -> str:
        """What a command in the container prints; raises Unavailable when it fails, also by taking too long."""
        done = self._container.exec_run(["timeout", f"{within:.0f}", *command], demux=True)
        output, trouble = ((part or b"").decode(errors="replace") for part in done.output)
        if done.exit_code != 0:
            raise Unavailable(f"{command[0]} ended with {done.exit_code}: {trouble.strip() or output}")
        return output


class RabbitContainer(Container):
    """RabbitMQ in a container."""

    image = RABBITMQ_IMAGE
    port = 5672
    data = "/var/lib/rabbitmq"

    @property
    def url(self) -> str:
        """The AMQP URL of the broker, known once it was started."""
        return f"amqp://taskherd:{self._identity.password}@{ports.HOST}:{self._identity.port}/"

    def ctl(self, *words: str, within: float = 30) -> str:
        """What `rabbitmqctl` prints for these words.

        Raises:
            Unavailable: when it fails or takes longer than `within` seconds.
        """
        return self._run("rabbitmqctl", "--quiet", *words, within=within)

    def settle(self) -> None:
        """Have the definitions of queues and exchanges on disk, as of a private node."""
        self.ctl("eval", rabbitmq.SETTLE)

    def define(self, definitions: bytes) -> None:
        """Import users, rights and the like, in the JSON of RabbitMQ's definitions."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo(_DEFINITIONS)
            entry.size, entry.mode = len(definitions), 0o644
            tar.addfile(entry, io.BytesIO(definitions))
        self._container.put_archive("/", archive.getvalue())
        self.ctl("import_definitions", f"/{_DEFINITIONS}")

    def _configure(self, made: Any) -> dict[str, Any]:
        where, plugins = _PLUGINS
        made.with_copy_into_container(plugins, where)
        made.with_env("RABBITMQ_DEFAULT_USER", "taskherd").with_env("RABBITMQ_DEFAULT_PASS", self._identity.password)
        return {"hostname": "taskherd"}  # the node's data are found by it

    def _is_ready(self) -> bool:
        return rabbitmq.speaks_amqp(self._identity.port)


class PostgresContainer(Container):
    """PostgreSQL in a container, with a private server's settings."""

    image = POSTGRES_IMAGE
    port = 5432
    data = "/var/lib/postgresql/data"

    @property
    def url(self) -> str:
        """The URL of the database `taskherd`, known once the server was started."""
        return f"postgresql://taskherd:{self._identity.password}@{ports.HOST}:{self._identity.port}/taskherd"

    def abort(self) -> None:
        """Have the server shut down at once, without a checkpoint, so that the next start recovers."""
        self._end("SIGQUIT")

    def _configure(self, made: Any) -> dict[str, Any]:
        for name, value in (("USER", "taskherd"), ("PASSWORD", self._identity.password), ("DB", "taskherd")):
            made.with_env(f"POSTGRES_{name}", value)
        made.with_command(["postgres", *postgres.options(fast=not self._keep)])
        return {"stop_signal": "SIGINT", "shm_size": "256m"}

    def _is_ready(self) -> bool:
        # The server that only prepares a new cluster takes connections too, but listens on no address.
        from docker.errors import APIError  # noqa: PLC0415 - an optional dependency

        with suppress(Unavailable, APIError):
            self._run("pg_isready", "-q", "-h", ports.HOST, "-U", "taskherd", "-d", "taskherd", within=10)
            return True
        return False


def _identity(home: Path) -> ContainerIdentity:
    """The one that the volume was made with, if there is one."""
    kept = _kept(home)
    return (
        ContainerIdentity(**json.loads(kept.read_text())) if kept.exists() else ContainerIdentity(secrets.token_hex(16))
    )


def _keep(home: Path, identity: ContainerIdentity) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = _kept(home)
    kept.touch(mode=0o600)
    kept.write_text(json.dumps(asdict(identity)))


def _kept(home: Path) -> Path:
    return home / "container.json"
