"""The requests of agents and their answers. For all writes the caller holds the lock of the task's row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.request_values import RequestState
from taskherd.store.statements import ColumnArrays, assignments, changing, column_names, selected, stored
from taskherd.store.tables import agent_requests

Key = tuple[UUID, UUID]
"""The id of a task and the id of a request, which is unique within its task only."""


class AgentRequestRow(NamedTuple):
    """A request of an agent; ``report`` is its greatest report as canonical JSON. Without an answer all of it is None.

    ``shown`` is how the request shows, which readers need, since it also depends on the state of the task.
    """

    task_id: UUID
    request_id: UUID
    organization_id: UUID
    owner_id: UUID
    build_number: int
    shown: RequestState
    report: str
    since: datetime
    received_at: datetime
    answer_option_id: str | None = None
    answer_text: str | None = None
    answered_by: UUID | None = None
    answered_at: datetime | None = None
    answer_command_id: UUID | None = None
    delivered_at: datetime | None = None


class LoadedRequest(NamedTuple):
    """A request, and the name of the user who answered it, empty without one."""

    row: AgentRequestRow
    answered_by_name: str


class StoredAnswer(NamedTuple):
    """The answer to a request, as it is delivered."""

    option_id: str | None
    text: str | None


class _ShownRow(NamedTuple):
    task_id: UUID
    request_id: UUID
    shown: str


_KEYS: Final = "unnest(CAST(:task_ids AS uuid[]), CAST(:request_ids AS uuid[])) AS k(task_id, request_id)"
_ROWS: Final = ColumnArrays(agent_requests.c)
_SHOWN: Final = ColumnArrays([agent_requests.c[name] for name in _ShownRow._fields])

LOAD: Final = text(f"""
SELECT {selected(agent_requests.c, "r")}, COALESCE(u.username, '') AS answered_by_name
FROM {_KEYS}
JOIN agent_requests AS r ON r.task_id = k.task_id AND r.request_id = k.request_id
LEFT JOIN users AS u ON u.id = r.answered_by
""")

SAVE: Final = text(f"""
INSERT INTO agent_requests ({column_names(agent_requests.c)})
SELECT {stored(agent_requests.c, "n")} FROM {_ROWS.unnest("n")}
ORDER BY {column_names(agent_requests.primary_key, "n")}
ON CONFLICT ({column_names(agent_requests.primary_key)}) DO UPDATE
SET {assignments(changing(agent_requests), "excluded")}
""")

SHOW: Final = text(f"""
UPDATE agent_requests AS r SET shown = s.shown FROM {_SHOWN.unnest("s")}
WHERE r.task_id = s.task_id AND r.request_id = s.request_id
""")

# At most as many rows for each build as a build may have requests.
NUMBERS: Final = text("""
SELECT task_id, build_number, count(*) FROM agent_requests WHERE task_id = ANY(CAST(:task_ids AS uuid[]))
GROUP BY task_id, build_number
""")

ANSWERS: Final = text(f"""
SELECT r.task_id, r.request_id, r.answer_option_id, r.answer_text
FROM {_KEYS}
JOIN agent_requests AS r ON r.task_id = k.task_id AND r.request_id = k.request_id
WHERE r.answered_at IS NOT NULL
""")


async def load(connection: AsyncConnection, keys: Collection[Key]) -> list[LoadedRequest]:
    """Return those of these requests that are known."""
    rows = await connection.execute(LOAD, _key_parameters(keys))
    return [LoadedRequest(AgentRequestRow(*row[:-1]), row[-1]) for row in rows]


async def numbers(connection: AsyncConnection, task_ids: Collection[UUID]) -> list[tuple[UUID, int, int]]:
    """Return how many requests each build of these tasks has: task, build number, requests."""
    rows = await connection.execute(NUMBERS, {"task_ids": sorted(task_ids)})
    return [(row[0], row[1], row[2]) for row in rows]


async def save(connection: AsyncConnection, rows: Sequence[AgentRequestRow]) -> None:
    """Insert requests, or replace what is known of them."""
    await connection.execute(SAVE, _ROWS.parameters(rows))


async def show(connection: AsyncConnection, shown: Mapping[Key, RequestState]) -> None:
    """Save how these requests show now."""
    rows = [_ShownRow(*key, state.value) for key, state in shown.items()]
    await connection.execute(SHOW, _SHOWN.parameters(rows))


async def answers(connection: AsyncConnection, keys: Collection[Key]) -> dict[Key, StoredAnswer]:
    """Return the answers to these requests."""
    rows = await connection.execute(ANSWERS, _key_parameters(keys))
    return {(row[0], row[1]): StoredAnswer(row[2], row[3]) for row in rows}


def _key_parameters(keys: Collection[Key]) -> dict[str, Any]:
    ordered = sorted(keys)
    return {"task_ids": [key[0] for key in ordered], "request_ids": [key[1] for key in ordered]}
