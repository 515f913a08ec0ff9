"""List agents that ended without a record of how as lost, as they show; they were listed as not running."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_IS_LOST = "t.document #>> '{agent_exit,why}' = 'lost'"
_COLUMNS = (
    "organization_id, owner_id, template_id, pool, status, state, health, waiting, stalled, created_at, changed_at"
)

# A worker applies them to the index and the totals.
STATEMENTS = (
    f"""
UPDATE task_index_changes AS c SET health = 'lost'
FROM tasks AS t WHERE t.id = c.task_id AND c.health = 'not_running' AND {_IS_LOST}
""",
    f"""
INSERT INTO task_index_changes (task_id, {_COLUMNS}, terms, deleted)
SELECT i.task_id, {", ".join("'lost'" if name == "health" else f"i.{name}" for name in _COLUMNS.split(", "))},
       COALESCE((SELECT json_agg(o.term ORDER BY o.term) FROM task_index AS o
                 WHERE o.task_id = i.task_id AND o.term <> ''), '[]'), false
FROM task_index AS i JOIN tasks AS t ON t.id = i.task_id
WHERE i.term = '' AND i.health = 'not_running' AND t.deleted_at IS NULL AND {_IS_LOST}
ON CONFLICT (task_id) DO NOTHING
""",
)


def upgrade() -> None:
    """Record the changes of the index."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
