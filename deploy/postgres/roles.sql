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

-- A hung process or a forgotten transaction must not hold locks forever.
ALTER ROLE taskherd_worker SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE taskherd_api SET idle_in_transaction_session_timeout = '30s';
ALTER ROLE taskherd_api SET statement_timeout = '30s';
ALTER ROLE taskherd_api SET default_transaction_read_only = off;

-- Privileges of the other roles on everything that the migrator creates, now and in later releases.
ALTER DEFAULT PRIVILEGES FOR ROLE taskherd_migrator IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO taskherd_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE taskherd_migrator IN SCHEMA public GRANT SELECT ON TABLES TO taskherd_api;
ALTER DEFAULT PRIVILEGES FOR ROLE taskherd_migrator IN SCHEMA public GRANT USAGE ON SEQUENCES TO taskherd_worker;
