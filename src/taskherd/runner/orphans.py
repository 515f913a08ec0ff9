"""Find tasks on this disk that no longer exist."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from taskherd.errors import Unavailable
from taskherd.runner.ownership_query import Ownership, query_ownership

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskherd.broker.command_client import CommandClient

CONCURRENT_QUERIES = 100
RETRY_AFTER = 10.0
"""Seconds before unanswered queries are repeated."""
MIN_SUSPICIOUS, SUSPICIOUS_SHARE = 5, 0.55
"""Number and share of unknown tasks from which all are kept: this may be the wrong worker, or one on an old backup.

They equal ``MIN_MASS`` and ``MASS_PERCENT`` of the worker's mass-loss guard (``domain.liveness``): both detect a cause
that is common to most tasks, and operators need to know only one rule.
"""


async def find_orphans(commands: CommandClient, tasks: Sequence[UUID], on_error: Callable[[str], None]) -> list[UUID]:
    """Return the tasks that no longer exist, once the worker has answered for all; none if nearly all are unknown."""
    unchecked = list(tasks)
    orphans: list[UUID] = []
    while unchecked:
        batch, unchecked = unchecked[:CONCURRENT_QUERIES], unchecked[CONCURRENT_QUERIES:]
        answers = await asyncio.gather(*(_ownership(commands, task_id) for task_id in batch))
        orphans += [task_id for task_id, answer in zip(batch, answers, strict=True) if answer is Ownership.GONE]
        unanswered = [task_id for task_id, answer in zip(batch, answers, strict=True) if answer is None]
        if unanswered:
            unchecked += unanswered
            on_error(f"no worker answered whether {len(unanswered)} tasks on this disk still exist")
            await asyncio.sleep(RETRY_AFTER)
    if len(orphans) >= MIN_SUSPICIOUS and len(orphans) >= SUSPICIOUS_SHARE * len(tasks):
        on_error(
            f"the worker does not know {len(orphans)} of {len(tasks)} tasks on this disk; they are kept, "
            "check that this runner uses the right broker and TASKHERD_AMQP_PREFIX"
        )
        return []
    return orphans


async def _ownership(commands: CommandClient, task_id: UUID) -> Ownership | None:
    try:
        return await query_ownership(commands, task_id, uuid4())
    except Unavailable:
        return None
