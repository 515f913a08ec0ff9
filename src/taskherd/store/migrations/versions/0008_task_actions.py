"""Task actions: jobs that do one thing to many tasks, with a result for each."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
CREATE TABLE task_actions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    token_id text NOT NULL,
    action text NOT NULL CONSTRAINT task_actions_action_check CHECK (action IN ('pause', 'resume', 'delete', 'send')),
    input text,
    query text,
    digest bytea NOT NULL,
    total integer NOT NULL,
    succeeded integer NOT NULL DEFAULT 0,
    refused integer NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL,
    next_at timestamptz NOT NULL,
    lease_id uuid,
    started_at timestamptz,
    canceled_at timestamptz,
    finished_at timestamptz,
    failure text
)
""",
    "COMMENT ON TABLE task_actions IS 'Jobs that do one thing to many tasks; API processes write and execute them'",
    "COMMENT ON COLUMN task_actions.token_id IS 'the token that requested the action, which ends with it'",
    "COMMENT ON COLUMN task_actions.input IS 'for a send, while the action is not finished'",
    "COMMENT ON COLUMN task_actions.digest IS 'digest of the request; a repeated key with another one is rejected'",
    """
COMMENT ON COLUMN task_actions.next_at IS 'when the next step is due; while a step is executed, the end of its lease'
""",
    "CREATE INDEX task_actions_next_at_idx ON task_actions (next_at) WHERE finished_at IS NULL",
    "CREATE INDEX task_actions_user_idx ON task_actions (user_id, created_at DESC, id DESC)",
    """
CREATE TABLE task_action_tasks (
    action_id uuid NOT NULL,
    ordinal integer NOT NULL,
    task_id uuid NOT NULL,
    status integer,
    message text,
    detail text,
    decided_at timestamptz,
    PRIMARY KEY (action_id, ordinal)
)
""",
    "COMMENT ON TABLE task_action_tasks IS 'The tasks of each action, with their results'",
    "COMMENT ON COLUMN task_action_tasks.status IS 'the HTTP status that a request for this task would have had'",
    "CREATE INDEX task_action_tasks_pending_idx ON task_action_tasks (action_id, ordinal) WHERE status IS NULL",
)


def upgrade() -> None:
    """Create the tables."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
