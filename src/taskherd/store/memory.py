"""The ``memory`` column: a task's memory as compact JSON and back.

Reports are arrays in the order of their fields, without the task's id, which the row has; a build report that several
facets hold is written once. The text is read and written for every changed task, hence no models here.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from asyncpg.pgproto.pgproto import UUID  # a uuid.UUID that is made eight times as fast

from taskherd.core.reports import (
    AgentDisconnected,
    AgentHeartbeat,
    AgentLifecycle,
    App,
    AppHealth,
    AppStatus,
    Health,
    JobStatus,
    Lifecycle,
    State,
    Transition,
    Workspace,
    WorkspaceBuild,
)
from taskherd.core.task import Deletion, Facet, GivenUp, Held, Inbox, Memory, Silence

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Mapping

    from taskherd.core.reports import BaseReport

R = TypeVar("R", bound="Facet")

NO_INBOX = Inbox()

TRANSITIONS = {each.value: each for each in Transition}
JOBS = {each.value: each for each in JobStatus}
LIFECYCLES = {each.value: each for each in Lifecycle}
HEALTHS = {each.value: each for each in Health}
STATES = {each.value: each for each in State}
"""Looking a value up costs a tenth of calling its enum."""

BUILD_FACETS = ("build", "workspace", "runner", "agent", "app")


def dumps(memory: Memory) -> str:
    """The memory as JSON text; what is absent or at its default is left out."""
    builds: list[WorkspaceBuild] = []
    out: dict[str, object] = {"builds": builds}
    for name in BUILD_FACETS:
        held: Held[WorkspaceBuild] | None = getattr(memory, name)
        if held is not None:
            out[name] = (_index(builds, held.report), held.taken_at)
    out["builds"] = [_build(report) for report in builds]
    if memory.lifecycle:
        out["lifecycle"] = _facet(memory.lifecycle, memory.lifecycle.report.lifecycle)
    if memory.app_health:
        out["app_health"] = _facet(memory.app_health, memory.app_health.report.health)
    if memory.app_status:
        report = memory.app_status.report
        out["app_status"] = (*_facet(memory.app_status, report.state), report.message, report.uri)
    if memory.connection:
        goodbye = isinstance(memory.connection.report, AgentDisconnected)
        out["connection"] = _facet(memory.connection, goodbye)
    _dump_rest(memory, out)
    return orjson.dumps(out, default=_identifier).decode()


def _identifier(value: object) -> str:
    """An id that came out of the database: asyncpg's own kind of UUID, which orjson does not know."""
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(type(value).__name__)


def _dump_rest(memory: Memory, out: dict[str, object]) -> None:
    for name in ("heard", "appeared", "asked"):
        kept: Mapping[int, object] = getattr(memory, name)
        if kept:
            out[name] = list(kept.items())
    if memory.unanswered is not None:
        out["unanswered"] = memory.unanswered
    if memory.silence:
        out["silence"] = (memory.silence.build_number, memory.silence.lost)
    if memory.given_up:
        out["given_up"] = (memory.given_up.build_number, memory.given_up.seq, memory.given_up.error)
    inbox = memory.inbox
    if inbox != NO_INBOX:
        out["inbox"] = (inbox.queued, inbox.in_flight, inbox.delivered_at)
    if memory.deletion:
        out["deletion"] = (memory.deletion.attempts, memory.deletion.retry_at, memory.deletion.done)


def _index(builds: list[WorkspaceBuild], report: WorkspaceBuild) -> int:
    for index, known in enumerate(builds):
        if known is report or known == report:
            return index
    builds.append(report)
    return len(builds) - 1


def _build(report: WorkspaceBuild) -> tuple[object, ...]:
    workspace = report.workspace
    app = report.app
    return (
        report.build_number,
        report.seq,
        report.observed_at,
        report.agent_id,
        report.transition,
        report.job_status,
        (workspace.id, workspace.name) if workspace else None,
        (app.id, app.slug, app.url, app.health) if app else None,
        report.runner,
        report.error,
    )


def _facet(held: Held[Any], value: object) -> tuple[object, ...]:
    report: BaseReport = held.report
    return (report.build_number, report.seq, report.observed_at, report.agent_id, held.taken_at, value)


def loads(task_id: uuid.UUID, text: str | bytes) -> Memory:
    """The memory that ``dumps`` wrote for this task."""
    said: dict[str, Any] = orjson.loads(text)
    builds = [_load_build(task_id, row) for row in said["builds"]]
    held = {
        name: Held(builds[row[0]], datetime.fromisoformat(row[1]))
        for name in BUILD_FACETS
        if (row := said.get(name)) is not None
    }
    inbox = said.get("inbox")
    silence = said.get("silence")
    given_up = said.get("given_up")
    deletion = said.get("deletion")
    return Memory(
        **held,
        lifecycle=_load(said, "lifecycle", task_id, _lifecycle),
        app_health=_load(said, "app_health", task_id, _health),
        app_status=_load(said, "app_status", task_id, _status),
        connection=_load(said, "connection", task_id, _connection),
        heard=_instants(said, "heard"),
        appeared=_instants(said, "appeared"),
        asked={number: TRANSITIONS[value] for number, value in said.get("asked", ())},
        unanswered=said.get("unanswered"),
        silence=Silence(silence[0], silence[1]) if silence else None,
        given_up=GivenUp(given_up[0], given_up[1], given_up[2]) if given_up else None,
        inbox=Inbox(inbox[0], _id(inbox[1]), _at(inbox[2])) if inbox else NO_INBOX,
        deletion=Deletion(deletion[0], _at(deletion[1]), deletion[2]) if deletion else None,
    )


def _load_build(task_id: uuid.UUID, row: list[Any]) -> WorkspaceBuild:
    workspace, app = row[6], row[7]
    return WorkspaceBuild(
        **_common(task_id, row),
        transition=TRANSITIONS[row[4]],
        job_status=JOBS[row[5]],
        workspace=Workspace(UUID(workspace[0]), workspace[1]) if workspace else None,
        app=App(UUID(app[0]), app[1], app[2], HEALTHS[app[3]] if app[3] else None) if app else None,
        runner=row[8],
        error=row[9],
    )


def _load(
    said: dict[str, Any], name: str, task_id: uuid.UUID, make: Callable[[dict[str, Any], list[Any]], R]
) -> Held[R] | None:
    row = said.get(name)
    return None if row is None else Held(make(_common(task_id, row), row), datetime.fromisoformat(row[4]))


def _common(task_id: uuid.UUID, row: list[Any]) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "build_number": row[0],
        "seq": row[1],
        "observed_at": _at(row[2]),
        "agent_id": _id(row[3]),
    }


def _lifecycle(common: dict[str, Any], row: list[Any]) -> AgentLifecycle:
    return AgentLifecycle(**common, lifecycle=LIFECYCLES[row[5]])


def _health(common: dict[str, Any], row: list[Any]) -> AppHealth:
    return AppHealth(**common, health=HEALTHS[row[5]])


def _status(common: dict[str, Any], row: list[Any]) -> AppStatus:
    return AppStatus(**common, state=STATES[row[5]], message=row[6], uri=row[7])


def _connection(common: dict[str, Any], row: list[Any]) -> AgentHeartbeat | AgentDisconnected:
    return AgentDisconnected(**common) if row[5] else AgentHeartbeat(**common)


def _instants(said: dict[str, Any], name: str) -> dict[int, datetime]:
    return {number: datetime.fromisoformat(at) for number, at in said.get(name, ())}


def _at(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _id(text: str | None) -> uuid.UUID | None:
    return None if text is None else UUID(text)
