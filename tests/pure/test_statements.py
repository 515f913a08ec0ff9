from __future__ import annotations

import pytest
from sqlalchemy import JSON, BigInteger, Column, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY

from taskherd.domain.lease import HeartbeatSummary, Lease
from taskherd.store import inputs, parked_reports, statements, tables, tasks, work_requests
from taskherd.store.__main__ import main

THINGS = Table(
    "things",
    MetaData(),
    Column("id", BigInteger, primary_key=True),
    Column("document", JSON),
    Column("tags", ARRAY(Text)),
)


def test_sql_is_generated_from_columns() -> None:
    """JSON and lists are sent as text and converted when they are stored or selected."""
    assert statements.column_names(THINGS.c, "t") == "t.id, t.document, t.tags"
    assert statements.selected(THINGS.c, "t") == "t.id, CAST(t.document AS text) AS document, t.tags"
    assert statements.stored(THINGS.c) == "id, CAST(document AS json) AS document, string_to_array(tags, ',') AS tags"
    assert statements.stored([THINGS.c.document], "t", instead={"document": "t.text"}) == "t.text"
    assert statements.assignments([THINGS.c.document, THINGS.c.tags], "t") == "document = t.document, tags = t.tags"


def test_array_parameters_have_the_names_in_the_statement() -> None:
    """Each column is one array, with the same name in the statement and in its parameters."""
    arrays = statements.ColumnArrays(THINGS.c, prefix="t_", attributes={"tags": "document.tags", "document": "real"})
    assert " ".join(arrays.unnest("t", ordinality="position").split()) == (
        "unnest( CAST(:t_id AS bigint[]), CAST(:t_document AS text[]), CAST(:t_tags AS text[]) ) "
        "WITH ORDINALITY AS t(id, document, tags, position)"
    )
    plain = statements.ColumnArrays([THINGS.c.id], attributes={"id": "real"})
    assert plain.parameters([1, 2]) == {"id": [1, 2]}


def test_every_column_of_a_task_has_one_source() -> None:
    """Each column of ``tasks`` is a field of the task or derived from it; only the prompt is in another table."""
    assert sorted({*tables.tasks.c.keys(), "prompt"}) == sorted((*tasks.TASK_FIELDS, *tasks.DERIVED))
    assert tasks.StoredTask._fields == ("task", *tasks.DERIVED, "due_changed")


def test_columns_that_are_set_once_are_never_updated() -> None:
    """An UPDATE sets every column except the id and those marked ``SET_ONCE``."""
    set_once = {column.name for column in tables.tasks.c if column.info is statements.SET_ONCE}
    _, _, after_set = str(tasks.SAVE).partition("SET ")
    assignments, _, _ = after_set.partition("FROM")
    updated = {assignment.split(" = ")[0].strip() for assignment in assignments.split(",")}
    assert updated == set(tables.tasks.c.keys()) - set_once - {"id"}
    assert {"owner_id", "name", "created_at"} <= set_once


@pytest.mark.parametrize(
    ("row", "table"),
    [
        (HeartbeatSummary, tables.leases),
        (Lease, tables.leases),
        (work_requests.WorkRequestRow, tables.work_requests),
        (inputs.InputRow, tables.inputs),
        (parked_reports.ParkedReport, tables.parked),
    ],
)
def test_row_classes_have_the_columns_of_their_table_in_order(row: type[Lease], table: Table) -> None:
    """A class for complete rows of a table has its columns as fields, in the same order."""
    assert list(row.__match_args__) == table.c.keys()


def test_statements_are_printed_by_name_or_module(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the chosen statements with the generated lists of columns."""
    main(["tasks.SAVE", "leases"])
    printed = capsys.readouterr().out
    assert "SET version = s.version, updated_at = s.updated_at" in printed
    assert [line for line in printed.splitlines() if line.startswith("-- ")][0::7] == [
        "-- leases.RENEW",
        "-- tasks.SAVE",
    ]
