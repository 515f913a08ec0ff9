"""Request and response bodies of the dead letters."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from pydantic import BaseModel, Field

MAX_IDS: Final = 100
"""Maximum number of ids of one replay."""
MAX_REASON: Final = 255


class ReplayBody(BaseModel):
    """Which of the oldest 1,000 dead letters to replay: either those with these ids, or those with a reason."""

    ids: (
        Annotated[
            list[Annotated[str, Field(strict=True, pattern="^[0-9a-f]{12}$")]],
            Field(min_length=1, max_length=MAX_IDS),
        ]
        | None
    ) = Field(None, description="Whoever names an id vouches for its sender.")
    reason: Annotated[str, Field(strict=True, min_length=1, max_length=MAX_REASON)] | None = Field(
        None, description="Those whose sender is not trusted, or was not checked, are kept: name their ids."
    )


class DeadLetterOut(BaseModel):
    """A message that could not be processed. Control characters are left out of all texts."""

    id: str
    reason: str
    meaning: str | None = Field(description="The reason in words; null for one that this release does not know.")
    detail: str
    time: datetime | None = Field(description="When it was dead-lettered; null if that is unknown.")
    queue: str = Field(description="The queue that it was consumed from; empty if unknown.")
    exchange: str = Field(description="The exchange that it was published to, and to which it is replayed.")
    routing_key: str
    sender: str | None = Field(description="The RabbitMQ user that sent it; null if the message did not name it.")
    index: int | None = Field(description="Its index in the array that it arrived in.")
    length: int = Field(description="Original size of the body in bytes.")
    body: str = Field(description="At most its first 4 KiB; bytes that are no UTF-8 are escaped, as `\\xff`.")
    body_cut: bool = Field(description="Whether the body was longer.")
    replay_obstacle: str | None = Field(description="Why it cannot be replayed, if that is so.")
    only_by_id: bool = Field(
        description="Whether its sender is not trusted, or no worker has checked it: only its id replays it."
    )


class DeadLetters(BaseModel):
    """The oldest dead letters that match."""

    dead_letters: list[DeadLetterOut]
    read: int = Field(description="How many of the oldest were looked at: 1,000, 32 MiB or 10 s at most.")
    left: int = Field(description="How many were not looked at.")


class KeptOut(BaseModel):
    """A dead letter that was not replayed."""

    id: str
    why: str


class Replayed(BaseModel):
    """What became of a replay."""

    replayed: int = Field(description="How many were published again, and removed.")
    kept: list[KeptOut]
    stopped: str | None = Field(description="Why not all were looked at, if that is so.")
