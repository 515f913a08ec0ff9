"""How many functions a report calls, which is most of what it costs a worker and does not depend on the machine."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import orjson
import pytest

from taskherd.domain.reports import AgentState, JobStatus
from taskherd.domain.task_update import due_at
from taskherd.domain.updates import TaskUpdate
from taskherd.domain.view import derive_view
from taskherd.messages import document
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.reports import decode_reports
from taskherd.messages.run_policy import default_policy
from taskherd.store import tasks
from taskherd.worker.batch import Batch
from taskherd.worker.reconcile import fold_batch
from taskherd.worker.save import derive_writes
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, folded, heartbeat, lifecycle, status, timeouts
from tests.pure.test_reconcile import loaded, result

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from taskherd.domain.reports import Report

NOW = NOON + timedelta(seconds=20)


def calls(function: Callable[[], object]) -> int:
    """Return how many of taskherd's functions a call of this one calls, constructors included."""
    count = 0

    def note(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        is_ours = frame.f_globals.get("__name__", "").startswith("taskherd.")
        count += event == "call" and is_ours and not frame.f_code.co_name.startswith("<")  # comprehensions

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def stored_row() -> tasks.StoredTask:
    """Return the row of a task whose agent is at work."""
    core = unchanged_core()
    reports: list[Report] = [
        build(1, 0, JobStatus.SUCCEEDED),
        lifecycle(),
        heartbeat(),
        status(AgentState.WORKING, message="Reading"),
    ]
    task = make_task(TASK, state=folded(core, reports))
    view = derive_view(task.state, task.name)
    text = orjson.dumps(document.core_document(view, task)).decode()
    due = due_at(task.state, None, NOON, timeouts(core), default_policy(1800))
    return tasks.StoredTask(task, view.status.value, text, due)


def process(body: bytes, row: tasks.StoredTask) -> list[tasks.StoredTask]:
    """Do what a worker does with a report of a stored task, without the database; return what is saved."""
    [element] = decode_reports(body, NOW)
    assert not isinstance(element, InvalidMessage)
    batch = Batch([element.report])
    loaded_batch = loaded(batch)
    loaded_batch.rows[TASK] = row
    loaded_batch.updates[TASK] = TaskUpdate(row.task, row.task, core_document=row.document)
    fold_batch(loaded_batch, [0], result(batch))
    writes = derive_writes(loaded_batch, loaded_batch.update_context.timeouts, NOW)
    tasks.save_parameters(writes.saved, [], writes.indexed)
    return writes.saved


@pytest.mark.parametrize(("state", "most"), [("working", 190), ("idle", 197)])
def test_a_status_calls_few_functions(state: str, most: int) -> None:
    """One with another message, and one with another state. Raise a bound only for what is worth it to every report."""
    body = orjson.dumps({"type": "app.status", "task_id": str(TASK), "state": state, "message": "Writing", "seq": 1})
    row = stored_row()
    [saved] = process(body, row)  # fills the caches
    assert saved.document != row.document
    assert calls(lambda: process(body, row)) <= most
