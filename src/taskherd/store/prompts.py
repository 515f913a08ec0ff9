"""Prune the prompts that were replaced, once nothing refers to them any more."""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.agent_queries import MAX_PROMPTS


class PromptCursor(NamedTuple):
    """A place in the order in which prompts are looked at."""

    task_id: UUID
    version: int


START: Final = PromptCursor(UUID(int=0), 0)

# A prompt is that of the versions from its own to before that of the next prompt. It stays while it is the task's
# current one, while the history has one of these versions, and while logs are compared with it (``given_texts``). The
# first version from its own on tells that; NOT EXISTS would read all that follow.
PRUNE: Final = text("""
WITH page AS MATERIALIZED (
    SELECT task_id, version FROM task_prompts
    WHERE (task_id, version) > (CAST(:task_id AS uuid), CAST(:version AS bigint))
    ORDER BY task_id, version LIMIT :limit
), unused AS MATERIALIZED (
    SELECT p.task_id, p.version
    FROM page AS p
    CROSS JOIN LATERAL (SELECT prompt_version FROM tasks WHERE id = p.task_id LIMIT 1) AS t
    CROSS JOIN LATERAL (
        SELECT version FROM task_prompts WHERE task_id = p.task_id AND version > p.version
        ORDER BY version LIMIT 1) AS n
    WHERE p.version < t.prompt_version
      AND p.version < (
          SELECT version FROM task_prompts WHERE task_id = p.task_id ORDER BY version DESC LIMIT 1 OFFSET :newest - 1)
      AND n.version <= COALESCE((
          SELECT version FROM task_events WHERE task_id = p.task_id AND version >= p.version
          ORDER BY version LIMIT 1), n.version)
), pruned AS (
    DELETE FROM task_prompts AS d USING unused AS u WHERE d.task_id = u.task_id AND d.version = u.version
)
SELECT task_id, version, (SELECT count(*) FROM page) AS found FROM page ORDER BY task_id DESC, version DESC LIMIT 1
""")


async def prune(connection: AsyncConnection, after: PromptCursor, limit: int) -> PromptCursor:
    """Look at up to ``limit`` prompts after a place and delete those that nothing refers to.

    Return the place to continue after: the start if there are no more prompts.
    """
    values: dict[str, Any] = {**after._asdict(), "limit": limit, "newest": MAX_PROMPTS}
    last = (await connection.execute(PRUNE, values)).one_or_none()
    return START if last is None or last.found < limit else PromptCursor(last.task_id, last.version)
