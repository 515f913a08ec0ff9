"""The slots of commands: few beside those of others, many otherwise, each used by one command at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from uuid import UUID, uuid4

import pytest

from taskherd.api.command_slots import (
    FEW_BULK,
    FEW_OF_TASK,
    FEW_OF_USER,
    MAX_BULK,
    MIN_BULK,
    QUIET,
    SLOW_REPLY,
    CommandSlots,
)
from taskherd.errors import Unavailable

ALICE, BOB, CAROL = UUID(int=1), UUID(int=2), UUID(int=3)
MANY = 64


class Load:
    """Commands that hold their slots until they are released."""

    def __init__(self, slot: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self.slot = slot
        self.running = 0
        self.order: list[int] = []
        self.released = asyncio.Semaphore(0)

    async def run(self, number: int) -> None:
        """Hold a slot until it is released."""
        async with self.slot():
            self.running += 1
            self.order.append(number)
            await self.released.acquire()
            self.running -= 1

    async def start(self, count: int) -> list[asyncio.Task[None]]:
        """Start this many commands, and let each run as far as it can."""
        tasks = [asyncio.create_task(self.run(number)) for number in range(count)]
        await settle()
        return tasks

    async def release(self, count: int) -> None:
        """End this many commands, and let others take their slots."""
        for _ in range(count):
            self.released.release()
        await settle()


class Clock:
    """A clock that stands still, and slots that look at it."""

    def __init__(self) -> None:
        self.time = 1_000.0
        self.slots = CommandSlots(lambda: self.time)

    def bulk(self, user: UUID = ALICE) -> Load:
        """Return a load of commands of a user in bulk."""
        return Load(lambda: self.slots.bulk(user, asyncio.get_running_loop().time() + 60.0))

    def of(self, user: UUID) -> Load:
        """Return a load of single commands of a user, for as many tasks."""
        return Load(lambda: self.single(user))

    def single(self, user: UUID, wait: float = 60.0, *, task: UUID | None = None) -> AbstractAsyncContextManager[None]:
        """Return a slot for one command of a user, for a task that no other one is for unless it is given."""
        return self.slots.single(user, task or uuid4(), asyncio.get_running_loop().time() + wait)


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_slots_are_used_in_turn() -> None:
    """No more than all slots are in use, and commands get them in the order in which they came."""
    load = Clock().bulk()
    tasks = await load.start(MAX_BULK + 10)
    assert load.running == MAX_BULK
    await load.release(4)
    assert load.running == MAX_BULK
    assert load.order == list(range(MAX_BULK + 4))
    await load.release(MAX_BULK + 6)
    await asyncio.gather(*tasks)
    assert load.order == list(range(MAX_BULK + 10))


async def test_few_bulk_slots_are_used_beside_single_commands() -> None:
    """After a single command slots become free until few are in use; once there was none for a while, all are used."""
    clock = Clock()
    load = clock.bulk()
    tasks = await load.start(3 * MAX_BULK)
    async with clock.single(ALICE):
        await load.release(MAX_BULK)
    assert load.running == FEW_BULK
    clock.time += QUIET * 0.75
    await load.release(1)
    assert load.running == FEW_BULK
    clock.time += QUIET * 0.25
    await load.release(1)
    assert load.running == MAX_BULK - 2  # these two were slow
    await load.release(3 * MAX_BULK)
    await asyncio.gather(*tasks)


async def test_fewer_bulk_slots_are_used_while_replies_are_slow() -> None:
    """After each slow reply one fewer, down to a quarter; after each of the others one more, up to all."""
    clock = Clock()
    load = clock.bulk()
    tasks = await load.start(5 * MAX_BULK)
    clock.time += SLOW_REPLY
    await load.release(10)
    assert load.running == MAX_BULK
    clock.time += SLOW_REPLY / 2
    await load.release(10)
    assert load.running == MAX_BULK - 10
    clock.time += SLOW_REPLY * 2
    await load.release(load.running)
    assert load.running == MIN_BULK
    clock.time += SLOW_REPLY * 2
    await load.release(MIN_BULK)
    assert load.running == MIN_BULK
    await load.release(MIN_BULK)
    assert load.running == 2 * MIN_BULK
    await load.release(MAX_BULK)
    assert load.running == MAX_BULK
    await load.release(5 * MAX_BULK)
    await asyncio.gather(*tasks)


async def test_users_take_turns_at_bulk_slots() -> None:
    """However many commands one user has waiting, those of the others get every second or third slot at least."""
    clock = Clock()
    alice, bob, carol = (clock.bulk(user) for user in (ALICE, BOB, CAROL))
    async with clock.single(CAROL):
        tasks = await alice.start(2 * MAX_BULK)
        tasks += await bob.start(3)
        tasks += await carol.start(1)
        assert (alice.order, bob.order, carol.order) == (list(range(FEW_BULK)), [], [])
        await alice.release(3)
        assert (len(alice.order), bob.order, carol.order) == (FEW_BULK + 1, [0], [0])
        await alice.release(2)
        assert (len(alice.order), bob.order) == (FEW_BULK + 2, [0, 1])
        await bob.release(2)
        assert (alice.order, bob.order) == (list(range(FEW_BULK + 3)), [0, 1, 2])
        await bob.release(1)
        await carol.release(1)
        await alice.release(2 * MAX_BULK)
    await asyncio.gather(*tasks)


async def test_few_bulk_slots_are_used_while_a_single_command_is_slow() -> None:
    """As long as a single command waits for its reply, few slots are in use, also when the last was long ago."""
    clock = Clock()
    load = clock.bulk()
    tasks = await load.start(3 * MAX_BULK)
    async with clock.single(ALICE):
        clock.time += QUIET * 3
        await load.release(MAX_BULK)
        assert load.running == FEW_BULK
    clock.time += QUIET * 0.75
    await load.release(1)
    assert load.running == FEW_BULK  # the answer was not long ago
    await load.release(3 * MAX_BULK)
    await asyncio.gather(*tasks)


async def test_one_user_alone_has_no_limit() -> None:
    """Single commands of one user wait for nobody, whatever their number."""
    load = Clock().of(ALICE)
    tasks = await load.start(MANY)
    assert load.running == MANY
    await load.release(MANY)
    await asyncio.gather(*tasks)


async def test_users_who_share_have_few_slots_each() -> None:
    """Once another user sends a command, few of one with many are in flight, until there was none for a while."""
    clock = Clock()
    alice, bob = clock.of(ALICE), clock.of(BOB)
    tasks = await alice.start(MANY)
    tasks += await bob.start(1)
    tasks += await alice.start(MANY)
    assert (alice.running, bob.running) == (MANY, 1)
    await alice.release(MANY)
    await bob.release(1)
    assert (alice.running, bob.running) == (FEW_OF_USER, 0)
    assert alice.order == [*range(MANY), *range(FEW_OF_USER)]
    clock.time += QUIET * 0.75
    await alice.release(1)
    assert alice.running == FEW_OF_USER
    clock.time += QUIET * 0.25
    await alice.release(1)
    assert alice.running == MANY - 2
    await alice.release(MANY)
    await asyncio.gather(*tasks)


async def test_a_user_keeps_to_few_slots_after_one_was_given_back() -> None:
    """The end of one command makes room for one, while others of the same user are in flight."""
    clock = Clock()
    alice, bob = clock.of(ALICE), clock.of(BOB)
    tasks = [*await bob.start(1), *await alice.start(FEW_OF_USER)]
    await alice.release(1)
    tasks += await alice.start(FEW_OF_USER)
    assert alice.running == FEW_OF_USER
    await alice.release(2 * FEW_OF_USER)
    await bob.release(1)
    await asyncio.gather(*tasks)


async def test_a_command_waits_until_its_deadline() -> None:
    """A command that gets no slot until its deadline is unavailable, and takes no slot with it."""
    clock = Clock()
    alice, bob = clock.of(ALICE), clock.of(BOB)
    tasks = [*await bob.start(1), *await alice.start(FEW_OF_USER)]
    with pytest.raises(Unavailable, match="too many commands wait for replies"):
        async with clock.single(ALICE, wait=0.01):
            alice.order.append(MANY)
    await alice.release(1)
    async with clock.single(ALICE):
        assert alice.order == list(range(FEW_OF_USER))
    await alice.release(FEW_OF_USER)
    await bob.release(1)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("kind", ["bulk", "single"])
@pytest.mark.parametrize("has_waited", [False, True])
async def test_a_canceled_command_gives_its_slot_back(kind: str, *, has_waited: bool) -> None:
    """Whether it is canceled while it waits, or when a slot was just given to it, the next one gets that slot."""
    clock = Clock()
    bob = clock.of(BOB)
    tasks = await bob.start(1)
    load, most = (clock.bulk(), FEW_BULK) if kind == "bulk" else (clock.of(ALICE), FEW_OF_USER)
    end = asyncio.Event()

    async def hold() -> None:
        async with load.slot():
            await end.wait()
        if has_waited:
            canceled.cancel()

    tasks.append(asyncio.create_task(hold()))
    tasks += await load.start(most - 1)
    canceled, *later = await load.start(3)
    if not has_waited:
        canceled.cancel()
        await settle()
    assert load.running == most - 1
    end.set()
    await settle()
    assert (load.running, load.order) == (most, [*range(most - 1), 1])
    await load.release(most + 1)
    await bob.release(1)
    await asyncio.gather(*tasks, *later)
    assert canceled.cancelled()


async def test_a_new_command_overtakes_none_that_waits() -> None:
    """Also when there are more slots than before, which those that wait get at the next end of a command."""
    clock = Clock()
    load = clock.bulk()
    async with clock.single(ALICE):
        tasks = await load.start(FEW_BULK + 2)
    clock.time += QUIET * 1.1
    tasks += await load.start(1)
    assert load.running == FEW_BULK
    await load.release(1)
    assert load.order == [*range(FEW_BULK + 2), 0]
    await load.release(FEW_BULK + 2)
    await asyncio.gather(*tasks)


async def test_few_commands_for_one_task_are_in_flight() -> None:
    """Of users in turns; commands for other tasks do not wait for them."""
    clock = Clock()
    task = UUID(int=9)
    alice, bob = (Load(lambda user=user: clock.single(user, task=task)) for user in (ALICE, BOB))  # type: ignore[misc]
    tasks = await alice.start(MANY) + await bob.start(2)
    assert (alice.running, bob.running) == (FEW_OF_TASK, 0)
    async with clock.single(ALICE, wait=1):
        pass
    await alice.release(1)
    clock.time += QUIET * 1.1
    await alice.release(3)
    assert (alice.running, bob.running) == (FEW_OF_TASK - 2, 2)
    await alice.release(MANY - 4)
    await bob.release(2)
    await asyncio.gather(*tasks)
    assert alice.order == list(range(MANY))


async def test_a_command_whose_task_has_too_many_is_given_up() -> None:
    """At its deadline; the others go on, and it has left nothing behind."""
    clock = Clock()
    task = UUID(int=9)
    load = Load(lambda: clock.single(ALICE, task=task))
    tasks = await load.start(FEW_OF_TASK)
    with pytest.raises(Unavailable, match="too many commands"):
        async with clock.single(BOB, wait=0.01, task=task):
            pass
    await load.release(FEW_OF_TASK)
    await asyncio.gather(*tasks)
    assert (vars(clock.slots)["_users"], vars(clock.slots)["_tasks"]) == ({}, {})


async def test_slots_of_users_and_tasks_are_forgotten() -> None:
    """A process remembers nothing of users and tasks without a command in flight."""
    clock = Clock()
    for number in range(1_000):
        async with clock.single(UUID(int=number)):
            pass
    assert not vars(clock.slots)["_users"]
    assert not vars(clock.slots)["_tasks"]
