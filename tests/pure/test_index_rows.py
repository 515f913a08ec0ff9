"""When the index of the tasks changes with a task, and what it has of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest

from taskherd.domain.directory import TemplatePool
from taskherd.domain.reports import AgentState, JobStatus
from taskherd.domain.task import Task
from taskherd.domain.updates import TaskUpdate
from taskherd.domain.value import replace
from taskherd.domain.view import derive_view
from taskherd.messages import document
from taskherd.messages.events import EventKind
from taskherd.store.directory import TemplateVersion
from taskherd.store.task_index import IndexedTask
from taskherd.worker.batch import Batch, CommittedChange
from taskherd.worker.directory_cache import NO_ENTRIES, DirectoryEntries
from taskherd.worker.index_rows import Documents, changed_index
from taskherd.worker.load import LoadedBatch
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, disconnected, folded, heartbeat, lifecycle, status
from tests.pure.domain.test_task_update import context

VERSION, MINUTE = UUID(int=4), timedelta(minutes=1)
ACTIVE = (build(job=JobStatus.SUCCEEDED), lifecycle(), heartbeat(seq=1))


def task_of(*reports: Any, at: datetime = NOON, **fields: Any) -> Task:
    """Return a task after these reports, of which the last came at this time."""
    return make_task(TASK, state=folded(unchanged_core(), reports), updated_at=at, **fields)


WORKING = task_of(*ACTIVE, status(AgentState.WORKING, message="Reading"))


def core(task: Task) -> dict[str, Any]:
    """Return a task's core document."""
    return document.core_document(derive_view(task.state, task.name), task)


def indexed(
    before: Task | None, after: Task, entries: DirectoryEntries = NO_ENTRIES, kind: EventKind = EventKind.UPDATED
) -> IndexedTask | None:
    """Return what the index is to have of a task after a batch, None if it has that already."""
    loaded = LoadedBatch(
        batch=Batch(),
        rows={},
        updates={},
        update_context=context(),
        lease_checked=frozenset(),
        leases={},
        parked={},
        recorded_replies={},
        claims={},
        template_pools={VERSION: TemplatePool("claude", "gpu")},
        entries=entries,
    )
    documents = Documents({} if before is None else core(before), core(after))
    names = () if before is None else document.changed_fields(documents.before, documents.after)
    change = CommittedChange(after, kind, orjson.dumps(documents.after).decode(), names, "{}")
    is_seen = before is None or kind is EventKind.DELETED or bool(names)
    return changed_index(loaded, TaskUpdate(before, after), documents, change if is_seen else None)


def labeled(task: Task, **labels: str) -> Task:
    """Return the task with these labels."""
    return replace(task, state=replace(task.state, labels=labels))


def on_runner(task: Task, runner: str) -> Task:
    """Return the task after its build's report named this runner."""
    named = folded(unchanged_core(), [build(job=JobStatus.SUCCEEDED, runner=runner)])
    return replace(task, state=replace(task.state, runner=named.runner))


def test_what_the_index_has_of_a_task() -> None:
    """Who may see it, what lists select it by, and its terms."""
    task = labeled(on_runner(replace(WORKING, updated_at=NOON + MINUTE), "R1"), repo="acme/app")
    assert indexed(None, task) == IndexedTask(
        TASK, UUID(int=2), UUID(int=1), UUID(int=3), "gpu", "active", "working", "healthy",
        waiting=False, stalled=False, created_at=NOON, changed_at=NOON + MINUTE,
        terms='["label:repo=acme/app","runner:r1"]', deleted=False,
    )  # fmt: skip
    bare = indexed(None, task_of(build()))
    assert bare is not None
    assert bare.terms == "[]"
    unlabeled = indexed(None, on_runner(WORKING, "R1"))
    assert unlabeled is not None
    assert unlabeled.terms == '["runner:r1"]'


@pytest.mark.parametrize(("run", "pool"), [({"pool": "arm"}, "arm"), ({}, "default"), ({"pool": ""}, "default")])
def test_a_new_task_is_in_the_pool_of_its_template(run: dict[str, str], pool: str) -> None:
    """Which the batch has read, whatever was known of it before."""
    version = TemplateVersion(VERSION, UUID(int=3), UUID(int=2), "v1", run, usable=True, presets={})
    found = indexed(None, WORKING, DirectoryEntries({}, {VERSION: version}))
    assert found is not None
    assert found.pool == pool


def test_a_task_of_an_unknown_template_is_in_another_pool() -> None:
    """As metrics name it."""
    found = indexed(None, replace(WORKING, template_version_id=UUID(int=99)))
    assert found is not None
    assert found.pool == "other"


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        (task_of(*ACTIVE, status(AgentState.WORKING, message="Writing")), False),
        (task_of(*ACTIVE, status(AgentState.WORKING, message="Writing"), at=NOON + MINUTE), True),
        (
            task_of(*ACTIVE, status(AgentState.WORKING, message="Writing"), at=NOON + MINUTE - timedelta.resolution),
            False,
        ),
        (task_of(*ACTIVE, status(AgentState.IDLE, message="Reading")), True),
        (task_of(*ACTIVE, status(AgentState.IDLE, message="Reading"), deleted_at=None, display_name="Mine"), True),
        (replace(WORKING, display_name="Mine"), False),
        (labeled(WORKING, repo="acme/app"), True),
        (on_runner(WORKING, "r1"), True),
        (replace(on_runner(WORKING, "r1"), display_name="Mine"), True),
        (task_of(build(job=JobStatus.FAILED)), True),
        (task_of(*ACTIVE, disconnected(seq=2), status(AgentState.WORKING, message="Writing")), True),
        (WORKING, False),
    ],
)
def test_the_index_changes_with_what_lists_select_by(after: Task, *, changes: bool) -> None:
    """Not with a message of an agent alone, but for the time of the last change, to the minute."""
    assert (indexed(WORKING, after) is not None) is changes


def test_a_deleted_task_leaves_the_index() -> None:
    """Once, whatever its runner reports later."""
    deleted = replace(WORKING, deleted_at=NOON)
    found = indexed(WORKING, deleted, kind=EventKind.DELETED)
    assert found is not None
    assert found.deleted
    assert indexed(deleted, on_runner(deleted, "r1")) is None
    kept = indexed(None, WORKING)
    assert kept is not None
    assert not kept.deleted
