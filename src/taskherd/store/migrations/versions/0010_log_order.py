"""The place of each log entry: the lowest ``seq`` with which it was reported."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE task_logs ADD COLUMN first_seq bigint",
    """
COMMENT ON COLUMN task_logs.first_seq IS
    'the lowest seq with which it was reported, by which readers order it; null: older than this column'
""",
)


def upgrade() -> None:
    """Add the column; entries from before are read in the order of their log ids, as then."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
