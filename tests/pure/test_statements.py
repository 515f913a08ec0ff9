from __future__ import annotations

import pytest
from sqlalchemy import JSON, BigInteger, Column, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY

from taskherd.domain.lease import HeartbeatSummary, Lease
from taskherd.store import inputs, parked, requests, statements, tables, tasks
from taskherd.store.__main__ import main

THINGS = Table(
    "things",
    MetaData(),
    Column("id", BigInteger, primary_key=True),
    Column("document", JSON),
    Column("tags", ARRAY(Text)),
)


def test_a_tables_columns_become_sql() -> None:
    """JSON and lists travel as text and are converted where they are stored or selected."""
    assert statements.column_names(THINGS.c, "t") == "t.id, t.document, t.tags"
    assert statements.selected(THINGS.c, "t") == "t.id, CAST(t.document AS text) AS document, t.tags"
    assert statements.stored(THINGS.c) == "id, CAST(document AS json) AS document, string_to_array(tags, ',') AS tags"
    assert statements.stored([THINGS.c.document], "t", instead={"document": "t.text"}) == "t.text"
    assert statements.assignments([THINGS.c.document, THINGS.c.tags], "t") == "document = t.document, tags = t.tags"


def test_arrays_are_bound_under_the_names_that_the_statement_has() -> None:
    """Each column is one array, named the same in the statement and in its parameters."""
    arrays = statements.ColumnArrays(THINGS.c, prefix="t_", attributes={"tags": "document.tags", "document": "real"})
    assert " ".join(arrays.unnest("t", ordinality="place").split()) == (
        "unnest( CAST(:t_id AS bigint[]), CAST(:t_document AS text[]), CAST(:t_tags AS text[]) ) "
        "WITH ORDINALITY AS t(id, document, tags, place)"
    )
    plain = statements.ColumnArrays([THINGS.c.id], attributes={"id": "real"})
    assert plain.parameters([1, 2]) == {"id": [1, 2]}


def test_every_column_of_a_task_has_one_source() -> None:
    """Each column of `tasks` is a field of the task or derived from it; the prompt alone is kept elsewhere."""
    assert sorted({*tables.tasks.c.keys(), "prompt"}) == sorted((*tasks.TASK_FIELDS, *tasks.DERIVED))
    assert tasks.StoredTask._fields == ("task", *tasks.DERIVED, "due_moved")


def test_what_a_new_task_sets_once_is_never_saved_again() -> None:
    """A column is part of an UPDATE unless it identifies the task or is marked as set once."""
    set_once = {column.name for column in tables.tasks.c if column.info is statements.SET_ONCE}
    _, _, rest = str(tasks.SAVE).partition("SET ")
    assignments, _, _ = rest.partition("FROM")
    saved = {assignment.split(" = ")[0].strip() for assignment in assignments.split(",")}
    assert saved == set(tables.tasks.c.keys()) - set_once - {"id"}
    assert {"owner_id", "name", "created_at"} <= set_once


@pytest.mark.parametrize(
    ("row", "table"),
    [
        (HeartbeatSummary, tables.leases),
        (Lease, tables.leases),
        (requests.WorkRequest, tables.work_requests),
        (inputs.InputRow, tables.inputs),
        (parked.ParkedReport, tables.parked),
    ],
)
def test_rows_have_the_columns_of_their_table_in_order(row: type[Lease], table: Table) -> None:
    """A row that is made from all columns of a table has the same fields, in the same order."""
    assert list(row.__match_args__) == table.c.keys()


def test_statements_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Statements are printed by name or by module, with the lists of columns filled in."""
    main(["tasks.SAVE", "leases"])
    printed = capsys.readouterr().out
    assert "SET version = s.version, updated_at = s.updated_at" in printed
    assert [line for line in printed.splitlines() if line.startswith("-- ")][0::6] == [
        "-- leases.TOUCH",
        "-- tasks.SAVE",
    ]
