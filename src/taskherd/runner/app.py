"""The runner process: build its parts, start and stop them in order, and leave running agents to the next runner."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import socket
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvloop

from taskherd import __version__, open_files, retry
from taskherd.broker import topology
from taskherd.broker.command_client import CommandClient
from taskherd.broker.connections import BrokerConnections
from taskherd.broker.consumer import Consumer
from taskherd.broker.publisher import Publisher
from taskherd.broker.subscription import Source
from taskherd.errors import Misconfigured, Unavailable
from taskherd.messages.claims import RunnerHello
from taskherd.observability import failpoints, logs
from taskherd.observability.metrics import Metrics
from taskherd.observability.ops import OpsServer
from taskherd.observability.readiness import Readiness
from taskherd.runner import orphans, privileges
from taskherd.runner.agents.log_budget import LogRates
from taskherd.runner.claims import Claims
from taskherd.runner.context import RunnerContext
from taskherd.runner.dispatcher import Dispatcher
from taskherd.runner.drain import Drain
from taskherd.runner.hello import Hellos, check_queues, count_consumers
from taskherd.runner.metric_labels import LABEL_VALUES
from taskherd.runner.outbox import Budget
from taskherd.runner.report_sender import ReportSender
from taskherd.runner.sole_consumer import SoleConsumer
from taskherd.runner.workspaces.cgroups import Cgroups
from taskherd.runner.workspaces.folders import TaskFolder
from taskherd.runner.workspaces.isolation import Isolation
from taskherd.runner.workspaces.sandbox import Sandbox
from taskherd.runner.workspaces.users import AgentUsers
from taskherd.settings.isolation import parse_uids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from taskherd.broker import AbstractChannel
    from taskherd.settings import Settings

log = structlog.get_logger(__name__)

OPS_PORT = 9592
PREFETCH = 8_000
"""Maximum number of unacknowledged requests; each task may have one input whose outcome is not known yet."""
REPLY_TIMEOUT = 5.0
"""Seconds to wait for the worker's reply to a hello, a question or a claim."""
LOOK_EVERY = 3600.0
"""Seconds after which tasks on this disk are looked for that were deleted meanwhile through another runner."""
DRAIN_SHARE = 0.9
"""Share of the grace time in which a drain pauses the agents and delivers the reports; the rest is for closing."""
PR_SET_DUMPABLE = 4
_NOT_IN_NAMES = re.compile(r"[^a-z0-9-]+")


def main(settings: Settings) -> None:
    """Run a runner until SIGTERM or SIGINT. Raise ``Misconfigured`` before anything is started."""
    logs.configure(settings.log_level, settings.log_format, secrets=settings.secrets)
    # Agents of the same user then cannot read this process's memory or environment, unless that user is root;
    # see proc(5) and ptrace(2).
    privileges.prctl(PR_SET_DUMPABLE, 0)
    open_files.raise_limit()
    uvloop.run(RunnerProcess(settings).run())


class RunnerProcess:
    """A runner process and its parts."""

    def __init__(self, settings: Settings) -> None:
        """Build everything; nothing connects before ``run``."""
        self._settings = settings
        self._name = settings.runner_name or default_name()
        if self._name == settings.runner_pool:
            raise Misconfigured("runner_name", f"{self._name} is also the name of the pool; expected another name")
        self._root = Path(settings.runner_root).resolve()
        self._stopping = asyncio.Event()
        self._connected = asyncio.Event()
        self.metrics = Metrics()
        _initialize_metrics(self.metrics, settings)
        self._readiness = Readiness("broker", "consumers")
        self._names = topology.TopologyNames(settings.amqp_prefix)
        self._connections = BrokerConnections(settings.amqp_url, f"runner {self._name}", self.metrics, self._readiness)
        publisher = Publisher(self._connections.publish, identified=True)
        self._consumer = Consumer(self._connections.consume, self._prepare, prefetch=PREFETCH, on_error=self._on_error)
        self._sender = ReportSender(publisher, self._names, self._name, self.metrics, self._on_error)
        self._claims = CommandClient(publisher, self._names.claims, timeout=REPLY_TIMEOUT)
        check = partial(check_queues, self._connections.consume, self._names)
        self._hellos = Hellos(self._claims, check, self._names, RunnerHello(self._name, settings.runner_pool))
        own_queue = self._names.work_queue(self._name)
        count = partial(count_consumers, self._connections.consume, own_queue)
        self._sole_consumer = SoleConsumer(self._name, count, partial(self._consumer.consumes, own_queue))
        self._isolation = make_isolation(settings)
        self._dispatcher = Dispatcher(self._make_context(), self._consumer)
        self._drain = self._make_drain(settings.drain_wait)
        self._ops = OpsServer(self.metrics, self._readiness)

    def _make_context(self) -> RunnerContext:
        settings = self._settings
        return RunnerContext(
            name=self._name,
            root=self._root,
            api_url=settings.agent_api_url,
            environ=os.environ,
            metrics=self.metrics,
            claims=Claims(self._claims, self._name),
            budget=Budget(settings.runner_buffer_most),
            log_rates=LogRates(settings.log_bytes_rate, settings.log_entries_rate),
            now=wall_clock,
            schedule_outbox=self._sender.schedule,
            drop_outbox=self._sender.drop,
            isolation=self._isolation,
            failpoint=failpoints.failpoint_hook(settings.failpoint),
        )

    def _make_drain(self, wait: float | None) -> Drain | None:
        if wait is None:
            return None
        grace = self._settings.grace * DRAIN_SHARE
        return Drain(self._dispatcher, self._consumer, self._sender, wait=wait, grace=grace)

    def stop(self) -> None:
        """Begin an orderly shutdown, as on SIGTERM; each further call shortens it."""
        if self._stopping.is_set() and self._drain is not None:
            self._drain.hurry()
        self._stopping.set()

    async def run(self) -> None:
        """Start, work until ``stop`` is called, and shut down in order."""
        lock = _lock_root(self._root)
        if self._isolation.users is not None:
            self._isolation.users.check(self._root)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        port = await self._ops.start(self._settings.ops_host, self._settings.ops_port_or(OPS_PORT))
        isolation = await asyncio.to_thread(self._isolation.describe)
        log.info("runner starting", runner=self._name, root=str(self._root), ops_port=port, **isolation)
        try:
            await self._work()
        finally:
            await self._ops.close()
            await self._connections.close()
            os.close(lock)
            log.info("runner stopped", runner=self._name)

    async def _work(self) -> None:
        self._connections.start()
        adopted = self._dispatcher.adopt_tasks()
        if adopted:
            log.info("tasks of an earlier runner adopted", tasks=adopted)
        self._consumer.start()
        tasks = [
            asyncio.create_task(self._dispatcher.run(), name="requests"),
            asyncio.create_task(self._sender.run(), name="reports"),
            asyncio.create_task(
                self._sender.send_heartbeats(self._settings.runner_heartbeat_every, self._dispatcher.heartbeats),
                name="heartbeats",
            ),
            asyncio.create_task(self._dispatcher.update_gauges(), name="gauges"),
            asyncio.create_task(self._update_readiness(), name="readiness"),
            asyncio.create_task(self._watch_name(), name="name"),
        ]
        orphans_task = asyncio.create_task(self._find_orphans(), name="orphans")
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        await asyncio.wait({stopping, orphans_task, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        grace = self._settings.grace
        if self._stopping.is_set() and self._drain is not None:
            orphans_task.cancel()
            await self._pause_agents(self._drain)
            grace *= 1 - DRAIN_SHARE
        self._stopping.set()
        await self._shut_down([*tasks, orphans_task], grace)

    async def _pause_agents(self, drain: Drain) -> None:
        """Pause all agents, so that the next runner starts them again; meanwhile this one is not ready."""
        self.metrics.runner_draining.set(1)
        self._readiness.set_failed("consumers", "draining: the runner was told to stop and pauses its agents")
        log.info("runner draining", mode=self._settings.runner_drain, grace=self._settings.grace)
        await drain.run()

    async def _shut_down(self, tasks: list[asyncio.Task[None]], grace: float) -> None:
        """Stop consuming and send the remaining reports within ``grace`` seconds. Agents keep running."""
        log.info("runner stopping")
        self._readiness.set_failed("consumers", "stopping")
        with suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(grace):
                await self._consumer.stop()
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                await self._sender.flush()
        for task in tasks:
            task.cancel()
        await self._dispatcher.detach()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await self._consumer.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _find_orphans(self) -> None:
        """After each connection, end the agents of tasks that another runner has taken over, and remove deleted ones.

        Their requests may have expired while this runner was cut off. Those of a task that has moved and is deleted
        later go to the other runner, so deleted ones are looked for every ``LOOK_EVERY`` seconds, too. Tasks that the
        database does not know are kept, with their agents.
        """
        while True:
            await retry.wait(self._connected, LOOK_EVERY)
            has_connected = self._connected.is_set()
            self._connected.clear()
            if builds := self._dispatcher.builds:
                found = await orphans.find_orphans(self._claims, self._name, list(builds), self._on_error)
                for task_id in found.elsewhere if has_connected else ():
                    self._dispatcher.end_taken_over(task_id, builds[task_id])
                self._remove(found.deleted)
                self._warn_of_unknown(found.unknown)

    def _remove(self, deleted: Sequence[UUID]) -> None:
        """Remove tasks on this disk that were deleted, but for those that a request has just done it to."""
        for task_id in deleted:
            if self._dispatcher.discard(task_id):
                log.info("task was deleted, removing its files", task_id=str(task_id))
                self.metrics.runner_orphans.inc()

    def _warn_of_unknown(self, unknown: Sequence[UUID]) -> None:
        """Log where the files of tasks are that the database does not know, and what may be the cause."""
        for task_id in unknown:
            log.warning(
                "the database does not know this task, its files and its agent are kept",
                task_id=str(task_id),
                folder=str(TaskFolder(self._root, task_id).path),
                hint="was it restored from an older backup, or is this the wrong broker or TASKHERD_AMQP_PREFIX?",
            )

    async def _update_readiness(self) -> None:
        """Keep the readiness of ``consumers`` up to date until the runner is to stop."""
        while not self._stopping.is_set():
            if self._sole_consumer.problem is not None:
                self._readiness.set_failed("consumers", self._sole_consumer.problem)
            elif self._consumer.consuming:
                self._readiness.set_ok("consumers")
            else:
                self._readiness.set_failed("consumers", "not consuming")
            await asyncio.sleep(0.5)

    async def _watch_name(self) -> None:
        """Look whether another runner has this one's name, and subscribe again if both have come at the same time."""
        while True:
            await asyncio.sleep(self._sole_consumer.look_after)
            with suppress(Unavailable, Misconfigured):
                if not await self._sole_consumer.look():
                    self._consumer.resubscribe()

    async def _prepare(self, _: AbstractChannel) -> Sequence[Source]:
        queues = await self._hellos.obtain_queues()
        await self._sole_consumer.check()
        if self._stopping.is_set():  # a draining runner takes no more from its pool
            queues.remove(self._names.work_queue(self._settings.runner_pool))
        self._connected.set()
        return [Source(queue) for queue in queues]

    def _on_error(self, reason: str) -> None:
        log.warning("broker operation failed, retrying", reason=reason)


def make_isolation(settings: Settings) -> Isolation:
    """Return what separates agents from each other and from the runner. Raise ``Misconfigured`` if it cannot be had."""
    uids = parse_uids(settings.runner_agent_uids)
    cgroups = Cgroups(Path(settings.runner_cgroup)) if settings.runner_cgroup else None
    if cgroups is not None and cgroups.missing_controllers:
        missing = ", ".join(sorted(cgroups.missing_controllers))
        log.warning("the cgroup lacks controllers, so templates with such limits fail to start", missing=missing)
    paths = [path for path in settings.runner_sandbox_paths.split(":") if path]
    sandbox = Sandbox(paths, uids[0] if uids else None, Path(settings.runner_root))
    return Isolation(sandbox, AgentUsers(*uids) if uids else None, cgroups)


def _initialize_metrics(metrics: Metrics, settings: Settings) -> None:
    """Set constant gauges, and all counters to 0."""
    metrics.build_info.labels(__version__).set(1)
    metrics.process_info.labels("runner", settings.installation).set(1)
    metrics.failpoint_armed.set(bool(settings.failpoint))
    metrics.initialize(LABEL_VALUES)


def wall_clock() -> datetime:
    """Return the time of this machine's wall clock, read anew: it may be set, or the machine suspended, at any time."""
    return datetime.now(UTC)


def default_name() -> str:
    """Return the name of a runner on this machine for which none is set."""
    return name_of(socket.gethostname())


def name_of(host: str) -> str:
    """Return the default name of a runner on this host."""
    return _NOT_IN_NAMES.sub("-", host.lower()).strip("-")[:64] or "runner"


def _lock_root(root: Path) -> int:
    """Lock the folder for this process and return the descriptor; the kernel releases the lock when the process ends.

    Raises:
        Misconfigured: another runner holds the lock, or the folder cannot be used.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Misconfigured(
            "runner_root", f"{root} is in use by another runner; expected a folder of its own"
        ) from None
    except OSError as error:
        raise Misconfigured(
            "runner_root", f"{root} cannot be used ({error.strerror}); expected a writable folder"
        ) from error
    return descriptor
