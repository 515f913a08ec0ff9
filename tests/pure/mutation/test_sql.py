"""The changes of SQL are those that a wrong statement would contain."""

from __future__ import annotations

import pytest

from tests.mutation import sql


def changed(text: str) -> set[str]:
    """Return every changed form of an SQL text, with single spaces."""
    return {" ".join(f"{text[:start]}{new}{text[end:]}".split()) for _, start, end, new in sql.changes(text)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("SELECT a FROM t WHERE b = 1 FOR UPDATE OF t", "SELECT a FROM t WHERE b = 1"),
        ("SELECT a FROM t FOR UPDATE SKIP LOCKED", "SELECT a FROM t"),
        ("SELECT a FROM t FOR UPDATE SKIP LOCKED", "SELECT a FROM t FOR UPDATE"),
        ("SELECT pg_advisory_xact_lock(f('x', 0))", "SELECT 1"),
        ("SELECT a FROM t ORDER BY b LIMIT :most", "SELECT a FROM t LIMIT :most"),
        ("SELECT a FROM t ORDER BY b LIMIT :most", "SELECT a FROM t ORDER BY b DESC LIMIT :most"),
        ("SELECT a FROM t ORDER BY b LIMIT :most", "SELECT a FROM t ORDER BY b"),
        ("SELECT a FROM t ORDER BY b DESC", "SELECT a FROM t ORDER BY b ASC"),
        ("INSERT INTO t SELECT 1 ON CONFLICT (a) DO NOTHING", "INSERT INTO t SELECT 1"),
        (
            "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 2",
            "INSERT INTO t VALUES (1) ON CONFLICT (a) DO NOTHING",
        ),
        ("SELECT a FROM t WHERE a = 1 AND b <= 2", "SELECT a FROM t WHERE true AND b <= 2"),
        ("SELECT a FROM t WHERE a = 1 AND b <= 2", "SELECT a FROM t WHERE a = 1 AND true"),
        ("SELECT a FROM t WHERE a = 1 AND b <= 2", "SELECT a FROM t WHERE a = 1 OR b <= 2"),
        ("SELECT a FROM t WHERE a = 1 AND b <= 2", "SELECT a FROM t WHERE a = 1 AND b < 2"),
        ("SELECT a FROM t WHERE a = 1 AND b <= 2", "SELECT a FROM t WHERE a <> 1 AND b <= 2"),
        ("SELECT a FROM t WHERE a = 1 OR b", "SELECT a FROM t WHERE a = 1 OR false"),
        ("SELECT a FROM (SELECT a FROM t WHERE f(a)) AS s", "SELECT a FROM (SELECT a FROM t WHERE true) AS s"),
        ("SELECT a FROM t JOIN u ON u.id = t.id WHERE t.a", "SELECT a FROM t JOIN u ON true WHERE t.a"),
        ("SELECT a FROM t LEFT JOIN u ON u.id = t.id", "SELECT a FROM t JOIN u ON u.id = t.id"),
        ("DELETE FROM t WHERE a IS NULL", "DELETE FROM t WHERE a IS NOT NULL"),
        ("SELECT a FROM t WHERE NOT EXISTS (SELECT 1)", "SELECT a FROM t WHERE EXISTS (SELECT 1)"),
        ("SELECT GREATEST(a, b) FROM t", "SELECT LEAST(a, b) FROM t"),
    ],
)
def test_a_statement_is_changed(before: str, after: str) -> None:
    """Locks, order, limits, conflicts, joins and each condition are changed alone."""
    assert after in changed(before)


def test_what_python_fills_in_is_not_changed() -> None:
    """Only the statement is changed, not the expressions in its braces nor its comments."""
    text = "SELECT a FROM t WHERE {self.a < b and c} -- where b < c"
    assert changed(text) == {"SELECT a FROM t WHERE true -- where b < c"}


def test_a_range_has_no_boolean_operator() -> None:
    """The AND of BETWEEN is not swapped."""
    assert "SELECT a FROM t WHERE a BETWEEN 1 OR 2" not in changed("SELECT a FROM t WHERE a BETWEEN 1 AND 2")
