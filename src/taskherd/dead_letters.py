"""Which dead letters are replayed, and which are kept and why: the same for the command line and the API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from taskherd.broker import dead_letters
from taskherd.broker.dead_letters import QueuedMessage, ReplayTarget
from taskherd.broker.publisher import Publisher
from taskherd.broker.topology import TopologyNames
from taskherd.messages.dead_letters import DeadLetter, decode

if TYPE_CHECKING:
    from taskherd.broker.connection import SupervisedConnection
    from taskherd.settings import Settings

More: TypeAlias = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Selection:
    """Dead letters with one of these ids, unless there are none, and with this reason, unless it is None."""

    ids: frozenset[str] = frozenset()
    reason: str | None = None

    def has(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter is selected."""
        return (not self.ids or letter.id in self.ids) and self.reason in {None, letter.reason}


@dataclass(slots=True)
class Replay:
    """A replay: what it selects, and what became of that so far.

    ``replayed`` has ids, ``reasons`` the numbers of those by reason, ``kept`` why others were not replayed, by id, and
    ``bytes_read`` is the total size of the bodies that were looked at. ``beyond`` is the number of those beyond
    the limit.
    """

    selection: Selection
    replayed: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    kept: dict[str, str] = field(default_factory=dict)
    bytes_read: int = 0
    beyond: int = 0

    @property
    def missing(self) -> frozenset[str]:
        """The ids that were not found so far."""
        return self.selection.ids.difference(self.replayed, self.kept)


async def replay(
    connection: SupervisedConnection, settings: Settings, state: Replay, *, limit: int, more: More = lambda: True
) -> None:
    """Publish the selected ones of the first ``limit`` dead letters again, while ``more()``, and note it in ``state``.

    They are sent as the user of the connection, who vouches for them. So those of an untrusted sender, and those whose
    sender no worker has checked, are replayed only by their ids; what workers with these settings would refuse is kept.

    Raises:
        Unavailable: the broker became unreachable; ``state`` has what was done before.
        MayNotRead: the user may not read the dead letters.
    """
    names = TopologyNames(settings.amqp_prefix)

    def target_of(message: QueuedMessage) -> ReplayTarget | None:
        letter = decode(message)
        state.bytes_read += len(letter.body)
        if not state.selection.has(letter):
            return None
        obstacle = letter.replay_obstacle or _refusal(letter, settings, names, connection.user)
        if not state.selection.ids:
            obstacle = obstacle or letter.doubt
        if obstacle is not None:
            state.kept[letter.id] = obstacle
            return None
        return ReplayTarget(letter.origin.exchange, letter.origin.routing_key, letter.headers)

    def on_replayed(message: QueuedMessage, obstacle: str | None) -> None:
        letter = decode(message)
        if obstacle is None:
            state.replayed.append(letter.id)
            state.reasons[letter.reason] += 1
        else:
            state.kept[letter.id] = obstacle

    publisher = Publisher(connection, identified=True)
    try:
        state.beyond = await dead_letters.replay(
            connection, publisher, names, target_of, on_replayed, limit=limit, more=more
        )
    finally:
        await publisher.close()


def _refusal(letter: DeadLetter, settings: Settings, names: TopologyNames, user: str | None) -> str | None:
    """Return why workers with these settings would refuse a dead letter from this RabbitMQ user, or None."""
    target = letter.origin.exchange or letter.origin.routing_key
    if target == names.commands:
        setting, senders = "TASKHERD_COMMAND_SENDERS", sorted(settings.trusted_command_senders)
    elif target in {names.reports, names.claims}:
        setting, senders = "TASKHERD_REPORT_SENDERS", sorted(settings.sender_pools)
    else:
        return None
    if not senders or user in senders:
        return None
    found = f"workers would refuse it from your RabbitMQ user {user or '(unknown)'}"
    return f"{found}; use the URL of one that {setting} names: {', '.join(senders)}"
