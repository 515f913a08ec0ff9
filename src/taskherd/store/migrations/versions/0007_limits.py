"""The running tasks of each owner, which are limited."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0004"
branch_labels = None
depends_on = None

STATEMENTS = (
    "CREATE TABLE running_tasks (task_id uuid PRIMARY KEY, owner_id uuid NOT NULL)",
    """
COMMENT ON TABLE running_tasks IS
    'The running tasks, to count those of an owner; written when a task starts or ends, unlike tasks'
""",
    """
INSERT INTO running_tasks (task_id, owner_id)
SELECT id, owner_id FROM tasks
WHERE deleted_at IS NULL AND status IN ('pending', 'initializing', 'active') AND document ->> 'agent_exit' IS NULL
""",
    "CREATE INDEX running_tasks_owner_id_idx ON running_tasks (owner_id)",
)


def upgrade() -> None:
    """Create the table with the tasks that run now."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
