"""The order in which waiting commands are executed: actors take turns, and the commands for a task keep their order."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from taskherd.broker.delivery import Delivery
    from taskherd.domain.commands import Command


MAX_OF_ACTOR: Final = 4
"""Maximum number of commands of one actor that are executed at the same time while others send some, too."""


class WaitingCommand(NamedTuple):
    """A decoded command and its delivery."""

    delivery: Delivery
    command: Command


def next_commands(
    waiting: Sequence[WaitingCommand],
    limit: int,
    *,
    busy: Collection[UUID] = (),
    running: Mapping[UUID, int] = MappingProxyType({}),
    shared: bool = False,
) -> list[WaitingCommand]:
    """Return up to ``limit`` of the waiting commands, which are in the order received, to execute together.

    Those for the tasks in ``busy`` go on waiting. ``running`` is the number of commands of each actor that are executed
    already. With these, one actor has at most ``MAX_OF_ACTOR`` if several do, or if ``shared``: others send some too.

    First come the oldest command of every actor, then the second oldest, and so on, so that an actor with one command
    does not wait for another's thousand. Of the commands for one task, and of those with one command id, only the
    oldest is included. Possible poison is returned alone.
    """
    turns = Counter(running)
    ordered: list[tuple[int, int]] = []
    tasks = set(busy)
    ids: set[UUID] = set()
    for index, (_, command) in enumerate(waiting):
        if command.task_id not in tasks and command.command_id not in ids:
            ordered.append((turns[command.actor_id], index))
            turns[command.actor_id] += 1
        tasks.add(command.task_id)
        ids.add(command.command_id)
    few = shared or len(turns) > 1
    ordered.sort()
    chosen = [waiting[index] for turn, index in ordered[:limit] if turn < MAX_OF_ACTOR or not few]
    if chosen and chosen[0].delivery.possible_poison:
        return chosen[:1]
    return [each for each in chosen if not each.delivery.possible_poison]
