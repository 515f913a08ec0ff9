"""PostgreSQL: tables, migrations, and every SQL statement of taskherd.

No other package contains SQL, and nothing in this one logs, counts or reads a clock.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that annotations elsewhere need not import SQLAlchemy
    from sqlalchemy.ext.asyncio import AsyncConnection as AsyncConnection
    from sqlalchemy.ext.asyncio import AsyncEngine as AsyncEngine
