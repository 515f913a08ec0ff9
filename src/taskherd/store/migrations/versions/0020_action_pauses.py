"""The pause after an action's last step is found when the next action of its user is claimed."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

STATEMENTS = ("CREATE INDEX task_actions_pause_idx ON task_actions (next_at) WHERE finished_at IS NOT NULL",)


def upgrade() -> None:
    """Index finished actions by the end of their pause; steps of actions wait while the index is built."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
