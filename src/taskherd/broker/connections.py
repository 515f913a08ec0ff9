"""The broker connections of a process, each for one purpose, with their logs, metrics and readiness."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from taskherd.broker.connection import ConnectionHooks, SupervisedConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskherd.observability.metrics import Metrics
    from taskherd.observability.readiness import Readiness

log = structlog.get_logger(__name__)


def _ignore() -> None:
    pass


def _log_loss(name: str, reason: str) -> None:
    log.warning("broker lost", connection=name, reason=reason)


def _purpose(name: str) -> str:
    return name.rpartition(" ")[2]


class BrokerConnections:
    """The connections of one process, each for what may not wait for the others.

    ``consume`` and ``publish`` are always connected, the others only if they are used. The process needs ``reports``,
    then, and is ready without the rest: ``unconfirmed`` for publishing without confirms, ``work`` for work requests,
    ``dead`` for dead letters, and ``declare``. Reports have their own, because it is not read while their batch waits;
    work requests and dead letters, because RabbitMQ stops reading from a connection that publishes to a queue without a
    majority; declarations, because RabbitMQ closes the connection of one that it cannot make while a node hangs.
    """

    def __init__(
        self,
        amqp_url: str,
        process: str,
        metrics: Metrics,
        readiness: Readiness | None = None,
        on_disconnect: Callable[[], None] = _ignore,
    ) -> None:
        """Create the connections, unconnected.

        Args:
            amqp_url: the URL of the broker.
            process: the process in the broker's list of connections, as ``worker NAME``.
            metrics: records reconnects, and whether the connections that are needed are up.
            readiness: where the condition "broker" is updated, if the process is not ready without the broker.
            on_disconnect: called when a connection is lost.
        """
        hooks = ConnectionHooks(on_up=self._up, on_down=self._down, on_refused=self._refused)
        self.consume = SupervisedConnection(amqp_url, f"{process} consume", hooks)
        self.publish = SupervisedConnection(amqp_url, f"{process} publish", hooks)
        self.reports = SupervisedConnection(amqp_url, f"{process} reports", hooks)
        quiet = ConnectionHooks(on_up=self._count_up, on_down=_log_loss)
        self.unconfirmed = SupervisedConnection(amqp_url, f"{process} unconfirmed", quiet)
        self.work = SupervisedConnection(amqp_url, f"{process} work", quiet)
        self.dead = SupervisedConnection(amqp_url, f"{process} dead", quiet)
        self.declare = SupervisedConnection(amqp_url, f"{process} declare", quiet)
        self._needed = (self.consume, self.publish, self.reports)
        self._metrics = metrics
        self._readiness = readiness
        self._on_down = on_disconnect
        self._connected_before: set[str] = set()
        for name in ("consume", "publish"):
            metrics.reconnects.labels(name)  # Prometheus misses the first increment of a new series

    def start(self, *others: SupervisedConnection) -> None:
        """Start connecting in the background: for consuming, publishing, and these others."""
        for connection in (self.consume, self.publish, *others):
            self._metrics.reconnects.labels(_purpose(connection.name))  # as above
            connection.start()

    async def close(self) -> None:
        """Close all connections."""
        connections = (*self._needed, self.unconfirmed, self.work, self.dead, self.declare)
        await asyncio.gather(*(connection.close() for connection in connections))

    def _count_up(self, name: str) -> None:
        if name in self._connected_before:
            self._metrics.reconnects.labels(_purpose(name)).inc()
        self._connected_before.add(name)

    def _up(self, name: str) -> None:
        self._count_up(name)
        if all(connection.is_up for connection in self._needed if connection.is_started):
            self._metrics.broker_up.set(1)
            if self._readiness is not None:
                self._readiness.set_ok("broker")
        log.info("broker connected", connection=name)

    def _down(self, name: str, reason: str) -> None:
        self._on_down()
        self._metrics.broker_up.set(0)
        self._unready(reason)
        log.warning("broker lost", connection=name, reason=reason)

    def _refused(self, name: str, reason: str) -> None:
        self._unready(reason)
        log.warning("cannot connect to broker", connection=name, reason=reason)

    def _unready(self, reason: str) -> None:
        if self._readiness is not None:
            self._readiness.set_failed("broker", reason)
