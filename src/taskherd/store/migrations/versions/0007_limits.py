"""The running tasks of each owner, and the sizes of logs: both are limited."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0005"
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
    """
ALTER TABLE task_log_heads
    ADD COLUMN content_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN omitted_entries bigint NOT NULL DEFAULT 0,
    ADD COLUMN omitted_bytes bigint NOT NULL DEFAULT 0,
    ADD COLUMN omitted_since timestamptz,
    ADD COLUMN notice_log_id bigint
""",
    """
COMMENT ON TABLE task_log_heads IS
    'The next log id and the size of each task''s log; kept when its logs are pruned'
""",
    "COMMENT ON COLUMN task_log_heads.omitted_entries IS 'entries left out of a full log'",
    "COMMENT ON COLUMN task_log_heads.notice_log_id IS 'the entry that says what was left out'",
    """
UPDATE task_log_heads AS h SET content_bytes = l.bytes
FROM (SELECT task_id, sum(octet_length(content)) AS bytes FROM task_logs GROUP BY task_id) AS l
WHERE l.task_id = h.task_id
""",
)


def upgrade() -> None:
    """Create the table with the tasks that run now, and measure the logs."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
