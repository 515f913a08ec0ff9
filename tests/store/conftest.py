"""An engine on a migrated database of the test's own, and rows to put into it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store.engine import dispose, open_engine
from taskherd.store.tasks import EventRow, SavedTask, TaskRow

NOW = datetime.now(UTC).replace(microsecond=123456)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine of ten connections."""
    opened = open_engine(database_url, size=10, application_name="taskherd-tests")
    yield opened
    await dispose(opened)


def task_row(task_id: UUID | None = None, owner_id: UUID | None = None, name: str | None = None) -> TaskRow:
    """A new task at version 1."""
    return TaskRow(
        id=task_id or uuid4(),
        owner_id=owner_id or uuid4(),
        organization_id=uuid4(),
        template_id=uuid4(),
        template_version_id=uuid4(),
        preset_id=None,
        name=name or f"task-{uuid4().hex[:12]}",
        display_name="A task",
        created_at=NOW,
        version=1,
        updated_at=NOW,
        deleted_at=None,
        status="pending",
        document='{"status":"pending"}',
        memory='{"builds":[]}',
        due_at=NOW,
        prompt_version=1,
        prompt="Do it.",
    )


def saved(row: TaskRow, version: int, *, due_at: datetime | None = NOW, due_moved: bool = False) -> SavedTask:
    """The task at another version."""
    document = f'{{"status":"active","version":{version}}}'
    return SavedTask(
        id=row.id,
        version=version,
        updated_at=NOW,
        deleted_at=None,
        status="active",
        document=document,
        memory=row.memory,
        due_at=due_at,
        prompt_version=row.prompt_version,
        due_moved=due_moved,
    )


def event(task_id: UUID, version: int) -> EventRow:
    """The change that made this version."""
    return EventRow(
        task_id=task_id,
        version=version,
        occurred_at=NOW,
        kind="created" if version == 1 else "updated",
        document='{"status":"active"}',
        changes=("status", "current_state"),
        cause='{"kind":"report","type":"app.status"}',
        prompt_version=1,
    )
