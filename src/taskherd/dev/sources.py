"""What a place that services come from has to offer, and the word for one that has nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a service can't come from here."""

    reason: str


class Running(Protocol):
    """A service that can be used until it is stopped."""

    @property
    def url(self) -> str:
        """Where it is reached."""
        ...

    @property
    def described(self) -> str:
        """One line that says what runs where; holds no password."""
        ...

    def stop(self) -> None:
        """End it, if it is ours to end."""
        ...


class Node(Running, Protocol):
    """A service of our own, so that a test may break it."""

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        ...

    def start(self) -> None:
        """Start it with its data, and wait until it takes connections."""
        ...

    def restart(self) -> None:
        """Start it again with its data, on the same port; a live one is stopped first."""
        ...

    def kill(self) -> None:
        """Kill -9 it, as a crash would."""
        ...

    def freeze(self) -> None:
        """Hold it where it is: connections stay open and nothing answers."""
        ...

    def thaw(self) -> None:
        """Let it go on."""
        ...


class Broker(Node, Protocol):
    """A RabbitMQ of our own."""

    def ctl(self, *words: str, within: float = 30) -> str:
        """What `rabbitmqctl` prints for these words; raises Unavailable when it fails or takes longer."""
        ...

    def settle(self) -> None:
        """Have the definitions of queues and exchanges on disk."""
        ...

    def define(self, definitions: bytes) -> None:
        """Import users, rights and the like, in the JSON of RabbitMQ's definitions."""
        ...


class Database(Node, Protocol):
    """A PostgreSQL of our own."""

    def abort(self) -> None:
        """Have it shut down at once, without a checkpoint, so that the next start recovers."""
        ...


@dataclass(frozen=True, slots=True)
class ExternalService:
    """A service that somebody else runs, named by a setting."""

    url: str
    described: str

    def stop(self) -> None:
        """Leave it running, since it was there before us."""
