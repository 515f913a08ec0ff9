"""The command log: one transaction executes a command, every repeat gets the same reply."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import command_log
from taskherd.store.engine import transaction
from tests.store.conftest import NOW


async def test_one_worker_claims_a_command_and_the_other_gets_its_reply(engine: AsyncEngine) -> None:
    """Of two workers that receive a command at once, one executes it; the other waits and gets the stored reply."""
    command_id = uuid4()

    async def execute() -> dict[UUID, command_log.RecordedCommand]:
        async with transaction(engine) as conn:
            earlier = await command_log.claim(conn, [(command_id, b"digest")], NOW)
            if not earlier:
                await command_log.record(conn, [(command_id, '{"ok":true}')])
            return earlier

    results = await asyncio.gather(execute(), execute())
    assert sorted(map(len, results)) == [0, 1]
    async with transaction(engine) as conn:
        assert await command_log.find(conn, [command_id]) == {
            command_id: command_log.RecordedCommand(b"digest", '{"ok":true}')
        }
        assert await command_log.prune(conn, NOW + timedelta(seconds=1), 10) == 1
