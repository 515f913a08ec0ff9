"""What the API keeps: the tokens that people and their tools sign in with."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TOKENS = (
    """
CREATE TABLE api_tokens (
    id text PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    secret_hash bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
)
""",
    "CREATE INDEX api_tokens_user_id_idx ON api_tokens (user_id)",
    "COMMENT ON TABLE api_tokens IS 'Who may speak to the API, and until when'",
    "COMMENT ON COLUMN api_tokens.secret_hash IS 'SHA-256 of the secret, which is kept nowhere'",
    "COMMENT ON COLUMN api_tokens.last_used_at IS 'within a minute or so: written seldom, many at once'",
)


def upgrade() -> None:
    """Create the table."""
    run = op.get_bind().exec_driver_sql
    for statement in TOKENS:
        run(statement)
