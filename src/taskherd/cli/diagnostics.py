"""The checks of ``taskherd doctor``, which return findings; every wait has a timeout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from taskherd.broker import diagnostics as broker
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Misconfigured, TaskherdError
from taskherd.settings import Settings, load
from taskherd.store import diagnostics as database
from taskherd.store.engine import dispose, open_engine, transaction
from taskherd.store.migrate import SchemaStatus

MIN_POSTGRES = 15
MIN_RABBITMQ = (4, 0)
MAX_CLOCK_DIFFERENCE = 2.0
"""Maximum difference between this machine's clock and the database's, in seconds."""
MAX_UNPUBLISHED = 60.0
"""Maximum age of an unpublished event, in seconds."""
PORT_TIMEOUT = 2.0
"""Maximum wait for an answer on the operations port, in seconds."""


class FindingState(StrEnum):
    """Result of a check: fine, worth attention, or a problem."""

    OK = "ok"
    NOTE = "note"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; ``advice`` says how to fix a problem."""

    what: str
    state: FindingState
    found: str
    advice: str = ""


async def run_checks() -> list[Finding]:
    """Run all checks, in the order in which problems should be fixed."""
    settings, findings = check_settings()
    if settings is None:
        return findings
    if settings.database_url:
        findings += [finding async for finding in check_database(settings)]
    if settings.amqp_url:
        findings += [finding async for finding in check_broker(settings)]
    findings.append(await check_port(settings))
    return findings


def check_settings() -> tuple[Settings | None, list[Finding]]:
    """Check the settings; return them with the findings, or None if no service can be checked with them."""
    try:
        settings = load()
    except Misconfigured as error:
        findings = [
            Finding(variable, FindingState.ERROR, *_split_problem(problem, f"set {variable}"))
            for variable, problem in error.wrong
        ]
    else:
        keys = len(settings.secret_keys)
        shortest = min(len(key) for key in settings.secret_keys)
        found = f"{keys}, of at least {shortest} characters"
        return settings, [
            Finding("settings", FindingState.OK, "all valid"),
            Finding("secret keys", FindingState.OK, found),
        ]
    try:
        return load("amqp_prefix"), findings
    except Misconfigured:
        return None, findings


async def check_database(settings: Settings) -> AsyncIterator[Finding]:
    """Check the database server, its clock, the schema, privileges and content."""
    engine = open_engine(settings.database_url, size=1, application_name="taskherd-doctor")
    try:
        before = datetime.now(UTC)
        async with transaction(engine) as conn:
            server = await database.server_info(conn)
            after = datetime.now(UTC)
            for finding in (_server(server), _skew(server.now, before, after)):
                yield finding
            schema = await database.schema_state(conn)
            is_current = schema.status is SchemaStatus.CURRENT
            state = FindingState.OK if is_current else FindingState.ERROR
            yield Finding("database schema", state, schema.actual or "none", schema.advice)
            missing = await database.missing_privileges(conn)
            yield _finding(
                "database privileges", missing, "sufficient", "grant them to this user, or use the owner of the tables"
            )
            if is_current and not missing:
                for finding in _content(await database.content_counts(conn)):
                    yield finding
    except TaskherdError as error:
        yield Finding("database", FindingState.ERROR, str(error), "start PostgreSQL, or correct TASKHERD_DATABASE_URL")
    finally:
        await dispose(engine)


async def check_broker(settings: Settings) -> AsyncIterator[Finding]:
    """Check the broker, the exchanges and queues, permissions and queue contents."""
    try:
        async with broker.connect(settings.amqp_url) as connection:
            version = broker.server_version(connection)
            state = FindingState.OK if version >= MIN_RABBITMQ else FindingState.ERROR
            found = f"RabbitMQ {'.'.join(map(str, version)) or '(unknown version)'}"
            yield Finding("broker", state, found, "" if state is FindingState.OK else "install RabbitMQ 4.0 or newer")
            names = TopologyNames(settings.amqp_prefix)
            topology = await broker.check_topology(connection, names, settings.report_partitions)
            yield _finding("topology", topology.missing, "complete", "run `taskherd topology apply`, or start a worker")
            advice = "delete it when it is empty and run `taskherd topology apply`, or set another TASKHERD_AMQP_PREFIX"
            yield _finding("topology arguments", topology.different, "as expected", advice)
            advice = "grant them to this user on this vhost with `rabbitmqctl set_permissions`"
            yield _finding("broker permissions", topology.forbidden, "sufficient", advice)
            for queue in topology.queues:
                yield _queue(queue, names)
    except TaskherdError as error:
        yield Finding("broker", FindingState.ERROR, str(error), "start RabbitMQ, or correct TASKHERD_AMQP_URL")


async def check_port(settings: Settings) -> Finding:
    """Check that the operations port is free, or in use by a taskherd process that answers."""
    what = f"operations port {settings.ops_port}"
    try:
        async with asyncio.timeout(PORT_TIMEOUT):
            reader, writer = await asyncio.open_connection(settings.ops_host, settings.ops_port)
            try:
                writer.write(b"GET /livez HTTP/1.1\r\nHost: taskherd\r\nConnection: close\r\n\r\n")
                answer = await reader.read(1024)
            finally:
                writer.close()
    except ConnectionRefusedError:
        return Finding(what, FindingState.OK, "free")
    except (OSError, TimeoutError) as error:
        return Finding(
            what,
            FindingState.ERROR,
            f"no answer ({type(error).__name__})",
            "set TASKHERD_OPS_HOST and TASKHERD_OPS_PORT to a free port of this machine",
        )
    if answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"ok\n"):
        return Finding(what, FindingState.OK, "a taskherd process answers")
    return Finding(what, FindingState.ERROR, "in use by another program", "set TASKHERD_OPS_PORT to a free port")


def _server(server: database.ServerInfo) -> Finding:
    found = f"PostgreSQL {server.version}"
    if server.major < MIN_POSTGRES:
        return Finding("database", FindingState.ERROR, found, "install PostgreSQL 15 or newer")
    if server.read_only:
        return Finding(
            "database", FindingState.ERROR, f"{found}, read-only", "set TASKHERD_DATABASE_URL to the primary server"
        )
    return Finding("database", FindingState.OK, found)


def _skew(now: datetime, before: datetime, after: datetime) -> Finding:
    """Compare the database clock with this machine's: it was read between ``before`` and ``after``."""
    ahead = (now - after).total_seconds() if now > after else -max((before - now).total_seconds(), 0.0)
    if abs(ahead) <= MAX_CLOCK_DIFFERENCE:
        return Finding("clocks", FindingState.OK, f"at most {MAX_CLOCK_DIFFERENCE:g} s apart")
    found = f"the database clock is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
    return Finding("clocks", FindingState.ERROR, found, "synchronize both machines with NTP")


def _content(content: database.ContentCounts) -> list[Finding]:
    is_loaded = bool(content.users and content.templates)
    found = f"{content.users} users, {content.templates} templates"
    is_late = content.oldest > MAX_UNPUBLISHED
    unpublished = f"{content.unpublished}, the oldest for {content.oldest:.0f} s" if content.unpublished else "none"
    return [
        Finding("directory", FindingState.OK, found)
        if is_loaded
        else Finding("directory", FindingState.ERROR, found, "run `taskherd directory apply FILE.yaml`"),
        Finding(
            "unpublished events",
            FindingState.ERROR,
            unpublished,
            "check that a worker is running and reaches the broker",
        )
        if is_late
        else Finding("unpublished events", FindingState.OK, unpublished),
    ]


def _queue(queue: broker.QueueInfo, names: TopologyNames) -> Finding:
    what = f"queue {queue.name}"
    found = f"{queue.messages} messages, {queue.consumers} consumers"
    if queue.name == names.dead:
        state = FindingState.NOTE if queue.messages else FindingState.OK
        return Finding(what, state, found, "list them with `taskherd dead list`" if queue.messages else "")
    if queue.consumers:
        return Finding(what, FindingState.OK, found)
    return Finding(
        what, FindingState.ERROR if queue.messages else FindingState.NOTE, found, "start a worker: `taskherd worker`"
    )


def _finding(what: str, problems: tuple[str, ...], found: str, advice: str) -> Finding:
    return (
        Finding(what, FindingState.ERROR, "\n".join(problems), advice)
        if problems
        else Finding(what, FindingState.OK, found)
    )


def _split_problem(problem: str, default_advice: str) -> tuple[str, str]:
    """Split the problem of a setting into what was found, and advice with what is expected."""
    found, _, expected = problem.partition("; expected ")
    return found, f"expected {expected}" if expected else default_advice
