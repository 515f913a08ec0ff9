"""The TCP proxy of the tests leaves nothing behind, whatever its connections are doing when it stops."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest

from tests.harness.tcp_proxy import TcpProxy


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"greeting")
    await reader.read()
    writer.transport.abort()


@pytest.mark.parametrize("turns", range(6))
async def test_a_stopped_proxy_has_closed_connections_that_were_being_accepted(turns: int) -> None:
    """A connection that is accepted, or whose server is being reached, while its proxy stops has no pump afterwards."""
    server = await asyncio.start_server(_greet, "127.0.0.1", 0)
    proxy = TcpProxy("127.0.0.1", server.sockets[0].getsockname()[1])
    await proxy.start()
    proxy.freeze()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"request")
    for _ in range(turns):
        await asyncio.sleep(0)
    await proxy.stop()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 5)
    writer.transport.abort()
    server.close()
    await asyncio.wait_for(server.wait_closed(), 5)


@pytest.mark.parametrize("turns", range(4))
async def test_a_proxy_stops_while_it_accepts(turns: int) -> None:
    """Whichever turn of the loop a connection is accepted in, it is closed, and not only when it is garbage."""
    proxy = TcpProxy("127.0.0.1", 1)
    await proxy.start()
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.settimeout(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        await proxy.stop()
        async with asyncio.timeout(30):
            with suppress(ConnectionError):
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
