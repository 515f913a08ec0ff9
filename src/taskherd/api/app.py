"""The API process: what it is made of, how it comes up, and how it leaves.

It serves as soon as it can listen. Without the broker it reads and refuses writes, without the database it says so;
both come back by themselves. When told to leave it takes no more connections, ends streams and
answers what is in hand.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog
import uvloop

from taskherd import __version__
from taskherd.api.agents.report_publisher import ReportPublisher
from taskherd.api.change_feed import ChangeFeed
from taskherd.api.context import ApiContext
from taskherd.api.http import asgi, server
from taskherd.api.http.auth import NOTE_USE_EVERY, Authenticator
from taskherd.api.http.rate_limit import RateLimiter
from taskherd.broker import topology
from taskherd.broker.connections import BrokerConnections
from taskherd.broker.publish import Publisher
from taskherd.broker.rpc import CommandClient
from taskherd.errors import Misconfigured, TaskherdError
from taskherd.observability import logs
from taskherd.observability.metrics import Metrics
from taskherd.observability.ops import OpsServer
from taskherd.observability.readiness import Readiness
from taskherd.observability.tracing import open_tracing
from taskherd.store import migrate, timers
from taskherd.store.engine import dispose, in_use, open_engine, transaction
from taskherd.store.reader import Reader

if TYPE_CHECKING:
    from taskherd.settings import Settings

log = structlog.get_logger(__name__)

NEEDED: Final = ("database_url", "amqp_url", "secret_key")
OPS_PORT: Final = 9591
WRITING_CONNECTIONS: Final = 2
"""Database connections for what little the API writes: tokens, and when they were used."""


def main(settings: Settings) -> None:
    """Run an API process until SIGTERM or SIGINT. Raises Misconfigured before anything is begun."""
    missing = [name for name in NEEDED if not getattr(settings, name)]
    if missing:
        raise Misconfigured(missing[0], "must be set for the api")
    logs.configure(settings.log_level, settings.log_format, secrets=settings.secrets)
    uvloop.run(ApiProcess(settings).run())


class ApiProcess:
    """An API process."""

    def __init__(self, settings: Settings) -> None:
        """Build everything that needs no running loop; nothing connects before ``run``."""
        self._settings = settings
        self._stopping = asyncio.Event()
        self.port = 0
        """The port that is listened on, once it is."""
        self.ops_port = 0
        self.listening = asyncio.Event()
        self.metrics = Metrics()
        self.metrics.build_info.labels(__version__).set(1)
        self._tracing = open_tracing(settings.tracing, "api", __version__)
        self._readiness = Readiness("serving")
        self._readiness.check("database", self._check_database)
        self._readiness.check("schema", self._check_schema)
        self._connections = BrokerConnections(settings.amqp_url, "api", self.metrics)
        size = max(1, settings.database_pool - WRITING_CONNECTIONS)
        name = "taskherd-api"
        self._reader = Reader(settings.database_url, size=size, application_name=name)
        self._engine = open_engine(settings.database_url, size=WRITING_CONNECTIONS, application_name=name)
        objects = settings.api_nullable_ids == "object"
        self.change_feed = ChangeFeed(
            self._connections.consume,
            topology.TopologyNames(settings.amqp_prefix),
            self._reader,
            self.metrics,
            objects=objects,
        )
        self._ops = OpsServer(self.metrics, self._readiness)

    def _make_context(self, commands: CommandClient, reports: ReportPublisher) -> ApiContext:
        settings = self._settings
        now = asyncio.get_running_loop().time
        return ApiContext(
            settings=settings,
            metrics=self.metrics,
            reader=self._reader,
            engine=self._engine,
            authenticator=Authenticator(self._reader, now),
            rate_limiter=RateLimiter(settings.api_rate_limit, settings.api_rate_burst, now),
            commands=commands,
            change_feed=self.change_feed,
            reports=reports,
            tracing=self._tracing,
            stopping=self._stopping,
        )

    def stop(self) -> None:
        """Leave, in order, as for SIGTERM."""
        self._stopping.set()

    async def run(self) -> None:
        """Come up, serve until told to stop, and leave in order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        settings = self._settings
        sock = server.listen(settings.api_host, settings.api_port)
        try:
            self.ops_port = await self._ops.start(settings.ops_host, settings.ops_port_of(OPS_PORT))
            self.port = sock.getsockname()[1]
            await self._serve(sock)
        finally:
            sock.close()
            await self._ops.close()
            await asyncio.gather(self._connections.close(), self._reader.close())
            await dispose(self._engine)
            await asyncio.to_thread(self._tracing.close)
            log.info("api ended")

    async def _serve(self, sock: socket.socket) -> None:
        settings = self._settings
        names = topology.TopologyNames(settings.amqp_prefix)
        publisher = Publisher(self._connections.publish)
        commands = CommandClient(
            self._connections.consume,
            publisher,
            names,
            timeout=settings.api_command_timeout,
            trace=self._tracing.current,
            waiting=self.metrics.api_commands_waiting.set,
        )
        api = self._make_context(commands, ReportPublisher(publisher, names, self._tracing))
        self._connections.start()
        serving = server.make(asgi.application(api), settings)
        answering = asyncio.create_task(serving.serve([sock]), name="http")
        replies = asyncio.create_task(commands.run(), name="replies")
        following = asyncio.create_task(self.change_feed.run(), name="tail")
        around = [
            asyncio.create_task(_every(NOTE_USE_EVERY, lambda: api.authenticator.note_uses(self._engine)), name="uses"),
            asyncio.create_task(_every(0.5, self._poll), name="watch"),
        ]
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        self._readiness.set("serving")
        self.listening.set()
        log.info("api serving", port=self.port, ops_port=self.ops_port)
        await asyncio.wait({stopping, answering, replies, following, *around}, return_when=asyncio.FIRST_COMPLETED)
        self._stopping.set()
        self.change_feed.stop()
        await self._shut_down(serving, commands, answering, [stopping, replies, following, *around])
        with suppress(TaskherdError):
            await api.authenticator.note_uses(self._engine)

    async def _shut_down(
        self,
        serving: server.HttpServer,
        commands: CommandClient,
        answering: asyncio.Task[None],
        tasks: list[asyncio.Task[object]],
    ) -> None:
        """Take no more connections, answer what is in hand within the grace time, then stop what served it."""
        log.info("api stopping")
        self._readiness.clear("serving", "stopping")
        serving.should_exit = True
        await asyncio.wait({answering}, timeout=self._settings.grace)
        await commands.stop()
        for task in (answering, *tasks):
            task.cancel()
        for result in await asyncio.gather(answering, *tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _poll(self) -> None:
        self.metrics.pool_in_use.set(self._reader.in_use + in_use(self._engine))

    async def _check_database(self) -> None:
        async with transaction(self._engine) as connection:
            await timers.clock(connection)

    async def _check_schema(self) -> None:
        async with transaction(self._engine) as connection:
            await migrate.check(connection)


async def _every(seconds: float, once: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again; while what it needs is away it is only noted."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await once()
        except TaskherdError as error:
            log.warning("left for later", reason=str(error))
