"""The server of the API: the address that it listens at, and the bounds of its connections."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import Any

import pytest

from taskherd.api.http import server
from taskherd.api.http.client_address import ClientAddresses
from taskherd.api.http.connections import ClientConnections, ConnectionLimits
from taskherd.errors import Misconfigured
from taskherd.settings import Settings


def test_connections_are_bounded() -> None:
    """Those that wait to be accepted, those that are open, how long an idle one is, and the messages of a client."""
    settings = Settings(api_connections=10, api_read_timeout=7, grace=9)
    connections = ClientConnections(ConnectionLimits(10, 5), ClientAddresses(()), lambda _: None)

    async def app(*_: object) -> None:
        """Answer nothing."""

    config: Any = server.make(app, settings, connections).config
    assert (config.backlog, config.timeout_keep_alive, config.timeout_graceful_shutdown) == (1_024, 75, 9)
    assert config.ws_max_size == 64 * 1_024
    assert (config.http.max_connections, config.http.head_timeout) == (20, 7)
    assert config.http.client_connections is config.ws.client_connections is connections
    assert (config.access_log, config.server_header, config.proxy_headers) == (False, False, False)


def test_a_port_in_use_and_an_address_of_another_machine_are_told_apart() -> None:
    """Each names the setting to change, and why."""
    with closing(server.listen("127.0.0.1", 0)) as taken:
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(
            Misconfigured, match=rf"cannot listen on port {port} of 127\.0\.0\.1 \(Address .* in use\)"
        ) as of_port:
            server.listen("127.0.0.1", port)
    with pytest.raises(Misconfigured, match=r"cannot listen on 192\.0\.2\.1 \(Cannot assign") as of_host:
        server.listen("192.0.2.1", 0)
    assert (of_port.value.setting, of_host.value.setting) == ("api_port", "api_host")


def test_a_port_can_be_used_again_at_once() -> None:
    """A process that was restarted need not wait until the connections of the last one are forgotten."""
    with closing(server.listen("127.0.0.1", 0)) as opened:
        assert (opened.family, opened.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
