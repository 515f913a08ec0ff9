"""Supervised connections: waiting for the broker, reconnecting, closing."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest
from aio_pika import Connection
from aiormq.exceptions import ChannelNotFoundEntity
from structlog.testing import capture_logs

from taskherd.broker.connection import ConnectionHooks, Socket, SupervisedConnection
from taskherd.broker.requests import close_channel, map_errors
from taskherd.errors import Unavailable
from tests.broker.conftest import ConnectTo
from tests.harness.runner import eventually
from tests.harness.tcp_proxy import TcpProxy


async def test_a_connection_waits_for_an_unreachable_broker(free_port: int) -> None:
    """Without a broker, only requests for a channel fail and say why, as the hook is told; closing is immediate."""
    refused: list[str] = []
    called = asyncio.Event()

    def on_refused(name: str, reason: str) -> None:
        refused.append(f"{name}: {reason}")
        called.set()

    connection = SupervisedConnection(
        f"amqp://guest:secret@127.0.0.1:{free_port}/", "test", ConnectionHooks(on_refused=on_refused)
    )
    connection.start()
    await asyncio.wait_for(called.wait(), 30)
    named = rf"^RabbitMQ can't be reached \(test\): 127\.0\.0\.1:{free_port}: Connection refused$"
    with pytest.raises(Unavailable, match=named) as raised:
        await connection.wait_up(0.1)
    assert not connection.is_up
    assert "secret" not in refused[0] + str(raised.value)
    await asyncio.wait_for(connection.close(), 30)


async def test_a_connection_reconnects_after_each_loss(proxied: tuple[TcpProxy, str]) -> None:
    """The hooks are called for each loss and each reconnect."""
    proxy, url = proxied
    ups, downs = 0, 0
    changed = asyncio.Event()

    def on_up(_: str) -> None:
        nonlocal ups
        ups += 1
        changed.set()

    def on_down(_: str, reason: str) -> None:
        nonlocal downs
        downs += 1
        assert reason

    connection = SupervisedConnection(url, "test", ConnectionHooks(on_up=on_up, on_down=on_down))
    connection.start()
    for expected in range(1, 4):
        async with asyncio.timeout(20):
            while ups < expected:
                changed.clear()
                await changed.wait()
        assert downs == expected - 1
        proxy.cut()
    await connection.close()


async def test_a_connection_is_made_again_after_an_unexpected_error(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged with its traceback, and neither ends the attempts nor leaves a connection behind."""
    downs: list[str] = []
    errors = iter([RuntimeError("unexpected")])

    def on_up(_: str) -> None:
        for error in errors:
            raise error

    connect = SupervisedConnection._connect
    attempts = iter([RuntimeError("unexpected")])

    async def fail_first(connection: SupervisedConnection) -> tuple[Connection, Socket]:
        for error in attempts:
            raise error
        return await connect(connection)

    monkeypatch.setattr(SupervisedConnection, "_connect", fail_first)
    hooks = ConnectionHooks(on_up=on_up, on_down=lambda _, reason: downs.append(reason))
    connection = SupervisedConnection(amqp_url, "test", hooks)
    with capture_logs() as logged:
        connection.start()
        try:
            async with asyncio.timeout(30):
                while not downs or not connection.is_up:  # noqa: ASYNC110 - it tells nobody the second time
                    await asyncio.sleep(0.01)
            await (await connection.channel()).close()
        finally:
            await connection.close()
    assert downs == ["unexpected error"]
    assert [(each["failed"], each["exc_info"]) for each in logged] == [("connection test", True)] * 2


@pytest.mark.slow
async def test_closing_a_frozen_connection_takes_seconds(proxied: tuple[TcpProxy, str]) -> None:
    """A frozen broker does not block a shutdown; the client has given up the connection then."""
    proxy, url = proxied
    connection = SupervisedConnection(url, "test")
    connection.start()
    await connection.channel()
    proxy.freeze()
    async with asyncio.timeout(30):
        await connection.close()
    assert connection._connection is None
    assert connection._socket is None
    proxy.thaw()


async def test_a_broker_that_opens_no_channel_loses_the_connection(
    proxied: tuple[TcpProxy, str], connect_to: ConnectTo
) -> None:
    """A frozen broker is left when a channel cannot be opened in time, before its heartbeats are missed."""
    proxy, url = proxied
    connection = connect_to(url, "frozen")
    await connection.channel()
    frozen = connection._connection
    proxy.freeze()
    with pytest.raises(Unavailable, match="opening a channel"):
        await connection.channel()
    proxy.thaw()
    async with asyncio.timeout(20):
        while connection._connection in (frozen, None):  # noqa: ASYNC110 - it has no event for this
            await asyncio.sleep(0.02)
    await connection.channel()


@pytest.mark.parametrize("steps", range(40))
async def test_a_cancellation_is_not_lost(amqp_url: str, connect_to: ConnectTo, steps: int) -> None:
    """However far a task is when it is cancelled: it ends, though aiormq may raise another error instead."""
    connection = connect_to(amqp_url, "cancelled")
    await connection.wait_up()

    async def use_channels() -> None:
        while True:
            with suppress(Unavailable):
                async with connection.temporary_channel() as channel:
                    with map_errors("declaring"):
                        await channel.queue_declare(exclusive=True, timeout=10)

    for rounds in range(3):
        task = asyncio.create_task(use_channels())
        for _ in range(20 * rounds + steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=10)
        assert done, f"cancelled after {steps} steps of round {rounds}, it went on"
        assert task.cancelled()


async def test_channels_that_the_broker_closes_together_do_not_cost_the_connection(
    proxied: tuple[TcpProxy, str],
) -> None:
    """Each Channel.Close is answered, so that RabbitMQ accepts the channel's number again."""
    proxy, url = proxied
    downs: list[str] = []
    connection = SupervisedConnection(url, "test", ConnectionHooks(on_down=lambda _, reason: downs.append(reason)))
    connection.start()

    async def open_and_lose() -> None:
        channel = await connection.channel()
        with pytest.raises(ChannelNotFoundEntity):
            await channel.queue_declare("no such queue", passive=True)

    await connection.wait_up()
    proxy.delay = 0.2  # what the broker sends meanwhile arrives at once
    for _ in range(3):
        await asyncio.gather(*(open_and_lose() for _ in range(100)))
    assert downs == []
    await connection.close()


@pytest.mark.parametrize("steps", range(0, 40, 4))
async def test_a_cancelled_request_for_a_channel_leaves_none_behind(
    amqp_url: str, connect_to: ConnectTo, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    """However far it is opened or closed, it is closed once; the connection with its other channels stays."""
    connection = connect_to(amqp_url, "cancelled")
    await connection.channel()
    channels = channels_of(connection)

    async def use_channel() -> None:
        async with connection.temporary_channel():
            pass

    for further in range(4):
        using = asyncio.create_task(use_channel())
        for _ in range(steps + further):
            await asyncio.sleep(0)
        using.cancel()
        await asyncio.wait({using})
    await eventually(lambda: [*channels] == [1], 30)
    assert channels_of(connection) is channels
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []


async def test_a_channel_leaves_nothing_behind(amqp_url: str, connect_to: ConnectTo) -> None:
    """However many are opened and closed on a connection, what waits for the end of the connection stays as it is."""
    connection = connect_to(amqp_url, "many channels")
    await connection.wait_up()
    closing = underlay_of(connection)._closing

    async def use_channels() -> tuple[int, int]:
        for confirms in (False, True) * 20:
            await close_channel(await connection.channel(confirms=confirms))
        gc.collect()
        return len(closing._callbacks or ()), len(gc.get_objects())

    await use_channels()
    (callbacks, objects), (more_callbacks, more_objects) = await use_channels(), await use_channels()
    assert more_callbacks == callbacks
    assert more_objects < objects + 40, "less than one for each channel"


async def test_closing_a_channel_may_be_given_up(proxied: tuple[TcpProxy, str]) -> None:
    """Aiormq closes it once, so that RabbitMQ keeps the connection, with its other channels."""
    proxy, url = proxied
    downs: list[str] = []
    connection = SupervisedConnection(url, "test", ConnectionHooks(on_down=lambda _, reason: downs.append(reason)))
    connection.start()
    other = await connection.channel()
    for _ in range(20):
        channel = await connection.channel()
        proxy.freeze_responses()
        closing = asyncio.create_task(channel.close())
        for _ in range(30):  # until it is written
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing})
        proxy.thaw()
        await eventually(lambda: [*channels_of(connection)] == [1], 30)
    with map_errors("declaring"):
        await other.queue_declare(exclusive=True, timeout=30)
    assert downs == []
    await connection.close()


def channels_of(connection: SupervisedConnection) -> dict[int, Any]:
    """Return aiormq's channels, by number."""
    channels: dict[int, Any] = underlay_of(connection).channels
    return channels


def underlay_of(connection: SupervisedConnection) -> Any:
    """Return aiormq's connection."""
    assert connection._connection is not None
    assert connection._connection.transport is not None
    return connection._connection.transport.connection
