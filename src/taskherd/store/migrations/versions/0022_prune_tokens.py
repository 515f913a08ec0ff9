"""API tokens that ended long ago are found, with those that were issued from them, and deleted by workers."""

from __future__ import annotations

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

INDEXES = (
    "CREATE INDEX api_tokens_issued_from_idx ON api_tokens (issued_from) WHERE issued_from IS NOT NULL",
    "CREATE INDEX api_tokens_ended_idx ON api_tokens (LEAST(revoked_at, expires_at))",
)

# A SECURITY DEFINER function, so that the role of a worker needs no privilege on tokens. It ends none: of those that
# have ended it deletes up to `most`, oldest end first, and before a token what was issued from it, which ended with it.
# Each round takes tokens, then those issued from them and so on, and deletes the last ones. If more were issued than
# fit, these fill the call. Else the next round deletes those that they were issued from: a round for each level.
# A token is locked before its children are read, so that none is issued from it meanwhile. A token that another
# transaction has locked is left for a later call, with all that it was issued from, up to 8 (MAX_DEPTH): `kept`.
# The subqueries leave the planner a single plan, which reads nothing but these tokens.
PRUNE_TOKENS = """
CREATE FUNCTION taskherd_prune_tokens(before timestamptz, most integer) RETURNS integer
LANGUAGE plpgsql STRICT SECURITY DEFINER AS $$
DECLARE
    ended_before timestamptz := LEAST(before, now());
    level text[];
    next_level text[];
    kept text[] := '{}';
    in_round integer;
    deleted integer := 0;
BEGIN
    WHILE deleted < most AND cardinality(kept) / 10 < most LOOP
        next_level := ARRAY(
            SELECT k.id FROM api_tokens AS k
            WHERE LEAST(k.revoked_at, k.expires_at) < ended_before AND k.id <> ALL (kept)
            ORDER BY LEAST(k.revoked_at, k.expires_at) LIMIT most - deleted FOR UPDATE SKIP LOCKED);
        EXIT WHEN next_level = '{}';
        WHILE next_level <> '{}' LOOP
            level := next_level;
            next_level := ARRAY(
                SELECT issued.id FROM unnest(level) AS parent(id) CROSS JOIN LATERAL (
                    SELECT k.id FROM api_tokens AS k WHERE k.issued_from = parent.id AND k.id <> ALL (kept)
                    LIMIT most - deleted FOR UPDATE SKIP LOCKED) AS issued
                LIMIT most - deleted);
        END LOOP;
        DELETE FROM api_tokens AS k
        WHERE k.id = ANY (level) AND (SELECT true FROM api_tokens AS c WHERE c.issued_from = k.id LIMIT 1) IS NULL;
        GET DIAGNOSTICS in_round = ROW_COUNT;
        deleted := deleted + in_round;
        IF in_round < cardinality(level) THEN
            kept := kept || ARRAY(SELECT k.id FROM api_tokens AS k WHERE k.id = ANY (level));
        END IF;
    END LOOP;
    RETURN deleted;
END $$
"""

# It must not look names up in a schema that its caller chooses. Who may drop partitions is a worker, whatever its name.
GUARD_FUNCTION = """
DO $$
DECLARE
    named text := 'taskherd_prune_tokens(timestamptz, integer)';
    worker regrole;
BEGIN
    EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', named, current_schema());
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', named);
    FOR worker IN
        SELECT DISTINCT granted.grantee FROM pg_proc AS f CROSS JOIN LATERAL aclexplode(f.proacl) AS granted
        WHERE f.oid = 'taskherd_drop_partitions(text, date)'::regprocedure
          AND granted.privilege_type = 'EXECUTE' AND granted.grantee NOT IN (0, f.proowner)
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', named, worker);
    END LOOP;
END $$
"""


def upgrade() -> None:
    """Index the tokens and create the function; issuing and revoking tokens wait while the indexes are built."""
    run = op.get_bind().exec_driver_sql
    for statement in (*INDEXES, PRUNE_TOKENS, GUARD_FUNCTION):
        run(statement)
