"""Find the Docker engine, and the container and volume of a data folder, which share a name."""

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
_REQUEST_TIMEOUT: Final = 10
"""Seconds to wait for the engine's answer."""
"""Maximum duration of a request to the engine, in seconds."""


def missing() -> Missing | None:
    """Return None if a Docker engine answers, else the reason why none can be used."""
    with suppress(ImportError):
        from docker.client import DockerClient  # noqa: PLC0415 - an optional dependency, needed only here
        from docker.errors import DockerException  # noqa: PLC0415 - as above

        unusable = Missing(
            "Docker is installed, but its engine does not answer" if shutil.which("docker") else "no Docker"
        )
        if not _accepts_connections(os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET):
            return unusable
        try:
            client = DockerClient.from_env(timeout=_REQUEST_TIMEOUT)
        except DockerException:
            return unusable
        try:
            client.ping()
        except DockerException:
            return unusable
        finally:
            client.close()
        return None
    return Missing("no Docker client library (install taskherd[local])")


def name(home: Path) -> str:
    """Return the name of the container and of the volume of a data folder."""
    return f"taskherd-{hashlib.sha256(str(home.absolute()).encode()).hexdigest()[:12]}"


@contextmanager
def containers_of(home: Path) -> Iterator[list[Any]]:
    """Yield the container of a data folder, running or not; an empty list without an engine or a container."""
    if missing() is not None:
        yield []
        return
    with _client() as client:
        yield client.containers.list(all=True, filters={"name": f"^/{name(home)}$"})


def remove_volume(home: Path) -> None:
    """Remove the volume of a data folder if there is one; its container must have been removed before."""
    if missing() is None:
        with _client() as client:
            for volume in client.volumes.list(filters={"name": name(home)}):
                volume.remove()


@contextmanager
def _client() -> Iterator[Any]:
    from docker.client import DockerClient  # noqa: PLC0415 - an optional dependency, needed only here

    client = DockerClient.from_env(timeout=_REQUEST_TIMEOUT)
    try:
        yield client
    finally:
        client.close()


def _accepts_connections(host: str) -> bool:
    """Return whether a local socket accepts connections; the Docker client leaks a socket if none does.

    Return True for other URLs.
    """
    if not host.startswith(LOCAL):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        try:
            client.connect(host.removeprefix(LOCAL))
        except OSError:
            return False
    return True
