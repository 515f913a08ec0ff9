"""The maximum number of running tasks of one user: what counts as running, and who is refused."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from tests.harness.worker import (
    ALICE,
    WorkerHarness,
    bring_to_status,
    build_report,
    make_command,
    make_create,
    make_report,
    running_worker,
)
from tests.worker.conftest import StartWorker

BOB = uuid.UUID(int=0xA7)
BOB_JOINS = f"""
INSERT INTO users (id, username, name, email, avatar_url) VALUES ('{BOB}', 'bob', 'Bob', 'bob@example.com', '');
INSERT INTO memberships (user_id, organization_id, role) SELECT '{BOB}', organization_id, 'member' FROM memberships;
"""


def refusal(most: int) -> dict[str, Any]:
    """Return the error of a start beyond the maximum."""
    detail = (
        f"The owner may have {most} running tasks. Pause or delete one, or wait until its agent has ended, then try"
    )
    return {"status": 409, "message": "Too many tasks are running.", "detail": f"{detail} again."}


@pytest.mark.parametrize("ends_by", ["pause", "delete", "failed build", "exit"])
async def test_a_task_that_ends_makes_room(start_worker: StartWorker, ends_by: str) -> None:
    """A pause, a delete, a failed start and an agent that ended make room for a create; a resume needs room too."""
    async with start_worker(tasks_running_most=2) as harness:
        first = await harness.create(input="First of two")
        second = await harness.create(input="Second of two")
        await harness.make_active(second)
        assert await harness.refused_create() == refusal(2)
        if ends_by in {"pause", "delete"}:
            assert (await harness.command(f"task.{ends_by}", second))["ok"]
        elif ends_by == "failed build":
            await harness.report(build_report(first, 1, "start", "failed", error="No space left"))
            await harness.until(lambda: harness.document(first).get("status") == "error")
        else:
            await harness.report(make_report("agent.exit", second, build_number=1, why="exited", status=0))
            await harness.until(lambda: harness.document(second).get("agent_exit"))
        third = await harness.create(input="In the place of another")
        assert await harness.refused_create() == refusal(2)
        if ends_by == "exit":
            assert await harness.refused_command("task.resume", second) == refusal(2)
            assert (await harness.command("task.delete", third))["ok"]
            assert (await harness.command("task.resume", second))["ok"]
            assert await harness.refused_create() == refusal(2)


async def test_the_maximum_is_checked_last_and_by_owner(start_worker: StartWorker) -> None:
    """What is wrong with a create or a resume is said first; another user's tasks do not count."""
    async with start_worker(tasks_running_most=1) as harness:
        await harness.database.execute(BOB_JOINS)
        task_id = await harness.create(name="only-one")
        assert (await harness.refused_create(name="only-one"))["message"] == 'Workspace "only-one" already exists.'
        assert (await harness.refused_create(input=" "))["message"] == "Task input is required."
        build_active = "A workspace build is already active."
        assert (await harness.refused_command("task.resume", task_id))["message"] == build_active
        await harness.make_active(task_id)
        running = "Task workspace is already running."
        assert (await harness.refused_command("task.resume", task_id))["message"] == running
        assert await harness.refused_create() == refusal(1)
        await harness.create(owner_id=str(BOB))
        assert await harness.refused_create(owner_id=str(BOB)) == refusal(1)


async def test_concurrent_starts_cannot_pass_the_maximum(external: WorkerHarness) -> None:
    """Of creates and resumes that two workers take at the same time, exactly as many are accepted as there is room."""
    settings = {"tasks_running_most": 5}
    async with running_worker(external, **settings), running_worker(external, **settings):
        paused = [await bring_to_status(external, "paused") for _ in range(4)]
        commands = [make_command("task.resume", task_id) for task_id in paused]
        commands += [make_create() for _ in range(26)]
        replies = await asyncio.gather(*(external.send(each) for each in commands))
        assert sum(reply["ok"] for reply in replies) == 5
        assert all(reply["error"] == refusal(5) for reply in replies if not reply["ok"])
        assert await external.database.fetchval("SELECT count(*) FROM running_tasks") == 5


async def test_no_maximum(start_worker: StartWorker) -> None:
    """With 0 there is no maximum, and the running tasks are known nevertheless, for when there is one."""
    async with start_worker(tasks_running_most=0) as harness:
        for number in range(3):
            await harness.create(input=f"One of many {number}")
        assert await harness.database.fetchval("SELECT count(*) FROM running_tasks WHERE owner_id = $1", ALICE) == 3
