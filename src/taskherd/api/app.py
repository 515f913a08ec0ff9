"""The API process: build, start and stop.

It serves as soon as the port is open. Without the broker it serves reads only, without the database it answers 503; it
recovers from both automatically. On SIGTERM it accepts no more connections, ends streams and finishes the requests in
progress.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import structlog
import uvloop

from taskherd import __version__, garbage_collector, open_files
from taskherd.api.actions import handlers as action_handlers
from taskherd.api.actions import progress
from taskherd.api.actions.executor import ActionExecutor
from taskherd.api.agents import requests
from taskherd.api.agents.refused_logs import RefusedLogs
from taskherd.api.agents.report_publisher import ReportPublisher
from taskherd.api.change_feed import ChangeFeed
from taskherd.api.command_slots import CommandSlots
from taskherd.api.context import ApiContext
from taskherd.api.dead_letters.queue import DeadLetterQueue
from taskherd.api.fleet.queue_ages import QueueAges
from taskherd.api.fleet.snapshots import FleetSnapshots, QueueDepths
from taskherd.api.http import asgi, server
from taskherd.api.http.authenticator import NOTE_USE_INTERVAL, Authenticator
from taskherd.api.http.client_address import ClientAddresses
from taskherd.api.http.concurrency import ConcurrencyLimit
from taskherd.api.http.connections import ClientConnections, ConnectionLimits
from taskherd.api.http.open_requests import AccessMonitor
from taskherd.api.http.rate_limit import RateLimits
from taskherd.api.http.sign_in_failures import LOG_INTERVAL, SignInFailures
from taskherd.api.http.unread import UnreadResponses
from taskherd.api.log_revisions import LogRevisions
from taskherd.api.metric_labels import LABEL_VALUES
from taskherd.api.read_routing import STANDBY_TIMEOUT, ReadRouting
from taskherd.api.tasks import batches, log_follow
from taskherd.broker import topology
from taskherd.broker.command_client import CommandClient
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.connections import BrokerConnections
from taskherd.broker.publisher import Publisher
from taskherd.broker.repeating_client import RepeatingClient
from taskherd.errors import Misconfigured, TaskherdError, Unavailable
from taskherd.observability import logs
from taskherd.observability.failpoints import failpoint_hook
from taskherd.observability.metrics import Metrics
from taskherd.observability.ops import OpsServer
from taskherd.observability.readiness import Readiness
from taskherd.observability.tracing import open_tracing
from taskherd.retry import until_stopped
from taskherd.store import database_clock, migrate
from taskherd.store.engine import check_writable, dispose, in_use, open_engine, transaction
from taskherd.store.read_pool import ReadPool

if TYPE_CHECKING:
    from taskherd.settings import Settings

log = structlog.get_logger(__name__)

REQUIRED_SETTINGS: Final = ("database_url", "amqp_url", "secret_key")
OPS_PORT: Final = 9591
WRITE_CONNECTIONS: Final = 2
"""Database connections for the few writes of the API (last-used times of tokens, actions), and for readiness checks."""
_POOL_POLL_INTERVAL: Final = 0.5
"""Seconds between two updates of the metric of database connections in use."""


def main(settings: Settings) -> None:
    """Run an API process until SIGTERM or SIGINT. Raise ``Misconfigured`` if a required setting is missing."""
    missing = [name for name in REQUIRED_SETTINGS if not getattr(settings, name)]
    if missing:
        raise Misconfigured(missing[0], "must be set for the api")
    logs.configure(settings.log_level, settings.log_format, secrets=settings.secrets)
    open_files.raise_limit()
    run(ApiProcess(settings))


def run(api: ApiProcess) -> None:
    """Run an API to which this process belongs until SIGTERM or SIGINT."""
    garbage_collector.collect_rarely()
    uvloop.run(api.run())


class ApiProcess:
    """An API process."""

    def __init__(self, settings: Settings) -> None:
        """Build everything that needs no running event loop. Nothing connects before ``run``."""
        self._settings = settings
        self._stopping = asyncio.Event()
        self.port: int
        """The port of the API, once it is open."""
        self.ops_port: int
        self.listening = asyncio.Event()
        self.metrics = Metrics()
        self.metrics.initialize(LABEL_VALUES)
        self.metrics.build_info.labels(__version__).set(1)
        self.metrics.process_info.labels("api", settings.installation).set(1)
        self.metrics.failpoint_armed.set(bool(settings.failpoint))
        self._failpoint = failpoint_hook(settings.failpoint)
        self._tracing = open_tracing(settings.tracing, "api", __version__)
        self._readiness = Readiness("serving")
        self._readiness.add_check("database", self._check_database)
        self.id = f"{socket.gethostname()}-{uuid4().hex[:8]}"
        """The name of this process in the lists of connections of RabbitMQ and PostgreSQL."""
        self._connections = BrokerConnections(settings.amqp_url, f"api {self.id}", self.metrics)
        self._repeats = SupervisedConnection(settings.amqp_url, f"api {self.id} repeat")
        self._repeats.keep_apart(self._connections.publish)
        size = max(1, settings.database_pool - WRITE_CONNECTIONS)
        name = f"taskherd api {self.id}"
        self._reader = ReadPool(settings.database_url, size=size, application_name=name)
        self._engine = open_engine(settings.database_url, size=WRITE_CONNECTIONS, application_name=name)
        self._readiness.add_check("schema", lambda: migrate.lacking(self._engine))
        self._readiness.add_note("release", lambda: migrate.newer(self._engine))
        self._readiness.add_note("writable", self._check_writable)
        self._standby = self._make_standby(size, name)
        self._reads: ReadRouting | None = None
        self.change_feed = ChangeFeed(
            self._connections.consume,
            topology.TopologyNames(settings.amqp_prefix),
            self._reader,
            self.metrics,
            nullable_ids_as_objects=settings.api_nullable_ids == "object",
            most_of_user=settings.api_followers_most,
        )
        self._log_revisions = LogRevisions(self._reader)
        self._ops = OpsServer(self.metrics, self._readiness)

    def _make_standby(self, size: int, name: str) -> ReadPool | None:
        url = self._settings.database_read_url
        if not url:
            return None
        self._readiness.add_note("standby", lambda: None if self._reads is None else self._reads.problem)
        return ReadPool(url, size=size, application_name=name, command_timeout=STANDBY_TIMEOUT, of_standby=True)

    def _make_context(self, commands: RepeatingClient, reports: ReportPublisher) -> ApiContext:
        settings = self._settings
        now = asyncio.get_running_loop().time
        self._reads = ReadRouting(self._reader, self._standby, settings.read_lag_most, self.metrics, now)
        names = topology.TopologyNames(settings.amqp_prefix)
        depths = QueueDepths(self._connections.publish, names)
        shared = names.report_queues(settings.report_partitions) + names.queues[2:]
        clients = ClientAddresses(settings.trusted_proxies)
        limits = ConnectionLimits(settings.api_connections, settings.api_anonymous_connections)
        closed = self.metrics.api_connections_closed
        return ApiContext(
            settings=settings,
            metrics=self.metrics,
            reader=self._reader,
            reads=self._reads,
            engine=self._engine,
            authenticator=Authenticator(self._reader, now),
            client_addresses=clients,
            connections=ClientConnections(limits, clients, lambda limit: closed.labels(limit).inc()),
            sign_in_failures=SignInFailures(self.metrics),
            rate_limits=RateLimits.of(settings, now),
            batches=ConcurrencyLimit(batches.MAX_REQUESTS, batches.MAX_REQUESTS_OF_USER, batches.TOO_MANY),
            access=AccessMonitor(self._reader, now),
            action_requests=ConcurrencyLimit(
                action_handlers.MAX_REQUESTS, action_handlers.MAX_REQUESTS_OF_USER, action_handlers.TOO_MANY
            ),
            action_streams=ConcurrencyLimit(progress.MAX_STREAMS, progress.MAX_STREAMS_OF_USER, progress.TOO_MANY),
            action_executor=ActionExecutor(settings.api_action_rate, settings.api_command_timeout),
            commands=commands,
            command_slots=CommandSlots(now),
            change_feed=self.change_feed,
            log_revisions=self._log_revisions,
            log_streams=ConcurrencyLimit(log_follow.MAX_STREAMS, log_follow.MAX_STREAMS_OF_USER, log_follow.TOO_MANY),
            refused_logs=RefusedLogs(),
            unread=UnreadResponses(),
            agent_waits=ConcurrencyLimit(requests.MAX_WAITING, requests.MAX_WAITING_OF_TASK, requests.TOO_MANY),
            agent_waits_of_owners=ConcurrencyLimit(
                requests.MAX_WAITING, requests.MAX_WAITING_OF_OWNER, requests.TOO_MANY_OF_OWNER
            ),
            fleet_snapshots=FleetSnapshots(now),
            queue_depths=depths,
            queue_ages=QueueAges(depths, shared),
            dead_letters=DeadLetterQueue(settings, f"api {self.id}", now),
            reports=reports,
            tracing=self._tracing,
            failpoint=self._failpoint,
            stopping=self._stopping,
        )

    def stop(self) -> None:
        """Stop as on SIGTERM."""
        self._stopping.set()

    async def run(self) -> None:
        """Start, serve until ``stop`` is called, and shut down in order."""
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self.stop)
        settings = self._settings
        sock = server.listen(settings.api_host, settings.api_port)
        try:
            self.ops_port = await self._ops.start(settings.ops_host, settings.ops_port_or(OPS_PORT))
            self.port = sock.getsockname()[1]
            await self._serve(sock)
        finally:
            sock.close()
            await self._ops.close()
            await asyncio.gather(self._connections.close(), self._repeats.close(), self._reader.close())
            if self._standby is not None:
                await self._standby.close()
            await dispose(self._engine)
            await asyncio.to_thread(self._tracing.close)
            log.info("api stopped")

    def _make_client(self, publisher: Publisher, exchange: str) -> RepeatingClient:
        timeout = self._settings.api_command_timeout
        clients = [
            (connection, CommandClient(each, exchange, timeout=timeout, trace=self._tracing.current))
            for connection, each in (
                (self._connections.publish, publisher),
                (self._repeats, Publisher(self._repeats, identified=True)),
            )
        ]
        return RepeatingClient(clients, timeout=timeout, on_waiting=self.metrics.api_commands_waiting.set)

    async def _serve(self, sock: socket.socket) -> None:
        settings = self._settings
        names = topology.TopologyNames(settings.amqp_prefix)
        publisher = Publisher(self._connections.publish, identified=True)
        commands = self._make_client(publisher, names.commands)
        api = self._make_context(commands, ReportPublisher(publisher, names, self._tracing))
        self._connections.start()
        self._repeats.start()
        http_server = server.make(asgi.application(api), settings, api.connections)
        http = asyncio.create_task(http_server.serve([sock]), name="http")
        actions = asyncio.create_task(api.action_executor.run(api), name="actions")
        note_uses = _repeat(NOTE_USE_INTERVAL, lambda: api.authenticator.note_uses(self._engine))
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._stopping.wait(), name="stopping"),
            asyncio.create_task(self._refuse_unusable_database(), name="database settings"),
            asyncio.create_task(self.change_feed.run(), name="change feed"),
            asyncio.create_task(self._log_revisions.run(), name="log revisions"),
            asyncio.create_task(note_uses, name="token uses"),
            asyncio.create_task(_repeat(LOG_INTERVAL, api.sign_in_failures.log_summaries), name="sign-in failures"),
            asyncio.create_task(api.reads.run(), name="standby"),
            asyncio.create_task(api.access.run(), name="access checks"),
            asyncio.create_task(api.queue_ages.run(), name="queue ages"),
            asyncio.create_task(_repeat(_POOL_POLL_INTERVAL, self._poll_pool), name="pool metric"),
        ]
        self._readiness.set_ok("serving")
        self.listening.set()
        log.info("api serving", api_id=self.id, port=self.port, ops_port=self.ops_port)
        await asyncio.wait({http, actions, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        self._stopping.set()
        self.change_feed.stop()
        self._log_revisions.stop()
        await self._shut_down(http_server, (http, actions), tasks)
        await commands.close()
        with suppress(TaskherdError):
            await api.authenticator.note_uses(self._engine)

    async def _shut_down(
        self,
        http_server: server.HttpServer,
        finishing: tuple[asyncio.Task[None], ...],
        tasks: list[asyncio.Task[Any]],
    ) -> None:
        """Finish requests and steps of actions within the grace time, then stop the background tasks."""
        log.info("api stopping")
        self._readiness.set_failed("serving", "stopping")
        http_server.should_exit = True
        await asyncio.wait(finishing, timeout=self._settings.grace)
        for task in (*finishing, *tasks):
            task.cancel()
        for result in await asyncio.gather(*finishing, *tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _poll_pool(self) -> None:
        standby = 0 if self._standby is None else self._standby.in_use
        self.metrics.pool_in_use.set(self._reader.in_use + in_use(self._engine) + standby)

    async def _refuse_unusable_database(self) -> None:
        """Wait until the database answers, then until the process stops.

        Raises:
            Misconfigured: the URL or the database's settings are wrong, or its schema is not the one that this release
                needs, which ends the process.
        """
        with suppress(Unavailable):
            await until_stopped(self._check_schema, self._stopping, lambda _: None)
        await self._stopping.wait()

    async def _check_database(self) -> None:
        async with transaction(self._engine) as connection:
            await database_clock.read(connection)

    async def _check_writable(self) -> None:
        async with transaction(self._engine) as connection:
            await check_writable(connection)

    async def _check_schema(self) -> None:
        async with transaction(self._engine) as connection:
            await migrate.check(connection)


async def _repeat(interval: float, action: Callable[[], Awaitable[None]]) -> None:
    """Run ``action`` every ``interval`` seconds; log a failure and continue with the next run."""
    while True:
        await asyncio.sleep(interval)
        try:
            await action()
        except TaskherdError as error:
            log.warning("background job failed", reason=str(error))
