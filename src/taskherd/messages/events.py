"""Change events: encoded as CloudEvents 1.0 in JSON batches (``application/cloudevents-batch+json``).

There is no decoder, because no part of taskherd reads the content of events: to the API a message is only a signal to
read the tables. Subscribers, which include the tests and the demo, parse the JSON that ``CloudEvent`` describes.

See https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md#4-json-batch-format.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Literal
from uuid import UUID, uuid5

import orjson
from pydantic import BaseModel, Field

from taskherd.domain.reports import InterruptOutcome, format_rfc3339
from taskherd.domain.request_values import RequestState
from taskherd.domain.value import value
from taskherd.messages.document import TaskDocument
from taskherd.messages.limits import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CONTENT_TYPE = "application/cloudevents-batch+json"
SOURCE = "taskherd"


class EventKind(StrEnum):
    """The kind of a change."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


@value(frozen=True, slots=True, kw_only=True)
class ChangeEvent:
    """One change of one task. ``task`` (the document after the change) and ``cause`` are JSON."""

    task_id: UUID
    version: int
    kind: EventKind
    occurred_at: datetime
    task: bytes
    changes: Sequence[str]
    cause: str


@value(frozen=True, slots=True)
class EventBatch:
    """One message: events of one kind, and its body."""

    kind: EventKind
    events: tuple[ChangeEvent, ...]
    body: bytes

    @property
    def routing_key(self) -> str:
        """Routing key of the message."""
        return f"task.{self.kind.value}"


class CauseOut(BaseModel):
    """The cause of a change."""

    kind: Literal["report", "command", "sweep"]
    type: str = Field(description="Type of the report or command, or finding of the sweep.")
    id: str | None = None
    actor_id: UUID | None = None
    outcome: InterruptOutcome | RequestState | None = Field(
        None, description="Of an interrupt, or the state of a request of the agent, for the report about it."
    )
    request: str | None = Field(None, description="The title of the agent's request that was reported or answered.")
    answer: str | None = Field(None, description="The answer of the actor in words, at most 200 characters.")


class ChangeOut(BaseModel):
    """A change of a task. Events may be repeated: keep the highest version of each task and ignore lower ones."""

    task: TaskDocument
    version: int = Field(ge=1)
    changes: list[str] = Field(description="Names of the document's fields that changed.")
    cause: CauseOut


class CloudEvent(BaseModel):
    """A CloudEvent; a repeated event has the same id."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: Literal["dev.taskherd.task.created.v1", "dev.taskherd.task.updated.v1", "dev.taskherd.task.deleted.v1"]
    subject: UUID = Field(description="The task's id.")
    time: datetime
    datacontenttype: Literal["application/json"]
    data: ChangeOut


def event_id(task_id: UUID, version: int) -> UUID:
    """Return the id of an event, also of its repetitions: UUIDv5 of the version's digits in the task's namespace."""
    return uuid5(task_id, str(version))


def encode_event(event: ChangeEvent) -> bytes:
    """Encode one event as a JSON object."""
    return orjson.dumps(
        {
            "specversion": "1.0",
            "id": str(event_id(event.task_id, event.version)),
            "source": SOURCE,
            "type": f"dev.taskherd.task.{event.kind.value}.v1",
            "subject": str(event.task_id),
            "time": format_rfc3339(event.occurred_at),
            "datacontenttype": "application/json",
            "data": {
                "task": orjson.Fragment(event.task),
                "version": event.version,
                "changes": list(event.changes),
                "cause": orjson.Fragment(event.cause),
            },
        }
    )


def pack_events(events: Iterable[ChangeEvent], max_bytes: int = MAX_MESSAGE_BYTES) -> list[EventBatch]:
    """Pack events into messages, in order: one kind per message, up to ``max_bytes`` unless one event is larger."""
    by_kind: dict[EventKind, list[ChangeEvent]] = {}
    for event in events:
        by_kind.setdefault(event.kind, []).append(event)
    return [batch for kind, of_kind in by_kind.items() for batch in _batches(kind, of_kind, max_bytes)]


def _batches(kind: EventKind, events: list[ChangeEvent], max_bytes: int) -> Iterable[EventBatch]:
    batch: list[ChangeEvent] = []
    encoded: list[bytes] = []
    size = 1  # two brackets, minus the comma that is counted for the first event but not written
    for event in events:
        body = encode_event(event)
        if encoded and size + len(body) + 1 > max_bytes:
            yield EventBatch(kind, tuple(batch), b"[" + b",".join(encoded) + b"]")
            batch, encoded, size = [], [], 1
        batch.append(event)
        encoded.append(body)
        size += len(body) + 1
    if encoded:
        yield EventBatch(kind, tuple(batch), b"[" + b",".join(encoded) + b"]")
