"""The executor of task actions, as far as it needs neither a database nor a broker."""

from __future__ import annotations

import asyncio

from taskherd.api.actions.executor import ActionExecutor


async def test_an_executor_that_is_always_busy_forgets_when_steps_were_due() -> None:
    """A process that never waits for a step remembers only those that are still to come."""
    executor = ActionExecutor(rate=50, command_timeout=10)
    now = asyncio.get_running_loop().time()
    for number in range(1_000):
        executor._note_due(now - 1_000 + number)
    executor._note_due(now + 60)
    executor._note_due(now + 30)
    assert executor._due == [now + 30, now + 60]
