"""The interface of services that ``services.start`` provides, and the result of a source that has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

CTL_TIMEOUT: Final = 90.0
"""Seconds within which ``rabbitmqctl`` has to end: on a busy machine it takes half a minute to start."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The reason why a source cannot provide a service."""

    reason: str


class RunningService(Protocol):
    """A service that is usable until it is stopped."""

    @property
    def url(self) -> str:
        """The URL of the service, with its password."""
        ...

    @property
    def description(self) -> str:
        """One line that says what runs where, without the password."""
        ...

    def stop(self) -> None:
        """Stop the service if taskherd started it."""
        ...


class Node(RunningService, Protocol):
    """A private service, which tests may kill and freeze."""

    @property
    def pid(self) -> int | None:
        """The server's process id, or None if it is not running."""
        ...

    def start(self) -> None:
        """Start the server with its data, and wait until it accepts connections."""
        ...

    def restart(self) -> None:
        """Stop the server if it is running, and start it again with its data on the same port."""
        ...

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would."""
        ...

    def freeze(self) -> None:
        """Freeze the server: connections stay open and nothing answers."""
        ...

    def unfreeze(self) -> None:
        """Resume the server."""
        ...


class Broker(Node, Protocol):
    """A private RabbitMQ."""

    def ctl(self, *arguments: str, within: float = CTL_TIMEOUT) -> str:
        """Run ``rabbitmqctl`` and return its output.

        Raise ``Unavailable`` if it fails or takes longer than ``within`` seconds.
        """
        ...

    def flush_definitions(self) -> None:
        """Write the definitions of queues and exchanges to disk."""
        ...

    def import_definitions(self, definitions: bytes) -> None:
        """Import users, permissions and the like, in RabbitMQ's JSON format for definitions."""
        ...


class Database(Node, Protocol):
    """A private PostgreSQL."""

    def abort(self) -> None:
        """Shut the server down immediately, without a checkpoint, so that the next start runs recovery."""
        ...


@dataclass(frozen=True, slots=True)
class ExternalService:
    """A service that taskherd did not start, given by a setting."""

    url: str
    description: str

    def stop(self) -> None:
        """Do nothing: the service was not started by taskherd."""
