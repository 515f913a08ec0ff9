"""What taskherd keeps in PostgreSQL: tables, migrations, and every statement that reads or writes them.

Nothing above this package writes SQL, and nothing in it logs, counts or reads a clock.
"""
