"""${message}."""

from __future__ import annotations

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what the release before this one reads and writes must keep working beside it."""
    ${upgrades if upgrades else "op.execute('')"}
