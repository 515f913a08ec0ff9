"""``taskherd db``, as people run it."""

from __future__ import annotations

import asyncpg
import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize("limit", ["200ms", "0.2"])
async def test_a_migration_gives_up_after_the_time_that_it_is_given(run: Run, database_url: str, limit: str) -> None:
    """It says so, and what to do; without the option it would wait for the other process."""
    migrating = await asyncpg.connect(database_url, timeout=30)
    try:
        await migrating.execute("SELECT pg_advisory_lock(hashtextextended('taskherd schema', 0))")
        ended = run("db", "upgrade", "--timeout", limit)
    finally:
        migrating.terminate()
    assert ended.returncode == 1
    assert b"the migration took longer than 0.2 s, `taskherd db check` says if it took effect" in ended.stderr
    assert b"more time" in ended.stderr


def test_a_time_limit_must_be_a_duration(run: Run) -> None:
    """As those of settings are written."""
    ended = run("db", "upgrade", "--timeout", "soon")
    assert (ended.returncode, b"expected a duration such as" in ended.stderr) == (2, True)
