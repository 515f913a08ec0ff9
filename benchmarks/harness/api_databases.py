"""Databases with tasks of many owners, and the processes that serve them: taskherd's API, the peer's, and a worker."""

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
from benchmarks.harness.services import connected, start_process
from benchmarks.peers import fastapi_orm
from taskherd.api.http import user_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg

    from benchmarks.harness.services import BenchmarkServices

TASKHERD_API: Final = "benchmarks.harness.api_process"
PEER_API: Final = "benchmarks.peers.fastapi_orm"
TASKS_PER_OWNER: Final = 50
_START_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True)
class ApiDatabase:
    """The number of tasks, and the token and task ids of the user who sends requests."""

    tasks: int
    token: str
    own_tasks: list[UUID]


async def fill(services: BenchmarkServices, tasks: int) -> ApiDatabase:
    """Create a database with ``tasks`` tasks, in taskherd's tables and in the peer's."""
    await services.prepare_tasks(tasks, owners=max(1, tasks // TASKS_PER_OWNER))
    token = await make_token(services, "owner-0")
    async with connected(services.database_url) as connection:
        await _fill_peer(connection)
        rows = await connection.fetch(
            "SELECT id FROM tasks WHERE owner_id = (SELECT id FROM users WHERE username = 'owner-0')"
        )
        await connection.execute("VACUUM (ANALYZE, FREEZE)")
        await connection.execute("CHECKPOINT")
    return ApiDatabase(tasks, token, [UUID(str(row["id"])) for row in rows])


async def make_token(services: BenchmarkServices, username: str) -> str:
    """Return a new API token of a user."""
    token, stored = user_tokens.generate()
    async with connected(services.database_url) as connection:
        await connection.execute(
            "INSERT INTO api_tokens (id, user_id, secret_hash) SELECT $1, id, $3 FROM users WHERE username = $2",
            stored.id,
            username,
            stored.secret_hash,
        )
    return token


async def _fill_peer(connection: asyncpg.Connection) -> None:
    dialect = create_mock_engine("postgresql+asyncpg://", lambda *_: None).dialect
    tables = fastapi_orm.Base.metadata.sorted_tables
    for table in tables:
        await connection.execute(str(CreateTable(table).compile(dialect=dialect)))
    await connection.execute(fastapi_orm.FILL)
    for index in (index for table in tables for index in table.indexes):
        await connection.execute(str(CreateIndex(index).compile(dialect=dialect)))


@contextmanager
def running_api(services: BenchmarkServices, module: str, **environment: str) -> Iterator[int]:
    """Run an API process during the block, which gets its port."""
    with running_api_process(services, module, **environment) as (_, port):
        yield port


@contextmanager
def running_api_process(
    services: BenchmarkServices, module: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run an API process during the block, which gets it and its port."""
    port = _free_port()
    environment |= {"TASKHERD_API_PORT": str(port), "TASKHERD_API_RATE_LIMIT": "0", "BENCH_PORT": str(port)}
    process = start_process(services, module, **environment)
    try:
        _await_port(process, port)
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


@contextmanager
def running_worker(services: BenchmarkServices) -> Iterator[None]:
    """Run a worker during the block."""
    process = start_process(services, WORKER.module)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                message = f"the server on port {port} did not start"
                raise RuntimeError(message) from None
            time.sleep(0.05)
        else:
            return


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
