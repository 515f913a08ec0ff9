"""``taskherd doctor`` on a real RabbitMQ and PostgreSQL."""

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

Findings = dict[str, Finding]
"""Findings by the name of their check."""


async def gather(findings: AsyncIterator[Finding]) -> Findings:
    """Run checks and return their findings."""
    return {finding.what: finding async for finding in findings}


def errors(findings: Findings) -> set[str]:
    """Return the names of the checks that found an error; each must have advice."""
    assert all(finding.advice for finding in findings.values() if finding.state is FindingState.ERROR)
    return {name for name, finding in findings.items() if finding.state is FindingState.ERROR}


@pytest.mark.parametrize("partitions", [1, 2])
async def test_the_topology_a_worker_declares_has_no_errors(amqp_url: str, amqp_prefix: str, partitions: int) -> None:
    """A topology declared by a worker has no error; queues without consumers are notes."""
    settings = Settings(amqp_url=amqp_url, amqp_prefix=amqp_prefix, report_partitions=partitions)
    names = TopologyNames(amqp_prefix)
    async with await aiormq.connect(amqp_url) as connection:
        await topology.declare(await connection.channel(), names, partitions)
        findings = await gather(check_broker(settings))
        channel = await connection.channel()
        for queue in names.report_queues(partitions)[1:]:
            await channel.queue_delete(queue)
        if partitions > 1:
            await channel.exchange_delete(names.report_hash)
    assert not errors(findings)
    assert {what for what, finding in findings.items() if finding.state is FindingState.NOTE} == {
        f"queue {queue}" for queue in (*names.report_queues(partitions), names.commands)
    }


async def test_a_missing_topology_is_reported_and_not_declared(amqp_url: str, amqp_prefix: str) -> None:
    """Doctor names missing exchanges and queues, and declares none."""
    settings = Settings(amqp_url=amqp_url, amqp_prefix=amqp_prefix)
    for _ in range(2):
        findings = await gather(check_broker(settings))
        assert errors(findings) == {"topology"}
        assert f"queue {amqp_prefix}.reports" in findings["topology"].found


async def test_a_queue_with_different_arguments_is_reported(amqp_url: str, amqp_prefix: str) -> None:
    """A queue that was declared with other arguments is named."""
    names = TopologyNames(amqp_prefix)
    async with await aiormq.connect(amqp_url) as connection:
        channel = await connection.channel()
        await channel.queue_declare(names.commands, durable=True, arguments={"x-queue-type": "quorum"})
    findings = await gather(check_broker(Settings(amqp_url=amqp_url, amqp_prefix=amqp_prefix)))
    assert errors(findings) == {"topology", "topology arguments"}
    assert names.commands in findings["topology arguments"].found


async def test_an_unreachable_broker_or_database_is_reported_in_time() -> None:
    """If nothing listens, doctor reports an error in time, without the password."""
    settings = Settings(amqp_url="amqp://u:s3cr3t@127.0.0.1:1/", database_url="postgresql://u:s3cr3t@127.0.0.1:1/x")
    async with asyncio.timeout(20):
        findings = {**await gather(check_broker(settings)), **await gather(check_database(settings))}
    assert errors(findings) == {"broker", "database"}
    assert "s3cr3t" not in str(findings)


async def test_a_migrated_database_lacks_only_a_directory(database_url: str) -> None:
    """In a newly migrated database, only the missing directory is an error."""
    findings = await gather(check_database(Settings(database_url=database_url)))
    assert errors(findings) == {"directory"}
    assert findings["unpublished events"].state is FindingState.OK


async def test_an_event_that_stays_unpublished_is_an_error(database_url: str) -> None:
    """An event that is unpublished for over a minute is an error: no worker publishes."""
    connection = await asyncpg.connect(database_url, timeout=10)
    await connection.execute("INSERT INTO outbox VALUES (gen_random_uuid(), 1, now() - interval '5 minutes')")
    await connection.close(timeout=5)
    findings = await gather(check_database(Settings(database_url=database_url)))
    assert errors(findings) == {"directory", "unpublished events"}
    assert findings["unpublished events"].found.startswith("1, the oldest for 30")


async def test_a_database_without_schema_is_an_error(database_url: str) -> None:
    """For a database without the schema, the advice is ``taskherd db upgrade``."""
    url = urlunsplit(urlsplit(database_url)._replace(path="/postgres"))
    findings = await gather(check_database(Settings(database_url=url)))
    assert errors(findings) == {"database schema"}
    assert "taskherd db upgrade" in findings["database schema"].advice


async def test_missing_privileges_are_named(database_url: str) -> None:
    """For a user without the right to write a table, the finding names the table and the missing privileges."""
    role = f"reader_{urlsplit(database_url).path.rpartition('_')[2]}"
    connection = await asyncpg.connect(database_url, timeout=10)
    await connection.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'reader'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
    )
    try:
        parts = urlsplit(database_url)
        netloc = f"{role}:reader@{parts.netloc.rpartition('@')[2]}"
        findings = await gather(check_database(Settings(database_url=urlunsplit(parts._replace(netloc=netloc)))))
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close(timeout=5)
    assert errors(findings) == {"database privileges"}
    assert "tasks (DELETE, INSERT, UPDATE)" in findings["database privileges"].found


async def test_the_operations_port_is_free_or_answers() -> None:
    """A free port or a taskherd process that answers is fine; another program on the port is an error."""
    server = OpsServer(Metrics(), Readiness())
    port = await server.start("127.0.0.1", 0)
    assert (await check_port(Settings(ops_port=port))).found == "a taskherd process answers"
    await server.close()
    assert (await check_port(Settings(ops_port=port))).found == "free"
    with socket.create_server(("127.0.0.1", 0)) as other_program:
        finding = await check_port(Settings(ops_port=other_program.getsockname()[1]))
    assert finding.state is FindingState.ERROR
