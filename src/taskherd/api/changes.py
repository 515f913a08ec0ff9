"""A change as readers are told it: rendered once, however many of them take it."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from taskherd.api.tasks.documents import names_of
from taskherd.messages import document, events

if TYPE_CHECKING:
    from taskherd.store.reader import Row


@dataclass(frozen=True, slots=True)
class FollowFilter:
    """Which changes a reader follows: all that it may see, or those of one owner, organization, status or task."""

    caller: UUID
    owner: UUID | None = None
    organization: UUID | None = None
    status: str | None = None
    task: UUID | None = None


class Change:
    """One position of the history, with what decides who is told of it."""

    def __init__(self, row: Row, *, objects: bool, admins: AbstractSet[UUID] = frozenset()) -> None:
        """Keep the row of a statement of `store.feed`; `objects`: ids as the published page shows them."""
        self._row = row
        self._objects = objects
        self.position: int = row["position"]
        self.task_id: UUID = row["task_id"]
        self.version: int = row["version"]
        self.revision: int = row["revision"]
        self.owner_id: UUID = row["owner_id"]
        self.admins = admins

    @property
    def pruned(self) -> bool:
        """Whether the event is gone although its position is not."""
        return self._row["kind"] is None

    @property
    def deleted(self) -> bool:
        """Whether this is a task's end."""
        return bool(self._row["kind"] == events.EventKind.DELETED.value)

    @cached_property
    def core_document(self) -> dict[str, Any]:
        """The part of the document that is kept with the task."""
        own: dict[str, Any] = orjson.loads(self._row["own"])
        return own

    @property
    def values(self) -> tuple[str, str]:
        """The task's status and the state of its agent, "" without one."""
        state = self.core_document["current_state"]
        return self.core_document["status"], "" if state is None else state["state"]

    @cached_property
    def document(self) -> dict[str, Any]:
        """The task's document at this version, in the shape of ids that the installation serves."""
        row = self._row
        whole = document.render(self.core_document, row["prompt"], names_of(row), row["occurred_at"])
        return document.with_nullable_ids(whole) if self._objects else whole

    @cached_property
    def frame(self) -> bytes:
        """The change as a server-sent event."""
        row = self._row
        event = events.ChangeEvent(
            task_id=self.task_id,
            version=self.version,
            kind=events.EventKind(row["kind"]),
            occurred_at=row["occurred_at"],
            task=orjson.dumps(self.document),
            changes=row["changes"],
            cause=row["cause"],
        )
        return frame(f"task.{row['kind']}", events.encode_event(event), self.position)

    def matches(self, wanted: FollowFilter) -> bool:
        """Whether a reader who may see it asked for it.

        With a status that is: the task has it, or had it until this very change. So who keeps a list learns that a task
        has left it, from a document that shows another status.
        """
        if wanted.task is not None and wanted.task != self.task_id:
            return False
        if wanted.owner is not None and wanted.owner != self.owner_id:
            return False
        if wanted.organization is not None and wanted.organization != self._row["organization_id"]:
            return False
        return wanted.status is None or self._touches(wanted.status)

    def _touches(self, status: str) -> bool:
        if self.core_document["status"] == status:
            return True
        before: str | None = self._row["was"]
        left = "status" in self._row["changes"] and self._row["kind"] != events.EventKind.CREATED.value
        return left and (before is None or before == status)  # None: what was before is pruned, so it may have been


def frame(event: str, told: bytes, position: int | None = None) -> bytes:
    """A server-sent event; `told` is JSON without newlines.

    See https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
    """
    known = b"" if position is None else b"id: %d\n" % position
    return b"%bevent: %b\ndata: %b\n\n" % (known, event.encode(), told)


COMMENT: Final = b": still here\n\n"
RESUME: Final = frame("resume", b"{}")
RESET: Final = frame("reset", b"{}")


def position_frame(position: int) -> bytes:
    """What says only how far a reader is, which a reader keeps for `Last-Event-ID` and is told nothing else by."""
    return b": up to date\nid: %d\n\n" % position
