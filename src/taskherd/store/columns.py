"""Columns as lines: a column of many rows travels as one text, a line for each row, and becomes an array in PostgreSQL.

asyncpg looks at each element of an array several times, to find out whether it is a list itself: saving a task with its
event took the worker 12.5 µs as arrays and takes 8 as lines; PostgreSQL, which parses more, takes 30 instead of 28.
One JSON text for all would save the worker as much, and cost PostgreSQL 15 more.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache


def column(name: str, kind: str) -> str:
    """The SQL of an array of this type, made of the parameter that holds its lines; an empty line is NULL."""
    array = f"string_to_array(CAST(:{name} AS text), chr(10), '')"
    return array if kind == "text" else f"CAST({array} AS {kind}[])"


def lines(values: Sequence[object]) -> str:
    """The lines of a column; None is an empty one. Raises ValueError where a value is of several lines itself.

    JSON as we write it has no line breaks; text that people wrote may have, and travels as an array.
    """
    most = max(len(values) - 1, 0)
    absent = values.count(None)
    if absent == len(values):
        return "\n" * most
    text = "\n".join(map(str, values) if not absent else ["" if value is None else str(value) for value in values])
    if text.count("\n") > most:
        raise ValueError("a value of several lines")
    return text


@lru_cache(maxsize=16)
def instant(at: datetime) -> str:
    """An instant as text, where nearly all of a column are the same one."""
    return at.isoformat()
