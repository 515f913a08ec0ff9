"""Encode and decode the column ``tasks.state``: the task state as compact JSON.

Reports are arrays in the order of their fields, without the task's id, which the row contains; a build report shared by
several facets is written once. Some keys are older than the names of the fields that they hold: they stay, because
renaming a key means rewriting all rows. The text is read and written for every changed task, so the code uses plain
functions instead of models.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson
from asyncpg.pgproto.pgproto import UUID  # a subclass of uuid.UUID that is created eight times as fast

from taskherd.domain.reports import (
    AgentDisconnected,
    AgentExit,
    AgentHeartbeat,
    AgentLifecycle,
    AgentState,
    App,
    AppHealth,
    AppStatus,
    ExitReason,
    Health,
    JobStatus,
    Lifecycle,
    Transition,
    Workspace,
    WorkspaceBuild,
)
from taskherd.domain.task import (
    Deletion,
    Facet,
    Inbox,
    LastLog,
    LossRestarts,
    OpenAgentRequest,
    OpenInterrupt,
    Silence,
    Stall,
    Stamped,
    TaskState,
    TimedOut,
)
from taskherd.domain.value import replace
from taskherd.store.decisions_codec import (
    dump_interrupts,
    dump_requests,
    dump_usage,
    load_last_interrupt,
    load_requests,
    load_usage,
    plain_uuid,
)

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Mapping

    from taskherd.domain.reports import BaseReport

R = TypeVar("R", bound="Facet")

NO_INBOX = Inbox()
NO_LOSS_RESTARTS = LossRestarts()
NO_LABELS: Final[Mapping[str, str]] = {}
NO_REQUESTS: Final[Mapping[uuid.UUID, OpenAgentRequest]] = {}

TRANSITIONS = {each.value: each for each in Transition}
JOBS = {each.value: each for each in JobStatus}
LIFECYCLES = {each.value: each for each in Lifecycle}
HEALTHS = {each.value: each for each in Health}
STATES = {each.value: each for each in AgentState}
"""A lookup costs a tenth of calling the enum."""

_instant = datetime.fromisoformat


APP_SLUG: Final = """t.state -> 'builds' -> CASE json_typeof(t.state -> 'app')
    WHEN 'array' THEN CAST(t.state -> 'app' ->> 0 AS integer) ELSE CAST(t.state ->> 'app' AS integer) END -> 7 ->> 1"""
"""SQL for the slug of the app in the state of the task ``t``, or null without an app."""


STATE_SINCE: Final = "t.state ->> 'since'"
"""SQL for the time since which the task ``t`` is in its state: RFC 3339, or null if that is not known."""


def dumps(state: TaskState) -> str:
    """Encode a task state as JSON text; fields with their default value are omitted."""
    latest = state.build
    builds = [latest.report]
    out: dict[str, object] = {"builds": builds, "build": (0, latest.received_at)}
    for name, stamped in (
        ("workspace", state.workspace),
        ("runner", state.runner),
        ("agent", state.agent),
        ("app", state.app),
    ):
        if stamped is not None:
            index = _index(builds, stamped.report)
            out[name] = (index, stamped.received_at) if index or stamped.received_at != latest.received_at else 0
    out["builds"] = [_build(report) for report in builds]
    restarts = [
        (index, build.restart, build.reason) for index, build in enumerate(builds) if build.restart or build.reason
    ]
    if restarts:  # not in the rows of builds, which the previous release reads too
        out["restarts"] = restarts
    if state.lifecycle:
        out["lifecycle"] = _facet(state.lifecycle, state.lifecycle.report.lifecycle)
    if state.app_health:
        out["app_health"] = _facet(state.app_health, state.app_health.report.health)
    if state.app_status:
        report = state.app_status.report
        out["app_status"] = (*_facet(state.app_status, report.state), report.message, report.uri)
        if report.guessed_from:  # not in the row, which the previous release reads too
            out["guessed_from"] = report.guessed_from
    if state.connection:
        disconnected = isinstance(state.connection.report, AgentDisconnected)
        out["connection"] = _facet(state.connection, disconnected)
    if state.agent_exit:
        agent_exit = state.agent_exit.report
        details = (agent_exit.status, agent_exit.signal, agent_exit.words)
        out["agent_exit"] = (*_facet(state.agent_exit, agent_exit.why), *details)
    _dump_own_fields(state, out)
    return orjson.dumps(out, option=orjson.OPT_UTC_Z).decode()


def _dump_own_fields(state: TaskState, out: dict[str, object]) -> None:
    """Add the fields that are not facets: what the worker itself observed and decided."""
    if state.last_heartbeat:
        out["heard"] = [*state.last_heartbeat.items()]
    if state.first_seen:
        out["appeared"] = [*state.first_seen.items()]
    if state.requested_builds:
        out["asked"] = [*state.requested_builds.items()]
    if state.unanswered_build is not None:
        out["unanswered"] = state.unanswered_build
    if state.silence:
        out["silence"] = (state.silence.build_number, state.silence.lost)
    if state.timed_out:
        out["given_up"] = (state.timed_out.build_number, state.timed_out.seq, state.timed_out.error)
    if state.state_since:
        out["since"] = state.state_since
    _dump_recovery(state, out)
    _dump_decisions(state, out)
    dump_interrupts(state, out)


def _dump_decisions(state: TaskState, out: dict[str, object]) -> None:
    """Add what people decided about the task, and what it used."""
    inbox = state.inbox
    if inbox is not NO_INBOX and inbox != NO_INBOX:
        out["inbox"] = (inbox.queued, plain_uuid(inbox.in_flight), inbox.delivered_at)
    if state.labels:
        out["labels"] = state.labels
    if state.deletion:
        out["deletion"] = (state.deletion.attempts, state.deletion.retry_at, state.deletion.done)
    if state.usage:
        out["usage"] = dump_usage(state.usage)
    if state.agent_requests:
        out["requests"] = dump_requests(state.agent_requests)


def _dump_recovery(state: TaskState, out: dict[str, object]) -> None:
    """Add what the worker decided about a stalled or lost agent."""
    if state.last_log:
        out["last_log"] = (state.last_log.build_number, state.last_log.at)
    if state.stall:
        out["stall"] = (state.stall.build_number, state.stall.since)
    if state.loss_restarts != NO_LOSS_RESTARTS:
        out["loss_restarts"] = (state.loss_restarts.count, state.loss_restarts.retry_at)


def _index(builds: list[WorkspaceBuild], report: WorkspaceBuild) -> int:
    for index, build in enumerate(builds):
        if build is report or build == report:
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
        plain_uuid(report.agent_id),
        report.transition,
        report.job_status,
        (plain_uuid(workspace.id), workspace.name) if workspace else None,
        (plain_uuid(app.id), app.slug, app.url, app.health) if app else None,
        report.runner,
        report.error,
    )


def _facet(stamped: Stamped[Any], value: object) -> tuple[object, ...]:
    report: BaseReport = stamped.report
    return (
        report.build_number,
        report.seq,
        report.observed_at,
        plain_uuid(report.agent_id),
        stamped.received_at,
        value,
    )


def loads(task_id: uuid.UUID, text: str | bytes) -> TaskState:
    """Decode the state of a task that ``dumps`` encoded."""
    fields: dict[str, Any] = orjson.loads(text)
    get = fields.get
    builds = [_load_build(task_id, row) for row in fields["builds"]]
    for index, restart, reason in get("restarts", ()):
        builds[index] = replace(builds[index], restart=restart, reason=reason)
    latest = fields["build"]
    build = Stamped(builds[latest[0]], _instant(latest[1]))

    def build_facet(name: str) -> Stamped[WorkspaceBuild] | None:
        """Decode a facet that refers to a build; 0 means the latest build, the common case."""
        row = get(name)
        if row is None:
            return None
        return build if row == 0 else Stamped(builds[row[0]], _instant(row[1]))

    inbox = get("inbox")
    silence = get("silence")
    timed_out = get("given_up")
    deletion = get("deletion")
    last_log = get("last_log")
    stall = get("stall")
    loss_restarts = get("loss_restarts")
    interrupt = get("interrupt")
    last_interrupt = get("last_interrupt")
    return TaskState(
        build=build,
        workspace=build_facet("workspace"),
        runner=build_facet("runner"),
        agent=build_facet("agent"),
        app=build_facet("app"),
        lifecycle=_load_facet(get("lifecycle"), task_id, _load_lifecycle),
        app_health=_load_facet(get("app_health"), task_id, _load_app_health),
        app_status=_load_facet(get("app_status"), task_id, partial(_load_app_status, get("guessed_from", ""))),
        connection=_load_facet(get("connection"), task_id, _load_connection),
        agent_exit=_load_facet(get("agent_exit"), task_id, _load_agent_exit),
        last_heartbeat=_instants(get("heard")),
        first_seen=_instants(get("appeared")),
        requested_builds={number: TRANSITIONS[name] for number, name in get("asked", ())},
        unanswered_build=get("unanswered"),
        silence=Silence(silence[0], silence[1]) if silence else None,
        timed_out=TimedOut(timed_out[0], timed_out[1], timed_out[2]) if timed_out else None,
        last_log=LastLog(last_log[0], _instant(last_log[1])) if last_log else None,
        stall=Stall(stall[0], _instant(stall[1])) if stall else None,
        loss_restarts=LossRestarts(loss_restarts[0], _at(loss_restarts[1])) if loss_restarts else NO_LOSS_RESTARTS,
        inbox=Inbox(inbox[0], _id(inbox[1]), _at(inbox[2])) if inbox else NO_INBOX,
        deletion=Deletion(deletion[0], _at(deletion[1]), deletion[2]) if deletion else None,
        usage=load_usage(usage) if (usage := get("usage")) else None,
        interrupt=OpenInterrupt(UUID(interrupt[0]), interrupt[1], _instant(interrupt[2])) if interrupt else None,
        last_interrupt=load_last_interrupt(last_interrupt) if last_interrupt else None,
        labels=get("labels") or NO_LABELS,
        agent_requests=load_requests(requests) if (requests := get("requests")) else NO_REQUESTS,
        state_since=_at(get("since")),
    )


def _load_build(task_id: uuid.UUID, row: list[Any]) -> WorkspaceBuild:
    number, seq, observed_at, agent_id, transition, job, workspace, app, runner, error = row
    return WorkspaceBuild(
        task_id=task_id,
        build_number=number,
        seq=seq,
        observed_at=_at(observed_at),
        agent_id=_id(agent_id),
        transition=TRANSITIONS[transition],
        job_status=JOBS[job],
        workspace=Workspace(UUID(workspace[0]), workspace[1]) if workspace else None,
        app=App(UUID(app[0]), app[1], app[2], HEALTHS[app[3]] if app[3] else None) if app else None,
        runner=runner,
        error=error,
    )


def _load_facet(
    row: list[Any] | None, task_id: uuid.UUID, decode: Callable[[uuid.UUID, list[Any]], R]
) -> Stamped[R] | None:
    return None if row is None else Stamped(decode(task_id, row), _instant(row[4]))


def _load_lifecycle(task_id: uuid.UUID, row: list[Any]) -> AgentLifecycle:
    number, seq, observed_at, agent_id, _, lifecycle = row
    return AgentLifecycle(
        task_id=task_id,
        build_number=number,
        seq=seq,
        observed_at=_at(observed_at),
        agent_id=_id(agent_id),
        lifecycle=LIFECYCLES[lifecycle],
    )


def _load_app_health(task_id: uuid.UUID, row: list[Any]) -> AppHealth:
    number, seq, observed_at, agent_id, _, health = row
    return AppHealth(
        task_id=task_id,
        build_number=number,
        seq=seq,
        observed_at=_at(observed_at),
        agent_id=_id(agent_id),
        health=HEALTHS[health],
    )


def _load_app_status(guessed_from: str, task_id: uuid.UUID, row: list[Any]) -> AppStatus:
    number, seq, observed_at, agent_id, _, state, message, uri = row
    return AppStatus(
        task_id=task_id,
        build_number=number,
        seq=seq,
        observed_at=_at(observed_at),
        agent_id=_id(agent_id),
        state=STATES[state],
        message=message,
        uri=uri,
        guessed_from=guessed_from,
    )


def _load_connection(task_id: uuid.UUID, row: list[Any]) -> AgentHeartbeat | AgentDisconnected:
    number, seq, observed_at, agent_id, _, disconnected = row
    return (AgentDisconnected if disconnected else AgentHeartbeat)(
        task_id=task_id, build_number=number, seq=seq, observed_at=_at(observed_at), agent_id=_id(agent_id)
    )


def _load_agent_exit(task_id: uuid.UUID, row: list[Any]) -> AgentExit:
    number, seq, observed_at, agent_id, _, why, status, signal, words = row
    return AgentExit(
        task_id=task_id,
        build_number=number,
        seq=seq,
        observed_at=_at(observed_at),
        agent_id=_id(agent_id),
        why=ExitReason(why),
        status=status,
        signal=signal,
        words=words,
    )


def _instants(rows: list[tuple[int, str]] | None) -> dict[int, datetime]:
    return {number: _instant(at) for number, at in rows} if rows else {}


def _at(text: str | None) -> datetime | None:
    return None if text is None else _instant(text)


def _id(text: str | None) -> uuid.UUID | None:
    return None if text is None else UUID(text)
