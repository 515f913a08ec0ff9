"""Write the rows that belong to tasks: user inputs, log entries, work requests and parked reports."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from taskherd.domain import fold
from taskherd.domain.claims import ClaimOutcome
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.report_json import canonical_json
from taskherd.store import build_claims, inputs, logs, parked_reports, work_requests
from taskherd.store.work_request_details import WorkRequestDetails
from taskherd.store.work_requests import WorkRequestRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from taskherd.domain.claims import BuildClaim, ClaimDecision
    from taskherd.domain.updates import TaskUpdate
    from taskherd.store import AsyncConnection
    from taskherd.worker.batch import ParkingChanges
    from taskherd.worker.directory_cache import DirectoryEntries


async def save_inbox(connection: AsyncConnection, updates: Mapping[UUID, TaskUpdate], now: datetime) -> None:
    """Append new user inputs, record outcomes, fail the open ones of deleted tasks, and mark others queued or sent."""
    new = [(task_id, item) for task_id, update in updates.items() for item in update.new_inputs]
    if new:
        rows = [
            inputs.NewInput(item.input_id, task_id, item.content, now, item.actor_id, item.steers)
            for task_id, item in new
        ]
        await inputs.append(connection, rows)
    decided = [(task_id, report) for task_id, update in updates.items() for report in update.input_outcomes]
    if decided:
        outcomes = [
            inputs.InputOutcomeRow(report.input_id, task_id, report.outcome.value, now, report.detail)
            for task_id, report in decided
        ]
        await inputs.record_outcomes(connection, outcomes)
    failed = [task_id for task_id, update in updates.items() if update.inputs_failed]
    if failed:
        await inputs.fail_all(connection, failed, now, "The task was deleted.")
    requeued = [update.requeued_input for update in updates.values() if update.requeued_input]
    if requeued:
        await inputs.requeue(connection, requeued)
    sent = [update.sent_input for update in updates.values() if update.sent_input]
    if sent:
        await inputs.mark_sent(connection, sent, now)


async def save_logs(
    connection: AsyncConnection, updates: Mapping[UUID, TaskUpdate], limits: logs.LogLimits, now: datetime
) -> None:
    """Append the reported log entries, in order; a log that is full says how many were left out."""
    entries = [
        logs.LogEntryRow(
            report.task_id,
            report.sort_key[0],
            entry.id,
            report.seq,
            entry.type.value,
            entry.content,
            entry.time,
            entry.kind,
            entry.title,
            entry.status,
            entry.data,
        )
        for update in updates.values()
        for report in update.logs
        for entry in report.entries
    ]
    if entries:
        for full in (await logs.append(connection, entries, now, limits)).full:
            number = updates[full.task_id].existing_task.state.build_number
            await logs.write_notice(connection, full, number, _full_notice(full, limits), now)


def _full_notice(full: logs.FullLog, limits: logs.LogLimits) -> str:
    since = full.omitted_since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        f"taskherd: this log is full. {full.omitted_entries} entries with {full.omitted_bytes} bytes were left out "
        f"since {since}. The limit is {limits.max_entries} entries and {limits.max_bytes} bytes."
    )


async def close_requests(connection: AsyncConnection, updates: Mapping[UUID, TaskUpdate]) -> None:
    """Delete the work requests that were answered, timed out or are no longer needed."""
    closed = [(task_id, number) for task_id, update in updates.items() for number in update.closed_requests]
    if closed:
        await work_requests.delete_of_builds(connection, closed)
    decided = [(task_id, report.input_id) for task_id, update in updates.items() for report in update.input_outcomes]
    decided += [(task_id, update.requeued_input) for task_id, update in updates.items() if update.requeued_input]
    if decided:
        await work_requests.delete_of_inputs(connection, decided)
    interrupts = [(task_id, each.closed_interrupt) for task_id, each in updates.items() if each.closed_interrupt]
    if interrupts:
        await work_requests.delete_of_interrupts(connection, interrupts)
    answers = [(task_id, each) for task_id, update in updates.items() for each in update.closed_answers]
    if answers:
        await work_requests.delete_of_answers(connection, answers)
    failed = [task_id for task_id, update in updates.items() if update.inputs_failed]
    if failed:
        open_requests = await work_requests.of_tasks(connection, failed)
        await work_requests.delete(connection, [row.request_id for row in open_requests if row.input_id is not None])


def new_requests(updates: Mapping[UUID, TaskUpdate], now: datetime) -> list[WorkRequestRow]:
    """Return the work requests of requested builds, of inputs and answers that are sent now, and of new interrupts."""
    return [
        row
        for update in updates.values()
        if update.requested_builds or update.sent_input or update.opened_interrupt or update.opened_answers
        for row in _requests_of(update, now)
    ]


def request_details(update: TaskUpdate, entries: DirectoryEntries) -> WorkRequestDetails | None:
    """Return the details of a new task for its work requests; None for tasks that existed."""
    task = update.task
    if update.before is not None or task is None:
        return None
    version = entries.versions[task.template_version_id]
    preset = version.presets[task.preset_id] if task.preset_id else None
    return WorkRequestDetails(
        task_id=task.id,
        task_name=task.name,
        owner_id=task.owner_id,
        owner_username=entries.owners[task.owner_id].username,
        template_version_id=task.template_version_id,
        prompt=task.prompt,
        run=dict(version.run),
        preset_id=task.preset_id,
        preset_name=preset.name if preset else None,
        preset_parameters=preset.parameters if preset else None,
    )


def _requests_of(update: TaskUpdate, now: datetime) -> list[WorkRequestRow]:
    task = update.existing_task
    runner = task.state.runner.report.runner if task.state.runner else None

    def request(request_id: UUID, number: int, kind: str, input_id: UUID | None) -> WorkRequestRow:
        return WorkRequestRow(request_id, task.id, number, kind, input_id, runner, 0, now, now, None)

    rows = [
        request(
            uuid5(task.id, f"request/{number}"), number, f"workspace.{task.state.requested_builds[number].value}", None
        )
        for number in update.requested_builds
    ]
    if update.sent_input:
        rows.append(request(update.sent_input, task.state.build_number, "agent.input", update.sent_input))
    if update.opened_interrupt:  # its id may also be that of an input, and so of that one's request
        interrupt = uuid5(task.id, f"interrupt/{update.opened_interrupt}")
        row = request(interrupt, task.state.build_number, "agent.interrupt", None)
        rows.append(replace(row, interrupt_id=update.opened_interrupt))
    for request_id, build_runner in update.opened_answers.items():  # an agent chose its id
        row = request(uuid5(task.id, f"answer/{request_id}"), task.state.build_number, "agent.answer", None)
        rows.append(replace(row, agent_request_id=request_id, target_runner=build_runner))
    return rows


async def save_claims(
    connection: AsyncConnection,
    claims: Sequence[BuildClaim],
    decisions: Sequence[ClaimDecision | DeadLetterReason],
    now: datetime,
) -> None:
    """Save the claims that were granted for the first time; of one task there is at most one in a batch."""
    granted = [
        claim
        for claim, decision in zip(claims, decisions, strict=True)
        if not isinstance(decision, DeadLetterReason) and decision.outcome is ClaimOutcome.GRANTED
    ]
    if granted:
        await build_claims.save(connection, granted, now)


async def save_parking(
    connection: AsyncConnection, parking: ParkingChanges, now: datetime, max_per_task: int
) -> list[int]:
    """Park new reports, delete the folded ones, and return the indexes of reports beyond ``max_per_task``."""
    if parking.folded:
        await parked_reports.delete(connection, parking.folded)
    if not parking.new:
        return []
    reports = [fold.with_build_number(report, None) for report in parking.new.values()]
    rows = [parked_reports.ReportToPark(report.task_id, now, canonical_json(report)) for report in reports]
    overflow = set(await parked_reports.park(connection, rows, max_per_task))
    return [index for row_number, index in enumerate(parking.new) if row_number in overflow]
