"""Tasks for tests, each with texts of its own: a test that confuses two tasks must not pass."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from taskherd.domain import builds
from taskherd.domain.task import Task
from tests.harness.histories import NOON


def prompt_of(task_id: UUID) -> str:
    """Return the prompt that a task has in tests unless they choose another."""
    return f"Fix the flaky test {task_id.hex[-12:]}"


def make_task(task_id: UUID, **fields: Any) -> Task:
    """Make a task at version 1, created at noon and in its initial state, except for ``fields``.

    This is the only place in the tests that names every field of a task.
    """
    defaults: dict[str, Any] = {
        "owner_id": UUID(int=1),
        "organization_id": UUID(int=2),
        "template_id": UUID(int=3),
        "template_version_id": UUID(int=4),
        "preset_id": None,
        "name": f"task-{task_id.hex[-12:]}",
        "display_name": f"Task {task_id.hex[-12:]}",
        "prompt": prompt_of(task_id),
        "prompt_version": 1,
        "created_at": NOON,
        "updated_at": NOON,
        "version": 1,
        "deleted_at": None,
        "state": builds.initial_state(task_id, NOON),
    }
    return Task(id=task_id, **{**defaults, **fields})
