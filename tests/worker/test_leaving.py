"""A worker that cannot reach its database exits cleanly."""

from __future__ import annotations

import asyncio
import os
import sys

from taskherd.dev import ports
from tests.harness.worker import SECRET, TIMEOUT


async def test_a_worker_that_waits_for_its_database_exits_with_0_on_sigterm(amqp_url: str) -> None:
    """SIGTERM ends the wait for an unreachable database, and is not a failure."""
    environment = {
        "TASKHERD_DATABASE_URL": f"postgresql://taskherd:nobody@127.0.0.1:{ports.find_free([None])[0]}/taskherd",
        "TASKHERD_AMQP_URL": amqp_url,
        "TASKHERD_SECRET_KEY": SECRET,
        "TASKHERD_OPS_PORT": "0",
    }
    command = (sys.executable, "-m", "taskherd", "worker")
    worker = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
    )
    assert worker.stderr is not None
    async with asyncio.timeout(TIMEOUT):
        while b"database unavailable" not in await worker.stderr.readline():
            continue
        worker.terminate()
        await worker.stderr.read()
        assert await worker.wait() == 0
