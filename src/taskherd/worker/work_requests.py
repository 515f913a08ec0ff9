"""Send work requests to runners and pools. Each is sent again, with backoff, until a report answers it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from taskherd.broker.publisher import OutgoingMessage
from taskherd.errors import Unavailable
from taskherd.messages import work
from taskherd.observability.failpoints import Failpoint
from taskherd.store import work_request_details, work_requests
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from taskherd.store.work_request_details import WorkRequestDetails
    from taskherd.store.work_requests import WorkRequestRow
    from taskherd.worker.context import WorkerContext

DEFAULT_POOL = "default"
MAX_REQUESTS = 500
"""Maximum number of requests that are sent at a time."""

NO_TEXTS: Final[Mapping[UUID, str]] = MappingProxyType({})

POOL_FALLBACK = frozenset({"workspace.start", "workspace.delete"})
"""The types of requests that also go to the pool if the task's runner does not answer."""


async def send_due(context: WorkerContext, now: datetime) -> int:
    """Send the requests that are due and return their number. The times of their next attempts are committed first.

    Raises:
        Unavailable: the database cannot be reached, or the broker did not confirm all of them.
    """
    policy = context.request_retry
    async with transaction(context.engine) as connection:
        due = await work_requests.pick_due(
            connection,
            now,
            MAX_REQUESTS,
            first_delay=policy.first_delay.total_seconds(),
            max_delay=policy.max_delay.total_seconds(),
        )
        if not due:
            return 0
        details = await work_request_details.read(connection, [row.task_id for row in due])
        input_texts = await work_request_details.input_contents(
            connection, [row.input_id for row in due if row.input_id]
        )
    context.failpoint(Failpoint.REQUEST_SEND)
    known = [(row, details[row.task_id]) for row in due if row.task_id in details]
    await send(context, known, now, input_texts)
    return len(due)


async def send(
    context: WorkerContext,
    requests: Sequence[tuple[WorkRequestRow, WorkRequestDetails]],
    now: datetime,
    input_texts: Mapping[UUID, str] = NO_TEXTS,
) -> None:
    """Send requests, whose attempts are committed. Raise ``Unavailable`` if the broker did not confirm all of them."""
    messages = [message for row, details in requests for message in _messages(context, row, details, input_texts, now)]
    outcomes = await context.publisher.publish_many(messages)
    for row, _ in requests:
        context.metrics.requests_sent.labels(row.type).inc()
    failed = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
    if failed:
        raise failed[0]


def targets(row: WorkRequestRow, run: Mapping[str, Any], now: datetime, runner_answer_timeout: timedelta) -> list[str]:
    """Return the targets: the task's runner, the pool if there is none, or both if a start or delete is unanswered."""
    pool = run.get("pool")
    pool = pool if isinstance(pool, str) and pool else DEFAULT_POOL
    if row.target_runner is None:
        return [pool]
    unanswered = row.first_sent_at is not None and now - row.first_sent_at >= runner_answer_timeout
    return [row.target_runner, pool] if unanswered and row.type in POOL_FALLBACK else [row.target_runner]


def _messages(
    context: WorkerContext,
    row: WorkRequestRow,
    task: WorkRequestDetails,
    input_texts: Mapping[UUID, str],
    now: datetime,
) -> list[OutgoingMessage]:
    body = work.encode_request(_request(context, row, task, input_texts))
    ttl = _expiration(context, row, now)
    return [
        OutgoingMessage(context.names.work, work.routing_key(row.type, target), body, mandatory=True, expiration=ttl)
        for target in targets(row, task.run, now, context.request_retry.runner_answer_timeout)
    ]


def _expiration(context: WorkerContext, row: WorkRequestRow, now: datetime) -> float:
    """Return the seconds after which a request is no longer delivered; an interrupt does not outlive its timeout."""
    if row.type != work.AGENT_INTERRUPT:
        return context.request_retry.ttl.total_seconds()
    left = row.created_at + context.timeouts.interrupt_timeout - now
    return max(1.0, left.total_seconds())


def _request(
    context: WorkerContext, row: WorkRequestRow, task: WorkRequestDetails, input_texts: Mapping[UUID, str]
) -> work.WorkRequest:
    common: dict[str, Any] = {
        "request_id": row.request_id,
        "attempt": row.attempt,
        "task_id": row.task_id,
        "task_name": task.task_name,
        "owner": work.WorkRequestOwner(id=task.owner_id, username=task.owner_username),
        "build_number": row.build_number,
        "build_id": work.build_id(row.task_id, row.build_number),
        "template_version_id": task.template_version_id,
        "run": task.run,
    }
    match row.type:
        case "workspace.start":
            token = context.make_agent_token(row.task_id, row.build_number)
            return work.WorkspaceStart(**common, prompt=task.prompt, preset=_preset(task), agent_token=token)
        case "workspace.stop":
            return work.WorkspaceStop(**common)
        case "workspace.delete":
            return work.WorkspaceDelete(**common)
        case "agent.input" if row.input_id is not None:
            return work.AgentInput(**common, input_id=row.input_id, input=input_texts.get(row.input_id, ""))
        case work.AGENT_INTERRUPT if row.interrupt_id is not None:
            return work.AgentInterrupt(**common, interrupt_id=row.interrupt_id)
        case work.AGENT_ANSWER:
            return work.AgentAnswer(**common)
        case _:
            raise AssertionError(row.type)


def _preset(task: WorkRequestDetails) -> work.WorkRequestPreset | None:
    if task.preset_id is None:
        return None
    return work.WorkRequestPreset(
        id=task.preset_id, name=task.preset_name or "", parameters=task.preset_parameters or {}
    )
