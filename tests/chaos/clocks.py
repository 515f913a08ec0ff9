"""Clocks that a test can move at run time: the database clock, which workers read, and the clocks of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from taskherd.dev import apt
from taskherd.errors import Unavailable

PACKAGE = "libfaketime"

# This function hides pg_catalog's only if the search path names pg_catalog explicitly, after public. See
# https://www.postgresql.org/docs/current/ddl-schemas.html#DDL-SCHEMAS-CATALOG.
SHADOW = """
CREATE TABLE public.clock (ahead interval NOT NULL);
INSERT INTO public.clock VALUES (interval '0');
CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    RETURN pg_catalog.clock_timestamp() + (SELECT ahead FROM public.clock);
ALTER DATABASE "{name}" SET search_path = public, pg_catalog;
"""


@dataclass(frozen=True, slots=True)
class DatabaseClock:
    """The clock that sessions of one database read with ``clock_timestamp()``."""

    database_url: str

    async def install(self) -> None:
        """Replace PostgreSQL's clock for all sessions that start from now on."""
        await self._execute(SHADOW.format(name=urlsplit(self.database_url).path.lstrip("/")))

    async def move(self, by: timedelta) -> None:
        """Move the clock forward, or back."""
        await self._execute("UPDATE public.clock SET ahead = ahead + $1", by)

    async def _execute(self, statement: str, *values: timedelta) -> None:
        connection = await asyncpg.connect(self.database_url, timeout=5, command_timeout=10)
        try:
            await connection.execute(statement, *values)
        finally:
            await connection.close(timeout=5)


@dataclass(frozen=True, slots=True)
class ProcessClocks:
    """The clocks of the processes that are started with ``environment``; libfaketime reads the offset in ``file``."""

    file: Path
    library: Path
    monotonic: bool = False
    """True if the monotonic clock moves too, as after a time in which the process was stopped."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that make a process use these clocks."""
        fixed = {} if self.monotonic else {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        faketime = {"LD_PRELOAD": str(self.library), "FAKETIME_TIMESTAMP_FILE": str(self.file)}
        return {**faketime, **fixed, "FAKETIME_NO_CACHE": "1", "FAKETIME_DISABLE_SHM": "1"}

    def set(self, ahead: timedelta) -> None:
        """Set the clocks ahead of the true time, or behind it."""
        new_file = self.file.with_suffix(".new")  # renamed, because a process that reads a partial file dies
        new_file.write_text(f"{ahead.total_seconds():+.0f}\n")
        new_file.chmod(0o644)
        new_file.replace(self.file)


def fake_clocks(folder: Path, announce: Callable[[str], None], *, monotonic: bool = False) -> ProcessClocks:
    """Return clocks that show the true time until they are set; install libfaketime if it is missing."""
    library = _library()
    if library is None:
        not_installed = apt.install(PACKAGE, announce)
        library = _library()
        if library is None:
            raise Unavailable(f"{PACKAGE} is needed to move the clock of a process: {not_installed}")
    clocks = ProcessClocks(folder / "ahead", library, monotonic)
    clocks.set(timedelta(0))
    return clocks


def _library() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
