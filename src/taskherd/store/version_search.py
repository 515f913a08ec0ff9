"""Find a version of a task by bisection, so that what is read of a long history does not grow with its length."""

from __future__ import annotations


def version_search(name: str, table: str, *, task_id: str, start: str, is_before: str) -> str:
    """Return a common table expression, for ``WITH RECURSIVE``, that finds the first version not before a place.

    The result is ``(SELECT max(low) FROM name)``: null if the task has no version from ``start`` on, and one more than
    its last version if all of them are before the place. Versions may be missing. Each step looks up one version by
    the index on the task and its versions, and halves what is left.

    Args:
        name: the name of the expression.
        table: the table of the versions.
        task_id: the SQL of the task's id.
        start: the SQL of the version to start at.
        is_before: the SQL of whether the row ``e`` is before the place; true of no version after one of which it is
            false.
    """
    return f"""{name} (low, high) AS (
    SELECT (SELECT version FROM {table} WHERE task_id = {task_id} AND version >= {start} ORDER BY version LIMIT 1),
           (SELECT version + 1 FROM {table} WHERE task_id = {task_id} ORDER BY version DESC LIMIT 1)
    UNION ALL
    SELECT CASE WHEN m.is_before THEN m.version + 1 ELSE s.low END,
           CASE WHEN m.is_before THEN s.high ELSE (s.low + s.high) / 2 END
    FROM {name} AS s CROSS JOIN LATERAL (
        SELECT e.version, {is_before} AS is_before FROM {table} AS e
        WHERE e.task_id = {task_id} AND e.version >= (s.low + s.high) / 2 ORDER BY e.version LIMIT 1) AS m
    WHERE s.low < s.high
)"""
