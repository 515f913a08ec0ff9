"""Claims of builds, and the runners of the directory and those that said hello."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = (
    """
CREATE TABLE build_claims (
    task_id uuid PRIMARY KEY,
    build_number integer NOT NULL,
    runner text NOT NULL,
    claimed_at timestamptz NOT NULL
) WITH (fillfactor = 70)
""",
    "COMMENT ON TABLE build_claims IS 'The latest claimed build of each task; written under the lock of the task'",
    "CREATE TABLE runners (name text PRIMARY KEY, pool text NOT NULL, active boolean NOT NULL DEFAULT true)",
    "COMMENT ON TABLE runners IS 'Directory: runners that are known before they first say hello'",
    "COMMENT ON COLUMN runners.active IS 'false once the directory file has no such entry'",
    "CREATE TABLE runner_hellos (name text PRIMARY KEY, pool text NOT NULL, hello_at timestamptz NOT NULL)",
    "COMMENT ON TABLE runner_hellos IS 'Runners that said hello, whose queues the workers declare'",
)


def upgrade() -> None:
    """Create the tables."""
    run = op.get_bind().exec_driver_sql
    for statement in TABLES:
        run(statement)
