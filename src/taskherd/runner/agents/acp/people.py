"""The way from an agent's request to a person who answers it, and back.

The follower opens requests and reports how each ended, always as a whole; it also judges when one expires. Whoever
carries them to people calls ``Follower.answer`` with what they chose. A request is known by its ``request_id``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from taskherd.errors import TaskherdError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.reports import Report

MAX_OPEN: Final = 20
"""Maximum number of open requests of one agent; the runner rejects further ones itself."""
MAX_OPTIONS: Final = 16
MAX_LABEL: Final = 64
"""Maximum length of an option's id and label, in characters."""
MAX_INPUT_BYTES: Final = 16 * 1024
"""Maximum size of a tool's input as JSON, and of a detail."""

RequestKind: TypeAlias = Literal["approval", "question"]
RequestState: TypeAlias = Literal["open", "answered", "withdrawn", "expired"]
OptionKind: TypeAlias = Literal["allow_once", "allow_always", "reject_once", "reject_always", "other"]


@dataclass(frozen=True, slots=True)
class Option:
    """One of the answers to choose from."""

    id: str
    label: str
    kind: OptionKind


@dataclass(frozen=True, slots=True)
class AgentRequest:
    """A request of an agent as a whole: what it asks, and what became of it."""

    request_id: UUID
    kind: RequestKind
    title: str
    detail: str
    tool: dict[str, Any] | None
    """``kind`` as in ACP, and ``input``, if it is a tool that asks."""
    options: tuple[Option, ...]
    """Without any, a question wants text."""
    expires_at: datetime | None
    state: RequestState = "open"
    option_id: str | None = None
    text: str | None = None


class PeopleChannel(Protocol):
    """Carries requests of agents to people."""

    def reports(self, requests: Sequence[AgentRequest]) -> Sequence[Report]:
        """Return the reports that tell these requests as they are now; they are saved together with the checkpoint."""


class RequestClosed(TaskherdError):  # noqa: N818 - named for its meaning, as the errors in ``errors``
    """The request is no longer open, or there never was one with this id."""
