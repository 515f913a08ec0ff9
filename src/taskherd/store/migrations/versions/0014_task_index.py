"""An index of the tasks by what lists select them by, and totals, both maintained behind the transactions of tasks."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_LISTED = """
    template_id uuid NOT NULL,
    pool text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL,
    health text COLLATE "C" NOT NULL,
    waiting boolean NOT NULL,
    stalled boolean NOT NULL"""

_KEY = "template_id, pool, status, state, health, waiting, stalled"

_TABLES = (
    f"""
CREATE TABLE task_index (
    task_id uuid NOT NULL,
    term text COLLATE "C" NOT NULL,
    organization_id uuid NOT NULL,
    owner_id uuid NOT NULL,{_LISTED},
    created_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0)
""",
    f"""
CREATE TABLE task_index_changes (
    task_id uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    owner_id uuid NOT NULL,{_LISTED},
    created_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL,
    terms json NOT NULL,
    deleted boolean NOT NULL
) WITH (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 0
)
""",
    f"""
CREATE TABLE task_totals (
    organization_id uuid NOT NULL,
    owner_id uuid NOT NULL,{_LISTED},
    tasks bigint NOT NULL,
    PRIMARY KEY (organization_id, owner_id, {_KEY})
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)
""",
    """
COMMENT ON TABLE task_index IS
    'The tasks by what lists select them by, as of before task_index_changes; workers keep it up to date'
""",
    """
COMMENT ON COLUMN task_index.term IS
    'empty for the task itself; runner:NAME or label:KEY=VALUE, in lower case'
""",
    "COMMENT ON COLUMN task_index.changed_at IS 'when the task last changed, exact to a minute'",
    """
COMMENT ON TABLE task_index_changes IS
    'Tasks whose rows in task_index and task_totals are out of date, with what those should be'
""",
    "COMMENT ON COLUMN task_index_changes.terms IS 'the terms of the task besides the empty one'",
    """
COMMENT ON TABLE task_totals IS
    'How many tasks have the same values of all these columns, as of before task_index_changes'
""",
    "COMMENT ON COLUMN task_totals.owner_id IS 'the nil UUID: the tasks of all owners together'",
    *(
        f"COMMENT ON COLUMN {table}.{column} IS '{comment}'"
        for table in ("task_index", "task_index_changes", "task_totals")
        for column, comment in (
            ("state", "what the agent said that it does, or none"),
            ("health", "see messages.listing.ListedHealth"),
            ("waiting", "true while the agent has an open request"),
        )
    ),
)

_COLUMNS = f"organization_id, owner_id, {_KEY}"

# The same as messages.listing does; no task has labels or requests yet.
_TASKS = f"""
INSERT INTO task_index (task_id, term, {_COLUMNS}, created_at, changed_at)
SELECT t.id, '', t.organization_id, t.owner_id, t.template_id,
       COALESCE(NULLIF(v.run ->> 'pool', ''), 'default') AS pool, t.status,
       COALESCE(t.document #>> '{{current_state,state}}', 'none') AS state,
       CASE WHEN t.document #>> '{{workspace_agent_health,healthy}}' = 'true' THEN 'healthy'
            ELSE CASE t.document #>> '{{workspace_agent_health,reason}}'
                WHEN 'agent is not running' THEN 'not_running'
                WHEN 'agent has not yet connected' THEN 'connecting'
                WHEN 'agent is taking too long to connect' THEN 'late'
                WHEN 'agent has lost connection' THEN 'lost'
                WHEN 'agent startup script exited with an error' THEN 'start_error'
                WHEN 'agent is shutting down' THEN 'shutting_down'
                ELSE 'none' END END AS health,
       false AS waiting, t.document ->> 'stalled_since' IS NOT NULL AS stalled, t.created_at, t.updated_at
FROM tasks AS t JOIN template_versions AS v ON v.id = t.template_version_id
WHERE t.deleted_at IS NULL
"""

_ROWS = (
    _TASKS,
    f"""
INSERT INTO task_totals ({_COLUMNS}, tasks)
SELECT {_COLUMNS}, count(*) FROM task_index GROUP BY {_COLUMNS}
""",
    f"""
INSERT INTO task_totals ({_COLUMNS}, tasks)
SELECT organization_id, '00000000-0000-0000-0000-000000000000', {_KEY}, count(*)
FROM task_index GROUP BY organization_id, {_KEY}
""",
    f"""
INSERT INTO task_index (task_id, term, {_COLUMNS}, created_at, changed_at)
SELECT i.task_id, 'runner:' || t.runner, {", ".join(f"i.{column}" for column in _COLUMNS.split(", "))}, i.created_at,
       i.changed_at
FROM task_index AS i
JOIN (
    SELECT t.id, lower(t.state -> 'builds' -> CASE json_typeof(t.state -> 'runner')
        WHEN 'array' THEN CAST(t.state -> 'runner' ->> 0 AS integer)
        ELSE CAST(t.state ->> 'runner' AS integer) END ->> 8) AS runner
    FROM tasks AS t WHERE t.deleted_at IS NULL
) AS t ON t.id = i.task_id
WHERE t.runner <> ''
""",
)

_INDEXES = (
    "ALTER TABLE task_index ADD PRIMARY KEY (task_id, term)",
    *(
        f"CREATE INDEX task_index_{name}_{time}_idx ON task_index ({first}, {_KEY}, {time}_at DESC, task_id DESC)"
        for name, first in (("template", "term"), ("owner", "owner_id, term"))
        for time in ("created", "changed")
    ),
    "DROP INDEX tasks_owner_name_key",
    """
CREATE UNIQUE INDEX tasks_owner_name_key ON tasks (owner_id, lower(name) text_pattern_ops) WHERE deleted_at IS NULL
""",
    """
CREATE INDEX tasks_organization_name_idx ON tasks (organization_id, lower(name) text_pattern_ops)
    WHERE deleted_at IS NULL
""",
)


def upgrade() -> None:
    """Create the tables, fill them with the tasks that exist, and index the beginnings of names."""
    run = op.get_bind().exec_driver_sql
    for statement in (*_TABLES, *_ROWS, *_INDEXES):
        run(statement)
