-- Narrows the default privileges of roles.sql, table by table. Run it as the migrator after each `taskherd db upgrade`:
--   psql "$MIGRATOR_URL" -f deploy/postgres/grants.sql
GRANT EXECUTE ON FUNCTION taskherd_add_partition(text, date), taskherd_drop_partitions(text, date),
    taskherd_prune_tokens(timestamptz, integer) TO taskherd_worker;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO taskherd_worker, taskherd_api;
-- Only `directory apply` writes the directory, and only `db upgrade` writes the schema version.
DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['organizations', 'users', 'memberships', 'templates', 'template_versions',
                                      'presets', 'runners', 'directory_revision',
                                      'taskherd_schema'] LOOP
        EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON %I FROM taskherd_worker', table_name);
    END LOOP;
END $$;
-- `taskherd token`, run as the migrator, creates and revokes API tokens; the API issues those that users ask for. Workers
-- delete those that ended long ago, by taskherd_prune_tokens.
REVOKE ALL ON api_tokens FROM taskherd_worker;
GRANT INSERT, UPDATE (last_used_at) ON api_tokens TO taskherd_api;
-- Task actions are the API's: jobs, of which workers only delete the old ones. They write no task.
GRANT INSERT, UPDATE ON task_actions, task_action_tasks TO taskherd_api;
