"""Tasks by the beginning of their names: those that the caller sees, of an owner or of an organization."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import task_lists
from taskherd.store.read_pool import ReadPool
from tests.store.conftest import execute_script, reading_whole_tables
from tests.store.world import (
    ACME,
    ADA,
    ALICE,
    BETA,
    BOB,
    DELETED,
    DORA,
    EVE,
    EVERYBODY,
    OF_ALICE,
    OF_BOB,
    OF_DORA,
    OF_EVE,
    OF_ZED,
    SEEN,
    WORLD,
    ZED,
)

NEWEST_FIRST = (OF_BOB, OF_DORA, OF_EVE, OF_ALICE, OF_ZED)


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with tasks of several people, most of which have the same name."""
    renamed = f"UPDATE tasks SET name = 'Fix-Other' WHERE id = '{OF_EVE}';\n"
    await execute_script(engine, WORLD + renamed)
    async with reading_whole_tables(database_url) as pool:
        yield pool


async def named(
    reader: ReadPool, caller: UUID, prefix: str, owner: UUID | None = None, organization: UUID | None = None
) -> list[UUID]:
    """Return the ids of the tasks whose names begin with a prefix."""
    return [task_id for _, task_id in await task_lists.by_name(reader, caller, prefix, owner, organization)]


async def test_a_caller_finds_the_tasks_that_the_caller_sees(reader: ReadPool) -> None:
    """The newest first; one that an admin owns is found once, and a deleted one never."""
    for caller in EVERYBODY:
        seen = [task_id for task_id in NEWEST_FIRST if caller in SEEN[task_id]]
        assert await named(reader, caller, "fix") == seen
        assert await named(reader, caller, "fix-i") == [task_id for task_id in seen if task_id != OF_EVE]
        for owner, task_id in ((ZED, OF_ZED), (ALICE, OF_ALICE), (BOB, OF_BOB), (DORA, OF_DORA), (EVE, OF_EVE)):
            assert await named(reader, caller, "fix", owner) == [each for each in seen if each == task_id]
        for organization, tasks in ((ACME, {OF_BOB, OF_EVE, OF_ALICE}), (BETA, {OF_DORA})):
            expected = [each for each in seen if each in tasks]
            assert await named(reader, caller, "fix", None, organization) == expected
    assert await named(reader, ALICE, "fix", DORA, ACME) == []
    assert await named(reader, ALICE, "fix", ALICE, ACME) == [OF_ALICE]


@pytest.mark.parametrize("prefix", ["gone", "ix", "fix-it-", "fix_", "FIX", "fiy"])
async def test_names_begin_with_the_prefix(reader: ReadPool, prefix: str) -> None:
    """As it is, in lowercase: nothing in it stands for something else."""
    assert await named(reader, ALICE, prefix) == []


async def test_a_found_task_has_the_time_of_its_creation(reader: ReadPool) -> None:
    """By which the caller reads on."""
    found = await task_lists.by_name(reader, ALICE, "", None, None)
    assert found == [(datetime(2026, 1, 1, hour, tzinfo=UTC), task) for hour, task in ((3, OF_DORA), (1, OF_ALICE))]
    assert DELETED not in await named(reader, ADA, "")


@pytest.mark.parametrize(("most", "found"), [(1, 2), (2, 3), (3, 3)])
async def test_one_more_than_the_maximum_says_that_there_are_more(
    reader: ReadPool, monkeypatch: pytest.MonkeyPatch, most: int, found: int
) -> None:
    """Whichever these are."""
    monkeypatch.setattr(task_lists, "MAX_NAMES", most)
    assert len(await named(reader, ADA, "fix")) == found
