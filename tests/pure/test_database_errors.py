"""Errors of the database, by what to do next, and the settings of its sessions."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.store.engine import (
    DataError,
    LockTimeout,
    ReadOnly,
    StatementTimeout,
    classify,
    session_settings,
    sqlstate,
)


def failure(code: str, message: str = "went wrong\nDETAIL: a secret") -> Exception:
    """Return the error that asyncpg raises for a response with this code."""
    error: Exception = asyncpg.PostgresError.new({"C": code, "M": message})
    return error


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("40P01", Retry), ("40001", Retry), ("55P03", LockTimeout), ("55P04", None), ("40002", None),
        ("25006", ReadOnly), ("57014", StatementTimeout),
        ("26000", Misconfigured), ("42P05", Misconfigured), ("42P01", None),
        ("08006", Unavailable), ("28P01", Unavailable), ("53300", Unavailable), ("57P01", Unavailable),
        ("58030", Unavailable), ("25P03", Unavailable), ("3D000", Unavailable), ("25P02", None), ("3F000", None),
        ("22003", DataError), ("23505", DataError), ("54001", DataError), ("54000", None), ("21000", None),
        ("0A000", None), ("42501", None),
    ],
)  # fmt: skip
def test_an_error_with_a_code_says_what_to_do(code: str, kind: type[Exception] | None) -> None:
    """A code of no known kind is a bug, which surfaces; the message has the first line only, and the code."""
    error = failure(code)
    found = classify(error)
    assert type(found) is (type(None) if kind is None else kind)
    if found is not None:
        words = f"{type(error).__name__}: went wrong [{code}]"
        assert words in str(found)


def test_a_plan_from_before_a_migration_is_made_again() -> None:
    """PostgreSQL has no code of its own for it, but one that others have, too."""
    assert type(classify(failure("0A000", "cached plan must not change result type"))) is Retry
    assert type(classify(asyncpg.InvalidCachedStatementError("the plan has changed"))) is Retry


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionResetError("reset"), "ConnectionResetError: reset"), (OSError("away"), "OSError: away"),
        (TimeoutError("late"), "TimeoutError: late"), (TimeoutError(), "no answer in time"),
        (ValueError("a bug"), None),
    ],
)  # fmt: skip
def test_an_error_without_a_code_may_be_a_lost_connection(error: Exception, words: str | None) -> None:
    """Whatever it is wrapped in, a few levels deep; everything else is a bug."""
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        found = classify(each)
        assert type(found) is (type(None) if words is None else Unavailable)
        assert words is None or str(found) == words


def test_a_time_limit_is_told_and_not_the_cancellation_that_it_causes() -> None:
    """An ``asyncio.timeout`` raises its error from that."""
    error = TimeoutError()
    error.__cause__ = asyncio.CancelledError()
    assert str(classify(error)) == "no answer in time"


def test_a_connection_that_sqlalchemy_gives_up_is_lost() -> None:
    """It says so of an error of the driver; of others it does not."""
    for is_lost, kind in ((True, Unavailable), (False, type(None))):
        error = DBAPIError("SELECT 1", {}, ValueError("driver"), connection_invalidated=is_lost)
        assert type(classify(error)) is kind


def test_only_a_closed_connection_among_asyncpgs_errors_is_an_outage() -> None:
    """Other errors of its interface are bugs of ours, and an error of another library with the same words is, too."""
    assert type(classify(asyncpg.InterfaceError("cannot call execute(): connection is closed"))) is Unavailable
    for bug in (asyncpg.InterfaceError("another operation is in progress"), ValueError("connection is closed")):
        assert classify(bug) is None
    assert type(classify(asyncpg.InternalClientError("confused"))) is Unavailable


@pytest.mark.parametrize(("depth", "code"), [(1, "22003"), (7, "22003"), (8, None)])
def test_an_error_is_looked_for_a_few_levels_deep(depth: int, code: str | None) -> None:
    """What was wrapped so often may be wrapped in a circle."""
    error = failure("22003")
    for _ in range(depth):
        outer = RuntimeError("wrapped")
        outer.__cause__ = error
        error = outer
    assert sqlstate(error) == code


def test_what_the_server_has_answered_is_no_lost_connection() -> None:
    """An error with a code of no known kind is a bug, whatever was lost before."""
    answered = failure("42501")
    answered.__cause__ = ConnectionResetError("reset")
    assert classify(answered) is None


def test_the_code_is_that_of_the_error_that_has_one() -> None:
    """The outermost one wins."""
    inner, outer, both = failure("22003"), RuntimeError("outer"), failure("40P01")
    outer.__cause__ = both.__cause__ = inner
    assert (sqlstate(outer), sqlstate(both)) == ("22003", "40P01")
    looped = RuntimeError("looped")
    looped.__cause__ = looped
    assert sqlstate(looped) is None


def test_a_message_is_cut_before_it_is_long() -> None:
    """It is for a log, in which a line per error is enough."""
    kind = "NumericValueOutOfRangeError"
    assert str(classify(failure("22003", "x" * 300))) == f"{kind}: {'x' * 200} [22003]"
    assert str(classify(failure("22003", ""))) == f"{kind}:  [22003]"


def test_the_settings_of_sessions_are_in_milliseconds() -> None:
    """The server cancels a statement before the client would; a plan never depends on what a table has now."""
    assert session_settings("name", 2.0, 0.5) == {
        "application_name": "name",
        "statement_timeout": "1800ms",
        "lock_timeout": "500ms",
        "idle_in_transaction_session_timeout": "15000ms",
        "timezone": "UTC",
        "jit": "off",
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
    }
