-- Creates the roles of taskherd's processes. Run it as a superuser in taskherd's database; running it again is harmless:
--   psql -d taskherd -f deploy/postgres/roles.sql
-- Then set each role's password: psql -d taskherd -c '\password taskherd_worker'
--
--   taskherd_migrator  owns the tables; for `taskherd db upgrade`, `directory apply` and `token`
--   taskherd_worker    reads and writes tasks; reads the directory
--   taskherd_api       reads; writes API tokens and task actions, and no task
--
-- A runner has no role, because it only uses RabbitMQ.
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['taskherd_migrator', 'taskherd_worker', 'taskherd_api'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
    END LOOP;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
END $$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO taskherd_migrator;
GRANT USAGE ON SCHEMA public TO taskherd_worker, taskherd_api;

-- The settings of all sessions. Processes set them by themselves, except behind a PgBouncer in transaction mode, where they
-- come from here and nothing starts without them (`taskherd db role-settings` prints them).
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['taskherd_migrator', 'taskherd_worker', 'taskherd_api'] LOOP
        -- A hung process or a forgotten transaction must not hold locks forever.
        EXECUTE format($set$ALTER ROLE %I SET statement_timeout = '4500ms'$set$, role);
        EXECUTE format($set$ALTER ROLE %I SET lock_timeout = '3000ms'$set$, role);
        EXECUTE format($set$ALTER ROLE %I SET idle_in_transaction_session_timeout = '15000ms'$set$, role);
        -- Plans that are made while a table is empty must not scan it once it has grown.
        EXECUTE format('ALTER ROLE %I SET jit = off', role);
        EXECUTE format('ALTER ROLE %I SET plan_cache_mode = force_generic_plan', role);
        EXECUTE format('ALTER ROLE %I SET enable_seqscan = off', role);
    END LOOP;
END $$;
ALTER ROLE taskherd_api SET default_transaction_read_only = off;

-- Privileges of the other roles on everything that the migrator creates, now and in later releases.
ALTER DEFAULT PRIVILEGES FOR ROLE taskherd_migrator IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO taskherd_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE taskherd_migrator IN SCHEMA public GRANT SELECT ON TABLES TO taskherd_api;
ALTER DEFAULT PRIVILEGES FOR ROLE taskherd_migrator IN SCHEMA public GRANT USAGE ON SEQUENCES TO taskherd_worker;
