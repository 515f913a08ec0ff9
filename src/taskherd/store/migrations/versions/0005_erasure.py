"""Erasure of deleted tasks: when it was done, and the commands of each task."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

CHANGES = (
    "ALTER TABLE tasks ADD COLUMN erased_at timestamptz",
    "COMMENT ON COLUMN tasks.erased_at IS 'set for a tombstone whose contents were erased'",
    "CREATE INDEX tasks_unerased_idx ON tasks (deleted_at) WHERE deleted_at IS NOT NULL AND erased_at IS NULL",
    "ALTER TABLE command_log ADD COLUMN task_id uuid",
    "COMMENT ON COLUMN command_log.task_id IS 'null for commands of releases that did not record it'",
    "CREATE INDEX command_log_task_id_idx ON command_log (task_id)",
)


def upgrade() -> None:
    """Add the columns and their indexes."""
    run = op.get_bind().exec_driver_sql
    for statement in CHANGES:
        run(statement)
