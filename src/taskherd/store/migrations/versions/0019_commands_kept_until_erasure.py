"""Sends that answered a request of an agent stay recorded until their task is erased: no input recognizes them."""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE command_log ADD COLUMN kept_until_erased boolean NOT NULL DEFAULT false",
    "COMMENT ON COLUMN command_log.kept_until_erased IS 'a send that answered a request: no input recognizes it later'",
    "DROP INDEX command_log_created_at_idx",
    "CREATE INDEX command_log_created_at_idx ON command_log (created_at) WHERE NOT kept_until_erased",
)


def upgrade() -> None:
    """Add the column, and search only the others by age. Commands wait while the index is built."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
