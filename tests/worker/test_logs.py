"""The task log, and the heartbeats that change only a lease."""

from __future__ import annotations

import uuid
from typing import Any

from tests.harness.worker import WorkerHarness, build_report, make_report
from tests.worker.conftest import StartWorker

TIME = "2026-03-01T12:00:00Z"


def entry(number: int, content: str) -> dict[str, Any]:
    """Return a log entry."""
    return {"id": number, "type": "output", "content": content, "time": TIME}


def log(task_id: uuid.UUID, seq: int, *entries: tuple[int, str], number: int = 1) -> dict[str, Any]:
    """Return a report with log entries."""
    return make_report("task.log", task_id, seq=seq, build_number=number, entries=[entry(*each) for each in entries])


async def lines(harness: WorkerHarness, task_id: uuid.UUID) -> list[tuple[int, str]]:
    """Return the ids and contents of the task's log, in order."""
    query = "SELECT log_id, content FROM task_logs WHERE task_id = $1 ORDER BY log_id"
    return [(row[0], row[1]) for row in await harness.database.fetch(query, task_id)]


async def test_log_ids_count_from_zero_and_never_change(harness: WorkerHarness) -> None:
    """Log ids are assigned per task in the order of commit, independent of the agent's entry ids and of builds."""
    task_id, other = await harness.create(), await harness.create()
    await harness.report(log(task_id, 1, (7, "a"), (3, "b")), log(other, 1, (0, "x")))
    await harness.report(log(task_id, 2, (9, "c")))
    await harness.report(log(task_id, 1, (7, "second build"), number=2))
    await harness.until_processed(4)
    assert await lines(harness, task_id) == [(0, "a"), (1, "b"), (2, "c"), (3, "second build")]
    assert await lines(harness, other) == [(0, "x")]
    await harness.until(lambda: harness.versions(task_id))
    assert set(harness.versions(task_id)) == {1}


async def test_an_entry_is_replaced_only_by_a_greater_seq(harness: WorkerHarness) -> None:
    """An entry with the same id and build is replaced in place by a greater seq, not by an equal or lesser one."""
    task_id = await harness.create()
    await harness.report(log(task_id, 5, (0, "first"), (1, "other")))
    await harness.until_processed(1)  # in one batch, entries are in the order of their seq
    await harness.report(log(task_id, 5, (0, "equal")), log(task_id, 4, (0, "lesser"), (2, "new")))
    await harness.until_processed(3)
    assert await lines(harness, task_id) == [(0, "first"), (1, "other"), (2, "new")]
    await harness.report(log(task_id, 7, (0, "greatest")), log(task_id, 6, (0, "greater"), (1, "changed")))
    await harness.until_processed(5)
    assert await lines(harness, task_id) == [(0, "greatest"), (1, "changed"), (2, "new")]


async def test_a_heartbeat_changes_only_the_lease(harness: WorkerHarness) -> None:
    """A heartbeat of a steady task renews its lease; the task's row stays the same and no event is published."""
    agent = str(uuid.uuid4())
    task_id = await harness.create()
    await harness.report(
        build_report(task_id, 1, "start", "succeeded", agent_id=agent),
        make_report("agent.lifecycle", task_id, lifecycle="ready", agent_id=agent),
        make_report("agent.heartbeat", task_id, agent_id=agent),
    )
    await harness.until(lambda: harness.document(task_id).get("status") == "active")
    row = "SELECT xmin::text || ctid::text FROM tasks WHERE id = $1"
    before = await harness.database.fetchval(row, task_id)
    last_heartbeat = await harness.database.fetchval("SELECT last_heartbeat_at FROM leases")
    for number in range(5):
        await harness.report(make_report("agent.heartbeat", task_id, agent_id=agent))
        await harness.until_processed(4 + number)
    assert await harness.database.fetchval(row, task_id) == before
    assert await harness.database.fetchval("SELECT last_heartbeat_at > $1 FROM leases", last_heartbeat)
    count = len(harness.events_of(task_id))
    await harness.report(make_report("agent.lifecycle", task_id, lifecycle="shutting_down", agent_id=agent))
    await harness.until(lambda: len(harness.events_of(task_id)) == count + 1)
    assert await harness.database.fetchval(row, task_id) != before
    is_later = await harness.database.fetchval(
        "SELECT (state #>> '{heard,0,1}')::timestamptz > $1 FROM tasks", last_heartbeat
    )
    assert is_later is True
    assert harness.dead_letters == []


async def test_a_heartbeat_of_another_agent_or_build_changes_the_task(start_worker: StartWorker) -> None:
    """It is folded into the task, even in one batch with heartbeats that renew the lease."""
    async with start_worker() as harness:
        task_id = await harness.create()
        one, two = str(uuid.uuid4()), str(uuid.uuid4())
        await harness.report(
            build_report(task_id, 1, "start", "succeeded", seq=1),
            make_report("agent.heartbeat", task_id, agent_id=one, seq=1),
        )
        await harness.until(lambda: harness.document(task_id).get("workspace_agent_id") == one)
        await harness.report(
            make_report("agent.heartbeat", task_id, agent_id=one, seq=2),
            make_report("agent.heartbeat", task_id, agent_id=two, seq=3),
        )
        await harness.until(lambda: harness.document(task_id)["workspace_agent_id"] == two)
        await harness.report(make_report("agent.heartbeat", task_id, agent_id=one, build_number=2, seq=9))
        await harness.report(build_report(task_id, 2, "start", "succeeded"))
        await harness.until(lambda: harness.document(task_id)["workspace_build_number"] == 2)
        document = harness.document(task_id)
        assert (document["workspace_agent_id"], document["workspace_agent_health"]) == (one, {"healthy": True})


async def test_a_full_log_says_what_was_left_out(start_worker: StartWorker) -> None:
    """A flood of entries fills neither the database nor other logs: the last entry tells how many are missing."""
    async with start_worker(log_entries_most=100, log_bytes_most=64 * 1024) as harness:
        loud, quiet, long = [await harness.create(input=each) for each in ("Loud", "Quiet", "Long")]
        for seq in range(1, 6):
            await harness.report(log(loud, seq, *((seq * 50 + number, f"line {number}") for number in range(50))))
        await harness.report(log(quiet, 1, (0, "of another task")))
        await harness.report(log(long, 1, (0, "x" * 60_000)), log(long, 2, (1, "y" * 60_000)))
        await harness.until_processed(8)
        found = await lines(harness, loud)
        assert [content for _, content in found[:50]] == [f"line {number}" for number in range(50)]
        assert [log_id for log_id, _ in found] == list(range(101))
        assert "this log is full. 150 entries with" in found[-1][1]
        assert "were left out since 20" in found[-1][1]
        assert await lines(harness, quiet) == [(0, "of another task")]
        (_, kept), (_, notice) = await lines(harness, long)
        assert kept == "x" * 60_000
        assert "1 entries with 60000 bytes were left out" in notice
        await harness.report(log(loud, 9, (50, "line 0, replaced")))
        await harness.until_processed(9)
        assert (await lines(harness, loud))[0] == (0, "line 0, replaced")
