"""A private primary and its streaming standbys, which tests can pause, freeze, kill and promote."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from taskherd.dev import postgres
from taskherd.dev.postgres import PostgresBinaries, PostgresNode
from taskherd.dev.sources import Missing


def find_binaries() -> PostgresBinaries:
    """Return PostgreSQL's programs on this machine; a container has no second server to replicate to."""
    found = postgres.find()
    assert not isinstance(found, Missing), f"PostgreSQL's programs are needed: {found.reason}"
    return found


class StandbyNode(PostgresNode):
    """A streaming standby of another private server, made from a base backup of it at the first start."""

    def __init__(self, primary: PostgresNode, home: Path, name: str = "standby") -> None:
        super().__init__(primary.binaries, home, fast=True)
        self._primary = primary
        self._name = name
        self._identity.password = primary._identity.password

    def _prepare(self) -> None:
        if (self._cluster / "PG_VERSION").exists():
            return
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (user := postgres._other_user()) is not None:
            shutil.chown(self.home, user.pw_uid, user.pw_gid)
        source = urlsplit(self._primary.url)
        backup: list[str | Path] = [
            self.binaries.folder / "pg_basebackup",
            "-D",
            self._cluster,
            "--write-recovery-conf",
        ]
        connection = f"host={source.hostname} port={source.port} user={source.username} password={source.password}"
        self._run([*backup, "--checkpoint=fast", "-d", f"{connection} application_name={self._name}"], within=120)

    def promote(self) -> None:
        """Make it a primary, and wait until it is."""
        self._run([self.binaries.folder / "pg_ctl", "-D", self._cluster, "promote", "--wait"], within=60)


@contextmanager
def running_pair(folder: Path) -> Iterator[tuple[PostgresNode, StandbyNode]]:
    """Run a primary and a standby of it until the end of the block."""
    primary = PostgresNode(find_binaries(), folder / "primary", fast=True)
    primary.start()
    standby = StandbyNode(primary, folder / "standby")
    try:
        standby.start()
        yield primary, standby
    finally:
        standby.stop()
        primary.stop()


async def execute(url: str, statement: str) -> Any:
    """Execute a statement in a session of its own and return its value."""
    connection = await asyncpg.connect(url, timeout=10, command_timeout=30)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close(timeout=5)
