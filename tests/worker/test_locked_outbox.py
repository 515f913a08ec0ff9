"""Rows of the outbox that somebody keeps locked, as with an open transaction in psql: other tasks' events go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from taskherd.worker import relay
from taskherd.worker.relay import Relay
from tests.harness.worker import TIMEOUT, WorkerHarness, make_report, running_worker

POSITIONS = "SELECT count(*) FROM task_feed WHERE task_id = $1"
VERSIONS = "SELECT version FROM task_feed WHERE task_id = $1 ORDER BY position"
LOCK = "SELECT version FROM outbox WHERE task_id = $1 FOR UPDATE"
UNPUBLISHED = "SELECT count(*) FROM outbox WHERE task_id = $1"


@asynccontextmanager
async def locked(external: WorkerHarness, task_id: UUID) -> AsyncIterator[asyncpg.Connection]:
    """Keep the rows of the task in the outbox locked, once there are some; the connection may roll back earlier."""
    somebody = await asyncpg.connect(external.urls[0], timeout=30, command_timeout=30)
    try:
        await somebody.execute("BEGIN")
        async with asyncio.timeout(TIMEOUT):
            while not await somebody.fetch(LOCK, task_id):  # noqa: ASYNC110 - a row sends no notification
                await asyncio.sleep(0.01)
        yield somebody
    finally:
        await somebody.close(timeout=30)


def published(external: WorkerHarness) -> Counter[tuple[UUID, int]]:
    """Return how often each version of each task was published."""
    return Counter((UUID(event["subject"]), event["data"]["version"]) for event in external.events)


async def test_stale_events_of_other_tasks_are_published_once_and_leave_the_outbox(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the locked one's again and again; that leaves the outbox once the lock is gone."""
    with monkeypatch.context() as patched:
        patched.setattr(Relay, "offer", lambda *_, **__: None)  # they are in the outbox only
        patched.setattr(relay, "STALE_AFTER", timedelta(hours=1))
        async with running_worker(external):
            stuck, *others = [await external.create() for _ in range(3)]
    assert not external.events
    async with locked(external, stuck) as somebody, running_worker(external):
        for task_id in others:
            await external.until_row(POSITIONS, task_id, is_=1)
            await external.until_row(UNPUBLISHED, task_id, is_=0)
        await asyncio.sleep(2 * relay.STALE_AFTER.total_seconds())
        assert published(external) == {(task_id, 1): 1 for task_id in (stuck, *others)}
        assert await external.database.fetchval(POSITIONS, stuck) == 0
        await somebody.execute("ROLLBACK")
        await external.until_row(POSITIONS, stuck, is_=1)
        await external.until_row(UNPUBLISHED, stuck, is_=0)
    assert published(external) == {(task_id, 1): 1 for task_id in (stuck, *others)}


async def test_events_of_other_tasks_get_positions_at_once(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event from memory that cannot leave the outbox holds up no later ones but those of its task, which follow."""
    monkeypatch.setattr(relay, "MARK_AFTER", 1.0)
    async with running_worker(external) as worker:
        stuck = await external.create()
        async with locked(external, stuck) as somebody:
            monkeypatch.setattr(relay, "MARK_AFTER", 0.05)
            first = await external.create()
            await external.until_row(POSITIONS, first, is_=1)
            for number in range(2):
                await external.report(
                    make_report("app.status", stuck, seq=number + 1, state="idle", message=f"{number}")
                )
                async with asyncio.timeout(2):  # less than the wait for one lock
                    await external.until_row(POSITIONS, await external.create(), is_=1)
            await external.until(lambda: external.state(stuck).get("message") == "1")
            assert not worker._relay._confirmed
            assert await external.database.fetchval(POSITIONS, stuck) == 0
            await somebody.execute("ROLLBACK")
            await external.until_row(UNPUBLISHED, stuck, is_=0)
    rows: list[Any] = await external.database.fetch(VERSIONS, stuck)
    assert [row["version"] for row in rows] == [1, 2, 3]


async def test_an_event_whose_row_is_gone_after_the_lock_is_forgotten(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever deletes it takes it out of the feed; later events of the task follow."""
    monkeypatch.setattr(relay, "MARK_AFTER", 1.0)
    async with running_worker(external):
        stuck = await external.create()
        async with locked(external, stuck) as somebody:
            monkeypatch.setattr(relay, "MARK_AFTER", 0.05)
            await somebody.execute("DELETE FROM outbox WHERE task_id = $1", stuck)
            await external.until_row(POSITIONS, await external.create(), is_=1)
            await external.report(make_report("app.status", stuck, seq=1, state="idle", message="Done"))
            await external.until(lambda: external.state(stuck).get("message") == "Done")
            await somebody.execute("COMMIT")
            await external.until_row(POSITIONS, stuck, is_=1)
    rows: list[Any] = await external.database.fetch(VERSIONS, stuck)
    assert [row["version"] for row in rows] == [2]


async def test_two_workers_go_on(external: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although each first waits for rows that the other keeps locked while it waits for the same lock."""
    monkeypatch.setattr(relay, "MARK_AFTER", 1.0)
    async with running_worker(external), running_worker(external):
        stuck = await external.create()
        async with locked(external, stuck) as somebody:
            monkeypatch.setattr(relay, "MARK_AFTER", 0.05)
            for number in range(10):
                await external.report(
                    make_report("app.status", stuck, seq=number + 1, state="idle", message=f"{number}")
                )
                await external.create()
            await external.until_row("SELECT count(*) FROM outbox WHERE task_id <> $1", stuck, is_=0)
            await external.until(lambda: external.state(stuck).get("message") == "9")
            assert await external.database.fetchval(POSITIONS, stuck) == 0
            await somebody.execute("ROLLBACK")
            await external.until_row(UNPUBLISHED, stuck, is_=0)
    rows: list[Any] = await external.database.fetch(VERSIONS, stuck)
    assert [row["version"] for row in rows] == list(range(1, len(rows) + 1))
    assert await external.database.fetchval("SELECT count(*) FROM task_feed") == await external.database.fetchval(
        "SELECT count(*) FROM task_events"
    )
