"""For the board: revisions of logs, so that followers learn of replaced entries, and rates of tasks by hour."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE task_logs ADD COLUMN revision bigint",
    """
COMMENT ON COLUMN task_logs.revision IS
    'revision of the log with which it was added or last changed; null: older than this column'
""",
    "ALTER TABLE task_log_heads ADD COLUMN revision bigint NOT NULL DEFAULT 0",
    "COMMENT ON COLUMN task_log_heads.revision IS 'rises with each change of the log, for its followers'",
    """
CREATE TABLE task_rates (
    hour timestamptz NOT NULL,
    organization_id uuid NOT NULL,
    owner_id uuid NOT NULL,
    created bigint NOT NULL,
    completed bigint NOT NULL,
    failed bigint NOT NULL,
    PRIMARY KEY (hour, organization_id, owner_id)
)
""",
    """
COMMENT ON TABLE task_rates IS 'What became of tasks in each hour; workers add what they counted every few seconds'
""",
    """
COMMENT ON COLUMN task_rates.failed IS
    'tasks that came to need a person: their start, their agent or they failed'
""",
    """
CREATE TABLE dead_letter_rates (
    hour timestamptz NOT NULL,
    reason text NOT NULL,
    letters bigint NOT NULL,
    PRIMARY KEY (hour, reason)
)
""",
    "COMMENT ON TABLE dead_letter_rates IS 'What workers dead-lettered in each hour'",
)


def upgrade() -> None:
    """Add the columns and tables; nothing is rewritten."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
