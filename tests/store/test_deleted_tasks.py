"""Deleted tasks as callers read them: those that they saw, the last deleted first, with who deleted each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import deleted_tasks
from taskherd.store.read_pool import ReadPool
from tests.store.conftest import execute_script, reading_whole_tables
from tests.store.world import ADA, ALICE, BOB, DELETED, DORA, EVE, OF_ALICE, OF_BOB, OF_DORA, OF_EVE, OF_ZED, WORLD, ZED


def at(hour: int, minute: int = 0) -> datetime:
    """Return a time of the day of the deletions."""
    return datetime(2026, 1, 3, hour, minute, tzinfo=UTC)


DELETIONS = {OF_ALICE: at(9), OF_BOB: at(5), OF_DORA: at(7), OF_ZED: at(8)}
EVENTS = (
    (OF_ZED, 9, at(8), "deleted", ZED),
    (OF_ALICE, 2, at(8), "deleted", BOB),
    (OF_ALICE, 3, at(10), "deleted", ADA),
    (OF_ALICE, 1, at(9), "deleted", EVE),
    (OF_ALICE, 5, at(10, 1), "deleted", ZED),
    (OF_ALICE, 4, at(9), "updated", ZED),
    (OF_ALICE, 6, at(7, 59), "deleted", ZED),
    (OF_BOB, 2, at(5), "deleted", UUID(int=99)),
    (OF_DORA, 2, at(7), "updated", ALICE),
)
SCRIPT = (
    WORLD
    + "".join(f"UPDATE tasks SET deleted_at = '{time}' WHERE id = '{task}';\n" for task, time in DELETIONS.items())
    + f"UPDATE tasks SET name = 'Fix-That', display_name = 'Fix that' WHERE id = '{OF_ALICE}';\n"
    + "".join(
        "INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version) VALUES"
        f" ('{task}', {version}, '{time}', '{kind}', '{{}}', '{{}}', '{{\"actor_id\":\"{actor}\"}}', 1);\n"
        for task, version, time, kind, actor in EVENTS
    )
)


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with deleted tasks of several people."""
    await execute_script(engine, SCRIPT)
    async with reading_whole_tables(database_url) as pool:
        yield pool


async def listed(reader: ReadPool, caller: UUID, limit: int = 9, **options: Any) -> Sequence[UUID]:
    """Return the ids of the deleted tasks that a caller sees."""
    page = await deleted_tasks.deleted_tasks(reader, caller, limit, **options)
    return [row["id"] for row in page.rows]


async def test_callers_see_the_deleted_tasks_that_they_saw(reader: ReadPool) -> None:
    """The last deleted first: those of the caller, or of the organizations of an admin; of an owner or with a name."""
    for caller, expected in (
        (ALICE, [OF_ALICE, OF_DORA, DELETED]), (ADA, [OF_ALICE, OF_BOB, DELETED]), (BOB, [OF_BOB]), (EVE, []),
        (DORA, [OF_DORA]), (ZED, [OF_ZED]),
    ):  # fmt: skip
        assert await listed(reader, caller) == expected
    assert await listed(reader, ADA, owner=ALICE) == [OF_ALICE, DELETED]
    assert await listed(reader, ADA, prefix="fix-") == [OF_ALICE, OF_BOB]
    assert await listed(reader, ADA, prefix="fix-t", owner=ALICE) == [OF_ALICE]
    assert await listed(reader, ADA, prefix="ix") == []
    assert await listed(reader, ADA, prefix="fix_") == []


async def test_deleted_tasks_are_in_pages(reader: ReadPool, engine: AsyncEngine) -> None:
    """Each after the last of the one before; those of one moment by their ids. Erased ones are not listed."""
    assert await listed(reader, ADA, 2) == [OF_ALICE, OF_BOB]
    assert await listed(reader, ADA, 2, after=(at(9), OF_ALICE)) == [OF_BOB, DELETED]
    assert await listed(reader, ADA, 2, after=(at(5), OF_BOB)) == [DELETED]
    await execute_script(engine, f"UPDATE tasks SET deleted_at = '{at(9)}' WHERE deleted_at IS NOT NULL;\n")
    assert await listed(reader, ADA) == [DELETED, OF_BOB, OF_ALICE]
    assert await listed(reader, ADA, 1, after=(at(9), DELETED)) == [OF_BOB]
    await execute_script(engine, f"UPDATE tasks SET erased_at = now() WHERE id = '{OF_BOB}';\n")
    assert await listed(reader, ADA) == [DELETED, OF_ALICE]
    assert OF_EVE not in await listed(reader, ADA)


async def test_a_page_says_how_far_it_has_looked(reader: ReadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it has looked at as many as it may before it was full, whoever they belong to; of theirs it tells no id."""
    monkeypatch.setattr(deleted_tasks, "MAX_SCANNED", 3)
    half = UUID(int=(1 << 64) - 1)
    for caller, limit, after, expected, scanned_to in (
        (ADA, 9, None, [OF_ALICE], (at(7), half)),
        (ADA, 1, None, [OF_ALICE], None),
        (ADA, 2, None, [OF_ALICE], (at(7), half)),
        (ADA, 9, (at(7), OF_DORA), [OF_BOB, DELETED], None),
        (ALICE, 9, None, [OF_ALICE, OF_DORA], (at(7), OF_DORA)),
        (ALICE, 2, None, [OF_ALICE, OF_DORA], None),
        (EVE, 9, None, [], (at(7), half)),
        (EVE, 9, (at(7), half), [], (at(0), half)),
        (EVE, 9, (at(0), half), [], None),
    ):
        found, place = await deleted_tasks.deleted_tasks(reader, caller, limit, after=after)
        assert ([row["id"] for row in found], place) == (expected, scanned_to), (caller, limit, after)


async def test_a_deleted_task_has_its_names_and_who_deleted_it(reader: ReadPool) -> None:
    """As the last deletion says, within an hour of its time; who is not known any more is not named."""
    rows = {row["id"]: dict(row) for row in (await deleted_tasks.deleted_tasks(reader, ADA, 9)).rows}
    assert rows[OF_ALICE] == {
        "id": OF_ALICE,
        "name": "Fix-That",
        "display_name": "Fix that",
        "created_at": datetime(2026, 1, 1, 1, tzinfo=UTC),
        "deleted_at": at(9),
        "owner_name": "Alice",
        "template_name": "claude",
        "template_display_name": "Claude Code",
        "deleted_by": "Ada",
    }
    assert [rows[OF_BOB][name] for name in ("owner_name", "deleted_by")] == ["Bob", None]
    (of_dora,) = (await deleted_tasks.deleted_tasks(reader, DORA, 9)).rows
    assert [of_dora[name] for name in ("owner_name", "template_name", "deleted_by")] == ["Dora", "betas", None]
