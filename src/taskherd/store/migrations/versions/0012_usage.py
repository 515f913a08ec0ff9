"""Usage: what agents used and cost, by task, build and model, and booked by day."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0010"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
CREATE TABLE task_usage (
    task_id uuid NOT NULL,
    build_number integer NOT NULL,
    model text NOT NULL,
    currency text NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    amount numeric(21, 9) NOT NULL,
    PRIMARY KEY (task_id, build_number, model, currency)
)
""",
    """
COMMENT ON TABLE task_usage IS
    'What agents used and cost, by task, build and model: the greatest that was reported; deleted tasks stay'
""",
    "COMMENT ON COLUMN task_usage.model IS 'empty if it is not known'",
    "COMMENT ON COLUMN task_usage.currency IS 'empty in the row with the tokens'",
    """
CREATE TABLE daily_usage (
    day date NOT NULL,
    organization_id uuid NOT NULL,
    user_id uuid NOT NULL,
    template_id uuid NOT NULL,
    model text NOT NULL,
    currency text NOT NULL,
    input_tokens numeric(38, 0) NOT NULL,
    output_tokens numeric(38, 0) NOT NULL,
    cache_read_tokens numeric(38, 0) NOT NULL,
    cache_write_tokens numeric(38, 0) NOT NULL,
    amount numeric(38, 9) NOT NULL,
    PRIMARY KEY (day, organization_id, user_id, template_id, model, currency)
)
""",
    """
COMMENT ON TABLE daily_usage IS
    'What agents used and cost, by day: the sum of what was new in task_usage'
""",
    "COMMENT ON COLUMN daily_usage.day IS 'the day in UTC on which it was reported'",
    "COMMENT ON COLUMN daily_usage.currency IS 'empty in the row with the tokens'",
)


def upgrade() -> None:
    """Create the tables; usage is counted from now on."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
