"""RabbitMQ and PostgreSQL in Docker containers, through testcontainers, for machines without their binaries.

The data are in a volume named after the data folder, so a second start on the same folder finds them. The container has
the same name: the next start removes a container left by a crash, so no reaper container is needed. A container can be
killed and frozen like a private node.
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
from taskherd.dev.sources import CTL_TIMEOUT
from taskherd.errors import Unavailable

RABBITMQ_IMAGE: Final = "rabbitmq:4-management"
POSTGRES_IMAGE: Final = "postgres:17"
_PLUGINS: Final = ("/etc/rabbitmq/enabled_plugins", b"[rabbitmq_management,rabbitmq_consistent_hash_exchange].\n")
_DEFINITIONS: Final = "definitions.json"
_START_TIMEOUT: Final = 180.0
"""Seconds within which the service in a new container must be ready."""
_STOP_TIMEOUT: Final = 30
"""Seconds that a container may take to stop before the engine kills it."""
_REQUEST_TIMEOUT: Final = 300
"""Maximum duration of a request to the engine, in seconds; commands in a container have their own timeout."""
_POLL_INTERVAL: Final = 0.1
"""Seconds between two checks whether the service is ready."""


@dataclass(slots=True)
class ContainerIdentity:
    """Password and port of a container, kept over restarts in the data folder."""

    password: str
    port: int | None = None


class Container(ABC):
    """The container of the data folder ``home``; with ``keep`` its data survive for the next start on the folder."""

    image: ClassVar[str]
    port: ClassVar[int]
    data: ClassVar[str]

    def __init__(self, home: Path, *, keep: bool) -> None:
        self.home = home.absolute()
        self._keep = keep
        self._identity = _identity(self.home)
        self._container: Any = None

    @property
    def description(self) -> str:
        """One line that says what runs where."""
        return f"Docker, image {self.image}, on {ports.HOST}:{self._identity.port}"

    @property
    def pid(self) -> int | None:
        """The server's process id on the engine's machine, or None if it is not running."""
        if self._container is None:
            return None
        self._wrapped.reload()
        return int(self._wrapped.attrs["State"]["Pid"]) or None

    def start(self) -> None:
        """Start the container and wait until its server accepts connections.

        The first start creates it, after removing a container left by a crash.

        Raises:
            Unavailable: if it cannot be created, or is not ready within ``_START_TIMEOUT`` seconds.
        """
        try:
            if self._container is None:
                self._create()
            else:
                self._wrapped.start()
            self._await_ready()
        except Exception as error:  # the errors of docker and testcontainers have no common base class
            with suppress(Exception):
                self.stop()
            raise Unavailable(f"Docker could not start {self.image}: {error}") from error

    def stop(self) -> None:
        """Stop and remove the container, gracefully if its data are kept; a named volume stays."""
        if self._container is not None:
            if self._keep:
                self._wrapped.stop(timeout=_STOP_TIMEOUT)
            self._container.stop(delete_volume=True)
            self._container = None

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would."""
        self._stop_with("SIGKILL")

    def restart(self) -> None:
        """Stop the server if it is running, and start it again with its data on the same port."""
        self._wrapped.stop(timeout=_STOP_TIMEOUT)
        self.start()

    def freeze(self) -> None:
        """Freeze all processes: connections stay open and nothing answers."""
        self._wrapped.pause()

    def unfreeze(self) -> None:
        """Resume all processes."""
        self._wrapped.unpause()

    @property
    def _wrapped(self) -> Any:
        return self._container.get_wrapped_container()

    @abstractmethod
    def _configure(self, container: Any) -> dict[str, Any]:
        """Configure a container before its start, and return options for the engine."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Return whether the server accepts connections."""

    def _create(self) -> None:
        from testcontainers.core.config import testcontainers_config  # noqa: PLC0415 - an optional dependency
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - as above

        testcontainers_config.ryuk_disabled = True
        with docker_engine.containers_of(self.home) as leftovers:
            for leftover in leftovers:
                leftover.remove(force=True, v=True)
        if not _identity_file(self.home).exists():  # the volume may survive its folder, but its password is lost then
            docker_engine.remove_volume(self.home)
        (self._identity.port,) = ports.find_free([self._identity.port])
        _save_identity(self.home, self._identity)
        container: Any = DockerContainer(self.image, docker_client_kw={"timeout": _REQUEST_TIMEOUT})
        container.with_name(docker_engine.name(self.home)).with_kwargs(**self._configure(container))
        # A fixed port, because the engine would choose another one at each start.
        container.ports[f"{self.port}/tcp"] = (ports.HOST, self._identity.port)
        if self._keep:
            container.with_volume_mapping(docker_engine.name(self.home), self.data, "rw")
        self._container = container
        container.start()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._is_ready():
            if self.pid is None:
                raise Unavailable(f"it exited while starting; its log ends with:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise Unavailable(f"it was not ready within {_START_TIMEOUT:.0f} s; its log ends with:\n{self._tail()}")
            time.sleep(_POLL_INTERVAL)

    def _tail(self, lines: int = 15) -> str:
        return str(self._wrapped.logs(tail=lines).decode(errors="replace"))

    def _stop_with(self, signal: str) -> None:
        """Send the server a signal, and wait until it has exited."""
        self._wrapped.kill(signal)
        self._wrapped.wait(timeout=_STOP_TIMEOUT)

    def _run(self, *command: str, within: float) -> str:
        """Run a command in the container and return its output; raise ``Unavailable`` if it fails or takes too long."""
        result = self._wrapped.exec_run(["timeout", f"{within:.0f}", *command], demux=True)
        output, errors = ((part or b"").decode(errors="replace") for part in result.output)
        if result.exit_code != 0:
            raise Unavailable(f"{command[0]} exited with status {result.exit_code}: {errors.strip() or output}")
        return output


class RabbitContainer(Container):
    """RabbitMQ in a container."""

    image = RABBITMQ_IMAGE
    port = 5672
    data = "/var/lib/rabbitmq"

    @property
    def url(self) -> str:
        """The AMQP URL of the broker; valid after the first start."""
        return f"amqp://taskherd:{self._identity.password}@{ports.HOST}:{self._identity.port}/"

    def ctl(self, *arguments: str, within: float = CTL_TIMEOUT) -> str:
        """Run ``rabbitmqctl`` and return its output.

        Raises:
            Unavailable: if it fails or takes longer than ``within`` seconds.
        """
        return self._run("rabbitmqctl", "--quiet", *arguments, within=within)

    def flush_definitions(self) -> None:
        """Write the definitions of queues and exchanges to disk (see ``RabbitNode.flush_definitions``)."""
        self.ctl("eval", rabbitmq.FLUSH_DEFINITIONS)

    def import_definitions(self, definitions: bytes) -> None:
        """Import users, permissions and the like, in RabbitMQ's JSON format for definitions."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo(_DEFINITIONS)
            entry.size, entry.mode = len(definitions), 0o644
            tar.addfile(entry, io.BytesIO(definitions))
        self._wrapped.put_archive("/", archive.getvalue())
        self.ctl("import_definitions", f"/{_DEFINITIONS}")

    def _configure(self, container: Any) -> dict[str, Any]:
        path, plugins = _PLUGINS
        container.with_copy_into_container(plugins, path)
        container.with_env("RABBITMQ_DEFAULT_USER", "taskherd").with_env(
            "RABBITMQ_DEFAULT_PASS", self._identity.password
        )
        return {"hostname": "taskherd"}  # part of the node name, which names the folder of its data

    def _is_ready(self) -> bool:
        return rabbitmq.speaks_amqp(self._identity.port)


class PostgresContainer(Container):
    """PostgreSQL in a container, with the settings of a private server."""

    image = POSTGRES_IMAGE
    port = 5432
    data = "/var/lib/postgresql/data"

    @property
    def url(self) -> str:
        """The URL of the database ``taskherd``; valid after the first start."""
        return f"postgresql://taskherd:{self._identity.password}@{ports.HOST}:{self._identity.port}/taskherd"

    def abort(self) -> None:
        """Shut the server down immediately, without a checkpoint, so that the next start runs recovery."""
        self._stop_with("SIGQUIT")

    def _configure(self, container: Any) -> dict[str, Any]:
        for name, value in (("USER", "taskherd"), ("PASSWORD", self._identity.password), ("DB", "taskherd")):
            container.with_env(f"POSTGRES_{name}", value)
        container.with_command(["postgres", *postgres.options(fast=not self._keep)])
        return {"stop_signal": "SIGINT", "shm_size": "256m"}

    def _is_ready(self) -> bool:
        # The temporary server that initializes a new cluster accepts connections too, but on no TCP address.
        from docker.errors import APIError  # noqa: PLC0415 - an optional dependency

        with suppress(Unavailable, APIError):
            self._run("pg_isready", "-q", "-h", ports.HOST, "-U", "taskherd", "-d", "taskherd", within=10)
            return True
        return False


def _identity(home: Path) -> ContainerIdentity:
    """Return the saved identity of the folder's volume, or a new one."""
    file = _identity_file(home)
    return (
        ContainerIdentity(**json.loads(file.read_text())) if file.exists() else ContainerIdentity(secrets.token_hex(16))
    )


def _save_identity(home: Path, identity: ContainerIdentity) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = _identity_file(home)
    file.touch(mode=0o600)
    file.write_text(json.dumps(asdict(identity)))


def _identity_file(home: Path) -> Path:
    return home / "container.json"
