"""SQL fragments that are generated from the columns of a table, and rows as array parameters of statements.

Rows are sent as arrays, one per column, so that a batch of any size is one statement with one plan. JSON is sent as
text, which PostgreSQL stores as it is. A list is sent as text joined by commas, because ``unnest`` flattens nested
arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import ARRAY, JSON, Column, Table
from sqlalchemy.dialects import postgresql

DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]
SET_ONCE: Final = {"set_once": True}
"""``info`` of a column that is set when a row is inserted; of those of ``tasks``, only erasure changes some later."""

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def changing(table: Table) -> list[Column[Any]]:
    """Return the columns that may change: those that are neither in the primary key nor ``SET_ONCE``."""
    return [column for column in table.c if not column.primary_key and column.info is not SET_ONCE]


def column_names(columns: Iterable[Column[Any]], alias: str = "") -> str:
    """Return the names of the columns, qualified with ``alias`` if given: ``t.id, t.name``."""
    return ", ".join(_name(column, alias) for column in columns)


def selected(columns: Iterable[Column[Any]], alias: str = "") -> str:
    """Return the columns as a SELECT list that reads JSON as text."""
    return ", ".join(
        f"CAST({_name(column, alias)} AS text) AS {column.name}"
        if isinstance(column.type, JSON)
        else _name(column, alias)
        for column in columns
    )


def stored(columns: Iterable[Column[Any]], alias: str = "", instead: Mapping[str, str] = NOTHING) -> str:
    """Return a SELECT list that converts rows sent as arrays to the column types of the table.

    Args:
        columns: columns of the table.
        alias: alias of the rows.
        instead: SQL to use for some columns, by name.
    """
    return ", ".join(instead.get(column.name) or _stored(column, alias) for column in columns)


def assignments(columns: Iterable[Column[Any]], source: str) -> str:
    """Return the SET list of an UPDATE that copies the columns from ``source``."""
    return ", ".join(f"{column.name} = {source}.{column.name}" for column in columns)


class ColumnArrays:
    """The parameters that pass rows to a statement: one array per column, named ``prefix`` plus the column's name.

    The value of a column is the attribute of the row with the column's name, or the one given in ``attributes``, which
    may be a path: ``task.id``.
    """

    def __init__(
        self, columns: Iterable[Column[Any]], *, prefix: str = "", attributes: Mapping[str, str] = NOTHING
    ) -> None:
        self._parameters = {f"{prefix}{column.name}": column for column in columns}
        self._getters = {
            parameter: attrgetter(attributes.get(column.name, column.name))
            for parameter, column in self._parameters.items()
        }

    def unnest(self, alias: str, *, ordinality: str = "") -> str:
        """Return the arrays as rows to select from; if ``ordinality`` is given, a column of that name counts from 1."""
        arrays = ",\n        ".join(
            f"CAST(:{parameter} AS {_array_type(column)}[])" for parameter, column in self._parameters.items()
        )
        columns = column_names(self._parameters.values())
        if ordinality:
            return f"unnest(\n        {arrays}\n    ) WITH ORDINALITY AS {alias}({columns}, {ordinality})"
        return f"unnest(\n        {arrays}\n    ) AS {alias}({columns})"

    def parameters(self, rows: Iterable[object]) -> dict[str, Any]:
        """Return the parameters for these rows."""
        return {parameter: list(map(get, rows)) for parameter, get in self._getters.items()}


def _name(column: Column[Any], alias: str) -> str:
    return f"{alias}.{column.name}" if alias else column.name


def _stored(column: Column[Any], alias: str) -> str:
    name = _name(column, alias)
    if isinstance(column.type, JSON):
        return f"CAST({name} AS {_type(column)}) AS {column.name}"
    if isinstance(column.type, ARRAY):
        return f"string_to_array({name}, ',') AS {column.name}"
    return name


def _array_type(column: Column[Any]) -> str:
    return "text" if isinstance(column.type, JSON | ARRAY) else _type(column)


def _type(column: Column[Any]) -> str:
    return column.type.compile(DIALECT).partition(" COLLATE ")[0].lower()
