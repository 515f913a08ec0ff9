"""The slots of commands in bulk: few beside single commands, many otherwise, each used by one command at a time."""

from __future__ import annotations

import asyncio

from taskherd.api.bulk_slots import FEW_SLOTS, MAX_SLOTS, QUIET, BulkSlots


class Load:
    """Commands in bulk that hold their slots until they are released."""

    def __init__(self) -> None:
        self.time = 1_000.0
        self.slots = BulkSlots(lambda: self.time)
        self.running = 0
        self.order: list[int] = []
        self.released = asyncio.Semaphore(0)

    async def run(self, number: int) -> None:
        """Hold a slot until it is released."""
        async with self.slots.slot():
            self.running += 1
            self.order.append(number)
            await self.released.acquire()
            self.running -= 1

    async def release(self, count: int) -> None:
        """End this many commands, and let others take their slots."""
        for _ in range(count):
            self.released.release()
        await settle()


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_slots_are_used_in_turn() -> None:
    """No more than all slots are in use, and commands get them in the order in which they came."""
    load = Load()
    tasks = [asyncio.create_task(load.run(number)) for number in range(MAX_SLOTS + 10)]
    await settle()
    assert load.running == MAX_SLOTS
    await load.release(4)
    assert load.running == MAX_SLOTS
    assert load.order == list(range(MAX_SLOTS + 4))
    await load.release(MAX_SLOTS + 6)
    await asyncio.gather(*tasks)
    assert load.order == list(range(MAX_SLOTS + 10))


async def test_few_slots_are_used_beside_single_commands() -> None:
    """After a single command slots become free until few are in use; once there was none for a while, all are used."""
    load = Load()
    tasks = [asyncio.create_task(load.run(number)) for number in range(3 * MAX_SLOTS)]
    await settle()
    load.slots.note_single()
    await load.release(MAX_SLOTS)
    assert load.running == FEW_SLOTS
    load.time += QUIET * 0.9
    await load.release(1)
    assert load.running == FEW_SLOTS
    load.time += QUIET * 0.2
    await load.release(1)
    assert load.running == MAX_SLOTS
    await load.release(3 * MAX_SLOTS)
    await asyncio.gather(*tasks)


async def test_a_canceled_command_gives_its_slot_back() -> None:
    """Commands that are canceled while they wait, or when a slot was just given to them, take none with them."""
    load = Load()
    tasks = [asyncio.create_task(load.run(number)) for number in range(MAX_SLOTS + 3)]
    await settle()
    tasks[MAX_SLOTS].cancel()
    load.released.release()
    for _ in range(3):
        await asyncio.sleep(0)
        tasks[MAX_SLOTS + 1].cancel()
    await settle()
    assert load.running == MAX_SLOTS
    await load.release(MAX_SLOTS + 3)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert load.running == 0
    async with load.slots.slot():
        assert load.order == [*range(MAX_SLOTS), MAX_SLOTS + 2]
