"""Queries on behalf of agents, for ``ReadPool``: whether a token still counts, and what its agent was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from taskherd.store.read_pool import ReadPool

MAX_PROMPTS: Final = 20
"""Number of a task's latest prompts that ``given_texts`` reads."""

MAX_INPUTS: Final = 200
"""Number of a task's latest inputs that ``given_texts`` reads."""

# Both conditions are index lookups. A stop does not end a token: the agent says its last words during it.
OWNER_OF_LATEST_START: Final = """
SELECT t.owner_id FROM tasks AS t
WHERE t.id = $1 AND t.deleted_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM task_builds AS b WHERE b.task_id = $1 AND b.number > $2 AND b.transition = 'start')
"""

# Without blanks, tabs and newlines, because agents trim texts and break their lines.
GIVEN_TEXTS: Final = r"""
SELECT translate(given.content, E' \t\n', '') AS text, is_prompt, number
FROM (
    (SELECT prompt AS content, true AS is_prompt, version AS number
     FROM task_prompts WHERE task_id = $1 ORDER BY version DESC LIMIT $3)
    UNION ALL
    (SELECT content, false, ordinal
     FROM inputs WHERE task_id = $1 AND state IN ('sent', 'delivered') ORDER BY ordinal DESC LIMIT $4)
) AS given
WHERE octet_length(given.content) <= $5 AND translate(given.content, E' \t\n', '') = ANY($2::text[])
ORDER BY is_prompt DESC, number
"""

IS_CLAIMED: Final = "SELECT 1 FROM build_claims WHERE task_id = $1 AND build_number = $2"


@dataclass(frozen=True, slots=True)
class GivenText:
    """A prompt or an input that the agent of a task was given."""

    text: str
    """Without blanks, tabs and newlines."""
    is_prompt: bool
    number: int
    """The prompt's version or the input's ordinal."""


async def owner_of_latest_start(pool: ReadPool, task_id: UUID, build_number: int) -> UUID | None:
    """Return the owner of a task that is not deleted and has no later build that is a start, else None."""
    row = await pool.fetch_one(OWNER_OF_LATEST_START, task_id, build_number)
    return None if row is None else row["owner_id"]


async def is_latest_start(pool: ReadPool, task_id: UUID, build_number: int) -> bool:
    """Return whether the task exists, is not deleted, and has no later build that is a start."""
    return await owner_of_latest_start(pool, task_id, build_number) is not None


async def given_texts(pool: ReadPool, task_id: UUID, texts: Sequence[str], *, max_bytes: int) -> list[GivenText]:
    """Return the prompts and sent inputs of up to ``max_bytes`` with these texts, in order; only the latest are read.

    ``texts`` are without blanks, tabs and newlines.
    """
    rows = await pool.fetch(GIVEN_TEXTS, task_id, list(texts), MAX_PROMPTS, MAX_INPUTS, max_bytes)
    return [GivenText(row["text"], row["is_prompt"], row["number"]) for row in rows]


async def is_claimed(pool: ReadPool, task_id: UUID, build_number: int) -> bool:
    """Return whether a runner has claimed the build, if no later build was claimed."""
    return await pool.fetch_one(IS_CLAIMED, task_id, build_number) is not None
