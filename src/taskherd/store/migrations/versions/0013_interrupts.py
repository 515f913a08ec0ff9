"""Interrupts: their work requests, inputs that steer, and the action for many tasks."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE work_requests ADD COLUMN interrupt_id uuid",
    "ALTER TABLE inputs ADD COLUMN steers boolean NOT NULL DEFAULT false",
    "COMMENT ON COLUMN inputs.steers IS 'sent with an interrupt: goes before inputs that do not steer'",
    "ALTER TABLE task_actions DROP CONSTRAINT task_actions_action_check",
    """
ALTER TABLE task_actions ADD CONSTRAINT task_actions_action_check
    CHECK (action IN ('pause', 'resume', 'delete', 'send', 'interrupt'))
""",
)


def upgrade() -> None:
    """Add the columns, and allow the action."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
