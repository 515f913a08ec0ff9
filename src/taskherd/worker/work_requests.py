"""Work requests on their way out: who they go to, and what they say; each goes again, with backoff, until answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskherd.broker.publish import OutgoingMessage
from taskherd.errors import Unavailable
from taskherd.messages import work
from taskherd.store import requests, work_request_details
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta
    from uuid import UUID

    from taskherd.store.requests import WorkRequest
    from taskherd.store.work_request_details import WorkRequestDetails
    from taskherd.worker.context import WorkerContext

DEFAULT_POOL = "default"
AT_ONCE = 500
TO_POOL_TOO = frozenset({"workspace.start", "workspace.delete"})


async def send_due(context: WorkerContext, now: datetime) -> int:
    """Send the requests that are due; how many. Each one's next time is committed first. Raises Unavailable."""
    schedule = context.request_retry
    async with transaction(context.engine) as connection:
        due = await requests.due(
            connection,
            now,
            AT_ONCE,
            first=schedule.first_delay.total_seconds(),
            most=schedule.max_delay.total_seconds(),
        )
        if not due:
            return 0
        known = await work_request_details.read(connection, [row.task_id for row in due])
        said = await work_request_details.input_contents(connection, [row.input_id for row in due if row.input_id])
    messages = [
        message
        for row in due
        if row.task_id in known
        for message in _messages(context, row, known[row.task_id], said, now)
    ]
    outcomes = await context.publisher.publish_many(messages)
    for row in due:
        context.metrics.requests_sent.labels(row.type).inc()
    failed = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
    if failed:
        raise failed[0]
    return len(due)


def targets(row: WorkRequest, run: Mapping[str, Any], now: datetime, runner_answer: timedelta) -> list[str]:
    """Where a request goes: to the runner that has the task; to its pool if there is none, or it does not answer."""
    pool = run.get("pool")
    pool = pool if isinstance(pool, str) and pool else DEFAULT_POOL
    if row.target_runner is None:
        return [pool]
    waited = row.first_sent_at is not None and now - row.first_sent_at >= runner_answer
    return [row.target_runner, pool] if waited and row.type in TO_POOL_TOO else [row.target_runner]


def _messages(
    context: WorkerContext, row: WorkRequest, task: WorkRequestDetails, said: Mapping[UUID, str], now: datetime
) -> list[OutgoingMessage]:
    body = work.encode(_request(context, row, task, said))
    ttl = context.request_retry.ttl.total_seconds()
    return [
        OutgoingMessage(context.names.work, work.routing_key(row.type, target), body, mandatory=True, expiration=ttl)
        for target in targets(row, task.run, now, context.request_retry.runner_answer)
    ]


def _request(
    context: WorkerContext, row: WorkRequest, task: WorkRequestDetails, said: Mapping[UUID, str]
) -> work.WorkRequest:
    common: dict[str, Any] = {
        "request_id": row.request_id,
        "attempt": row.attempt,
        "task_id": row.task_id,
        "task_name": task.task_name,
        "owner": work.Owner(id=task.owner_id, username=task.owner_username),
        "build_number": row.build_number,
        "build_id": work.build_id(row.task_id, row.build_number),
        "template_version_id": task.template_version_id,
        "run": task.run,
    }
    match row.type:
        case "workspace.start":
            token = context.request_retry.token(row.task_id, row.build_number)
            return work.WorkspaceStart(**common, prompt=task.prompt, preset=_preset(task), agent_token=token)
        case "workspace.stop":
            return work.WorkspaceStop(**common)
        case "workspace.delete":
            return work.WorkspaceDelete(**common)
        case "agent.input" if row.input_id is not None:
            return work.AgentInput(**common, input_id=row.input_id, input=said.get(row.input_id, ""))
        case _:
            raise AssertionError(row.type)


def _preset(task: WorkRequestDetails) -> work.Preset | None:
    if task.preset_id is None:
        return None
    return work.Preset(id=task.preset_id, name=task.preset_name or "", parameters=task.preset_parameters or {})
