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


@dataclass(frozen=True, slots=True)
class Given:
    """A service that somebody else runs, named by a setting."""

    url: str
    described: str

    def stop(self) -> None:
        """Leave it running, since it was there before us."""
