"""The worker process: create its parts, start them, and stop them in order.

On shutdown it first stops consuming, then finishes the batches in progress, then publishes the remaining changes.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import suppress
from datetime import timedelta
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING
from uuid import uuid4

import coolname
import structlog
import uvloop

from taskherd import __version__, garbage_collector
from taskherd.backoff import Backoff
from taskherd.broker import topology
from taskherd.broker.connections import BrokerConnections
from taskherd.broker.consumer import Consumer
from taskherd.broker.publisher import Publisher
from taskherd.broker.requests import REQUEST_TIMEOUT
from taskherd.broker.subscription import Source
from taskherd.broker.unconfirmed import UnconfirmedPublisher
from taskherd.clock import Clock
from taskherd.domain import names as task_names
from taskherd.errors import Misconfigured, Unavailable
from taskherd.messages.agent_tokens import agent_token
from taskherd.messages.run_policy import default_policy
from taskherd.observability import failpoints, logs
from taskherd.observability.metrics import Metrics
from taskherd.observability.ops import OpsServer
from taskherd.observability.readiness import Readiness
from taskherd.observability.tracing import open_tracing
from taskherd.retry import until_stopped
from taskherd.store import database_clock, migrate
from taskherd.store.engine import check_writable, dispose, in_use, open_engine, transaction
from taskherd.store.logs import LogLimits
from taskherd.timeouts import timeouts_of
from taskherd.worker import metric_labels
from taskherd.worker.claim_consumer import ClaimConsumer
from taskherd.worker.command_consumer import MAX_WAITING, CommandConsumer
from taskherd.worker.consumer_watchdog import ConsumerWatchdog
from taskherd.worker.context import RequestRetryPolicy, Retention, WorkerContext
from taskherd.worker.directory_cache import DirectoryCache
from taskherd.worker.indexer import Indexer
from taskherd.worker.known_runners import KnownRunners
from taskherd.worker.maintenance import Maintenance
from taskherd.worker.probe import Probe
from taskherd.worker.rates import Rates
from taskherd.worker.relay import Relay
from taskherd.worker.report_consumer import ReportConsumer
from taskherd.worker.sender_pools import SenderPools
from taskherd.worker.sweeper import Sweeper
from taskherd.worker.timer_checks import TimerChecks
from taskherd.worker.topology import Topology
from taskherd.worker.wakeups import Wakeups
from taskherd.worker.work_queues import WorkQueues

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from taskherd.broker import AbstractChannel
    from taskherd.settings import Settings

log = structlog.get_logger(__name__)

REQUIRED_SETTINGS = ("database_url", "amqp_url", "secret_key")
CLAIMS_PREFETCH = 2_000
"""Maximum number of unacked messages of runners: a start of all runners at once fits."""

MAX_REPORT_BYTES, MAX_COMMAND_BYTES, MAX_CLAIM_BYTES = 64 * 1024 * 1024, 32 * 1024 * 1024, 16 * 1024 * 1024
"""Maximum size of the unacked messages in each queue; together well below the memory of a worker in the Helm chart."""

DELETE_RETRY_AFTER = 5.0
"""Seconds until a failed delete is requested again for the first time."""


def main(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT. Raises ``Misconfigured`` before it connects to anything."""
    missing = [name for name in REQUIRED_SETTINGS if not getattr(settings, name)]
    if missing:
        raise Misconfigured(missing[0], "must be set for a worker")
    logs.configure(settings.log_level, settings.log_format, secrets=settings.secrets)
    run(Worker(settings))


def run(worker: Worker) -> None:
    """Run a worker to which this process belongs until SIGTERM or SIGINT."""
    garbage_collector.collect_rarely()
    uvloop.run(worker.run())


class Worker:
    """A worker process."""

    def __init__(self, settings: Settings, name: str | None = None) -> None:
        """Create all parts; nothing connects before ``run``. ``name`` must be unique among all workers."""
        self._settings = settings
        self._stopping = asyncio.Event()
        self.ops_port = 0
        """The operations port, once it is open."""
        self._clock = Clock()
        self.metrics = Metrics()
        self._tracing = open_tracing(settings.tracing, "worker", __version__)
        self._readiness = self._make_readiness()
        _initialize_metrics(self.metrics, failpoint_armed=bool(settings.failpoint))
        self.metrics.process_info.labels("worker", settings.installation).set(1)
        self._id = name or f"{socket.gethostname()}-{uuid4().hex[:8]}"
        self._names = topology.TopologyNames(settings.amqp_prefix)
        self._report_queues = self._names.report_queues(settings.report_partitions)
        self._engine = open_engine(
            settings.database_url, size=settings.database_pool, application_name=f"taskherd worker {self._id}"
        )
        self._connections = BrokerConnections(
            settings.amqp_url, f"worker {self._id}", self.metrics, self._readiness, self._on_disconnect
        )
        self._publisher = Publisher(self._connections.publish)
        self._replies = UnconfirmedPublisher(self._connections.unconfirmed, self._on_reply_error)
        self._wakeup_publisher = UnconfirmedPublisher(self._connections.unconfirmed, max_waiting=1)
        self._wakeups = Wakeups(self._wakeup_publisher, self._names.wakeups)
        self._topology = Topology(
            self._connections.consume,
            self._connections.declare,
            self._names,
            settings.report_partitions,
            self._on_declare_error,
        )
        self._reports = Consumer(
            self._connections.reports,
            self._report_sources,
            prefetch=settings.prefetch,
            max_bytes=MAX_REPORT_BYTES,
            exclusive=True,
            on_error=self._on_error,
        )
        self._commands = self._make_consumer(self._command_source, MAX_WAITING, MAX_COMMAND_BYTES)
        self._claims = self._make_consumer(self._claim_source, CLAIMS_PREFETCH, MAX_CLAIM_BYTES)
        self._context = self._make_context()
        self._relay = Relay(self._context, settings.relay_every)
        self.probe = Probe(self._publisher, self._replies, self.metrics, self._clock.now, self._check_consuming)
        self._report_consumer = ReportConsumer(self._reports, self._context, self._relay, self.probe)
        self._command_consumer = CommandConsumer(self._commands, self._context, self._relay)
        self._work_queues = WorkQueues(
            self._context,
            self._connections.consume,
            self._connections.declare,
            partial(self._topology.ensure, self._names.claims),
        )
        self._claim_consumer = ClaimConsumer(self._claims, self._context, self._relay, self._work_queues)
        self._watchdog = ConsumerWatchdog((self._commands, self._claims), self._connections.consume)
        timer_checks = TimerChecks(self._context, self._relay)
        self._indexer = Indexer(self._context)
        self._maintenance = Maintenance(self._context, timer_checks)
        self._sweeper = Sweeper(
            self._id,
            self._context,
            timer_checks,
            self.probe,
            self._clock.correct,
            indexer=self._indexer,
            maintenance=self._maintenance,
        )
        self._ops = OpsServer(self.metrics, self._readiness)

    def _make_readiness(self) -> Readiness:
        readiness = Readiness("broker", "consumers")
        readiness.add_check("database", self._check_database)
        readiness.add_check("schema", lambda: migrate.lacking(self._engine))
        readiness.add_note("release", lambda: migrate.newer(self._engine))
        return readiness

    def _make_consumer(
        self, sources: Callable[[AbstractChannel], Awaitable[Sequence[Source]]], prefetch: int, max_bytes: int
    ) -> Consumer:
        return Consumer(
            self._connections.consume, sources, prefetch=prefetch, max_bytes=max_bytes, on_error=self._on_error
        )

    def _make_context(self) -> WorkerContext:
        settings = self._settings
        randomness = task_names.NameRandomness(partial(coolname.generate_slug, 2), partial(token_hex, 2))
        return WorkerContext(
            engine=self._engine,
            publisher=self._publisher,
            work_publisher=Publisher(self._connections.work),
            dead_publisher=Publisher(self._connections.dead),
            replies=self._replies,
            wakeups=self._wakeups,
            names=self._names,
            directory_cache=DirectoryCache(self._engine, default_policy(settings.stalled_after)),
            metrics=self.metrics,
            now=self._clock.now,
            failpoint=failpoints.failpoint_hook(settings.failpoint),
            on_error=self._on_error,
            on_unconfirmed=self._on_unconfirmed,
            stopping=self._stopping,
            timeouts=timeouts_of(settings),
            delete_backoff=Backoff(DELETE_RETRY_AFTER, settings.delete_backoff_most),
            request_retry=_request_retry(settings),
            retention=_retention(settings),
            make_agent_token=partial(agent_token, settings.secret_keys[0]),
            draw_names=partial(task_names.draw, randomness=randomness),
            command_senders=settings.trusted_command_senders,
            known_runners=KnownRunners(),
            senders=SenderPools(settings.sender_pools),
            rates=Rates(),
            strict_send=settings.send_mode == "strict",
            max_running=settings.tasks_running_most,
            log_limits=LogLimits(settings.log_entries_most, settings.log_bytes_most),
            tracing=self._tracing,
        )

    def stop(self) -> None:
        """Shut down in order, as for SIGTERM."""
        self._stopping.set()

    async def run(self) -> None:
        """Start, work until ``stop`` is called or a signal arrives, and shut down in order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        self.ops_port = await self._ops.start(self._settings.ops_host, self._settings.ops_port)
        log.info("worker starting", worker_id=self._id, ops_port=self.ops_port)
        try:
            if await self._prepare():
                await self._work()
        finally:
            await self._ops.close()
            await self._connections.close()
            await dispose(self._engine)
            await asyncio.to_thread(self._tracing.close)
            log.info("worker stopped", worker_id=self._id)

    async def _prepare(self) -> bool:
        """Wait for the database, check its schema and set the clock. Return False if the worker is stopping.

        Raises:
            Misconfigured: the schema does not fit this version.
        """
        migrating = asyncio.create_task(
            until_stopped(self._prepare_database, self._stopping, self._on_database_down), name="migrate"
        )
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        await asyncio.wait({migrating, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if self._stopping.is_set():
            migrating.cancel()
            await asyncio.gather(migrating, return_exceptions=True)
            return False
        stopping.cancel()
        migrating.result()
        return True

    async def _prepare_database(self) -> None:
        await migrate.ensure_async(self._settings.database_url, upgrading=self._settings.migrate == "auto")
        async with transaction(self._engine) as connection:
            self._clock.correct(await database_clock.read(connection))

    async def _work(self) -> None:
        connections = self._connections
        connections.start(
            connections.reports, connections.unconfirmed, connections.work, connections.dead, connections.declare
        )
        for consumer in (self._commands, self._claims, self._reports):
            consumer.start()
        settings = self._settings
        consumers = [
            asyncio.create_task(self._report_consumer.run(settings.batch_most, settings.batch_wait), name="reports"),
            asyncio.create_task(self._command_consumer.run(), name="commands"),
            asyncio.create_task(self._claim_consumer.run(), name="claims"),
        ]
        relay = asyncio.create_task(self._relay.run(), name="relay")
        unconfirmed = asyncio.create_task(self._replies.run(), name="replies")
        background = [
            asyncio.create_task(self._sweeper.run(settings.sweep_every), name="sweeper"),
            asyncio.create_task(self._indexer.run(), name="indexer"),
            asyncio.create_task(self._maintenance.run(), name="maintenance"),
            asyncio.create_task(
                self.probe.send_probes(settings.probe_every, settings.probe_timeout, self._report_queues),
                name="probe send",
            ),
            asyncio.create_task(self._topology.run(), name="topology"),
            asyncio.create_task(self._work_queues.run(), name="work queues"),
            asyncio.create_task(self._watchdog.run(), name="consumer watchdog"),
            asyncio.create_task(self._wakeups.run(), name="wakeups"),
            asyncio.create_task(self._wakeup_publisher.run(), name="wakeup publisher"),
            asyncio.create_task(self._update_gauges(), name="gauges"),
            asyncio.create_task(self._context.rates.run(self._engine), name="rates"),
        ]
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        await asyncio.wait({stopping, relay, unconfirmed, *consumers, *background}, return_when=asyncio.FIRST_COMPLETED)
        self._stopping.set()
        await self._shut_down(consumers, [relay, unconfirmed], background)

    async def _shut_down(
        self,
        consumers: list[asyncio.Task[None]],
        senders: list[asyncio.Task[None]],
        background: list[asyncio.Task[None]],
    ) -> None:
        """Stop consuming, finish the batches in progress and publish what is committed, within the grace time."""
        log.info("worker stopping")
        self._readiness.set_failed("consumers", "stopping")
        consuming = (self._reports, self._commands, self._claims)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.grace):
                await asyncio.gather(*(consumer.stop() for consumer in consuming))
                await asyncio.wait(consumers)
                self._relay.stop()
                self._replies.stop()
                await asyncio.gather(asyncio.wait(senders), self._leave())
        tasks = [*consumers, *senders, *background]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for consumer in consuming:
            await consumer.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _leave(self) -> None:
        """Tell the database that this worker is gone, so that the others need not wait for it; no outage delays it."""
        with suppress(Unavailable):
            await self._sweeper.deregister()
            await self._context.rates.write_once(self._engine)

    async def _update_gauges(self) -> None:
        """Update the readiness and the gauges of consuming twice a second."""
        while True:
            consuming = self._reports.consuming and self._commands.consuming and self._claims.consuming
            if consuming:
                self._readiness.set_ok("consumers")
            else:
                self._readiness.set_failed("consumers", "not consuming")
                self.probe.reset()
            self.metrics.in_flight.set(self._reports.buffered + self._report_consumer.in_flight)
            self.metrics.pool_in_use.set(in_use(self._engine))
            await asyncio.sleep(0.5)

    def _source(self, queue: str, priority: int | None = None) -> Source:
        return Source(queue, priority, partial(self._topology.ensure, queue))

    async def _command_source(self, _: AbstractChannel) -> Sequence[Source]:
        return [self._source(self._names.commands)]

    async def _claim_source(self, _: AbstractChannel) -> Sequence[Source]:
        return [self._source(self._names.claims)]

    async def _report_sources(self, _: AbstractChannel) -> Sequence[Source]:
        """Return the report queues: the first is shared; a partition goes to the consumer with the highest priority."""
        shared, *partitions = self._report_queues
        prioritized = (self._source(queue, topology.consumer_priority(self._id, queue)) for queue in partitions)
        return [self._source(shared), *prioritized]

    def _on_database_down(self, reason: str) -> None:
        self.metrics.database_up.set(0)
        log.warning("database unavailable", reason=reason)

    async def _check_database(self) -> None:
        async with transaction(self._engine) as connection:
            await check_writable(connection)

    async def _check_consuming(self) -> None:
        """Find out whether probes are missing because the node that delivers them hangs, sooner than by heartbeats.

        The consumer watchdog does so for the connection of commands and claims, through which no probe comes.
        """
        await self._connections.reports.drop_if_hung(REQUEST_TIMEOUT)

    def _on_disconnect(self) -> None:
        """Reset ``drained_since``: reports may now wait in the queues."""
        self.probe.reset()
        self._topology.reset()
        self._work_queues.reset()

    def _on_declare_error(self, reason: str) -> None:
        log.warning("cannot declare the topology, retrying", reason=reason)

    def _on_reply_error(self, reason: str) -> None:
        log.warning("reply dropped", reason=reason)

    def _on_error(self, reason: str) -> None:
        self.probe.reset()
        log.warning("operation failed, retrying", reason=reason)

    def _on_unconfirmed(self, reason: str) -> None:
        """Log what is repeated. A queue that takes no messages says nothing about the reports."""
        log.warning("not confirmed, retrying", reason=reason)


def _request_retry(settings: Settings) -> RequestRetryPolicy:
    return RequestRetryPolicy(
        first_delay=timedelta(seconds=settings.request_backoff_first),
        max_delay=timedelta(seconds=settings.request_backoff_most),
        ttl=timedelta(seconds=settings.request_ttl),
        runner_answer_timeout=timedelta(seconds=settings.runner_answer_timeout),
    )


def _retention(settings: Settings) -> Retention:
    return Retention(
        parked_ttl=timedelta(seconds=settings.parked_ttl),
        max_parked=settings.parked_most,
        command_retention=timedelta(seconds=settings.command_memory),
        history_retention=timedelta(seconds=settings.history_retention),
        log_retention=timedelta(seconds=settings.log_retention),
        deleted_retention=timedelta(seconds=settings.deleted_retention),
        action_retention=timedelta(seconds=settings.action_retention),
    )


def _initialize_metrics(metrics: Metrics, *, failpoint_armed: bool) -> None:
    """Set constant gauges, and all counters to 0."""
    metrics.failpoint_armed.set(failpoint_armed)
    metrics.build_info.labels(__version__).set(1)
    metric_labels.initialize(metrics)
