"""Supervised connections: waiting for the broker, reconnecting, closing."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from aio_pika import Connection
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity, PublishError
from structlog.testing import capture_logs

from taskherd.broker.connection import ConnectionHooks, Socket, SupervisedConnection, open_connection
from taskherd.broker.requests import close_channel, map_errors
from taskherd.errors import Unavailable
from tests.broker.conftest import ConnectTo
from tests.harness.runner import eventually
from tests.harness.tcp_proxy import TcpProxy, through


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


async def test_a_connection_is_made_once(proxied: tuple[TcpProxy, str]) -> None:
    """However often it is started and closed; it has heartbeats, and after its end it cannot be used."""
    proxy, url = proxied
    connection = SupervisedConnection(url, "test")
    assert not connection.is_started
    connection.start()
    connection.start()
    await connection.wait_tried()
    assert (connection.is_started, connection.is_up, proxy.accepted) == (True, True, 1)
    assert underlay_of(connection).connection_tune.heartbeat == 10
    made = connection._connection
    assert made is not None
    for _ in range(2):
        await connection.close()
        connection.drop()
    assert (connection.is_started, connection.is_up, made.is_closed) == (False, False, True)
    with pytest.raises(Unavailable, match=r"^RabbitMQ can't be reached \(test\)$"):
        await connection.wait_up(0.01)
    assert proxy.accepted == 1


async def test_every_connection_but_the_latest_is_closed(
    amqp_url: str, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was refused and one that was lost leave nothing open; the reasons are forgotten with the next one."""
    made: list[Connection] = []
    told: asyncio.Queue[str] = asyncio.Queue()

    def connection_of(*arguments: Any, **options: Any) -> Connection:
        made.append(Connection(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("taskherd.broker.connection.Connection", connection_of)
    target = urlsplit(amqp_url)
    proxy = TcpProxy(target.hostname or "", target.port or 0)
    proxy.port = free_port
    hooks = ConnectionHooks(
        on_up=told.put_nowait,
        on_down=lambda name, _: told.put_nowait(f"{name} lost"),
        on_refused=lambda name, _: told.put_nowait(f"{name} refused"),
    )
    connection = SupervisedConnection(through(amqp_url, proxy), "test", hooks)
    connection.start()
    async with asyncio.timeout(60):
        assert await told.get() == "test refused"
        await proxy.start(port=free_port)
        while await told.get() != "test":
            pass
        proxy.cut()
        assert [await told.get() for _ in range(2)] == ["test lost", "test"]
        assert [each.is_closed for each in made] == [True] * (len(made) - 1) + [False]
        await connection.close()
        await proxy.stop()
    assert made[-1].is_closed
    with pytest.raises(Unavailable, match=r"^RabbitMQ can't be reached \(test\)$"):
        await connection.wait_up(0.01)


async def test_a_connection_for_a_moment_is_closed_after_it(amqp_url: str, free_port: int) -> None:
    """Also if the block fails, or no broker can be reached, and then no further attempt is made."""
    used: list[SupervisedConnection] = []

    async def fail() -> None:
        async with open_connection(amqp_url, "a moment") as connection:
            assert (connection.is_up, connection.name) == (True, "a moment")
            used.append(connection)
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await fail()
    assert (used[0].is_started, used[0].is_up) == (False, False)
    with pytest.raises(Unavailable, match=rf"\(a moment\): 127\.0\.0\.1:{free_port}: Connection refused$"):
        async with open_connection(f"amqp://127.0.0.1:{free_port}/", "a moment"):
            raise AssertionError
    assert "amqp a moment" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_temporary_channels_are_all_closed(
    amqp_url: str, connect_to: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the block, also if it fails, or if one of them cannot be opened."""
    connection = connect_to(amqp_url, "temporary channels")
    async with connection.temporary_channels(2) as channels:
        assert [*channels_of(connection)] == [1, 2]
        assert [channel.is_closed for channel in channels] == [False, False]
    assert [channel.is_closed for channel in channels] == [True, True]
    failing: list[Channel] = []

    async def fail() -> None:
        async with connection.temporary_channel() as channel:
            failing.append(channel)
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await fail()
    assert failing[0].is_closed
    open_channel, opened = connection.channel, list[Channel]()

    async def open_two() -> Channel:
        if len(opened) == 2:
            raise Unavailable("no more channels")
        opened.append(await open_channel())
        return opened[-1]

    monkeypatch.setattr(connection, "channel", open_two)
    with pytest.raises(Unavailable, match="no more channels"):
        async with connection.temporary_channels(3):
            raise AssertionError
    assert [channel.is_closed for channel in opened] == [True, True]


async def test_a_returned_message_is_an_error_of_a_channel_with_confirms(amqp_url: str, connect_to: ConnectTo) -> None:
    """Without them nothing is confirmed, so nobody waits for such an error."""
    connection = connect_to(amqp_url, "channels")
    plain, confirming = await connection.channel(), await connection.channel(confirms=True)
    assert (plain.publisher_confirms, confirming.publisher_confirms) == (False, True)
    assert await plain.basic_publish(b"lost", routing_key="no such queue", mandatory=True) is None
    with pytest.raises(PublishError):
        await confirming.basic_publish(b"returned", routing_key="no such queue", mandatory=True)


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
    made = connection._connection
    assert made is not None
    proxy.freeze()
    async with asyncio.timeout(30):
        await connection.close()
    assert connection._connection is None
    assert made.is_closed, "or aio-pika would close it when it is collected"
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


async def test_a_channel_of_which_a_request_is_given_up_is_closed(proxied: tuple[TcpProxy, str]) -> None:
    """Its answer would else be taken for that of the next request; the connection stays."""
    proxy, url = proxied
    async with open_connection(url, "test") as connection:
        channel, made = await connection.channel(), connection._connection
        queue = (await channel.queue_declare(exclusive=True, timeout=30)).queue or ""
        proxy.freeze_responses()
        getting = asyncio.create_task(channel.basic_get(queue, timeout=30))
        for _ in range(30):  # until it is written
            await asyncio.sleep(0)
        getting.cancel()
        await asyncio.wait({getting})
        proxy.thaw()
        await eventually(lambda: channel.is_closed, 30)
        assert connection._connection is made
        await close_channel(await connection.channel())


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
