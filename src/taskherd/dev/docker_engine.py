"""Docker's engine: whether one answers, and what it holds of a data folder, whose container and volume share a name."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from taskherd.dev.sources import Missing

LOCAL: Final = "unix://"
DEFAULT_SOCKET: Final = f"{LOCAL}/var/run/docker.sock"
_ANSWERS_WITHIN: Final = 10


def missing() -> Missing | None:
    """None when a Docker engine answers, else why not."""
    with suppress(ImportError):
        from docker.client import DockerClient  # noqa: PLC0415 - an optional dependency, needed only here
        from docker.errors import DockerException  # noqa: PLC0415 - as above

        away = Missing("a docker command, but no engine answers" if shutil.which("docker") else "no Docker")
        if not _listening(os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET):
            return away
        try:
            client = DockerClient.from_env(timeout=_ANSWERS_WITHIN)
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


def name(home: Path) -> str:
    """The name of the container of a data folder, and of the volume that its data are kept in."""
    return f"taskherd-{hashlib.sha256(str(home.absolute()).encode()).hexdigest()[:12]}"


@contextmanager
def holding(home: Path) -> Iterator[list[Any]]:
    """The container of this folder, running or not, if there is an engine and it has one; usable while open."""
    if missing() is not None:
        yield []
        return
    with _client() as client:
        yield client.containers.list(all=True, filters={"name": f"^/{name(home)}$"})


def forget(home: Path) -> None:
    """Remove the volume with the data of this folder, if there is one; its container must be gone."""
    if missing() is None:
        with _client() as client:
            for volume in client.volumes.list(filters={"name": name(home)}):
                volume.remove()


@contextmanager
def _client() -> Iterator[Any]:
    from docker.client import DockerClient  # noqa: PLC0415 - an optional dependency, needed only here

    client = DockerClient.from_env(timeout=_ANSWERS_WITHIN)
    try:
        yield client
    finally:
        client.close()


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
