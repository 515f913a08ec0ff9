"""The executor of task actions, as far as it needs neither a database nor a broker."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from types import SimpleNamespace
from typing import cast
from uuid import UUID

from taskherd.api.actions.executor import ActionExecutor, _result
from taskherd.api.command_slots import MAX_BULK, CommandSlots
from taskherd.api.context import ApiContext
from taskherd.store.task_actions import ClaimedStep, PendingTask

ALICE, BOB = UUID(int=1), UUID(int=2)


async def test_an_executor_that_is_always_busy_forgets_when_steps_were_due() -> None:
    """A process that never waits for a step remembers only those that are still to come."""
    executor = ActionExecutor(rate=50, command_timeout=10)
    now = asyncio.get_running_loop().time()
    for number in range(1_000):
        executor._note_due(now - 1_000 + number)
    executor._note_due(now + 60)
    executor._note_due(now + 30)
    assert executor._due == [now + 30, now + 60]


async def test_a_command_of_a_step_waits_for_its_turn_no_longer_than_for_its_reply() -> None:
    """While others use all slots, it is not sent, and counts as not confirmed before the lease of its step ends."""
    now = asyncio.get_running_loop().time
    slots = CommandSlots(now)
    step = ClaimedStep(
        id=UUID(int=3),
        user_id=ALICE,
        action="pause",
        input=None,
        failures=0,
        canceled=False,
        signed_in=True,
        age=timedelta(0),
        lease_id=UUID(int=4),
    )
    async with AsyncExitStack() as others, asyncio.timeout(60):
        for _ in range(MAX_BULK):
            await others.enter_async_context(slots.bulk(BOB, now() + 60))
        api = cast("ApiContext", SimpleNamespace(command_slots=slots))
        assert await _result(api, step, PendingTask(0, UUID(int=5), visible=True), now() + 0.05) is None
