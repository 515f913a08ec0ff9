"""Of each task of an action, whether its command was sent, how often, and with which id.

A process of the previous release, which neither reads nor writes the columns, derives the same ids.
"""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE task_action_tasks ADD COLUMN attempts integer NOT NULL DEFAULT 0",
    "COMMENT ON COLUMN task_action_tasks.attempts IS 'steps that have sent its command, counted before they do'",
    "ALTER TABLE task_action_tasks ADD COLUMN command_id uuid",
    "COMMENT ON COLUMN task_action_tasks.command_id IS 'id of its command; null until a step sends it'",
    "DROP INDEX task_action_tasks_pending_idx",
    """
CREATE INDEX task_action_tasks_pending_idx ON task_action_tasks (action_id, attempts, ordinal) WHERE status IS NULL
""",
    "ALTER TABLE task_actions ADD COLUMN unconfirmed integer NOT NULL DEFAULT 0",
    "COMMENT ON COLUMN task_actions.unconfirmed IS 'tasks whose command was sent, without an answer before the end'",
)


def upgrade() -> None:
    """Add the columns, without rewriting rows; steps of actions wait while the index is built."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
