"""What an agent's token counts for, and which words of its log were given to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import agent_queries, builds, inputs
from taskherd.store.agent_queries import MAX_INPUTS, MAX_PROMPTS, GivenText
from taskherd.store.builds import BuildRow
from taskherd.store.engine import transaction
from taskherd.store.inputs import InputOutcomeRow, NewInput
from taskherd.store.read_pool import ReadPool
from taskherd.store.task_creation import insert_tasks
from tests.store.conftest import NOW, task_row


@pytest.fixture
async def reader(database_url: str) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers."""
    pool = ReadPool(database_url, size=1, application_name="taskherd-tests")
    yield pool
    await pool.close()


def build(task_id: UUID, number: int, transition: str) -> BuildRow:
    """Return a build that has succeeded."""
    return BuildRow(uuid4(), task_id, number, transition, "succeeded", None, None, None, NOW)


async def test_a_token_counts_until_a_later_start_or_the_end_of_its_task(engine: AsyncEngine, reader: ReadPool) -> None:
    """A stop does not end it, nor what becomes of another task."""
    task, other = rows = [task_row(), task_row()]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        await builds.save(
            connection,
            [
                *(build(task.task.id, number, "start") for number in (1, 3)),
                *(build(task.task.id, number, "stop") for number in (2, 4)),
                build(other.task.id, 9, "start"),
            ],
        )

    async def counts(number: int, task_id: UUID = task.task.id) -> bool:
        return await agent_queries.is_latest_start(reader, task_id, number)

    assert [await counts(number) for number in (1, 2, 3, 4, 5)] == [False, False, True, True, True]
    assert not await counts(3, uuid4())
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE tasks SET deleted_at = now() WHERE id = :id"), {"id": task.task.id})
    assert not await counts(3)
    assert await counts(9, other.task.id)
    assert await agent_queries.owner_of_latest_start(reader, other.task.id, 9) == other.task.owner_id


async def test_a_build_is_claimed_by_its_number(engine: AsyncEngine, reader: ReadPool) -> None:
    """Of its own task only."""
    task_id = uuid4()
    async with transaction(engine) as connection:
        await connection.execute(
            text("INSERT INTO build_claims (task_id, build_number, runner, claimed_at) VALUES (:id, 2, 'r1', now())"),
            {"id": task_id},
        )
    for of, number, is_claimed in ((task_id, 2, True), (task_id, 1, False), (task_id, 3, False), (uuid4(), 2, False)):
        assert await agent_queries.is_claimed(reader, of, number) is is_claimed


async def test_texts_are_recognized_whatever_blanks_they_have(engine: AsyncEngine, reader: ReadPool) -> None:
    """Prompts come first, each kind in the order in which it was given; what was not delivered is not the agent's."""
    task_id, other = uuid4(), uuid4()
    contents = ("Fix it", "Go on", "Fix\n\tit", "Later", "Never", "Of another")
    new = [NewInput(uuid4(), other if each == "Of another" else task_id, each, NOW, None) for each in contents]
    async with transaction(engine) as connection:
        await connection.execute(
            text("INSERT INTO task_prompts (task_id, version, prompt) VALUES (:id, 1, 'Fixit'), (:id, 4, ' Fix  it ')"),
            {"id": task_id},
        )
        await inputs.append(connection, new)
        await inputs.mark_sent(connection, [each.input_id for each in (*new[:3], *new[4:])], NOW)
        await inputs.record_outcomes(
            connection,
            [
                InputOutcomeRow(new[0].input_id, task_id, "delivered", NOW, None),
                InputOutcomeRow(new[4].input_id, task_id, "failed", NOW, None),
            ],
        )
    given = await agent_queries.given_texts(
        reader, task_id, ["Fixit", "Goon", "Later", "Never", "Ofanother"], max_bytes=9
    )
    assert given == [
        GivenText("Fixit", is_prompt=True, number=1),
        GivenText("Fixit", is_prompt=True, number=4),
        GivenText("Fixit", is_prompt=False, number=0),
        GivenText("Goon", is_prompt=False, number=1),
        GivenText("Fixit", is_prompt=False, number=2),
    ]
    assert await agent_queries.given_texts(reader, task_id, ["Fixit"], max_bytes=8) == [given[0], given[2], given[4]]
    assert await agent_queries.given_texts(reader, task_id, ["Goon"], max_bytes=9) == [given[3]]


async def test_of_many_texts_only_the_latest_are_read(engine: AsyncEngine, reader: ReadPool) -> None:
    """A task with a long history costs no more than others."""
    task_id = uuid4()
    async with transaction(engine) as connection:
        await connection.execute(
            text(
                "INSERT INTO task_prompts (task_id, version, prompt) SELECT :id, n, 'Go' FROM generate_series(1, 25) n"
            ),
            {"id": task_id},
        )
        new = [NewInput(uuid4(), task_id, "Go", NOW + timedelta(seconds=number), None) for number in range(205)]
        await inputs.append(connection, new)
        await inputs.mark_sent(connection, [each.input_id for each in new], NOW)
    given = await agent_queries.given_texts(reader, task_id, ["Go"], max_bytes=100)
    assert [each.number for each in given if each.is_prompt] == list(range(25 - MAX_PROMPTS + 1, 26))
    assert [each.number for each in given if not each.is_prompt] == list(range(205 - MAX_INPUTS, 205))
    assert (MAX_PROMPTS, MAX_INPUTS) == (20, 200)
