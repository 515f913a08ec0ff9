"""Changes of tasks, rendered once and shared by all subscribers."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from taskherd.api.tasks.documents import names_of
from taskherd.domain.reports import ExitReason
from taskherd.domain.view import LOST_CONNECTION, NOT_RUNNING
from taskherd.messages import document, events

if TYPE_CHECKING:
    from taskherd.store.read_pool import Row


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """The changes that a subscriber receives: all that ``caller`` may see, or those that match all set fields."""

    caller: UUID
    owner: UUID | None = None
    organization: UUID | None = None
    status: str | None = None
    task: UUID | None = None
    state: str | None = None
    """The state that the agent reported."""
    template: str | None = None
    """The lowercase name of the template."""


class Change:
    """One position of the feed, with the users who may see it."""

    def __init__(self, row: Row, *, nullable_ids_as_objects: bool, viewers: AbstractSet[UUID] = frozenset()) -> None:
        """Wrap a row of ``store.feed``. Coder's documentation shows nullable ids as objects."""
        self._row = row
        self._nullable_ids_as_objects = nullable_ids_as_objects
        self.position: int = row["position"]
        self.task_id: UUID = row["task_id"]
        self.version: int = row["version"]
        self.revision: int = row["revision"]
        self.owner_id: UUID = row["owner_id"]
        self.viewers = viewers

    @property
    def pruned(self) -> bool:
        """True if the event was pruned and only its position remains."""
        return self._row["kind"] is None and not self._row["erased"]

    @property
    def erased(self) -> bool:
        """True if the event was erased with its deleted task; readers need only the deletion, which follows."""
        return self._row["kind"] is None and bool(self._row["erased"])

    @property
    def deleted(self) -> bool:
        """True if the change deleted the task."""
        return bool(self._row["kind"] == events.EventKind.DELETED.value)

    @cached_property
    def core_document(self) -> dict[str, Any]:
        """The stored part of the document."""
        stored: dict[str, Any] = orjson.loads(self._row["core_document"])
        return stored

    @property
    def long_poll_values(self) -> frozenset[str]:
        """What a long poll can wait for and the task has."""
        return long_poll_values(self.core_document)

    @cached_property
    def document(self) -> dict[str, Any]:
        """The task's document at this version, with nullable ids in the configured form."""
        row = self._row
        rendered = document.render(self.core_document, row["prompt"], names_of(row), row["occurred_at"])
        return document.with_nullable_ids(rendered) if self._nullable_ids_as_objects else rendered

    @cached_property
    def frame(self) -> bytes:
        """The change as an SSE frame."""
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
        return make_frame(f"task.{row['kind']}", events.encode_event(event), self.position)

    def matches(self, change_filter: ChangeFilter) -> bool:
        """Return whether the change passes the filter; whether the caller may see it is not checked here.

        With a filter by status or state, a change matches if the task has that value or had it before the change. A
        client that maintains a list thus learns that a task has left it.
        """
        wanted = change_filter
        if wanted.task is not None and wanted.task != self.task_id:
            return False
        if wanted.owner is not None and wanted.owner != self.owner_id:
            return False
        if wanted.organization is not None and wanted.organization != self._row["organization_id"]:
            return False
        if wanted.template is not None and wanted.template != self._row["name"].lower():
            return False
        if wanted.status is not None and not self._has_or_had_status(wanted.status):
            return False
        return wanted.state is None or self._has_or_had_state(wanted.state)

    def _has_or_had_status(self, status: str) -> bool:
        return self.core_document["status"] == status or self._had("status", self._row["previous_status"], status)

    def _has_or_had_state(self, state: str) -> bool:
        current = self.core_document["current_state"]
        if current is not None and current["state"] == state:
            return True
        return self._had("current_state", self._row["previous_state"], state)

    def _had(self, field: str, before: str | None, value: str) -> bool:
        """Return whether this change altered a field from ``value``; ``before`` is None if that is not known."""
        altered = field in self._row["changes"] and self._row["kind"] != events.EventKind.CREATED.value
        return altered and before in {None, value}  # the previous version may be pruned


ENDED: Final = "ended"
"""Value of a long poll for a task whose agent has ended or is lost."""


def long_poll_values(core_document: Mapping[str, Any]) -> frozenset[str]:
    """Return the task's status, its agent's state, and ``ENDED`` if no agent runs any more.

    An agent that was stopped with its workspace does not count: the build that stopped it says what the task is.
    """
    state, health = core_document["current_state"], core_document["workspace_agent_health"]
    agent_exit = core_document.get("agent_exit")  # documents of earlier releases have none
    has_ended = agent_exit is not None and agent_exit["why"] != ExitReason.STOPPED
    is_gone = health is not None and health.get("reason") in {LOST_CONNECTION, NOT_RUNNING}
    values = {core_document["status"], "" if state is None else state["state"]}
    return frozenset(values | ({ENDED} if has_ended or is_gone else set()))


def make_frame(event: str, data: bytes, position: int | None = None) -> bytes:
    """Return an SSE frame; ``data`` is JSON without newlines, ``position`` becomes the id of the event.

    See https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
    """
    event_id = b"" if position is None else b"id: %d\n" % position
    return b"%bevent: %b\ndata: %b\n\n" % (event_id, event.encode(), data)


RESUME: Final = make_frame("resume", b"{}")
RESET: Final = make_frame("reset", b"{}")


def position_frame(position: int) -> bytes:
    """Return an SSE frame that carries only the position, for ``Last-Event-ID``."""
    return b": up to date\nid: %d\n\n" % position
