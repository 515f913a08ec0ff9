"""The first schema: directory, tasks, history and outbox, inbox, logs, partitions."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

DIRECTORY = """
CREATE TABLE organizations (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    display_name text NOT NULL,
    active boolean NOT NULL DEFAULT true
);
CREATE UNIQUE INDEX organizations_name_key ON organizations (lower(name));

CREATE TABLE users (
    id uuid PRIMARY KEY,
    username text NOT NULL,
    name text NOT NULL,
    email text NOT NULL,
    avatar_url text NOT NULL,
    github_com_user_id bigint,
    active boolean NOT NULL DEFAULT true
);
CREATE UNIQUE INDEX users_username_key ON users (lower(username));
CREATE INDEX users_github_com_user_id_idx ON users (github_com_user_id);

CREATE TABLE memberships (
    user_id uuid NOT NULL REFERENCES users (id),
    organization_id uuid NOT NULL REFERENCES organizations (id),
    role text NOT NULL CONSTRAINT memberships_role_check CHECK (role IN ('member', 'admin')),
    active boolean NOT NULL DEFAULT true,
    PRIMARY KEY (user_id, organization_id)
);

CREATE TABLE templates (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations (id),
    name text NOT NULL,
    display_name text NOT NULL,
    icon text NOT NULL,
    description text NOT NULL DEFAULT '',
    active_version_id uuid NOT NULL,
    active boolean NOT NULL DEFAULT true
);
CREATE UNIQUE INDEX templates_name_key ON templates (organization_id, lower(name));

CREATE TABLE template_versions (
    id uuid PRIMARY KEY,
    template_id uuid NOT NULL REFERENCES templates (id),
    name text NOT NULL,
    run jsonb NOT NULL,
    active boolean NOT NULL DEFAULT true
);
CREATE UNIQUE INDEX template_versions_name_key ON template_versions (template_id, lower(name));

CREATE TABLE presets (
    id uuid PRIMARY KEY,
    template_version_id uuid NOT NULL REFERENCES template_versions (id),
    name text NOT NULL,
    is_default boolean NOT NULL,
    parameters jsonb NOT NULL,
    active boolean NOT NULL DEFAULT true
);
CREATE UNIQUE INDEX presets_name_key ON presets (template_version_id, lower(name));

CREATE TABLE directory_revision (
    id boolean PRIMARY KEY DEFAULT true CONSTRAINT directory_revision_id_check CHECK (id),
    revision bigint NOT NULL
);
INSERT INTO directory_revision (revision) VALUES (0);
"""

# toast_tuple_target: every report rewrites the complete row, so it stays in its page as long as it fits.
TASKS = """
CREATE TABLE tasks (
    id uuid PRIMARY KEY,
    owner_id uuid NOT NULL,
    organization_id uuid NOT NULL,
    template_id uuid NOT NULL,
    template_version_id uuid NOT NULL,
    preset_id uuid,
    name text NOT NULL,
    display_name text NOT NULL,
    created_at timestamptz NOT NULL,
    version bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    deleted_at timestamptz,
    status text NOT NULL,
    document json NOT NULL,
    memory json NOT NULL,
    due_at timestamptz,
    prompt_version bigint NOT NULL
) WITH (
    fillfactor = 70, toast_tuple_target = 8160,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0
);
CREATE UNIQUE INDEX tasks_owner_name_key ON tasks (owner_id, lower(name)) WHERE deleted_at IS NULL;
CREATE INDEX tasks_owner_created_idx ON tasks (owner_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX tasks_organization_created_idx ON tasks (organization_id, created_at DESC, id DESC)
    WHERE deleted_at IS NULL;

CREATE TABLE task_prompts (
    task_id uuid NOT NULL,
    version bigint NOT NULL,
    prompt text NOT NULL,
    PRIMARY KEY (task_id, version)
);

CREATE TABLE task_deadlines (
    task_id uuid PRIMARY KEY,
    due_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX task_deadlines_due_at_idx ON task_deadlines (due_at);

CREATE TABLE leases (
    task_id uuid PRIMARY KEY,
    build_number integer NOT NULL,
    agent_id uuid,
    seq bigint NOT NULL,
    observed_at timestamptz,
    heard_at timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE inputs (
    input_id uuid PRIMARY KEY,
    task_id uuid NOT NULL,
    ordinal bigint NOT NULL,
    content text NOT NULL,
    state text NOT NULL CONSTRAINT inputs_state_check CHECK (state IN ('queued', 'sent', 'delivered', 'failed')),
    created_at timestamptz NOT NULL,
    sent_at timestamptz,
    decided_at timestamptz,
    detail text,
    actor_id uuid,
    CONSTRAINT inputs_task_id_ordinal_key UNIQUE (task_id, ordinal),
    CONSTRAINT inputs_decided_check CHECK ((decided_at IS NOT NULL) = (state IN ('delivered', 'failed')))
);
CREATE INDEX inputs_open_idx ON inputs (task_id, ordinal) WHERE decided_at IS NULL;

CREATE TABLE work_requests (
    request_id uuid PRIMARY KEY,
    task_id uuid NOT NULL,
    build_number integer NOT NULL,
    type text NOT NULL,
    input_id uuid,
    target_runner text,
    attempt integer NOT NULL,
    created_at timestamptz NOT NULL,
    next_at timestamptz NOT NULL,
    first_sent_at timestamptz
);
CREATE INDEX work_requests_task_id_idx ON work_requests (task_id);
CREATE INDEX work_requests_next_at_idx ON work_requests (next_at);

CREATE TABLE parked (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id uuid NOT NULL,
    parked_at timestamptz NOT NULL,
    report json NOT NULL
);
CREATE INDEX parked_task_id_idx ON parked (task_id);
CREATE INDEX parked_parked_at_idx ON parked (parked_at);

CREATE TABLE task_logs (
    task_id uuid NOT NULL,
    log_id bigint NOT NULL,
    build_number integer NOT NULL,
    entry_id bigint NOT NULL,
    seq bigint NOT NULL,
    type text NOT NULL CONSTRAINT task_logs_type_check CHECK (type IN ('input', 'output')),
    content text NOT NULL,
    time timestamptz NOT NULL,
    logged_at timestamptz NOT NULL,
    PRIMARY KEY (task_id, log_id, logged_at)
) PARTITION BY RANGE (logged_at);
CREATE INDEX task_logs_entry_idx ON task_logs (task_id, build_number, entry_id);
CREATE TABLE task_logs_default PARTITION OF task_logs DEFAULT;

CREATE TABLE task_log_heads (
    task_id uuid PRIMARY KEY,
    next_log_id bigint NOT NULL
) WITH (fillfactor = 70);
"""

HISTORY = """
CREATE TABLE task_events (
    task_id uuid NOT NULL,
    version bigint NOT NULL,
    occurred_at timestamptz NOT NULL,
    kind text NOT NULL CONSTRAINT task_events_kind_check CHECK (kind IN ('created', 'updated', 'deleted')),
    document json NOT NULL,
    changes text[] NOT NULL,
    cause json NOT NULL,
    prompt_version bigint NOT NULL,
    PRIMARY KEY (task_id, version, occurred_at)
) PARTITION BY RANGE (occurred_at);
CREATE TABLE task_events_default PARTITION OF task_events DEFAULT;

CREATE TABLE outbox (
    task_id uuid NOT NULL,
    version bigint NOT NULL,
    occurred_at timestamptz NOT NULL,
    PRIMARY KEY (task_id, version)
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 0
);

CREATE SEQUENCE task_feed_position AS bigint;
CREATE TABLE task_feed (
    position bigint PRIMARY KEY,
    task_id uuid NOT NULL,
    version bigint NOT NULL,
    occurred_at timestamptz NOT NULL
);
CREATE INDEX task_feed_task_idx ON task_feed (task_id, version);
"""

WORKER_TABLES = """
CREATE TABLE command_log (
    command_id uuid PRIMARY KEY,
    digest bytea NOT NULL,
    reply json,
    created_at timestamptz NOT NULL
);
CREATE INDEX command_log_created_at_idx ON command_log (created_at);

CREATE TABLE workers (
    worker_id text PRIMARY KEY,
    started_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    drained_since timestamptz
);
"""

COMMENTS = """
COMMENT ON TABLE organizations IS 'Directory: organizations';
COMMENT ON TABLE users IS 'Directory: who owns tasks';
COMMENT ON TABLE memberships IS 'Directory: who belongs where';
COMMENT ON TABLE templates IS 'Directory: what tasks can be made from';
COMMENT ON TABLE template_versions IS 'Directory: versions of templates';
COMMENT ON TABLE presets IS 'Directory: named sets of parameters';
COMMENT ON TABLE directory_revision IS 'One row, raised by each apply that changed something';
COMMENT ON COLUMN organizations.active IS 'false once the directory left it out';
COMMENT ON COLUMN users.active IS 'false once the directory left it out';
COMMENT ON COLUMN memberships.active IS 'false once the directory left it out';
COMMENT ON COLUMN templates.active IS 'false once the directory left it out';
COMMENT ON COLUMN template_versions.active IS 'false once the directory left it out';
COMMENT ON COLUMN presets.active IS 'false once the directory left it out';
COMMENT ON COLUMN template_versions.run IS 'what the runner needs; run.pool names the pool of runners';
COMMENT ON TABLE tasks IS 'The truth about every task; deleted ones stay as tombstones';
COMMENT ON COLUMN tasks.deleted_at IS 'set: a tombstone, which only folds build reports';
COMMENT ON COLUMN tasks.document IS 'the task document, without prompt and directory names';
COMMENT ON COLUMN tasks.memory IS 'the facets that the document is derived from';
COMMENT ON COLUMN tasks.due_at IS
    'when the task is to be looked at although nothing came; see task_deadlines';
COMMENT ON COLUMN tasks.prompt_version IS 'the row of task_prompts that holds';
COMMENT ON TABLE task_prompts IS
    'Prompts, apart from tasks since they are long and seldom change; rows never change';
COMMENT ON COLUMN task_prompts.version IS 'the task''s version from which on this prompt holds';
COMMENT ON TABLE task_deadlines IS
    'tasks.due_at once more, indexed here so that saving a task stays a heap-only update';
COMMENT ON TABLE leases IS 'Connected agents: all that a heartbeat touches';
COMMENT ON COLUMN leases.heard_at IS 'when we took the latest heartbeat, by our clock';
COMMENT ON TABLE inputs IS 'The inbox: what people sent to an agent, one at a time and in order';
COMMENT ON TABLE work_requests IS 'Requests to runners that nobody has taken up yet';
COMMENT ON COLUMN work_requests.attempt IS 'how often it was handed out to be sent';
COMMENT ON TABLE parked IS 'Reports that came before their task''s create';
COMMENT ON TABLE task_logs IS 'The conversations';
COMMENT ON COLUMN task_logs.log_id IS 'counts from 0 per task and never changes';
COMMENT ON COLUMN task_logs.entry_id IS 'the id that the agent gave it, within its build';
COMMENT ON TABLE task_log_heads IS 'The next log id of a task; outlives the pruning of its logs';
COMMENT ON TABLE task_events IS 'Every change of every task, append-only';
COMMENT ON TABLE outbox IS 'Events that the broker has not confirmed yet';
COMMENT ON TABLE task_feed IS
    'Published events in the order in which readers resume; positions are given by one writer at a time';
COMMENT ON TABLE command_log IS 'Commands done and what was replied';
COMMENT ON COLUMN command_log.digest IS 'of the command''s body: the same id with another body is refused';
COMMENT ON COLUMN command_log.reply IS 'null only while the command''s own transaction runs';
COMMENT ON TABLE workers IS 'Workers alive, and since when each has been listening';
COMMENT ON COLUMN workers.drained_since IS
    'since when its queue was known to be drained; null while it is not';
"""

# SECURITY DEFINER functions, so that the role of a worker needs no privilege to create or drop tables.
# A partition is filled and checked separately and then attached, which blocks only the default partition.
ADD_PARTITION = """
CREATE FUNCTION taskherd_add_partition(parent text, monday date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    partition text := parent || to_char(monday, '"_p"YYYYMMDD');
    key text := CASE parent WHEN 'task_events' THEN 'occurred_at' WHEN 'task_logs' THEN 'logged_at' END;
    lower timestamptz := monday::timestamp AT TIME ZONE 'UTC';
    upper timestamptz := (monday + 7)::timestamp AT TIME ZONE 'UTC';
BEGIN
    IF key IS NULL OR extract(isodow FROM monday) <> 1 THEN
        RAISE EXCEPTION 'no weekly partition of % begins at %', parent, monday;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('taskherd partitions', 0));
    IF to_regclass(format('%I', partition)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', partition, parent);
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT bounds CHECK (%I >= %L AND %I < %L)',
                   partition, key, lower, key, upper);
    EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', parent || '_default');
    EXECUTE format('WITH moved AS (DELETE FROM %I WHERE %I >= %L AND %I < %L RETURNING *) INSERT INTO %I TABLE moved',
                   parent || '_default', key, lower, key, upper, partition);
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, partition, lower, upper);
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT bounds', partition);
    RETURN true;
END $$
"""

DROP_PARTITIONS = """
CREATE FUNCTION taskherd_drop_partitions(parent text, before date) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    partition text;
BEGIN
    IF parent NOT IN ('task_events', 'task_logs') THEN
        RAISE EXCEPTION '% has no partitions', parent;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('taskherd partitions', 0));
    FOR partition IN
        SELECT c.relname
        FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = format('%I', parent)::regclass
          AND c.relname ~ ('^' || parent || '_p[0-9]{8}$')
          AND to_date(right(c.relname, 8), 'YYYYMMDD') + 7 <= before
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE %I', partition);
        RETURN NEXT partition;
    END LOOP;
END $$
"""

# A SECURITY DEFINER function must not look names up in a schema that its caller chooses.
GUARD_FUNCTIONS = """
DO $$
DECLARE
    named text;
BEGIN
    FOREACH named IN ARRAY ARRAY['taskherd_add_partition(text, date)', 'taskherd_drop_partitions(text, date)'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', named, current_schema());
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', named);
    END LOOP;
END $$
"""

FIRST_PARTITIONS = """
SELECT taskherd_add_partition(parent, (date_trunc('week', now() AT TIME ZONE 'UTC'))::date + 7 * week)
FROM unnest(ARRAY['task_events', 'task_logs']) AS parent, generate_series(0, 4) AS week
"""


def upgrade() -> None:
    """Create all tables and functions, and the first partitions."""
    run = op.get_bind().exec_driver_sql
    for part in (DIRECTORY, TASKS, HISTORY, WORKER_TABLES, COMMENTS):
        for statement in part.split(";\n"):
            if statement.strip():
                run(statement)
    for statement in (ADD_PARTITION, DROP_PARTITIONS, GUARD_FUNCTIONS, FIRST_PARTITIONS):
        run(statement)
