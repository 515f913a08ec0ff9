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
from taskherd.messages.listing import listing, terms

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
    health: tuple[str, ...] = ()
    """The values of ``messages.listing.ListedHealth`` of which a task has one; empty: any."""
    waiting: bool | None = None
    stalled: bool | None = None
    failed: bool | None = None
    name: str | None = None
    """The lowercase beginning of the name."""
    label: str | None = None
    """The term of a label, see ``messages.listing``."""
    with_state_since: bool = False
    """Whether documents for the subscriber have ``state_since``; this selects no changes."""


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

    @property
    def document_with_state_since(self) -> dict[str, Any]:
        """The document with ``state_since``: null if the task came into another state later, or if it is not known."""
        return {**self.document, "state_since": self._row["state_since"]}

    def frame_for(self, change_filter: ChangeFilter) -> bytes:
        """Return the change as an SSE frame for a subscriber."""
        return self._frame_with_state_since if change_filter.with_state_since else self.frame

    @cached_property
    def frame(self) -> bytes:
        """The change as an SSE frame, without ``state_since``."""
        return self._make_frame(self.document)

    @cached_property
    def _frame_with_state_since(self) -> bytes:
        return self._make_frame(self.document_with_state_since)

    def _make_frame(self, shown: Mapping[str, Any]) -> bytes:
        row = self._row
        event = events.ChangeEvent(
            task_id=self.task_id,
            version=self.version,
            kind=events.EventKind(row["kind"]),
            occurred_at=row["occurred_at"],
            task=orjson.dumps(shown),
            changes=row["changes"],
            cause=row["cause"],
        )
        return make_frame(f"task.{row['kind']}", events.encode_event(event), self.position)

    def matches(self, change_filter: ChangeFilter) -> bool:
        """Return whether the change passes the filter; whether the caller may see it is not checked here.

        With a filter by status, state, health, waiting, stalled, failed or label, a change matches if the task has that
        value or had it before the change, or may have had it. A client that maintains a list thus learns that a task
        has left it.
        """
        wanted = change_filter
        if not self._is_of(wanted):
            return False
        if wanted.status is not None and not self._has_or_had_status(wanted.status):
            return False
        if wanted.state is not None and not self._has_or_had_state(wanted.state):
            return False
        return self._has_or_had_listing(wanted)

    def _is_of(self, wanted: ChangeFilter) -> bool:
        """Return whether the change is of one of these tasks, by what a task never changes."""
        fixed = (
            (wanted.task, self.task_id),
            (wanted.owner, self.owner_id),
            (wanted.organization, self._row["organization_id"]),
            (wanted.template, self._row["name"].lower()),
        )
        if any(value is not None and value != own for value, own in fixed):
            return False
        return wanted.name is None or self.core_document["name"].lower().startswith(wanted.name)

    def _has_or_had_listing(self, wanted: ChangeFilter) -> bool:
        """Return whether the change passes by what a listing has, and label; earlier values are not known."""
        core = self.core_document
        has = listing(core)
        health_altered = self._altered("workspace_agent_health") or self._altered("agent_exit")
        if wanted.health and has.health not in wanted.health and not health_altered:
            return False
        if wanted.waiting not in {None, has.waiting} and not self._altered("requests_open"):
            return False
        if wanted.stalled not in {None, has.stalled} and not self._altered("stalled_since"):
            return False
        if wanted.failed not in {None, has.failed} and not (self._altered("status") or self._altered("current_state")):
            return False
        return wanted.label is None or wanted.label in terms(None, core.get("labels", {})) or self._altered("labels")

    def _has_or_had_status(self, status: str) -> bool:
        return self.core_document["status"] == status or self._had("status", self._row["previous_status"], status)

    def _has_or_had_state(self, state: str) -> bool:
        current = self.core_document["current_state"]
        if current is not None and current["state"] == state:
            return True
        return self._had("current_state", self._row["previous_state"], state)

    def _had(self, field: str, before: str | None, value: str) -> bool:
        """Return whether this change altered a field from ``value``; ``before`` is None if that is not known."""
        return self._altered(field) and before in {None, value}  # the previous version may be pruned

    def _altered(self, field: str) -> bool:
        return field in self._row["changes"] and self._row["kind"] != events.EventKind.CREATED.value


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
