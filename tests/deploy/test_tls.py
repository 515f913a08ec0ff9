"""TLS to RabbitMQ and PostgreSQL, as in docs/operations.md.

RabbitMQ terminates TLS itself. The PostgreSQL of the wheel is built without TLS, so a proxy in front of it does;
the proxy rejects connections without TLS.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trustme

from taskherd.cli.diagnostics.broker import check_broker
from taskherd.cli.diagnostics.database import check_database
from taskherd.cli.diagnostics.findings import FindingState
from taskherd.dev import docker_engine, ports, rabbitmq
from taskherd.dev.containers import RabbitContainer
from taskherd.dev.sources import Broker
from taskherd.settings import Settings
from tests.harness.api import running_api, token_for
from tests.harness.runner import runner_harness
from tests.harness.worker import SECRET, TIMEOUT, VERSION, WorkerHarness, external_harness, running_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

INSIDE = "/etc/rabbitmq"
"""RabbitMQ's configuration folder in a container."""

ROOT_CERTIFICATE = "PGSSLROOTCERT"
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


@dataclass(frozen=True, slots=True)
class TlsServers:
    """The URLs of a database and a broker that require TLS, and the file of their certificate authority."""

    database: str
    amqp: str
    authority: Path


@pytest.fixture
async def tls_servers(database_url: str, tmp_path: Path) -> AsyncIterator[TlsServers]:
    """Yield a RabbitMQ for this test and a TLS proxy for its PostgreSQL, with certificates for 127.0.0.1."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    with _broker(tmp_path, path, certificate) as amqp:
        async with _tls_proxy(database_url, certificate) as database:
            yield TlsServers(f"{database}?sslmode=verify-full", f"{amqp}?cafile={path}", path)


@contextmanager
def _broker(folder: Path, authority: Path, certificate: trustme.LeafCert) -> Iterator[str]:
    (port,) = ports.find_free([None])
    files = {
        "key.pem": certificate.private_key_pem.bytes(),
        "chain.pem": certificate.cert_chain_pems[0].bytes(),
        "ca.pem": authority.read_bytes(),
    }
    home = folder / "rabbitmq"
    found = rabbitmq.find()
    if isinstance(found, rabbitmq.RabbitBinaries):
        node: Broker = _node(found, home, files, port)
    else:
        assert docker_engine.missing() is None, found
        node = _TlsContainer(home, files, port)
    try:
        node.start()
        node.ctl("await_startup")  # the TLS listener starts after the plain one
        parts = urlsplit(node.url)
        yield parts._replace(scheme="amqps", netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl()
    finally:
        node.stop()


def _conf(address: str, folder: str) -> str:
    return (
        f"listeners.ssl.local = {address}\nssl_options.cacertfile = {folder}/ca.pem\n"
        f"ssl_options.certfile = {folder}/chain.pem\nssl_options.keyfile = {folder}/key.pem\n"
    )


def _node(binaries: rabbitmq.RabbitBinaries, home: Path, files: Mapping[str, bytes], port: int) -> rabbitmq.RabbitNode:
    node = rabbitmq.RabbitNode(binaries, home)
    (node.home / "conf.d").mkdir()
    for name, content in files.items():
        (node.home / name).write_bytes(content)
    (node.home / "conf.d/tls.conf").write_text(_conf(f"{ports.HOST}:{port}", str(node.home)))
    return node


class _TlsContainer(RabbitContainer):
    """A RabbitMQ in a container with an additional TLS port."""

    def __init__(self, home: Path, files: Mapping[str, bytes], port: int) -> None:
        super().__init__(home, keep=False)
        self._files = files
        self._tls_port = port

    def _configure(self, container: Any) -> dict[str, Any]:
        for name, content in self._files.items():
            container.with_copy_into_container(content, f"{INSIDE}/{name}")
        container.with_copy_into_container(_conf("0.0.0.0:5671", INSIDE).encode(), f"{INSIDE}/conf.d/tls.conf")
        container.ports["5671/tcp"] = (ports.HOST, self._tls_port)
        return super()._configure(container)


@asynccontextmanager
async def _tls_proxy(database_url: str, certificate: trustme.LeafCert) -> AsyncIterator[str]:
    """Run a proxy for a PostgreSQL that rejects clients without TLS, and yield its URL.

    See https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL.
    """
    parts = urlsplit(database_url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    connections: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readexactly(len(SSL_REQUEST))
        if request == SSL_REQUEST:
            writer.write(b"S")
            with suppress(OSError):  # a client that rejects the certificate disconnects
                await writer.start_tls(context)
                server_reader, server_writer = await asyncio.open_connection(parts.hostname, parts.port)
                await asyncio.gather(_forward(reader, server_writer), _forward(server_reader, writer))
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(handle(reader, writer))
        connections.add(connection)
        connection.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, ports.HOST, 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl()
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(2**16):
            writer.write(chunk)
            await writer.drain()
    writer.close()


@pytest.fixture
async def tls_harness(tls_servers: TlsServers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerHarness]:
    """Yield a worker harness over TLS, without a worker."""
    monkeypatch.setenv(ROOT_CERTIFICATE, str(tls_servers.authority))
    async with external_harness(tls_servers.database, tls_servers.amqp, "tls") as harness:
        yield harness


async def test_worker_api_and_runner_work_over_tls(
    tls_servers: TlsServers, tls_harness: WorkerHarness, tmp_path: Path
) -> None:
    """Over TLS, an agent runs and reports, and the API creates, reads, watches and deletes tasks."""
    token = await token_for(tls_servers.database, "alice")
    headers = {"Coder-Session-Token": token}
    async with (
        running_worker(tls_harness),
        running_api(*tls_harness.urls, tls_harness.prefix) as api,
        runner_harness(tls_harness, tmp_path) as runners,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}/api/v2", headers=headers, timeout=TIMEOUT) as client,
    ):
        await runners.start()
        task = await runners.task("say:up", "sleep")
        await runners.until_output(task, "up")
        document = (await client.get(f"/tasks/me/{task}?wait=30s&until=active")).raise_for_status().json()
        assert document["status"] == "active"
        body = {"template_version_id": str(VERSION), "input": "Say hello"}
        created = (await client.post("/tasks/me", json=body)).raise_for_status().json()
        async with client.stream("GET", f"/tasks/me/{created['id']}/watch") as stream:
            async for line in stream.aiter_lines():
                if created["id"] in line:
                    break
        assert (await client.delete(f"/tasks/me/{task}")).is_success
        assert await _errors(tls_servers.database, tls_servers.amqp, tls_harness.prefix) == []


async def test_a_certificate_of_another_authority_is_rejected(
    tls_servers: TlsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose certificate is not from the configured authority is rejected, and doctor reports it."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    monkeypatch.setenv(ROOT_CERTIFICATE, str(other))
    amqp = tls_servers.amqp.replace(str(tls_servers.authority), str(other))
    database, broker = await _errors(tls_servers.database, amqp, "any")
    for error in (database, broker):
        assert "certificate verify failed" in error.lower()


async def _errors(database_url: str, amqp_url: str, prefix: str) -> list[str]:
    """Return the errors that ``taskherd doctor`` finds in database and broker."""
    settings = Settings(database_url=database_url, amqp_url=amqp_url, amqp_prefix=prefix, secret_key=SECRET)
    return [
        finding.found
        for check in (check_database, check_broker)
        async for finding in check(settings)
        if finding.state is FindingState.ERROR
    ]
