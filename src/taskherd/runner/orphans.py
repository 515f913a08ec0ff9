"""Find tasks on this disk that no longer exist, or that another runner has taken over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
MIN_SUSPICIOUS, SUSPICIOUS_SHARE = 5, 0.55
"""Number and share of unknown tasks from which all are kept: this may be the wrong worker, or one on an old backup.

They equal ``MIN_MASS`` and ``MASS_PERCENT`` of the worker's mass-loss guard (``domain.liveness``): both detect a cause
that is common to most tasks, and operators need to know only one rule.
"""


@dataclass(slots=True)
class Orphans:
    """The tasks that no longer exist, and those that another runner has taken over."""

    gone: list[UUID] = field(default_factory=list)
    elsewhere: list[UUID] = field(default_factory=list)


async def find_orphans(
    client: CommandClient, runner: str, tasks: Sequence[UUID], on_error: Callable[[str], None]
) -> Orphans:
    """Return the tasks that are not this runner's, once the worker has answered for all.

    No task counts as gone if nearly all are unknown.
    """
    orphans = Orphans()
    for start in range(0, len(tasks), MAX_ELEMENTS):
        for task_id, ownership in (await _ask(client, runner, tasks[start : start + MAX_ELEMENTS], on_error)).items():
            if ownership is Ownership.GONE:
                orphans.gone.append(task_id)
            elif ownership is Ownership.ELSEWHERE:
                orphans.elsewhere.append(task_id)
    if len(orphans.gone) >= MIN_SUSPICIOUS and len(orphans.gone) >= SUSPICIOUS_SHARE * len(tasks):
        on_error(
            f"the worker does not know {len(orphans.gone)} of {len(tasks)} tasks on this disk; they are kept, "
            "check that this runner uses the right broker and TASKHERD_AMQP_PREFIX"
        )
        orphans.gone.clear()
    return orphans


async def _ask(
    client: CommandClient, runner: str, tasks: Sequence[UUID], on_error: Callable[[str], None]
) -> dict[UUID, Ownership]:
    """Return the worker's answer, and ask again until there is one."""
    body = encode_ownership_query(OwnershipQuery(tuple(tasks), runner))
    while True:
        try:
            return decode_ownership_reply((await client.call(TASK_OWNED, body)).body)
        except (Unavailable, Malformed) as error:
            on_error(f"no worker answered whether {len(tasks)} tasks on this disk still exist: {error}")
            await asyncio.sleep(RETRY_AFTER)
