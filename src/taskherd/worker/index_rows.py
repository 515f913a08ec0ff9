"""What the index of the tasks should have of a task after a batch, if that has changed."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from taskherd.domain.directory import OTHER
from taskherd.messages import events, listing
from taskherd.store.task_index import INDEX_RESOLUTION, IndexedTask

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from taskherd.domain.task import Task
    from taskherd.domain.updates import TaskUpdate
    from taskherd.worker.batch import CommittedChange
    from taskherd.worker.load import LoadedBatch


_RESOLUTION: Final = INDEX_RESOLUTION.total_seconds()


class Documents(NamedTuple):
    """The core documents of a task before and after a batch, as JSON types."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]


def changed_index(
    loaded: LoadedBatch, update: TaskUpdate, documents: Documents, change: CommittedChange | None
) -> IndexedTask | None:
    """Return what the index should have of a task, or None if it has that already.

    Args:
        loaded: the batch of the task.
        update: the task, as it is saved.
        documents: its documents; before is empty unless ``change`` is an update.
        change: the change that readers see, if there is one.
    """
    before, task = update.before, update.existing_task
    if before is None:
        return _indexed(loaded, task, documents.after)
    if change is None:
        unseen = before.deleted_at is None and _runner(before) != _runner(task)
        return _indexed(loaded, task, documents.after) if unseen else None
    if change.kind is events.EventKind.DELETED:
        return _indexed(loaded, task, documents.after)
    aged = _interval(before.updated_at) != _interval(task.updated_at)
    if aged or _runner(before) != _runner(task) or _is_listed_anew(documents, change):
        return _indexed(loaded, task, documents.after)
    return None


def _is_listed_anew(documents: Documents, change: CommittedChange) -> bool:
    """Return whether the listing or the labels of a task have changed; a message of its agent alone changes neither."""
    changed = listing.FIELDS.intersection(change.changes)
    if not changed:
        return False
    if "labels" in changed:
        return True
    if len(changed) == 1 and "current_state" in changed:
        return listing.state(documents.before) != listing.state(documents.after)
    return listing.listing(documents.before) != listing.listing(documents.after)


def _interval(time: datetime) -> int:
    return int(time.timestamp() // _RESOLUTION)


def _runner(task: Task) -> str | None:
    return task.state.runner.report.runner if task.state.runner else None


def _indexed(loaded: LoadedBatch, task: Task, document: Mapping[str, Any]) -> IndexedTask:
    version = loaded.entries.versions.get(task.template_version_id)
    if version is None:
        pool = loaded.template_pools.get(task.template_version_id, OTHER).pool
    else:
        pool = str(version.run.get("pool") or "default")
    return IndexedTask(
        task.id,
        task.organization_id,
        task.owner_id,
        task.template_id,
        pool,
        *listing.listing(document),
        task.created_at,
        task.updated_at,
        _terms(_runner(task), document.get("labels")),
        deleted=task.deleted_at is not None,
    )


def _terms(runner: str | None, labels: Mapping[str, str] | None) -> str:
    return _encoded_terms(runner) if not labels else orjson.dumps(listing.terms(runner, labels)).decode()


@lru_cache(maxsize=256)
def _encoded_terms(runner: str | None) -> str:
    """Return the terms of a task without labels; cached, since runners have many tasks."""
    return orjson.dumps(listing.terms(runner, {})).decode()
