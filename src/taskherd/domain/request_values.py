"""What a request of an agent consists of: its kind, the answers to choose from, the tool that asks, and its state."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from taskherd.domain.value import value


class RequestKind(StrEnum):
    """What an agent asks people for."""

    APPROVAL = "approval"
    QUESTION = "question"


class RequestState(StrEnum):
    """What became of a request of an agent."""

    OPEN = "open"
    ANSWERED = "answered"
    WITHDRAWN = "withdrawn"
    """The agent no longer waits for an answer, or cannot get one any more."""
    EXPIRED = "expired"


class OptionKind(StrEnum):
    """What choosing an option means, as in ACP."""

    ALLOW_ONCE = "allow_once"
    ALLOW_ALWAYS = "allow_always"
    REJECT_ONCE = "reject_once"
    REJECT_ALWAYS = "reject_always"
    OTHER = "other"


@value(frozen=True, slots=True)
class RequestOption:
    """One of the answers to choose from; ``id`` is unique within its request."""

    id: str
    label: str
    kind: OptionKind


@value(frozen=True, slots=True)
class RequestTool:
    """The tool that an agent wants to use: its ``kind`` as in ACP, and its ``input`` as JSON in its canonical form."""

    kind: str
    name: str | None = None
    input: str | None = None


DEFAULT_OPTIONS: Final = (
    RequestOption("allow", "Allow", OptionKind.ALLOW_ONCE),
    RequestOption("reject", "Reject", OptionKind.REJECT_ONCE),
)
"""The options of an approval that comes without any."""
