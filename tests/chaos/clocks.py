"""Clocks that a test moves while everything runs: the one that workers read in the database, and those of processes."""

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

# A name that is found before pg_catalog's only where pg_catalog is named, and named later. See
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
    """The clock that sessions of one database read as `clock_timestamp()`."""

    database_url: str

    async def install(self) -> None:
        """Put it in place of PostgreSQL's own, for sessions that begin from now on."""
        await self._execute(SHADOW.format(name=urlsplit(self.database_url).path.lstrip("/")))

    async def move(self, by: timedelta) -> None:
        """Set it ahead, or back."""
        await self._execute("UPDATE public.clock SET ahead = ahead + $1", by)

    async def _execute(self, statement: str, *values: timedelta) -> None:
        connection = await asyncpg.connect(self.database_url, timeout=5, command_timeout=10)
        try:
            await connection.execute(statement, *values)
        finally:
            await connection.close(timeout=5)


@dataclass(frozen=True, slots=True)
class ProcessClocks:
    """The clocks of every process that is started with `environment`, by libfaketime; `file` says how far ahead."""

    file: Path
    library: Path
    monotonic: bool = False
    """Whether the monotonic clock moves too, as over a time in which the process stood still."""

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to go by these clocks."""
        still = {} if self.monotonic else {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        where = {"LD_PRELOAD": str(self.library), "FAKETIME_TIMESTAMP_FILE": str(self.file)}
        return {**where, **still, "FAKETIME_NO_CACHE": "1", "FAKETIME_DISABLE_SHM": "1"}

    def set(self, ahead: timedelta) -> None:
        """Set them so far ahead of the true time, or behind."""
        written = self.file.with_suffix(".new")  # renamed, since one that reads half of it dies
        written.write_text(f"{ahead.total_seconds():+.0f}\n")
        written.chmod(0o644)
        written.replace(self.file)


def faked(folder: Path, announce: Callable[[str], None], *, monotonic: bool = False) -> ProcessClocks:
    """Clocks that show the true time until set; installs libfaketime where it is missing."""
    library = _library()
    if library is None:
        not_installed = apt.install(PACKAGE, announce)
        library = _library()
        if library is None:
            raise Unavailable(f"a process's clock is moved by {PACKAGE}: {not_installed}")
    clocks = ProcessClocks(folder / "ahead", library, monotonic)
    clocks.set(timedelta(0))
    return clocks


def _library() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
