"""What the demo reads from the database, to compare it with what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import text

from taskherd.dev import services
from taskherd.errors import Misconfigured
from taskherd.store import migrate
from taskherd.store.directory import Directory
from taskherd.store.engine import dispose, open_engine, transaction

VERSIONS: Final = text("SELECT id, version FROM tasks WHERE id = ANY(CAST(:ids AS uuid[]))")
OTHERS: Final = text("SELECT name FROM organizations WHERE active AND id <> ALL(CAST(:ids AS uuid[])) LIMIT 3")
_NAME: Final = "taskherd-demo"


async def versions(database_url: str, task_ids: Sequence[UUID]) -> dict[UUID, int]:
    """The version of each task in the database; raises Unavailable."""
    engine = open_engine(database_url, size=1, application_name=_NAME)
    try:
        async with transaction(engine) as connection:
            rows = await connection.execute(VERSIONS, {"ids": [*task_ids]})
            return {UUID(str(task_id)): version for task_id, version in rows}
    finally:
        await dispose(engine)


def refuse_a_directory_of_others(database_url: str, ours: Directory) -> None:
    """Migrate a database that was given to us; raises Misconfigured where applying our directory would hide another."""
    migrate.upgrade(database_url)
    others = asyncio.run(_others(database_url, [organization.id for organization in ours.organizations]))
    if others:
        raise Misconfigured(
            services.DATABASE_URL,
            f"this database has a directory of its own ({', '.join(others)}), which the demo would deactivate: "
            f"give it an empty database, or unset this to have a private one",
        )


async def _others(database_url: str, ours: Sequence[UUID]) -> list[str]:
    engine = open_engine(database_url, size=1, application_name=_NAME)
    try:
        async with transaction(engine) as connection:
            return [str(name) for (name,) in await connection.execute(OTHERS, {"ids": [*ours]})]
    finally:
        await dispose(engine)
