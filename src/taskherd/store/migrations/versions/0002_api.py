"""Tables for the API: tokens of users and their tools, and builds for lookups by id."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TOKENS = (
    """
CREATE TABLE api_tokens (
    id text PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    secret_hash bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
)
""",
    "CREATE INDEX api_tokens_user_id_idx ON api_tokens (user_id)",
    "COMMENT ON TABLE api_tokens IS 'Who may speak to the API, and until when'",
    "COMMENT ON COLUMN api_tokens.secret_hash IS 'SHA-256 of the secret, which is kept nowhere'",
    "COMMENT ON COLUMN api_tokens.last_used_at IS 'within a minute or so: written seldom, many at once'",
)

BUILDS = (
    """
CREATE TABLE task_builds (
    build_id uuid PRIMARY KEY,
    task_id uuid NOT NULL,
    number integer NOT NULL,
    transition text NOT NULL,
    job_status text NOT NULL,
    workspace_id uuid,
    agent_id uuid,
    error text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
) WITH (fillfactor = 70)
""",
    "CREATE UNIQUE INDEX task_builds_task_id_idx ON task_builds (task_id, number)",
    "CREATE INDEX task_builds_workspace_id_idx ON task_builds (workspace_id, number)",
    "CREATE INDEX task_builds_agent_id_idx ON task_builds (agent_id, number)",
    "COMMENT ON TABLE task_builds IS 'Each build that was the latest of its task, found by ids that clients know'",
    "COMMENT ON COLUMN task_builds.job_status IS 'the last one known while it was the latest; one given up has failed'",
)


def upgrade() -> None:
    """Create the tables."""
    run = op.get_bind().exec_driver_sql
    for statement in (*TOKENS, *BUILDS):
        run(statement)
