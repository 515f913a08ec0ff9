"""Change events as CloudEvents 1.0 in JSON batches (``application/cloudevents-batch+json``).

See https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md#4-json-batch-format.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Literal
from uuid import UUID, uuid5

import orjson
from pydantic import BaseModel, Field

from taskherd.domain.reports import rfc3339
from taskherd.domain.value import value
from taskherd.messages.document import TaskDocument
from taskherd.messages.limits import MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CONTENT_TYPE = "application/cloudevents-batch+json"
SOURCE = "taskherd"


class EventKind(StrEnum):
    """What happened to a task."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


@value(frozen=True, slots=True, kw_only=True)
class ChangeEvent:
    """One change of one task; ``task``: its rendered document, the last one for a delete; ``cause``: why; as JSON."""

    task_id: UUID
    version: int
    kind: EventKind
    occurred_at: datetime
    task: bytes
    changes: Sequence[str]
    cause: str


@value(frozen=True, slots=True)
class EventBatch:
    """One message: events of one kind, and the bytes that carry them."""

    kind: EventKind
    events: tuple[ChangeEvent, ...]
    body: bytes

    @property
    def routing_key(self) -> str:
        """The routing key of all events in the message."""
        return f"task.{self.kind.value}"


class CauseOut(BaseModel):
    """What made the change."""

    kind: Literal["report", "command", "sweep"]
    type: str = Field(description="The type of the report or command, or what the sweep found.")
    id: str | None = None
    actor_id: UUID | None = None


class ChangeOut(BaseModel):
    """A change; keep the highest version of a task and drop the rest."""

    task: TaskDocument
    version: int = Field(ge=1)
    changes: list[str] = Field(description="Names of the document's fields that changed.")
    cause: CauseOut


class CloudEvent(BaseModel):
    """A CloudEvent; its id is the same whenever it is repeated."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: Literal["dev.taskherd.task.created.v1", "dev.taskherd.task.updated.v1", "dev.taskherd.task.deleted.v1"]
    subject: UUID = Field(description="The task's id.")
    time: datetime
    datacontenttype: Literal["application/json"]
    data: ChangeOut


def event_id(task_id: UUID, version: int) -> UUID:
    """The id of a task's event, the same at every repeat: UUIDv5 of the version's digits in the task's namespace."""
    return uuid5(task_id, str(version))


def encode_event(event: ChangeEvent) -> bytes:
    """One event as a JSON object."""
    return orjson.dumps(
        {
            "specversion": "1.0",
            "id": str(event_id(event.task_id, event.version)),
            "source": SOURCE,
            "type": f"dev.taskherd.task.{event.kind.value}.v1",
            "subject": str(event.task_id),
            "time": rfc3339(event.occurred_at),
            "datacontenttype": "application/json",
            "data": {
                "task": orjson.Fragment(event.task),
                "version": event.version,
                "changes": list(event.changes),
                "cause": orjson.Fragment(event.cause),
            },
        }
    )


def pack_events(events: Iterable[ChangeEvent], most_bytes: int = MESSAGE_BYTES) -> list[EventBatch]:
    """The messages that carry these events: each of one kind, at most ``most_bytes`` or one event, in order."""
    kinds: dict[EventKind, list[ChangeEvent]] = {}
    for event in events:
        kinds.setdefault(event.kind, []).append(event)
    return [batch for kind, alike in kinds.items() for batch in _batches(kind, alike, most_bytes)]


def _batches(kind: EventKind, events: list[ChangeEvent], most_bytes: int) -> Iterable[EventBatch]:
    held: list[ChangeEvent] = []
    parts: list[bytes] = []
    size = 1  # the brackets, less the comma that the first part does not need
    for event in events:
        part = encode_event(event)
        if parts and size + len(part) + 1 > most_bytes:
            yield EventBatch(kind, tuple(held), b"[" + b",".join(parts) + b"]")
            held, parts, size = [], [], 1
        held.append(event)
        parts.append(part)
        size += len(part) + 1
    if parts:
        yield EventBatch(kind, tuple(held), b"[" + b",".join(parts) + b"]")
