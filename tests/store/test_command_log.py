"""The command log: one transaction executes a command, every repeat gets the same reply."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import command_log
from taskherd.store.engine import transaction
from tests.store.conftest import NOW


async def test_one_worker_registers_a_command_and_the_other_gets_its_reply(engine: AsyncEngine) -> None:
    """Of two workers that receive a command at once, one executes it; the other waits and gets the stored reply."""
    command_id = uuid4()

    async def execute() -> dict[UUID, command_log.RecordedCommand]:
        async with transaction(engine) as connection:
            earlier = await command_log.register(connection, [(command_id, command_id, b"digest")], NOW)
            if not earlier:
                await command_log.record(connection, [(command_id, '{"ok":true}')])
            return earlier

    results = await asyncio.gather(execute(), execute())
    assert sorted(map(len, results)) == [0, 1]
    async with transaction(engine) as connection:
        assert await command_log.find(connection, [command_id]) == {
            command_id: command_log.RecordedCommand(b"digest", '{"ok":true}')
        }
        assert await command_log.prune(connection, NOW + timedelta(seconds=1), 10) == 1
