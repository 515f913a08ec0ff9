"""Which token and which user requested a token: it ends with the one, and with the right of the other."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE api_tokens ADD COLUMN issued_from text REFERENCES api_tokens",
    "ALTER TABLE api_tokens ADD COLUMN issued_by uuid REFERENCES users",
    "COMMENT ON COLUMN api_tokens.issued_from IS 'the token that requested this one, and ends it'",
    "COMMENT ON COLUMN api_tokens.issued_by IS 'the user of issued_from then'",
)


def upgrade() -> None:
    """Add the columns; nothing is rewritten."""
    run = op.get_bind().exec_driver_sql
    for statement in STATEMENTS:
        run(statement)
