"""PostgreSQL: tables, migrations, and every SQL statement of taskherd.

No other package contains SQL, and nothing in this one logs, counts or reads a clock.
"""
