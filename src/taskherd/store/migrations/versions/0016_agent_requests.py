"""Requests of agents: what they ask people for, the answers, and the work requests that deliver these."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
CREATE TABLE agent_requests (
    task_id uuid NOT NULL,
    request_id uuid NOT NULL,
    organization_id uuid NOT NULL,
    owner_id uuid NOT NULL,
    build_number integer NOT NULL,
    shown text NOT NULL,
    report json NOT NULL,
    since timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    answer_option_id text,
    answer_text text,
    answered_by uuid,
    answered_at timestamptz,
    answer_command_id uuid,
    delivered_at timestamptz,
    PRIMARY KEY (task_id, request_id),
    CONSTRAINT agent_requests_shown_check CHECK (shown IN ('open', 'answered', 'withdrawn', 'expired'))
)
""",
    """
CREATE INDEX agent_requests_open_idx ON agent_requests (since, task_id, request_id) WHERE shown = 'open'
""",
    """
COMMENT ON TABLE agent_requests IS 'What agents asked people for, and what became of it'
""",
    "COMMENT ON COLUMN agent_requests.request_id IS 'chosen by the reporter, and unique within its task only'",
    """
COMMENT ON COLUMN agent_requests.shown IS
    'what became of the request, as users see it: derived from its report, its answer and the task'
""",
    "COMMENT ON COLUMN agent_requests.report IS 'the greatest report of the request, in its canonical form'",
    "COMMENT ON COLUMN agent_requests.since IS 'when the first report of the request was received'",
    "COMMENT ON COLUMN agent_requests.received_at IS 'when the greatest report of the request was received'",
    "COMMENT ON COLUMN agent_requests.delivered_at IS 'when it was known that the agent got the answer'",
    "ALTER TABLE work_requests ADD COLUMN agent_request_id uuid",
    """
COMMENT ON COLUMN work_requests.agent_request_id IS 'of an agent.answer: the request of the agent that was answered'
""",
)


def upgrade() -> None:
    """Create the table, and add the column."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
