"""``taskherd doctor`` on a real RabbitMQ and PostgreSQL."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import aiormq
import asyncpg
import pytest

from taskherd.broker import topology
from taskherd.broker.topology import TopologyNames
from taskherd.cli.diagnostics.api import check_api
from taskherd.cli.diagnostics.broker import check_broker
from taskherd.cli.diagnostics.clocks import utc_now
from taskherd.cli.diagnostics.database import check_database
from taskherd.cli.diagnostics.findings import Finding, FindingState
from taskherd.cli.diagnostics.pools import check_own_queues, check_pools
from taskherd.cli.diagnostics.processes import check_processes, running_role
from taskherd.cli.diagnostics.roles import Role
from taskherd.cli.diagnostics.run import collect, run_checks
from taskherd.dev import ports
from taskherd.observability.metrics import Metrics
from taskherd.observability.ops import OpsServer
from taskherd.observability.readiness import Readiness
from taskherd.settings import Settings
from tests.harness.api import ApiHarness
from tests.harness.runner import runner_harness
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import ORGANIZATION, WorkerHarness

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
        "senders of commands",
        "broker permissions to spare",
        *(f"queue {queue}" for queue in (*names.report_queues(partitions), names.commands, names.claims)),
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


async def test_each_of_several_hosts_is_checked(database_url: str, amqp_url: str, amqp_prefix: str) -> None:
    """A host that does not answer is a note: the processes work with the others."""
    database, broker = await TcpProxy.before(database_url), await TcpProxy.before(amqp_url)
    database.freeze()
    broker.freeze()
    good = [TcpProxy("127.0.0.1", urlsplit(url).port or 0) for url in (database_url, amqp_url)]
    for proxy in good:
        await proxy.start()
    settings = Settings(
        database_url=through(database_url, database, good[0]),
        amqp_url=through(amqp_url, broker, good[1]),
        amqp_prefix=amqp_prefix,
    )
    findings = {**await gather(check_broker(settings)), **await gather(check_database(settings))}
    for what, frozen, running in (("database host", database, good[0]), ("broker host", broker, good[1])):
        assert findings[f"{what} 127.0.0.1:{frozen.port}"].state is FindingState.NOTE
        assert "no answer within" in findings[f"{what} 127.0.0.1:{frozen.port}"].found
        assert findings[f"{what} 127.0.0.1:{running.port}"].state is FindingState.OK
    assert findings["database"].state is findings["broker"].state is FindingState.OK
    for proxy in (database, broker, *good):
        await proxy.stop()


async def test_a_migrated_database_lacks_only_a_directory(database_url: str) -> None:
    """In a newly migrated database, only the missing directory is an error."""
    findings = await gather(check_database(Settings(database_url=database_url)))
    assert errors(findings) == {"directory"}
    assert "statement_timeout 4500 ms" in findings["database sessions"].found
    assert findings["unpublished events"].state is FindingState.OK


async def test_an_event_that_stays_unpublished_is_an_error(database_url: str) -> None:
    """An event that is unpublished for over a minute is an error: no worker publishes."""
    connection = await asyncpg.connect(database_url, timeout=30)
    await connection.execute("INSERT INTO outbox VALUES (gen_random_uuid(), 1, now() - interval '5 minutes')")
    await connection.close(timeout=30)
    findings = await gather(check_database(Settings(database_url=database_url)))
    assert errors(findings) == {"directory", "unpublished events"}
    assert findings["unpublished events"].found.startswith("1, the oldest for 30")


@pytest.mark.parametrize("role", [Role.WORKER, Role.API])
async def test_a_database_without_schema_is_an_error(database_url: str, role: Role) -> None:
    """For a database without the schema, the advice is ``taskherd db upgrade``, and no privilege is missing."""
    url = urlunsplit(urlsplit(database_url)._replace(path="/postgres"))
    findings = await gather(check_database(Settings(database_url=url), (role,)))
    assert errors(findings) == {"database schema"}
    assert "taskherd db upgrade" in findings["database schema"].advice


async def test_missing_privileges_are_named(database_url: str) -> None:
    """For a user without the right to write a table, the finding names the table and the missing privileges."""
    role = f"reader_{urlsplit(database_url).path.rpartition('_')[2]}"
    connection = await asyncpg.connect(database_url, timeout=30)
    await connection.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'reader'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
    )
    try:
        parts = urlsplit(database_url)
        netloc = f"{role}:reader@{parts.netloc.rpartition('@')[2]}"
        findings = await gather(check_database(Settings(database_url=urlunsplit(parts._replace(netloc=netloc)))))
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close(timeout=30)
    assert errors(findings) == {"database privileges"}
    assert "tasks (DELETE, INSERT, UPDATE)" in findings["database privileges"].found


async def test_the_operations_port_says_whose_process_answers() -> None:
    """Only a process of this installation is ours; another's, or another program, is an error on a port that is set."""
    metrics = Metrics()
    metrics.build_info.labels("0").set(1)
    server = OpsServer(metrics, Readiness())
    port = await server.start("127.0.0.1", 0)
    ours = Settings(ops_port=port, amqp_url="amqp://localhost", amqp_prefix="ours")
    what = f"operations port {port}"
    try:
        metrics.process_info.labels("runner", ours.installation).set(1)
        findings = await gather(check_processes(ours, (Role.RUNNER,)))
        assert findings[what].found.startswith("runner of this installation, ready")
        assert "taskherd_runner_requests_total" in findings["inputs of the runner's alerts"].found
        theirs = ours.model_copy(update={"amqp_prefix": "theirs"})
        findings = await gather(check_processes(theirs, (Role.RUNNER,)))
        assert errors(findings) == {what}
        assert "another installation" in findings[what].found
    finally:
        await server.close()
    assert "free" in (await gather(check_processes(ours, (Role.RUNNER,))))[what].found
    with socket.create_server(("127.0.0.1", 0)) as other_program:
        port = other_program.getsockname()[1]
        assert errors(await gather(check_processes(Settings(ops_port=port), (Role.API,)))) == {
            f"operations port {port}"
        }


async def test_a_waiting_task_without_a_runner_is_an_error_until_a_runner_consumes(
    harness: WorkerHarness, tmp_path: Path
) -> None:
    """A task whose pool no runner consumes is an error with the command that helps; with a runner it is none."""
    settings = Settings(database_url=harness.urls[0], amqp_url=harness.urls[1], amqp_prefix=harness.prefix)
    finding = (await gather(check_pools(settings)))["pool default"]
    assert (finding.state, "claude" in finding.found) == (FindingState.NOTE, True)
    await harness.create()
    await harness.until_row("SELECT count(*) FROM work_requests", is_=1)
    findings = await gather(check_pools(settings))
    assert errors(findings) == {"pool default"}
    assert "1 task waits since 20" in findings["pool default"].found
    assert "TASKHERD_RUNNER_POOL=default taskherd runner" in findings["pool default"].advice
    async with runner_harness(harness, tmp_path) as runners:
        (port,) = ports.find_free([None])
        await runners.start(ops_port=str(port))
        assert not errors(await gather(check_pools(settings)))
        mine = settings.model_copy(update={"runner_name": "r1", "ops_port": port})
        assert not errors(await gather(check_own_queues(mine)))
        assert await running_role(mine) is Role.RUNNER
        findings = await gather(check_processes(mine, (Role.RUNNER,)))
        assert {finding.state for finding in findings.values()} == {FindingState.OK}


async def test_pools_whose_runners_may_speak_for_each_other_are_noted(harness: WorkerHarness) -> None:
    """With one pool there is nothing to keep apart; with several, the senders of reports should be named."""
    settings = Settings(database_url=harness.urls[0], amqp_url=harness.urls[1], amqp_prefix=harness.prefix)
    assert "senders of reports" not in await gather(check_pools(settings))
    template, version = uuid.uuid4(), uuid.uuid4()
    await harness.database.execute(f"""
        INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id)
        VALUES ('{template}', '{ORGANIZATION}', 'trainer', 'Trainer', '', '{version}');
        INSERT INTO template_versions (id, template_id, name, run)
        VALUES ('{version}', '{template}', 'v1', '{{"pool": "gpu"}}');
    """)
    finding = (await gather(check_pools(settings)))["senders of reports"]
    assert (finding.state, "all 2 pools" in finding.found) == (FindingState.NOTE, True)
    named = settings.model_copy(update={"report_senders": "api=*,cpu=default,gpu=gpu"})
    finding = (await gather(check_pools(named)))["senders of reports"]
    assert (finding.state, finding.found) == (FindingState.OK, "api, cpu, gpu")


async def test_a_task_whose_runner_is_gone_is_an_error(harness: WorkerHarness) -> None:
    """A request for a runner that does not consume is an error, unless its pool has a runner that takes over."""
    settings = Settings(database_url=harness.urls[0], amqp_url=harness.urls[1], amqp_prefix=harness.prefix)
    task = await harness.make_active()
    assert (await harness.command("task.pause", task))["ok"]
    await harness.until_row("SELECT count(*) FROM work_requests WHERE target_runner = 'r1'", is_=1)
    findings = await gather(check_pools(settings))
    assert errors(findings) == {"runner r1"}
    assert "TASKHERD_RUNNER_NAME=r1 taskherd runner" in findings["runner r1"].advice


async def test_a_runners_machine_needs_no_database(
    harness: WorkerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a runner's settings alone a runner is checked, which needs no database URL and no key."""
    for name, value in {
        "AMQP_URL": harness.urls[1],
        "AMQP_PREFIX": harness.prefix,
        "RUNNER_ROOT": str(tmp_path / "runner"),
        "AGENT_API_URL": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(f"TASKHERD_{name}", value)
    for name in ("DATABASE_URL", "SECRET_KEY"):
        monkeypatch.delenv(f"TASKHERD_{name}", raising=False)
    findings = {finding.what: finding for finding in await run_checks()}
    assert findings["role of this machine"].found == "runner (from the settings)"
    assert errors(findings) == {"API http://127.0.0.1:1"}
    assert not (tmp_path / "runner").exists()


async def test_a_wrong_clock_is_an_error(database_url: str) -> None:
    """A clock that is a minute off, compared with the database's, is an error with advice."""
    settings = Settings(database_url=database_url)
    for offset, word in ((-60, "ahead"), (60, "behind")):
        now = lambda seconds=offset: utc_now() + timedelta(seconds=seconds)  # noqa: E731 - one line
        findings = await gather(check_database(settings, (Role.API,), now))
        clocks = findings["clocks of this machine and the database"]
        assert clocks.state is FindingState.ERROR
        assert word in clocks.found
        assert "NTP" in clocks.advice


async def test_a_runner_compares_its_clock_with_the_apis(api_harness: ApiHarness) -> None:
    """The API that agents use answers with this version; its clock is compared with the runner's."""
    settings = Settings(agent_api_url=api_harness.base.removesuffix("/api/v2"))
    assert not errors(await gather(check_api(settings, (Role.RUNNER,))))
    slow = await gather(check_api(settings, (Role.RUNNER,), now=lambda: utc_now() - timedelta(seconds=60)))
    assert errors(slow) == {"clocks of this machine and the API"}
    worker = api_harness.worker
    server = settings.model_copy(
        update={"amqp_url": worker.urls[1], "amqp_prefix": worker.prefix, "ops_port": api_harness.api.ops_port}
    )
    findings = await gather(check_processes(server, (Role.API,)))
    assert {finding.state for finding in findings.values()} == {FindingState.OK}


async def test_a_check_that_hangs_or_fails_is_a_finding() -> None:
    """A check that does not end in time or that fails becomes an error, and what it found before is kept."""

    async def hangs() -> AsyncIterator[Finding]:
        yield Finding("first", FindingState.OK, "fine")
        await asyncio.Event().wait()

    async def fails() -> AsyncIterator[Finding]:
        yield Finding("first", FindingState.OK, "fine")
        raise RuntimeError("amqp://u:s3cr3t@host")

    for group in (hangs(), fails()):
        findings = {finding.what: finding for finding in await collect("check", group, 0.05)}
        assert errors(findings) == {"check"}
        assert "first" in findings
        assert "s3cr3t" not in str(findings)


async def test_the_senders_of_commands_are_shown(amqp_url: str, amqp_prefix: str) -> None:
    """A worker that believes every sender is noted; one that does not says whom it believes."""
    for senders, state, found in (("", FindingState.NOTE, "lets write"), ("b, a", FindingState.OK, "a, b")):
        settings = Settings(amqp_url=amqp_url, amqp_prefix=amqp_prefix, command_senders=senders)
        findings = [each async for each in check_broker(settings) if each.what == "senders of commands"]
        assert [(each.state, found in each.found) for each in findings] == [(state, True)]
