"""Asks the worker which of the tasks on this disk are no more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from taskherd.errors import Unavailable
from taskherd.runner.ownership import Ownership, query_ownership

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskherd.broker.rpc import CommandClient

AT_ONCE = 100
RETRY_AFTER = 10.0
"""Seconds after which those are asked for again that were not answered."""
HOLD_FROM, HOLD_SHARE = 5, 0.55
"""So many unknown tasks, and such a share of all, are not believed: this may be the wrong worker, or an old backup."""


async def find_orphans(commands: CommandClient, tasks: Sequence[UUID], trouble: Callable[[str], None]) -> list[UUID]:
    """Return the tasks that are no more, once the worker has answered for all of them; none if nearly all are."""
    waiting = list(tasks)
    gone: list[UUID] = []
    while waiting:
        asked, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        said = await asyncio.gather(*(_ownership(commands, task_id) for task_id in asked))
        gone += [task_id for task_id, one in zip(asked, said, strict=True) if one is Ownership.GONE]
        unanswered = [task_id for task_id, one in zip(asked, said, strict=True) if one is None]
        if unanswered:
            waiting += unanswered
            trouble(f"{len(unanswered)} tasks on this disk were asked for, and nobody answered")
            await asyncio.sleep(RETRY_AFTER)
    if len(gone) >= HOLD_FROM and len(gone) >= HOLD_SHARE * len(tasks):
        trouble(f"{len(gone)} of {len(tasks)} tasks on this disk are unknown to the worker; they are kept")
        return []
    return gone


async def _ownership(commands: CommandClient, task_id: UUID) -> Ownership | None:
    try:
        return await query_ownership(commands, task_id, uuid4())
    except Unavailable:
        return None
