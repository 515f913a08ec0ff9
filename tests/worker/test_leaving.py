"""A worker leaves cleanly, also without its database or its broker."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from taskherd.broker.publisher import OutgoingMessage
from taskherd.dev import ports
from taskherd.worker import rates
from taskherd.worker.command_consumer import CommandConsumer
from taskherd.worker.maintenance import Maintenance
from taskherd.worker.rates import Rates
from taskherd.worker.relay import Relay
from taskherd.worker.sweeper import Sweeper
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import SECRET, TIMEOUT, WorkerHarness, external_harness, make_report, running_worker


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


async def test_a_worker_deregisters_although_its_replies_cannot_be_sent(
    database_url: str, amqp_url: str, amqp_prefix: str
) -> None:
    """In an outage of the broker, replies that wait take none of the time that it needs to leave."""
    count = "SELECT count(*) FROM workers"
    proxy = await TcpProxy.before(amqp_url)
    async with external_harness(database_url, amqp_url, amqp_prefix) as harness:
        harness.urls = (database_url, through(amqp_url, proxy))
        async with running_worker(harness, grace=25) as worker:
            await harness.until_row(count, is_=1)
            await proxy.stop()
            for number in range(10):
                worker._replies.offer(OutgoingMessage("", "a caller that has gone", str(number).encode()))
        assert await harness.database.fetchval(count) == 0


async def test_a_worker_that_has_nothing_to_do_leaves_at_once(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before its grace time is over; what it has counted is written, and nothing of it stays open."""
    monkeypatch.setattr(rates, "INTERVAL", 3_600.0)
    loop = asyncio.get_running_loop()
    async with running_worker(external, grace=40) as worker:
        await external.create()
        await external.until_metric(1, "taskherd_drained")
        worker.stop()
        stopped_at = loop.time()
    assert loop.time() - stopped_at < 20
    assert await external.database.fetchval("SELECT sum(created) FROM task_rates") == 1
    assert await external.database.fetchval("SELECT count(*) FROM workers") == 0
    await external.until_row(CONNECTIONS, f"taskherd worker {worker._id}"[:63], is_=0)
    connections = worker._connections
    assert not any(each.is_up for each in (connections.consume, connections.publish, connections.reports))
    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncio.open_connection("127.0.0.1", worker.ops_port)


CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
IS_WAITED_FOR = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"


async def test_a_worker_leaves_although_its_database_is_gone(external: WorkerHarness) -> None:
    """What it cannot tell the database, others find out; that is no failure."""
    proxy = await TcpProxy.before(external.urls[0])
    database_url = through(external.urls[0], proxy)
    external.urls = (database_url, external.urls[1])
    async with running_worker(external, grace=5):
        await external.until_row("SELECT count(*) FROM workers", is_=1)
        await proxy.stop()
    assert await external.database.fetchval("SELECT count(*) FROM workers") == 1


async def test_a_worker_leaves_although_a_batch_is_held_up(external: WorkerHarness) -> None:
    """It waits no longer than its grace time, and the broker delivers the reports again."""
    async with running_worker(external):
        task_id = await external.make_active()
    async with external.database.transaction():
        await external.database.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", task_id)
        async with running_worker(external, grace=1):
            await external.report(make_report("app.status", task_id, state="idle", message="Held up"))
            await external.until_row(IS_WAITED_FOR)
    async with running_worker(external):
        await external.until(lambda: external.state(task_id).get("message") == "Held up")


@pytest.mark.parametrize("part", [CommandConsumer, Maintenance, Rates, Relay, Sweeper])
async def test_a_worker_of_which_a_part_fails_ends_with_the_error(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch, part: type
) -> None:
    """Rather than to work on without that part, so that it is started again; it closes what it opened."""
    count = "SELECT count(*) FROM workers"
    is_working = asyncio.Event()

    async def fail(*_: object) -> None:
        await is_working.wait()
        raise RuntimeError(f"a bug in {part.__name__}")

    monkeypatch.setattr(part, "run", fail)

    async def work() -> None:
        async with running_worker(external) as worker:
            await external.until_row(count, is_=0 if part is Sweeper else 1)
            is_working.set()
            await asyncio.wait_for(worker._stopping.wait(), TIMEOUT)

    with pytest.raises(RuntimeError, match=f"a bug in {part.__name__}"):
        await work()
    worker = external.worker
    assert await external.database.fetchval(count) == 0
    await external.until_row(CONNECTIONS, f"taskherd worker {worker._id}"[:63], is_=0)
    assert not worker._connections.consume.is_started
    assert [each._supervisor for each in (worker._reports, worker._commands, worker._claims)] == [None] * 3
    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncio.open_connection("127.0.0.1", worker.ops_port)
