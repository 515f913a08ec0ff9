"""Alembic's entry point: run the revisions in the transaction that ``migrate`` opened."""

from __future__ import annotations

from typing import cast

from alembic import context
from sqlalchemy import Connection

from taskherd.store.tables import METADATA, SCHEMA_VERSION_TABLE

connection = cast("Connection", context.config.attributes["connection"])
context.configure(connection=connection, target_metadata=METADATA, version_table=SCHEMA_VERSION_TABLE)
context.run_migrations()
