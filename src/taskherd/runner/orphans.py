"""Find tasks on this disk that were deleted, that another runner has taken over, or that the database does not know."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from taskherd.domain.claims import Ownership
from taskherd.errors import Malformed, Unavailable
from taskherd.messages.claims import TASK_OWNED, OwnershipQuery, decode_ownership_reply, encode_ownership_query
from taskherd.messages.limits import MAX_ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from taskherd.broker.command_client import CommandClient

RETRY_AFTER = 10.0
"""Seconds before unanswered questions are repeated."""


@dataclass(slots=True)
class Orphans:
    """The tasks on this disk that are not, or no longer, this runner's."""

    deleted: list[UUID] = field(default_factory=list)
    unknown: list[UUID] = field(default_factory=list)
    """Tasks without a record in the database: it was restored from an older backup, or it is the wrong one.

    Those that the answer leaves out because their state is damaged are kept, too.
    """
    elsewhere: list[UUID] = field(default_factory=list)


async def find_orphans(
    client: CommandClient, runner: str, tasks: Sequence[UUID], on_error: Callable[[str], None]
) -> Orphans:
    """Return the tasks that are not this runner's, once the worker has answered for all."""
    orphans = Orphans()
    for start in range(0, len(tasks), MAX_ELEMENTS):
        asked = tasks[start : start + MAX_ELEMENTS]
        known = await _ask(client, runner, asked, on_error)
        for task_id in asked:
            match known.get(task_id):
                case None:
                    orphans.unknown.append(task_id)
                case Ownership.GONE:
                    orphans.deleted.append(task_id)
                case Ownership.ELSEWHERE:
                    orphans.elsewhere.append(task_id)
                case Ownership.OWNED:
                    pass
                case ownership:
                    assert_never(ownership)
    return orphans


async def _ask(
    client: CommandClient, runner: str, tasks: Sequence[UUID], on_error: Callable[[str], None]
) -> dict[UUID, Ownership | None]:
    """Return the worker's answer, None for a task that it does not know, and ask again until there is one."""
    body = encode_ownership_query(OwnershipQuery(tuple(tasks), runner))
    while True:
        try:
            return decode_ownership_reply((await client.call(TASK_OWNED, body)).body)
        except (Unavailable, Malformed) as error:
            on_error(f"no worker answered whether {len(tasks)} tasks on this disk still exist: {error}")
            await asyncio.sleep(RETRY_AFTER)
