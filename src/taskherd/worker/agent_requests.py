"""Load and save the requests of agents; a batch that does not concern any runs no statement here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.domain.agent_requests import (
    AgentRequestRecord,
    RequestAnswer,
    RequestLedger,
    question_for_text,
    restore,
    shown_state,
)
from taskherd.domain.commands import Answer, Send
from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import AgentRequest
from taskherd.domain.value import replace
from taskherd.messages.reports import decode_stored_report
from taskherd.observability.failpoints import Failpoint
from taskherd.store import agent_requests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from taskherd.domain.commands import Command
    from taskherd.domain.reports import Report
    from taskherd.domain.task import Task
    from taskherd.domain.updates import TaskUpdate
    from taskherd.store import AsyncConnection
    from taskherd.worker.context import WorkerContext


async def load_requests(
    connection: AsyncConnection,
    updates: Mapping[UUID, TaskUpdate],
    reports: Sequence[Report],
    commands: Sequence[Command],
) -> None:
    """Load the requests that reports, answers, and inputs to a question are about, of the tasks that exist."""
    keys = {
        (each.task_id, each.request_id) for each in (*reports, *commands) if isinstance(each, AgentRequest | Answer)
    }
    for command in commands:
        update = updates.get(command.task_id) if isinstance(command, Send) else None
        question = question_for_text(update.existing_task.state) if update else None
        if question is not None:
            keys.add((command.task_id, question.id))
    keys = {key for key in keys if key[0] in updates}
    if not keys:
        return
    for loaded in await agent_requests.load(connection, keys):
        update = updates[loaded.row.task_id]
        update.requests = update.requests or RequestLedger()
        record = update.requests.known[loaded.row.request_id] = _record(loaded)
        task = update.existing_task
        state = restore(task.state, record)
        if state is not task.state:
            update.task = replace(task, state=state)
    await _load_numbers(connection, updates, reports)


async def _load_numbers(
    connection: AsyncConnection, updates: Mapping[UUID, TaskUpdate], reports: Sequence[Report]
) -> None:
    """Load how many requests the builds have in which an agent opens a new one and fetches the answer itself."""
    tasks = set()
    for report in reports:
        if isinstance(report, AgentRequest) and report.pull and (update := updates.get(report.task_id)) is not None:
            update.requests = update.requests or RequestLedger()
            if report.request_id not in update.requests.known:
                tasks.add(report.task_id)
    for task_id, build_number, number in await agent_requests.numbers(connection, tasks) if tasks else ():
        ledger = updates[task_id].requests
        assert ledger is not None
        ledger.numbers[build_number] = number


async def save_requests(
    context: WorkerContext, connection: AsyncConnection, updates: Mapping[UUID, TaskUpdate]
) -> None:
    """Save the requests that a batch has changed, and how others show that it has not."""
    changed = [
        _row(update.existing_task, update.requests.known[request_id])
        for update in updates.values()
        if update.requests is not None
        for request_id in update.requests.changed
    ]
    shown = {
        (task_id, request_id): state
        for task_id, update in updates.items()
        for request_id, state in update.shown_requests.items()
    }
    if changed:
        await agent_requests.save(connection, changed)
    if shown:
        await agent_requests.show(connection, shown)
    if changed or shown:
        context.failpoint(Failpoint.AGENT_REQUESTS_SAVED)


def _record(loaded: agent_requests.LoadedRequest) -> AgentRequestRecord:
    row = loaded.row
    report = decode_stored_report(row.report, row.received_at)
    if not isinstance(report, AgentRequest):
        raise TypeError(report.type)
    answer = None
    if row.answered_at is not None:
        assert row.answered_by is not None
        assert row.answer_command_id is not None
        answer = RequestAnswer(
            row.answer_option_id,
            row.answer_text,
            row.answered_by,
            row.answered_at,
            row.answer_command_id,
            row.delivered_at,
            loaded.answered_by_name,
        )
    return AgentRequestRecord(report, row.since, row.received_at, answer)


def _row(task: Task, record: AgentRequestRecord) -> agent_requests.AgentRequestRow:
    report, answer = record.report, record.answer
    row = agent_requests.AgentRequestRow(
        task.id,
        report.request_id,
        task.organization_id,
        task.owner_id,
        report.sort_key[0],
        shown_state(task.state, record),
        canonical_json(report),
        record.since,
        record.received_at,
    )
    if answer is None:
        return row
    return row._replace(
        answer_option_id=answer.option_id,
        answer_text=answer.text,
        answered_by=answer.actor_id,
        answered_at=answer.at,
        answer_command_id=answer.command_id,
        delivered_at=answer.delivered_at,
    )
