"""Databases full of tasks of many owners, and API processes of ours and of a peer that serve them."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from sqlalchemy import create_mock_engine
from sqlalchemy.schema import CreateIndex, CreateTable

from benchmarks.harness.contenders import WORKER
from benchmarks.harness.services import children, connected
from benchmarks.peers import fastapi_orm
from taskherd.api.http import user_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg

    from benchmarks.harness.services import BenchmarkServices

OURS: Final = "benchmarks.harness.api_process"
THEIRS: Final = "benchmarks.peers.fastapi_orm"
OF_ONE: Final = 50
"""Tasks of one owner."""
_UP_WITHIN: Final = 60.0


@dataclass(frozen=True, slots=True)
class ApiDatabase:
    """A database with tasks, one of whose owners asks: their token and the ids of their tasks."""

    tasks: int
    token: str
    mine: list[UUID]


async def fill(stage: BenchmarkServices, tasks: int) -> ApiDatabase:
    """Make a database with so many tasks, 50 for each owner, in our tables and in the peer's."""
    await stage.set_up_for(tasks, owners=max(1, tasks // OF_ONE))
    token, kept = user_tokens.generate()
    async with connected(stage.database_url) as connection:
        owner = await connection.fetchval("SELECT id FROM users WHERE username = 'owner-0'")
        await connection.execute(
            "INSERT INTO api_tokens (id, user_id, secret_hash) VALUES ($1, $2, $3)", kept.id, owner, kept.secret_hash
        )
        await _fill_peer(connection)
        rows = await connection.fetch("SELECT id FROM tasks WHERE owner_id = $1", owner)
        await connection.execute("VACUUM (ANALYZE, FREEZE)")
        await connection.execute("CHECKPOINT")
    return ApiDatabase(tasks, token, [UUID(str(row["id"])) for row in rows])


async def _fill_peer(connection: asyncpg.Connection) -> None:
    dialect = create_mock_engine("postgresql+asyncpg://", lambda *_: None).dialect
    tables = fastapi_orm.Base.metadata.sorted_tables
    for table in tables:
        await connection.execute(str(CreateTable(table).compile(dialect=dialect)))
    await connection.execute(fastapi_orm.FILL)
    for index in (index for table in tables for index in table.indexes):
        await connection.execute(str(CreateIndex(index).compile(dialect=dialect)))


@contextmanager
def serving(stage: BenchmarkServices, module: str, **extra: str) -> Iterator[int]:
    """The port of an API process of ours or of the peer, up until the block is left."""
    port = _free_port()
    own = {"TASKHERD_API_PORT": str(port), "TASKHERD_API_RATE_LIMIT": "0", "BENCH_PORT": str(port)}
    process = children(stage, module, **own, **extra)
    try:
        _await(process, port)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


@contextmanager
def working(stage: BenchmarkServices) -> Iterator[None]:
    """A worker, until the block is left."""
    process = children(stage, WORKER.module)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + _UP_WITHIN
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                message = f"the server on port {port} did not come up"
                raise RuntimeError(message) from None
            time.sleep(0.05)
        else:
            return


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
