"""What a log entry is, beside its text: its kind, title, status and data."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
ALTER TABLE task_logs
    ADD COLUMN kind text CONSTRAINT task_logs_kind_check
        CHECK (kind IN ('message', 'thought', 'tool_call', 'plan', 'notice')),
    ADD COLUMN title text,
    ADD COLUMN status text CONSTRAINT task_logs_status_check
        CHECK (status IN ('pending', 'in_progress', 'completed', 'failed')),
    ADD COLUMN data json
""",
    "COMMENT ON COLUMN task_logs.data IS 'the entry for programs; its content says the same to people'",
)


def upgrade() -> None:
    """Add the columns; they are null in entries that an earlier release writes."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
