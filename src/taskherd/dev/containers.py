"""RabbitMQ and PostgreSQL from Docker, through testcontainers, for machines without their binaries.

The data live in a volume named after the data folder, so that a second start on it finds the first one's. So is the
container: one that a crash left behind is removed by the next start, which needs no reaper container for that.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from taskherd.dev import ports
from taskherd.dev.sources import Missing
from taskherd.errors import Unavailable

RABBITMQ_IMAGE: Final = "rabbitmq:4-management"
POSTGRES_IMAGE: Final = "postgres:17"
LOCAL: Final = "unix://"
DEFAULT_SOCKET: Final = f"{LOCAL}/var/run/docker.sock"
_RABBITMQ_READY: Final = re.compile(r"Server startup complete|completed with \d+ plugins")
# The server that only prepares a new cluster says that it is ready too, but listens on no address.
_POSTGRES_READY: Final = re.compile(r"listening on IPv4 address.*ready to accept connections", re.DOTALL)
_PLUGIN: Final = ("rabbitmq-plugins", "enable", "rabbitmq_consistent_hash_exchange")


class Container:
    """One container; `url_of` makes its URL from the port it got and its password."""

    def __init__(self, container: Any, image: str, port: int, url_of: Callable[[int], str]) -> None:
        self._container = container
        self._image = image
        self._port = port
        self._url_of = url_of

    @property
    def url(self) -> str:
        """Where the service in the container is reached."""
        return self._url_of(int(self._container.get_exposed_port(self._port)))

    @property
    def described(self) -> str:
        """One line that says what runs where."""
        return f"Docker, image {self._image}, on {ports.HOST}:{self._container.get_exposed_port(self._port)}"

    def stop(self) -> None:
        """Stop and remove the container; a volume that has a name stays."""
        self._container.stop(delete_volume=True)


def _listening(host: str) -> bool:
    """Whether somebody listens on a local socket; the client leaves one open where nobody does. True for any other."""
    if not host.startswith(LOCAL):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(2)
        try:
            trial.connect(host.removeprefix(LOCAL))
        except OSError:
            return False
    return True


def engine() -> Missing | None:
    """None when a Docker engine answers, else why not."""
    with suppress(ImportError):
        from docker.client import DockerClient  # noqa: PLC0415 - an optional dependency, needed only here
        from docker.errors import DockerException  # noqa: PLC0415 - as above

        away = Missing("a docker command, but no engine answers" if shutil.which("docker") else "no Docker")
        if not _listening(os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET):
            return away
        try:
            client = DockerClient.from_env(timeout=10)
        except DockerException:
            return away
        try:
            client.ping()
        except DockerException:
            return away
        finally:
            client.close()
        return None
    return Missing("no Docker client library (install taskherd[local])")


def rabbitmq(home: Path, *, keep: bool) -> Container:
    """Start RabbitMQ, in a named volume if its data are to be kept; raises Unavailable when it can't be had."""
    password = _password(home)
    container = _container(home, RABBITMQ_IMAGE, 5672, _RABBITMQ_READY)
    container.with_env("RABBITMQ_DEFAULT_USER", "taskherd").with_env("RABBITMQ_DEFAULT_PASS", password)
    container.with_kwargs(hostname="taskherd")  # the node's data are found by it
    if keep:
        container.with_volume_mapping(_name(home), "/var/lib/rabbitmq", "rw")
    started = _start(container, RABBITMQ_IMAGE, 5672, lambda port: f"amqp://taskherd:{password}@{ports.HOST}:{port}/")
    container.exec(list(_PLUGIN))
    return started


def postgres(home: Path, *, keep: bool) -> Container:
    """Start PostgreSQL, in a named volume if its data are to be kept; raises Unavailable when it can't be had."""
    password = _password(home)
    container = _container(home, POSTGRES_IMAGE, 5432, _POSTGRES_READY)
    for name, value in (("USER", "taskherd"), ("PASSWORD", password), ("DB", "taskherd")):
        container.with_env(f"POSTGRES_{name}", value)
    if keep:
        container.with_volume_mapping(_name(home), "/var/lib/postgresql/data", "rw")
    return _start(
        container, POSTGRES_IMAGE, 5432, lambda port: f"postgresql://taskherd:{password}@{ports.HOST}:{port}/taskherd"
    )


def _container(home: Path, image: str, port: int, ready: re.Pattern[str]) -> Any:
    from testcontainers.core.config import testcontainers_config  # noqa: PLC0415 - as in engine()
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - as in engine()
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy  # noqa: PLC0415

    testcontainers_config.ryuk_disabled = True
    strategy = LogMessageWaitStrategy(ready).with_startup_timeout(180)
    container: Any = DockerContainer(image).waiting_for(strategy).with_name(_name(home))
    container.ports[f"{port}/tcp"] = (ports.HOST, None)
    return container


def _start(container: Any, image: str, port: int, url_of: Callable[[int], str]) -> Container:
    try:
        _remove_leftover(container)
        container.start()
    except Exception as error:  # docker and testcontainers share no base class for "it did not start"
        with suppress(Exception):
            container.stop(delete_volume=True)
        raise Unavailable(f"Docker could not start {image}: {error}") from error
    return Container(container, image, port, url_of)


def _remove_leftover(container: Any) -> None:
    from docker.errors import NotFound  # noqa: PLC0415 - as in engine()

    with suppress(NotFound):
        container.get_docker_client().client.containers.get(container._name).remove(force=True, v=True)  # noqa: SLF001 - it has no getter


def _name(home: Path) -> str:
    return f"taskherd-{hashlib.sha256(str(home.absolute()).encode()).hexdigest()[:12]}"


def _password(home: Path) -> str:
    """The password that the volume was made with, kept beside where a private node's data would be."""
    kept = home / "container.json"
    if kept.exists():
        return str(json.loads(kept.read_text())["password"])
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    password = secrets.token_hex(16)
    kept.touch(mode=0o600)
    kept.write_text(json.dumps({"password": password}))
    return password
