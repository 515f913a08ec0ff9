"""What a folded batch writes of each task: its row, its next timer check, its lease and whether it runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import orjson
import pytest

from taskherd.domain.lease import Lease, lease_of
from taskherd.domain.reports import AgentState, JobStatus, Lifecycle, Transition
from taskherd.domain.task import Task
from taskherd.domain.updates import Cause, TaskUpdate, TimerCheck
from taskherd.domain.value import replace
from taskherd.domain.view import derive_view
from taskherd.messages import document
from taskherd.messages.document import Ending
from taskherd.messages.events import EventKind
from taskherd.store.tasks import StoredTask
from taskherd.worker.batch import Batch
from taskherd.worker.load import LoadedBatch
from taskherd.worker.save import Writes, derive_writes
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, disconnected, folded, heartbeat, lifecycle, status, timeouts
from tests.pure.domain.test_task_update import context

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
DUE = NOON + 10 * MINUTE
"""When a task whose start no runner has picked up is due."""


def state(*reports: Any) -> Any:
    """Return the state of a task after these reports."""
    return folded(unchanged_core(), reports)


STARTING, RUNNING = state(), state(build())
STARTED = state(build(job=JobStatus.SUCCEEDED), lifecycle(Lifecycle.READY))
ACTIVE = state(build(job=JobStatus.SUCCEEDED), lifecycle(Lifecycle.READY), heartbeat(seq=1))
FAILED = state(build(job=JobStatus.FAILED))
LEFT = state(build(job=JobStatus.SUCCEEDED), lifecycle(Lifecycle.READY), disconnected(seq=2))
STOPPING = state(build(2, transition=Transition.STOP))
PAUSED = state(build(2, transition=Transition.STOP, job=JobStatus.SUCCEEDED))


@dataclass
class Derived:
    """The writes of a batch of one task."""

    writes: Writes
    update: TaskUpdate

    @property
    def row(self) -> StoredTask:
        """The row of the task."""
        (row,) = [*self.writes.created, *self.writes.saved]
        return row


def core_document(task: Task) -> str:
    """Return the stored part of a task's document."""
    return orjson.dumps(document.core_document(derive_view(task.state, task.name), task)).decode()


def derive(
    before: Task | None, after: Task | None, due_at: datetime | None = DUE, check: TimerCheck | None = None,
    *, lease: Lease | None = None, cause: Cause | None = None,
) -> Derived:  # fmt: skip
    """Return what is written of a task that was before, with this time of its next check, and is after the batch."""
    update = TaskUpdate(before, after, core_document="" if before is None else core_document(before), cause=cause)
    rows = {} if before is None else {TASK: StoredTask(before, "active", update.core_document, due_at)}
    loaded = LoadedBatch(
        batch=Batch(timer_checks={} if check is None else {TASK: check}),
        rows=rows,
        updates={TASK: update},
        update_context=context(),
        lease_checked=frozenset({TASK}),
        leases={} if lease is None else {TASK: lease},
        parked={},
        recorded_replies={},
        claims={},
        template_pools={},
    )
    return Derived(derive_writes(loaded, timeouts(unchanged_core()), NOON), update)


def task_of(task_state: Any, **fields: Any) -> Task:
    """Return a task in this state."""
    return make_task(TASK, state=task_state, **fields)


def unseen(task: Task) -> Task:
    """Return the task with a change that nobody sees."""
    return replace(task, state=replace(task.state, requested_builds={1: Transition.START}))


CHECK = TimerCheck(None)


def test_a_task_that_did_not_change_is_not_written() -> None:
    """Unless it was checked, so that it is not found due again at once; nor is one that a batch only asked for."""
    task = task_of(STARTING)
    assert derive(task, task).writes == Writes()
    assert derive(None, None).writes == Writes()
    assert derive(task, task, NOON - SECOND, CHECK).writes == Writes(deadlines={TASK: DUE})
    paused = task_of(PAUSED)
    assert derive(paused, paused, NOON - SECOND, CHECK).writes == Writes(deadlines={TASK: None})


@pytest.mark.parametrize(
    ("stored", "expected", "changed"),
    [
        (DUE, DUE, False),
        (DUE - MINUTE, DUE - MINUTE, False),
        (DUE + MINUTE, DUE, True),
        (NOON + timedelta.resolution, NOON + timedelta.resolution, False),
        (NOON, DUE, True),
        (NOON - MINUTE, DUE, True),
        (None, DUE, True),
    ],
)
def test_a_check_that_comes_earlier_than_necessary_is_not_moved(
    stored: datetime | None, expected: datetime, *, changed: bool
) -> None:
    """It moves itself when it comes; else each report would write it. One that is due or comes too late is moved."""
    task = task_of(STARTING)
    row = derive(task, unseen(task), stored).row
    assert (row.due_at, row.due_changed) == (expected, changed)


@pytest.mark.parametrize(("stored", "expected"), [(DUE, DUE), (NOON, None), (None, None)])
def test_a_check_that_is_no_longer_necessary_comes_all_the_same(
    stored: datetime | None, expected: datetime | None
) -> None:
    """It finds nothing, and none follows."""
    before = task_of(RUNNING)
    row = derive(before, task_of(PAUSED), stored).row
    assert (row.due_at, row.due_changed) == (expected, expected != stored)


def test_the_next_check_of_a_checked_a_new_or_a_deleted_task_is_set() -> None:
    """Whatever time is stored."""
    task = task_of(STARTING)
    assert derive(task, unseen(task), DUE - MINUTE, CHECK).row[3:] == (DUE, True)
    assert derive(task, unseen(task), DUE, CHECK).row[3:] == (DUE, True)
    assert derive(None, task).row[3:] == (DUE, True)
    assert derive(task, replace(task, deleted_at=NOON), DUE - MINUTE).row[3:] == (DUE, True)


def test_what_was_checked_by_the_watermark_is_due_by_it() -> None:
    """Silence is measured from there on."""
    task = task_of(STARTING)
    assert derive(task, unseen(task), NOON, TimerCheck(NOON + SECOND)).row.due_at == DUE + SECOND


def test_a_task_is_created_or_saved() -> None:
    """With its status and the text of its document."""
    task = task_of(STARTING)
    created = derive(None, task)
    assert (created.writes.saved, created.row.status) == ([], "pending")
    assert created.row.document == created.update.core_document == core_document(task)
    (change,) = created.writes.changes
    assert (change.kind, change.task.version, change.task.state.state_since) == (EventKind.CREATED, 1, NOON)
    saved = derive(task, task_of(RUNNING))
    assert (saved.writes.created, saved.row.status) == ([], "initializing")
    (change,) = saved.writes.changes
    assert (change.kind, change.task.version, change.task) == (EventKind.UPDATED, 2, saved.row.task)
    deleted = derive(task, replace(task, deleted_at=NOON))
    (change,) = deleted.writes.changes
    assert (change.kind, change.task.version, change.changes) == (EventKind.DELETED, 2, ())
    assert derive(replace(task, deleted_at=NOON), replace(task_of(RUNNING), deleted_at=NOON)).writes.changes == []
    assert derive(task, unseen(task)).writes.changes == []


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (None, {"kind": "sweep", "type": "task.looked_at"}),
        (Cause("report", "workspace.build"), {"kind": "report", "type": "workspace.build"}),
        (
            Cause("command", "task.pause", UUID(int=6)),
            {"kind": "command", "type": "task.pause", "id": str(UUID(int=6))},
        ),
        (
            Cause("command", "task.pause", None, UUID(int=14)),
            {"kind": "command", "type": "task.pause", "actor_id": str(UUID(int=14))},
        ),
        (
            Cause("command", "task.pause", None, UUID(int=15)),
            {"kind": "command", "type": "task.pause", "actor_id": str(UUID(int=15))},
        ),
        (
            Cause("report", "agent.request", UUID(int=7), None, "open", "Which?", "core"),
            {
                "kind": "report", "type": "agent.request", "id": str(UUID(int=7)), "outcome": "open",
                "request": "Which?", "answer": "core",
            },
        ),
    ],
)  # fmt: skip
def test_a_change_names_its_cause(cause: Cause | None, expected: dict[str, str]) -> None:
    """Without what is not known of it; the same cause twice is the same text."""
    before, after = task_of(STARTING), task_of(RUNNING)
    for _ in range(2):
        (change,) = derive(before, after, cause=cause).writes.changes
        assert orjson.loads(change.cause) == expected


def test_a_task_ends_once() -> None:
    """A further change of one that has completed or failed is no ending, nor is one that goes on."""
    working, complete, failed = (
        task_of(state(build(job=JobStatus.SUCCEEDED), status(each, message=each.value)))
        for each in (AgentState.WORKING, AgentState.COMPLETE, AgentState.FAILED)
    )
    again = replace(complete, display_name="Another name")

    def endings(*tasks: Task) -> list[Ending | None]:
        return [change.ending for pair in pairwise(tasks) for change in derive(*pair).writes.changes]

    assert endings(working, complete, again, failed, working) == [Ending.COMPLETED, None, Ending.FAILED, None]


@pytest.mark.parametrize(
    ("before", "after", "runs"),
    [
        (None, STARTING, True),
        (None, FAILED, None),
        (STARTING, RUNNING, None),
        (RUNNING, ACTIVE, None),
        (RUNNING, FAILED, False),
        (ACTIVE, STOPPING, False),
        (STOPPING, PAUSED, None),
        (FAILED, PAUSED, None),
        (PAUSED, RUNNING, True),
        (ACTIVE, LEFT, False),
    ],
)
def test_what_counts_as_running_is_noted_when_it_starts_and_ends(before: Any, after: Any, *, runs: bool | None) -> None:
    """And not with each change of a task that goes on or stays as it is."""
    writes = derive(None if before is None else task_of(before), task_of(after)).writes
    assert writes.started == ([(TASK, UUID(int=1))] if runs else [])
    assert writes.ended == ([TASK] if runs is False else [])


@pytest.mark.parametrize("before", [ACTIVE, PAUSED])
def test_the_delete_of_a_task_ends_it(before: Any) -> None:
    """Also if it does not run, so that nothing is left of it; once."""
    task = task_of(before)
    deleted = replace(task, deleted_at=NOON)
    assert derive(task, deleted).writes.ended == [TASK]
    assert derive(deleted, replace(deleted, state=STOPPING)).writes.ended == []


def test_a_task_that_is_steady_has_a_lease() -> None:
    """One that no longer is, or is deleted, loses it; what a batch only asked for has none."""
    active, left = task_of(ACTIVE), task_of(LEFT)
    writes = derive(task_of(STARTED), active).writes
    assert ([lease.task_id for lease in writes.leases], writes.ended_leases) == ([TASK], [])
    lease = lease_of(TASK, ACTIVE)
    assert lease is not None
    kept = derive(active, unseen(active), lease=lease).writes
    assert (kept.leases, kept.ended_leases) == ([], [])
    renewed = derive(active, unseen(active), lease=replace(lease, seq=0)).writes
    assert (renewed.leases, renewed.ended_leases) == ([lease], [])
    for after in (left, replace(active, deleted_at=NOON)):
        ended = derive(active, after, lease=lease).writes
        assert (ended.leases, ended.ended_leases) == ([], [TASK])
    assert derive(None, None).writes.leases == []
