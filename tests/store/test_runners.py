"""Runners and pools: those of the directory, and those that said hello until they are silent for long."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import runners
from taskherd.store.engine import transaction
from taskherd.store.runners import WorkTargets
from tests.store.conftest import NOW, empty, execute_script, ignore_indexes, waits_for_lock

SECOND = timedelta(seconds=1)
DIRECTORY = f"""
INSERT INTO organizations (id, name, display_name) VALUES ('{UUID(int=1)}', 'acme', '');
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id) VALUES
    ('{UUID(int=2)}', '{UUID(int=1)}', 'claude', '', '', '{UUID(int=3)}');
INSERT INTO template_versions (id, template_id, name, run) VALUES
    ('{UUID(int=3)}', '{UUID(int=2)}', 'v1', '{{"pool":"gpu"}}'),
    ('{UUID(int=4)}', '{UUID(int=2)}', 'v2', '{{"pool":""}}'),
    ('{UUID(int=5)}', '{UUID(int=2)}', 'v3', '{{"pool":"gpu"}}');
INSERT INTO runners (name, pool, active) VALUES ('r1', 'big', true), ('gone', 'none', false), ('r2', 'gpu', true);
"""


async def test_all_pools_and_runners_are_known(engine: AsyncEngine) -> None:
    """Pools of the templates' versions, or the default one, and of runners; of those who said hello with the time."""
    await execute_script(engine, DIRECTORY)
    async with transaction(engine) as connection:
        await runners.record_hellos(connection, {"r2": "old", "r3": "small"}, NOW - SECOND)
        await runners.record_hellos(connection, {"r2": "cpu"}, NOW)
        found = await runners.targets(connection)
    assert found == WorkTargets(
        frozenset({"gpu", "default"}),
        {"r1": "big", "r2": "gpu"},
        {"r2": "cpu", "r3": "small"},
        {"r2": NOW, "r3": NOW - SECOND},
    )
    assert found.pools == {"gpu", "default", "big", "cpu", "small"}
    assert found.runners == {"r1", "r2", "r3"}


async def test_without_templates_there_is_no_pool(engine: AsyncEngine) -> None:
    """Not even the default one, which is that of a template's version that names none."""
    async with transaction(engine) as connection:
        assert (await runners.targets(connection)).pools == set()
    await execute_script(engine, DIRECTORY)
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE template_versions SET run = '{}' WHERE run ->> 'pool' = 'gpu'"))
        assert (await runners.targets(connection)).directory_pools == {"default"}


async def test_runners_that_are_silent_are_found_and_forgotten(engine: AsyncEngine) -> None:
    """Those that said nothing since a time, the longest silent first; one that says hello meanwhile stays."""
    async with transaction(engine) as connection:
        for name, age in (("b", 2), ("d", 0), ("a", 3), ("c", 1)):
            await runners.record_hellos(connection, {name: f"pool-{name}"}, NOW - age * SECOND)
        await ignore_indexes(connection)
        assert list(await runners.idle(connection, NOW, 10)) == ["a", "b", "c"]
        assert list(await runners.idle(connection, NOW, 2)) == ["a", "b"]
        assert list(await runners.idle(connection, NOW + SECOND, 10)) == ["a", "b", "c", "d"]
        await runners.touch(connection, "b", NOW)
        assert list(await runners.idle(connection, NOW, 10)) == ["a", "c"]
        assert [await runners.forget(connection, name, NOW) for name in ("b", "c", "unknown")] == [None, "pool-c", None]
        assert await runners.forget(connection, "c", NOW) is None
        assert (await runners.targets(connection)).said_hello == {"a": "pool-a", "b": "pool-b", "d": "pool-d"}


async def test_hellos_are_recorded_in_the_order_of_names(engine: AsyncEngine) -> None:
    """Whatever the order in which they came, so that two workers do not deadlock."""
    async with transaction(engine) as connection:
        await empty(connection, "runner_hellos")
        await runners.record_hellos(connection, {"c": "x", "a": "y", "d": "x", "b": "z"}, NOW)
        rows = await connection.execute(text("SELECT name || pool FROM runner_hellos ORDER BY ctid"))
        assert list(rows.scalars()) == ["ay", "bz", "cx", "dx"]


async def test_who_changes_the_set_of_runners_waits_for_who_does(engine: AsyncEngine) -> None:
    """The lock lasts until the end of the transaction."""

    async def forget() -> str | None:
        async with transaction(engine) as connection:
            await runners.lock(connection)
            return await runners.forget(connection, "r1", NOW + SECOND)

    async with transaction(engine) as first:
        await runners.lock(first)
        second = asyncio.create_task(forget())
        assert await waits_for_lock(engine, second)
        await runners.record_hellos(first, {"r1": "gpu"}, NOW)
    assert await second == "gpu"
