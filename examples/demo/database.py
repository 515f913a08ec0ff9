"""Read the demo's tasks from the database, to compare them with the events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import text

from taskherd.dev import services
from taskherd.directory_file.model import Directory
from taskherd.errors import Misconfigured
from taskherd.store import migrate
from taskherd.store.engine import dispose, open_engine, transaction

VERSIONS: Final = text("SELECT id, version FROM tasks WHERE id = ANY(CAST(:ids AS uuid[]))")
OTHERS: Final = text("SELECT name FROM organizations WHERE active AND id <> ALL(CAST(:ids AS uuid[])) LIMIT 3")
_NAME: Final = "taskherd-demo"


async def versions(database_url: str, task_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the version of each task in the database. Raise ``Unavailable`` if it cannot be reached."""
    engine = open_engine(database_url, size=1, application_name=_NAME)
    try:
        async with transaction(engine) as connection:
            rows = await connection.execute(VERSIONS, {"ids": [*task_ids]})
            return {UUID(str(task_id)): version for task_id, version in rows}
    finally:
        await dispose(engine)


def refuse_foreign_directory(database_url: str, own: Directory) -> None:
    """Migrate an external database; raise ``Misconfigured`` if it has a directory that the demo would deactivate."""
    migrate.upgrade(database_url)
    foreign = asyncio.run(_other_organizations(database_url, [organization.id for organization in own.organizations]))
    if foreign:
        raise Misconfigured(
            services.DATABASE_URL,
            f"this database has organizations that the demo would deactivate ({', '.join(foreign)}): "
            f"use an empty database, or unset this variable to use a private one",
        )


async def _other_organizations(database_url: str, own: Sequence[UUID]) -> list[str]:
    engine = open_engine(database_url, size=1, application_name=_NAME)
    try:
        async with transaction(engine) as connection:
            return [str(name) for (name,) in await connection.execute(OTHERS, {"ids": [*own]})]
    finally:
        await dispose(engine)
