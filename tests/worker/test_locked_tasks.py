"""Batches with tasks whose rows somebody keeps locked: all their other messages are processed first."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
import pytest

from taskherd.worker.locked_tasks import RECHECK_EVERY, LockedTasks
from tests.harness.worker import TIMEOUT, WorkerHarness, make_command, make_create, make_report, running_worker
from tests.worker.test_command_batches import receive_together, replies_of


@asynccontextmanager
async def locked(
    external: WorkerHarness, *tasks: uuid.UUID, rows: str = "tasks WHERE id"
) -> AsyncIterator[asyncpg.Connection]:
    """Keep the rows of the tasks locked, or others of theirs; the connection may roll back earlier."""
    somebody = await asyncpg.connect(external.urls[0], timeout=30, command_timeout=30)
    try:
        await somebody.execute("BEGIN")
        await somebody.execute(f"SELECT FROM {rows} = ANY($1) FOR UPDATE", tasks)
        yield somebody
    finally:
        await somebody.close(timeout=30)


async def test_commands_for_locked_tasks_hold_up_none_of_their_batch(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others are answered; those for the locked tasks are executed in their order once the locks are gone."""
    async with running_worker(external):
        *stuck, other, another = [await external.create() for _ in range(5)]
    async with locked(external, *stuck) as somebody:
        pauses = [await external.post(make_command("task.pause", each)) for each in stuck]
        deletes = [await external.post(make_command("task.delete", each)) for each in stuck]
        first = [await external.post(make_command("task.delete", each)) for each in (other, another)]
        first.append(await external.post(make_create(uuid.uuid4())))
        receive_together(monkeypatch, "commands", 9)
        async with running_worker(external):
            assert all(reply["ok"] for reply in await replies_of(first))
            await somebody.execute("ROLLBACK")
            refused = [reply["error"]["message"] for reply in await replies_of(pauses)]
            assert all(reply["ok"] for reply in await replies_of(deletes))
    assert refused == ["A workspace build is already active."] * 3


async def test_a_command_for_a_task_with_a_locked_lease_holds_up_none_of_its_batch(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other is answered while somebody keeps the lease locked; it is executed once the lock is gone."""
    async with running_worker(external):
        stuck, other = [await external.make_active() for _ in range(2)]
    async with locked(external, stuck, rows="leases WHERE task_id") as somebody:
        pauses = [await external.post(make_command("task.pause", each)) for each in (stuck, other)]
        receive_together(monkeypatch, "commands", 2)
        async with running_worker(external):
            assert (await replies_of(pauses[1:]))[0]["ok"]
            assert not pauses[0].done()
            await somebody.execute("ROLLBACK")
            assert (await replies_of(pauses[:1]))[0]["ok"]


async def test_heartbeats_of_a_task_with_a_locked_lease_hold_up_none_of_their_batch(external: WorkerHarness) -> None:
    """The leases of the others are renewed while somebody keeps it locked, and it is once the lock is gone."""
    renewed = "SELECT last_heartbeat_at > $2 FROM leases WHERE task_id = $1"
    async with running_worker(external):
        tasks = [await external.make_active() for _ in range(3)]
        await external.until_row("SELECT count(*) FROM leases", is_=3)
    stuck, *others = tasks
    began = await external.database.fetchval("SELECT clock_timestamp()")
    async with locked(external, stuck, rows="leases WHERE task_id") as somebody:
        await external.report(*(make_report("agent.heartbeat", each, build_number=1) for each in tasks))
        async with running_worker(external):
            for task_id in others:
                await external.until_row(renewed, task_id, began)
            assert not await external.database.fetchval(renewed, stuck, began)
            await somebody.execute("ROLLBACK")
            await external.until_row(renewed, stuck, began)


async def test_commands_for_locked_tasks_hold_up_none_that_come_later(external: WorkerHarness) -> None:
    """Although there are more of them than batches at a time, and each is sent again, as callers do."""
    async with running_worker(external):
        *stuck, other = [await external.create() for _ in range(4)]
    async with locked(external, *stuck) as somebody, running_worker(external):
        pauses = [make_command("task.pause", each) for each in stuck]
        waiting = []
        for pause in pauses:
            waiting.append(await external.post(pause))
            await external.until_delivered("commands")
        waiting += [await external.post(pause) for pause in pauses]
        later = [
            await external.post(make_create(uuid.uuid4())),
            await external.post(make_command("task.delete", other)),
        ]
        assert all(reply["ok"] for reply in await replies_of(later))
        assert not any(reply.done() for reply in waiting)
        await somebody.execute("ROLLBACK")
        refused = [reply["error"]["message"] for reply in await replies_of(waiting)]
    assert refused == ["A workspace build is already active."] * 6


async def test_a_command_for_a_locked_task_is_executed_once_the_lock_is_gone(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although no other command comes after it."""
    async with running_worker(external):
        stuck = await external.create()
    are_set_aside = asyncio.Event()
    add = LockedTasks.add

    def note(self: LockedTasks, task_ids: Collection[uuid.UUID]) -> None:
        add(self, task_ids)
        are_set_aside.set()

    monkeypatch.setattr(LockedTasks, "add", note)
    async with locked(external, stuck) as somebody, running_worker(external):
        waiting = await external.post(make_command("task.delete", stuck))
        async with asyncio.timeout(TIMEOUT):
            await are_set_aside.wait()
        await external.database.execute("SELECT 1")  # the batch has ended
        await somebody.execute("ROLLBACK")
        assert (await replies_of([waiting]))[0]["ok"]


async def test_commands_for_one_task_follow_each_other_at_once(external: WorkerHarness) -> None:
    """Each has a batch of its own, and none waits for more than the one before it."""
    async with running_worker(external):
        task_id = await external.create()
        began = asyncio.get_running_loop().time()
        sends = [await external.post(make_command("task.send", task_id, input=f"Step {i}")) for i in range(60)]
        assert len(await replies_of(sends)) == 60
        assert asyncio.get_running_loop().time() - began < 60 * RECHECK_EVERY / 2


async def test_a_worker_that_stops_leaves_commands_for_locked_tasks_to_the_next(external: WorkerHarness) -> None:
    """It does not wait for the locks, and nothing is lost."""
    async with running_worker(external):
        stuck, other = await external.create(), await external.create()
    async with locked(external, stuck) as somebody:
        async with running_worker(external):
            waiting = [await external.post(make_command("task.delete", stuck))]
            await external.until_delivered("commands")
            waiting.append(await external.post(make_command("task.pause", stuck)))
            assert await replies_of([await external.post(make_command("task.delete", other))])
        assert not waiting[0].done()
        await somebody.execute("ROLLBACK")
        async with running_worker(external):
            deleted, paused = await replies_of(waiting)
    assert (deleted["ok"], paused["ok"]) == (True, False)


def said(external: WorkerHarness, task_id: uuid.UUID, word: str) -> bool:
    """Return whether an event has told that the task's agent says this."""
    return bool(external.state(task_id).get("message") == word)


async def test_reports_on_locked_tasks_hold_up_none_of_their_batch(external: WorkerHarness) -> None:
    """Not even those of the same array."""
    async with running_worker(external):
        stuck, *others = [await external.create() for _ in range(4)]
    async with locked(external, stuck) as somebody:
        words = [(each, f"Step {number}") for number, each in enumerate((stuck, *others, stuck))]
        await external.report(
            *(
                make_report("app.status", each, state="working", message=word, seq=i)
                for i, (each, word) in enumerate(words)
            )
        )
        async with running_worker(external):
            for task_id, word in words[1:4]:
                await external.until(partial(said, external, task_id, word))
            assert not external.state(stuck)
            await somebody.execute("ROLLBACK")
            await external.until(partial(said, external, stuck, "Step 4"))


def claim(task_id: uuid.UUID, runner: str) -> dict[str, Any]:
    """Return a runner's claim of the first build of a task."""
    return {"type": "build.claim", "task_id": str(task_id), "build_number": 1, "runner": runner}


async def test_claims_of_locked_tasks_hold_up_none_of_their_batch(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are answered, and the first of two claims of a locked task wins."""
    receive_together(monkeypatch, "claims", 3)
    async with running_worker(external):
        stuck, other = await external.create(), await external.create()
    async with locked(external, stuck) as somebody:
        claims = [
            await external.post(claim(task_id, runner), "claims")
            for task_id, runner in ((stuck, "r1"), (other, "r2"), (stuck, "r3"))
        ]
        async with running_worker(external):
            assert await replies_of(claims[1:2]) == [{"granted": True}]
            await somebody.execute("ROLLBACK")
            assert (await replies_of(claims))[::2] == [{"granted": True}, {"granted": False, "by": "r1"}]


async def test_claims_of_locked_tasks_hold_up_none_that_come_later(external: WorkerHarness) -> None:
    """The others are answered, and once the locks are gone one claim of each task wins."""
    async with running_worker(external):
        stuck, other = await external.create(), await external.create()
    async with locked(external, stuck) as somebody, running_worker(external):
        claims = [claim(task_id, runner) for task_id, runner in ((stuck, "r1"), (stuck, "r2"), (other, "r3"))]
        first = await external.post(claims[0], "claims")
        await external.until_delivered("claims")
        second, third = [await external.post(each, "claims") for each in claims[1:]]
        assert await replies_of([third]) == [{"granted": True}]
        assert not first.done()
        await somebody.execute("ROLLBACK")
        assert await replies_of([first, second]) == [{"granted": True}, {"granted": False, "by": "r1"}]
