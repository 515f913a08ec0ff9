"""Which waiting commands are executed together, and in what order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain.commands import Pause
from taskherd.worker.command_order import MAX_OF_ACTOR, WaitingCommand, next_commands

ALICE, BOB, CAROL = (UUID(int=number) for number in (1, 2, 3))


@dataclass(frozen=True)
class FakeDelivery:
    """The one property of a delivery that matters here."""

    possible_poison: bool = False


def waiting(actor: UUID, task: int, command_id: int, *, poison: bool = False) -> WaitingCommand:
    """Return a waiting command."""
    delivery: Any = FakeDelivery(poison)
    return WaitingCommand(delivery, Pause(command_id=UUID(int=command_id), task_id=UUID(int=task), actor_id=actor))


def ids(commands: list[WaitingCommand]) -> list[int]:
    """Return the command ids as numbers."""
    return [command.command_id.int for _, command in commands]


def test_actors_take_turns() -> None:
    """An actor with one command is executed before the second command of an actor with many."""
    assert next_commands([], 6) == []
    many = [waiting(ALICE, number, number) for number in range(1_000)]
    queue = [*many, waiting(BOB, 2_000, 2_000), waiting(CAROL, 2_001, 2_001), waiting(BOB, 2_002, 2_002)]
    assert ids(next_commands(queue, 6)) == [0, 2_000, 2_001, 1, 2_002, 2]


def test_a_batch_for_several_actors_has_few_commands_of_each() -> None:
    """An actor with many fills a batch only while nobody else waits or has sent a command a moment ago."""
    many = [waiting(ALICE, number, number) for number in range(1_000)]
    assert len(next_commands(many, 100)) == 100
    assert len(next_commands(many, 100, shared=True)) == MAX_OF_ACTOR
    assert len(next_commands([*many, waiting(BOB, 2_000, 2_000)], 100)) == MAX_OF_ACTOR + 1
    actors = [waiting(UUID(int=10 + number), number, number) for number in range(200)]
    assert len(next_commands(actors, 100)) == 100


def test_an_actor_has_few_commands_in_all_batches_together() -> None:
    """Those that are executed already count, while others send commands too; an actor alone has no such limit."""
    many = [waiting(ALICE, number, number) for number in range(1_000)]
    assert len(next_commands(many, 100, running={ALICE: 200})) == 100
    assert len(next_commands(many, 100, running={ALICE: MAX_OF_ACTOR - 1}, shared=True)) == 1
    assert next_commands(many, 100, running={ALICE: MAX_OF_ACTOR, BOB: 1}) == []
    assert len(next_commands(many, 100, running={BOB: 1})) == MAX_OF_ACTOR
    queue = [*many, waiting(BOB, 2_000, 2_000)]
    assert ids(next_commands(queue, 100, running={ALICE: 200})) == [2_000]
    assert ids(next_commands(queue, 2, running={ALICE: 2, BOB: 1})) == [2_000, 0]


def test_the_commands_for_a_task_keep_their_order_across_actors() -> None:
    """A command waits for an older one for the same task, whoever sent it."""
    queue = [waiting(ALICE, 1, 1), waiting(ALICE, 2, 2), waiting(BOB, 2, 3), waiting(BOB, 3, 4)]
    assert ids(next_commands(queue, 10)) == [1, 4, 2]
    assert ids(next_commands(queue[2:], 10)) == [3, 4]


def test_commands_for_busy_tasks_go_on_waiting() -> None:
    """Those for others come first meanwhile, and nothing is chosen if there are none."""
    queue = [waiting(ALICE, 1, 1), waiting(ALICE, 2, 2), waiting(BOB, 1, 3), waiting(BOB, 3, 4)]
    assert ids(next_commands(queue, 10, busy={UUID(int=1)})) == [2, 4]
    assert ids(next_commands(queue, 1, busy={UUID(int=1), UUID(int=2)})) == [4]
    assert next_commands(queue, 10, busy={UUID(int=number) for number in (1, 2, 3)}) == []
    assert ids(next_commands(queue, 10)) == [1, 4, 2]


def test_a_command_id_is_executed_once_per_batch() -> None:
    """The second command with an id waits for the first, even if it is for another task."""
    queue = [waiting(ALICE, 1, 1), waiting(BOB, 2, 1), waiting(BOB, 3, 2)]
    assert ids(next_commands(queue, 10)) == [1, 2]


def test_possible_poison_is_executed_alone() -> None:
    """It is left out of the batches of others, and forms one by itself when it is its turn."""
    queue = [waiting(ALICE, 1, 1), waiting(BOB, 2, 2, poison=True), waiting(CAROL, 3, 3)]
    assert ids(next_commands(queue, 10)) == [1, 3]
    assert ids(next_commands(queue[1:], 10)) == [2]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 30), st.booleans()), max_size=60),
    st.integers(1, 20),
    st.booleans(),
)
def test_every_command_is_executed_once_and_in_order_per_task(
    rows: list[tuple[int, int, int, bool]],
    limit: int,
    shared: bool,  # noqa: FBT001 - drawn
) -> None:
    """Whatever waits, batches are not empty, have unique tasks and ids, and empty the queue in order per task."""
    queue = [waiting(UUID(int=actor), task, each, poison=poison) for actor, task, each, poison in rows]
    left, executed = queue, list[WaitingCommand]()
    while left:
        batch = next_commands(left, limit, shared=shared)
        assert 0 < len(batch) <= limit
        for key in ("task_id", "command_id"):
            counts = Counter(getattr(each.command, key) for each in batch)
            assert max(counts.values()) == 1
        chosen = {id(each) for each in batch}
        left = [each for each in left if id(each) not in chosen]
        executed += batch
    assert sorted(map(id, executed)) == sorted(map(id, queue))
    for task in {each.command.task_id for each in queue}:
        in_order = [id(each) for each in queue if each.command.task_id == task]
        assert [id(each) for each in executed if each.command.task_id == task] == in_order
