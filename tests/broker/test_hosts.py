"""Several brokers: a hung one costs its limit once, and after a loss the others are tried first."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from taskherd.broker import diagnostics
from taskherd.broker.connection import ConnectionHooks, SupervisedConnection, endpoints_of, open_connection
from taskherd.broker.requests import REQUEST_TIMEOUT
from taskherd.errors import Misconfigured, Unavailable
from tests.harness.tcp_proxy import TcpProxy, through

WITHOUT_HUNG = REQUEST_TIMEOUT / 2
"""Seconds within which a connection is up that waits for no hung broker."""


@pytest.fixture
async def proxies(amqp_url: str) -> AsyncIterator[tuple[TcpProxy, TcpProxy]]:
    """Yield two proxies in front of the broker."""
    first, second = await TcpProxy.before(amqp_url), await TcpProxy.before(amqp_url)
    yield first, second
    await first.stop()
    await second.stop()


class Ups:
    """The connections of one ``SupervisedConnection`` that came up."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self.refused: list[str] = []

    @property
    def hooks(self) -> ConnectionHooks:
        """The hooks that count."""
        return ConnectionHooks(on_up=lambda _: self._up(), on_refused=lambda _, reason: self.refused.append(reason))

    async def wait(self, count: int, within: float) -> None:
        """Wait until the connection came up ``count`` times."""
        async with asyncio.timeout(within), self._changed:
            await self._changed.wait_for(lambda: self._count >= count)

    def _up(self) -> None:
        task = asyncio.create_task(self._notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._count += 1
            self._changed.notify_all()


async def test_a_hung_first_broker_costs_its_limit_once(amqp_url: str, proxies: tuple[TcpProxy, TcpProxy]) -> None:
    """The next broker is tried within the same attempt; after that one was lost, the hung one comes last again."""
    hung, good = proxies
    hung.freeze()
    ups = Ups()
    connection = SupervisedConnection(through(amqp_url, hung, good), "test", ups.hooks)
    connection.start()
    await ups.wait(1, 3 * REQUEST_TIMEOUT)
    assert not ups.refused
    assert (hung.accepted, good.accepted) == (1, 1)
    await connection.channel()
    await connection.close()


async def test_after_a_loss_another_broker_is_tried_first(amqp_url: str, proxies: tuple[TcpProxy, TcpProxy]) -> None:
    """A broker that hangs with its connection costs no time when reconnecting."""
    first, second = proxies
    ups = Ups()
    connection = SupervisedConnection(through(amqp_url, first, second), "test", ups.hooks)
    connection.start()
    await ups.wait(1, 3 * REQUEST_TIMEOUT)
    assert (first.accepted, second.accepted) == (1, 0)
    first.freeze()
    connection.drop()
    await ups.wait(2, WITHOUT_HUNG)
    assert (first.accepted, second.accepted) == (1, 1)
    await connection.close()


async def test_connections_that_keep_apart_begin_at_different_brokers(
    amqp_url: str, proxies: tuple[TcpProxy, TcpProxy]
) -> None:
    """One broker that is lost costs not both of them."""
    first, second = (SupervisedConnection(through(amqp_url, *proxies), name) for name in ("first", "second"))
    second.keep_apart(first)
    for number, connection in enumerate((first, second)):
        connection.start()
        await connection.wait_tried()
        assert [proxy.accepted for proxy in proxies] == [1, number]
    for connection in (first, second):
        await connection.close()


async def test_the_reason_names_each_broker(free_port: int) -> None:
    """If no broker can be reached, the reason says why for each, without the password."""
    hosts = f"127.0.0.1:{free_port},[::1]:{free_port},unknown.invalid:{free_port}"
    ups = Ups()
    connection = SupervisedConnection(f"amqp://guest:s3cr3t@{hosts}/", "test", ups.hooks)
    connection.start()
    async with asyncio.timeout(6 * REQUEST_TIMEOUT):
        while not ups.refused:  # noqa: ASYNC110 - the hook is synchronous
            await asyncio.sleep(0.02)
    await connection.close()
    assert f"127.0.0.1:{free_port}: Connection refused; [::1]:{free_port}: " in ups.refused[0]
    assert "Errno" not in ups.refused[0].partition("unknown.invalid")[0]
    assert f"unknown.invalid:{free_port}: " in ups.refused[0]
    assert "s3cr3t" not in ups.refused[0]
    with pytest.raises(Misconfigured, match="a host is missing"):
        SupervisedConnection("amqp://guest:s3cr3t@mq1,,mq2/", "test")


async def test_doctor_connects_to_the_broker_that_answers(amqp_url: str, proxies: tuple[TcpProxy, TcpProxy]) -> None:
    """The checks of ``taskherd doctor`` try the hosts in the same way."""
    hung, good = proxies
    hung.freeze()
    async with diagnostics.connect(through(amqp_url, hung, good)) as connection:
        assert diagnostics.server_version(connection) >= (4,)
    with pytest.raises(Unavailable, match=f"127.0.0.1:{hung.port}: no answer within 5 s"):
        async with diagnostics.connect(through(amqp_url, hung)):
            raise AssertionError


async def test_who_needs_a_connection_for_a_moment_gets_past_a_hung_broker(
    amqp_url: str, proxies: tuple[TcpProxy, TcpProxy]
) -> None:
    """A command or request waits until each host was tried, and remembers which one hung."""
    hung, good = proxies
    hung.freeze()
    url = through(amqp_url, hung, good)
    endpoints = endpoints_of(url)
    for _ in range(2):
        async with open_connection(url, "test", endpoints) as connection:
            await connection.channel()
    assert (hung.accepted, good.accepted) == (1, 2)
    with pytest.raises(Unavailable, match=f"127.0.0.1:{hung.port}: no answer within 5 s"):
        async with open_connection(through(amqp_url, hung), "test"):
            raise AssertionError


async def until_refused(url: str) -> tuple[str, float]:
    """Start a connection and return the reason why it is refused, and after how many seconds."""
    ups = Ups()
    connection = SupervisedConnection(url, "test", ups.hooks)
    began = asyncio.get_running_loop().time()
    connection.start()
    async with asyncio.timeout(8 * REQUEST_TIMEOUT):
        while not ups.refused:  # noqa: ASYNC110 - the hook is synchronous
            await asyncio.sleep(0.02)
    took = asyncio.get_running_loop().time() - began
    await connection.close()
    return ups.refused[0], took


@pytest.mark.parametrize("stage", ["start", "tune", "open"])
async def test_no_stage_of_connecting_takes_longer_than_the_limit(
    amqp_url: str, proxies: tuple[TcpProxy, TcpProxy], stage: str
) -> None:
    """A broker that hangs before it greets, after that, or at the last step costs its limit."""
    hung, _ = proxies
    hung.max_responses = ["start", "tune", "open"].index(stage)
    reason, took = await until_refused(through(amqp_url, hung))
    assert reason == f"127.0.0.1:{hung.port}: no answer within 5 s"
    assert REQUEST_TIMEOUT - 0.5 < took < 2 * REQUEST_TIMEOUT


@pytest.mark.parametrize("stage", ["handshake", "start"])
async def test_no_stage_of_tls_takes_longer_than_the_limit(tmp_path: Path, stage: str) -> None:
    """A broker that hangs during the TLS handshake or after it costs its limit; its certificate is for its name."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    greeted = asyncio.Event()
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with suppress(OSError):
            while received := await reader.read(65_536):
                if received.startswith(b"AMQP"):
                    greeted.set()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context if stage == "start" else None)
    port = server.sockets[0].getsockname()[1]
    reason, took = await until_refused(f"amqps://localhost:{port}/?cafile={tmp_path}/ca.pem")
    assert f"localhost:{port} (127.0.0.1): no answer within 5 s" in reason
    assert took < 2 * REQUEST_TIMEOUT
    assert greeted.is_set() == (stage == "start")
    server.close()
    await asyncio.wait_for(asyncio.gather(*filter(None, serving)), REQUEST_TIMEOUT)
