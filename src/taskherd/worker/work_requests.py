"""Send work requests to runners and pools. Each is sent again, with backoff, until a report answers it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from taskherd.broker.publisher import OutgoingMessage
from taskherd.domain.value import value
from taskherd.errors import Unavailable
from taskherd.messages import work
from taskherd.observability.failpoints import Failpoint
from taskherd.store import agent_requests, work_request_details, work_requests
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime, timedelta
    from typing import TypeAlias
    from uuid import UUID

    from taskherd.store import AsyncConnection
    from taskherd.store.agent_requests import StoredAnswer
    from taskherd.store.work_request_details import WorkRequestDetails
    from taskherd.store.work_requests import WorkRequestRow
    from taskherd.worker.context import WorkerContext

    Request: TypeAlias = tuple[WorkRequestRow, WorkRequestDetails]

MAX_REQUESTS = 500
"""Maximum number of requests that are sent at a time."""

MAX_OF_TARGET = 64
"""Maximum number of requests to one target that wait for the broker's confirm at the same time."""

MAX_BYTES_OF_TARGET = 4 * 1024 * 1024
"""Characters of their prompts and inputs at which no further one does: what waits is in memory a second time."""


@value(frozen=True, slots=True)
class RequestContents:
    """What requests deliver: the texts of inputs by their ids, and answers by the ids of task and agent's request."""

    inputs: Mapping[UUID, str]
    answers: Mapping[tuple[UUID, UUID], StoredAnswer]


NO_CONTENTS: Final = RequestContents({}, {})

POOL_FALLBACK = frozenset({"workspace.start", "workspace.delete"})
"""The types of requests that also go to the pool if the task's runner does not answer."""


async def send_due(context: WorkerContext, now: datetime, limit: int = MAX_REQUESTS) -> int:
    """Send requests that are due and return their number, 0 if none is left.

    There are up to ``limit``, or fewer of large ones. The times of their next attempts are committed first.

    Raises:
        StatementTimeout: reading them took too long, and none was sent; try fewer.
        Unavailable: the database cannot be reached.
    """
    policy = context.request_retry
    async with transaction(context.engine) as connection:
        due = await work_requests.pick_due(
            connection,
            now,
            limit,
            first_delay=policy.first_delay.total_seconds(),
            max_delay=policy.max_delay.total_seconds(),
        )
        if not due:
            return 0
        started = [row.task_id for row in due if row.type == work_requests.WITH_PROMPT]
        details = await work_request_details.read(connection, [row.task_id for row in due], with_prompt=started)
        contents = await _read_contents(connection, due)
        known = [(row, details[row.task_id]) for row in due if row.task_id in details]
        requests = await context.known_runners.check_targets(connection, known)
    context.failpoint(Failpoint.REQUEST_SEND)
    if contents.answers:
        context.failpoint(Failpoint.ANSWER_SEND)
    await send(context, requests, now, contents)
    if contents.answers:
        context.failpoint(Failpoint.ANSWER_SENT)
    return len(due)


async def _read_contents(connection: AsyncConnection, due: Sequence[WorkRequestRow]) -> RequestContents:
    """Read the inputs and answers that these requests deliver."""
    input_ids = [row.input_id for row in due if row.input_id]
    answered = [(row.task_id, row.agent_request_id) for row in due if row.agent_request_id]
    return RequestContents(
        await work_request_details.input_contents(connection, input_ids) if input_ids else {},
        await agent_requests.answers(connection, answered) if answered else {},
    )


async def send(
    context: WorkerContext,
    requests: Sequence[Request],
    now: datetime,
    contents: RequestContents = NO_CONTENTS,
) -> None:
    """Send requests, whose attempts are committed and targets checked. Those that are not confirmed are due again."""
    by_target: defaultdict[str, list[Request]] = defaultdict(list)
    timeout = context.request_retry.runner_answer_timeout
    for row, details in requests:
        for target in targets(row, details.pool, now, timeout):
            by_target[target].append((row, details))
    await asyncio.gather(*(_send_to(context, target, those, contents, now) for target, those in by_target.items()))
    for row, _ in requests:
        context.metrics.requests_sent.labels(row.type).inc()


async def _send_to(
    context: WorkerContext, target: str, requests: Sequence[Request], contents: RequestContents, now: datetime
) -> None:
    """Send requests to one target, until it confirms none of several: the others would only wait as long, too."""
    for part in _parts(requests, contents):
        messages = [each for request in part if (each := _message(context, target, request, contents, now))]
        outcomes = await context.work_publisher.publish_many(messages) if messages else []
        errors = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
        if errors:
            context.on_unconfirmed(f"requests to {target}: {errors[0]}")
            if len(errors) == len(outcomes):
                return


def _parts(requests: Sequence[Request], contents: RequestContents) -> Iterator[list[Request]]:
    """Divide the requests to a target into those that are encoded, and wait for the broker, at the same time."""
    part: list[Request] = []
    size = 0
    for row, details in requests:
        part.append((row, details))
        size += len(details.prompt) if row.input_id is None else len(contents.inputs.get(row.input_id, ""))
        if len(part) == MAX_OF_TARGET or size >= MAX_BYTES_OF_TARGET:
            yield part
            part, size = [], 0
    if part:
        yield part


def targets(row: WorkRequestRow, pool: str, now: datetime, runner_answer_timeout: timedelta) -> list[str]:
    """Return the targets: the task's runner, the pool if there is none, or both if a start or delete is unanswered.

    An answer goes to the runner of the agent only, and waits while that is not known.
    """
    if row.target_runner is None:
        return [] if row.type == work.AGENT_ANSWER else [pool]
    unanswered = row.first_sent_at is not None and now - row.first_sent_at >= runner_answer_timeout
    return [row.target_runner, pool] if unanswered and row.type in POOL_FALLBACK else [row.target_runner]


def _message(
    context: WorkerContext, target: str, request: Request, contents: RequestContents, now: datetime
) -> OutgoingMessage | None:
    """Return the message of a request for a target, or None if there is no longer an answer to deliver.

    A runner of another pool is not told what the task is.
    """
    row, task = request
    content = _request(context, row, task, contents)
    if content is None:
        return None
    is_outsider = context.known_runners.is_of_another_pool(target, task.pool)
    return OutgoingMessage(
        context.names.work,
        work.routing_key(row.type, target),
        work.encode_request(work.redact(content) if is_outsider else content),
        mandatory=True,
        expiration=_expiration(context, row, now),
    )


def _expiration(context: WorkerContext, row: WorkRequestRow, now: datetime) -> float:
    """Return the seconds after which a request is no longer delivered.

    What fails when its time is up does not outlive that: an interrupt, and an input from its first attempt on.
    """
    ttl = context.request_retry.ttl
    match row.type:
        case work.AGENT_INTERRUPT:
            left = row.created_at + context.timeouts.interrupt_timeout - now
        case "agent.input":
            left = (row.first_sent_at or now) + ttl - now
        case _:
            left = ttl
    return max(1.0, left.total_seconds())


def _request(
    context: WorkerContext, row: WorkRequestRow, task: WorkRequestDetails, contents: RequestContents
) -> work.WorkRequest | None:
    """Return the request to send, or None if there is no longer an answer to deliver."""
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
        case work_requests.WITH_PROMPT:
            token = context.make_agent_token(row.task_id, row.build_number)
            return work.WorkspaceStart(**common, prompt=task.prompt, preset=_preset(task), agent_token=token)
        case "workspace.stop":
            return work.WorkspaceStop(**common)
        case "workspace.delete":
            return work.WorkspaceDelete(**common)
        case "agent.input" if row.input_id is not None:
            return work.AgentInput(**common, input_id=row.input_id, input=contents.inputs.get(row.input_id, ""))
        case work.AGENT_INTERRUPT if row.interrupt_id is not None:
            return work.AgentInterrupt(**common, interrupt_id=row.interrupt_id)
        case work.AGENT_ANSWER if row.agent_request_id is not None:
            answer = contents.answers.get((row.task_id, row.agent_request_id))
            common["request_id"] = row.agent_request_id
            return answer and work.AgentAnswer(**common, option_id=answer.option_id, text=answer.text)
        case _:
            raise AssertionError(row.type)


def _preset(task: WorkRequestDetails) -> work.WorkRequestPreset | None:
    if task.preset_id is None:
        return None
    return work.WorkRequestPreset(
        id=task.preset_id, name=task.preset_name or "", parameters=task.preset_parameters or {}
    )
