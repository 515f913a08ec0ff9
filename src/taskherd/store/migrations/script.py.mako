"""${message}."""

from __future__ import annotations

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Only add: processes of the previous release must be able to read and write during and after the upgrade."""
    ${upgrades if upgrades else "op.execute('')"}
