"""`taskherd doctor` on a real RabbitMQ and PostgreSQL."""

import asyncio
import socket
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import aiormq
import asyncpg
import pytest

from taskherd.broker import topology
from taskherd.broker.topology import TopologyNames
from taskherd.cli.diagnostics import Finding, FindingState, check_broker, check_database, check_port
from taskherd.observability.metrics import Metrics
from taskherd.observability.ops import OpsServer
from taskherd.observability.readiness import Readiness
from taskherd.settings import Settings

Found = dict[str, Finding]


async def gather(findings: AsyncIterator[Finding]) -> Found:
    """The findings by what they are about."""
    return {finding.what: finding async for finding in findings}


def wrong(found: Found) -> set[str]:
    """What is wrong, each with advice."""
    assert all(finding.advice for finding in found.values() if finding.state is FindingState.ERROR)
    return {what for what, finding in found.items() if finding.state is FindingState.ERROR}


@pytest.mark.parametrize("partitions", [1, 2])
async def test_what_the_worker_declares_is_what_doctor_expects(
    amqp_url: str, amqp_prefix: str, partitions: int
) -> None:
    """A topology as the worker declares it has nothing missing, different or forbidden; only consumers are missed."""
    settings = Settings(amqp_url=amqp_url, amqp_prefix=amqp_prefix, report_partitions=partitions)
    names = TopologyNames(amqp_prefix)
    async with await aiormq.connect(amqp_url) as connection:
        await topology.declare(await connection.channel(), names, partitions)
        found = await gather(check_broker(settings))
        channel = await connection.channel()
        for queue in names.report_queues(partitions)[1:]:
            await channel.queue_delete(queue)
        if partitions > 1:
            await channel.exchange_delete(names.report_hash)
    assert not wrong(found)
    assert {what for what, finding in found.items() if finding.state is FindingState.NOTE} == {
        f"queue {queue}" for queue in (*names.report_queues(partitions), names.commands)
    }


async def test_a_topology_that_is_not_there_is_not_made(amqp_url: str, amqp_prefix: str) -> None:
    """Doctor names what is missing and declares nothing itself."""
    settings = Settings(amqp_url=amqp_url, amqp_prefix=amqp_prefix)
    for _ in range(2):
        found = await gather(check_broker(settings))
        assert wrong(found) == {"topology"}
        assert f"queue {amqp_prefix}.reports" in found["topology"].found


async def test_a_queue_made_otherwise_is_named(amqp_url: str, amqp_prefix: str) -> None:
    """A queue that somebody declared with other arguments is named."""
    names = TopologyNames(amqp_prefix)
    async with await aiormq.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.queue_declare(names.commands, durable=True, arguments={"x-queue-type": "quorum"})
    found = await gather(check_broker(Settings(amqp_url=amqp_url, amqp_prefix=amqp_prefix)))
    assert wrong(found) == {"topology", "topology's arguments"}
    assert names.commands in found["topology's arguments"].found


async def test_a_broker_or_database_that_is_away_is_said_in_time() -> None:
    """Where nothing listens, doctor says so, without the password."""
    settings = Settings(amqp_url="amqp://u:s3cr3t@127.0.0.1:1/", database_url="postgresql://u:s3cr3t@127.0.0.1:1/x")
    async with asyncio.timeout(20):
        found = {**await gather(check_broker(settings)), **await gather(check_database(settings))}
    assert wrong(found) == {"broker", "database"}
    assert "s3cr3t" not in str(found)


async def test_a_migrated_database_lacks_only_its_directory(database_url: str) -> None:
    """A fresh, migrated database is well but for the directory that nobody has loaded yet."""
    found = await gather(check_database(Settings(database_url=database_url)))
    assert wrong(found) == {"directory"}
    assert found["unpublished events"].state is FindingState.OK


async def test_an_event_long_unpublished_is_wrong(database_url: str) -> None:
    """An event that waits for over a minute means that no worker publishes."""
    connection = await asyncpg.connect(database_url, timeout=10)
    await connection.execute("INSERT INTO outbox VALUES (gen_random_uuid(), 1, now() - interval '5 minutes')")
    await connection.close(timeout=5)
    found = await gather(check_database(Settings(database_url=database_url)))
    assert wrong(found) == {"directory", "unpublished events"}
    assert found["unpublished events"].found.startswith("1, the oldest for 30")


async def test_an_empty_database_has_no_schema(database_url: str) -> None:
    """A database without the schema is told what to run."""
    url = urlunsplit(urlsplit(database_url)._replace(path="/postgres"))
    found = await gather(check_database(Settings(database_url=url)))
    assert wrong(found) == {"database schema"}
    assert "taskherd db upgrade" in found["database schema"].advice


async def test_a_user_without_rights_is_told_which(database_url: str) -> None:
    """A user who may not write a table is told the table and what is missing."""
    role = f"reader_{urlsplit(database_url).path.rpartition('_')[2]}"
    connection = await asyncpg.connect(database_url, timeout=10)
    await connection.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'reader'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
    )
    try:
        parts = urlsplit(database_url)
        netloc = f"{role}:reader@{parts.netloc.rpartition('@')[2]}"
        found = await gather(check_database(Settings(database_url=urlunsplit(parts._replace(netloc=netloc)))))
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close(timeout=5)
    assert wrong(found) == {"database privileges"}
    assert "tasks (DELETE, INSERT, UPDATE)" in found["database privileges"].found


async def test_the_operations_port() -> None:
    """A port is well when free or held by a living taskherd process; another program on it is wrong."""
    server = OpsServer(Metrics(), Readiness())
    port = await server.start("127.0.0.1", 0)
    assert (await check_port(Settings(ops_port=port))).found == "a taskherd process answers"
    await server.close()
    assert (await check_port(Settings(ops_port=port))).found == "free"
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        found = await check_port(Settings(ops_port=stranger.getsockname()[1]))
    assert found.state is FindingState.ERROR
