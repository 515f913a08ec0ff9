"""The schema's history, one Alembic revision for each step."""
