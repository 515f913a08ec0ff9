"""Which build a task needs next: asking for one, and carrying an accepted delete to its end."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.domain.reports import JobStatus, Transition
from taskherd.domain.task import ASKED_KEPT, BUILD_MOST, Deletion, Memory, ask
from taskherd.domain.value import replace

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from taskherd.backoff import Backoff


def first(task_id: UUID, now: datetime) -> Memory:
    """The memory of a task that was just created: its first build, a start, is asked for."""
    held, number = ask(task_id, None, Transition.START, now)
    return Memory(build=held, asked={number: Transition.START}, unanswered=number)


def exhausted(memory: Memory) -> bool:
    """Whether no build number is left to ask under."""
    return memory.number >= BUILD_MOST


def request(task_id: UUID, memory: Memory, transition: Transition, now: datetime) -> Memory:
    """The memory after asking for the next build."""
    held, number = ask(task_id, memory, transition, now)
    asked = {**memory.asked, number: transition}
    if len(asked) > ASKED_KEPT:
        del asked[min(asked)]
    return replace(memory, build=held, asked=asked, unanswered=number)


def pursue_delete(task_id: UUID, memory: Memory, now: datetime, backoff: Backoff) -> Memory:
    """The memory of a deleted task one step on: its delete asked for, waited for, retried or done.

    A delete begins when no other build is active. One that failed or was given up is asked for again, after a backoff,
    under the next number.
    """
    deletion = memory.deletion
    if deletion is None or deletion.done or memory.active:
        return memory
    deleting = memory.build.report.transition is Transition.DELETE
    if deleting and memory.job is JobStatus.SUCCEEDED:
        return replace(memory, deletion=Deletion(deletion.attempts, None, done=True))
    if exhausted(memory):
        return memory
    if deletion.attempts == 0 or (deletion.retry_at is not None and now >= deletion.retry_at):
        after = request(task_id, memory, Transition.DELETE, now)
        return replace(after, deletion=Deletion(deletion.attempts + 1))
    if deletion.retry_at is None:
        return replace(
            memory, deletion=replace(deletion, retry_at=now + timedelta(seconds=backoff.longest(deletion.attempts)))
        )
    return memory
