"""A worker that never found its database leaves as cleanly as any other."""

from __future__ import annotations

import asyncio
import os
import sys

from taskherd.dev import ports
from tests.flow.herd import PATIENCE, SECRET


async def test_a_worker_that_waits_for_its_database_ends_with_0_on_sigterm(amqp_url: str) -> None:
    """SIGTERM ends the wait for a database that is away; that is no failure of the worker."""
    own = {
        "TASKHERD_DATABASE_URL": f"postgresql://taskherd:nobody@127.0.0.1:{ports.claim([None])[0]}/taskherd",
        "TASKHERD_AMQP_URL": amqp_url,
        "TASKHERD_SECRET_KEY": SECRET,
        "TASKHERD_OPS_PORT": "0",
    }
    command = (sys.executable, "-m", "taskherd", "worker")
    worker = await asyncio.create_subprocess_exec(*command, env={**os.environ, **own}, stderr=asyncio.subprocess.PIPE)
    assert worker.stderr is not None
    async with asyncio.timeout(PATIENCE):
        while b"database away" not in await worker.stderr.readline():
            continue
        worker.terminate()
        await worker.stderr.read()
        assert await worker.wait() == 0
