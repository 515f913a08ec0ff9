"""TLS to RabbitMQ and PostgreSQL as docs/operations.md tells it.

RabbitMQ speaks TLS itself. The PostgreSQL of the wheel is built without, so a proxy answers its clients' request for
TLS and hands on what they say; it takes nothing else.
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

from taskherd.cli.diagnostics import FindingState, check_broker, check_database
from taskherd.dev import docker_engine, ports, rabbitmq
from taskherd.dev.containers import RabbitContainer
from taskherd.dev.sources import Broker
from taskherd.settings import Settings
from tests.harness.api import running_api, token_for
from tests.harness.runner import runner_harness
from tests.harness.worker import SECRET, TIMEOUT, VERSION, WorkerHarness, external_harness, running_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

INSIDE = "/etc/rabbitmq"
"""Where a container keeps what RabbitMQ reads at its start."""

ROOT_CERTIFICATE = "PGSSLROOTCERT"
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


@dataclass(frozen=True, slots=True)
class Encrypted:
    """The URLs of two servers that speak TLS only, and the certificate of the authority that theirs are from."""

    database: str
    amqp: str
    authority: Path


@pytest.fixture
async def encrypted(database_url: str, tmp_path: Path) -> AsyncIterator[Encrypted]:
    """A RabbitMQ of this test's own, and its PostgreSQL, with certificates for 127.0.0.1."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    with _broker(tmp_path, path, certificate) as amqp:
        async with _tls_before(database_url, certificate) as database:
            yield Encrypted(f"{database}?sslmode=verify-full", f"{amqp}?cafile={path}", path)


@contextmanager
def _broker(folder: Path, authority: Path, certificate: trustme.LeafCert) -> Iterator[str]:
    (port,) = ports.claim([None])
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
        node = _Container(home, files, port)
    try:
        node.start()
        node.ctl("await_startup")  # its listeners come up one after the other
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


class _Container(RabbitContainer):
    """A RabbitMQ in a container that speaks TLS on one more port."""

    def __init__(self, home: Path, files: Mapping[str, bytes], port: int) -> None:
        super().__init__(home, keep=False)
        self._files = files
        self._tls_port = port

    def _configure(self, made: Any) -> dict[str, Any]:
        for name, content in self._files.items():
            made.with_copy_into_container(content, f"{INSIDE}/{name}")
        made.with_copy_into_container(_conf("0.0.0.0:5671", INSIDE).encode(), f"{INSIDE}/conf.d/tls.conf")
        made.ports["5671/tcp"] = (ports.HOST, self._tls_port)
        return super()._configure(made)


@asynccontextmanager
async def _tls_before(database_url: str, certificate: trustme.LeafCert) -> AsyncIterator[str]:
    """A PostgreSQL that refuses whoever does not ask for TLS first; its URL.

    See https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL.
    """
    parts = urlsplit(database_url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readexactly(len(SSL_REQUEST))
        if asked == SSL_REQUEST:
            writer.write(b"S")
            with suppress(OSError):  # who does not believe our certificate goes away
                await writer.start_tls(context)
                behind, before = await asyncio.open_connection(parts.hostname, parts.port)
                await asyncio.gather(_hand_on(reader, before), _hand_on(behind, writer))
        writer.close()

    def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one = asyncio.create_task(talk(reader, writer))
        talks.add(one)
        one.add_done_callback(talks.discard)

    server = await asyncio.start_server(come, ports.HOST, 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}").geturl()
    finally:
        server.close()
        for one in talks:
            one.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while said := await reader.read(2**16):
            writer.write(said)
            await writer.drain()
    writer.close()


@pytest.fixture
async def safe(encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerHarness]:
    """Everything but a worker, over TLS."""
    monkeypatch.setenv(ROOT_CERTIFICATE, str(encrypted.authority))
    async with external_harness(encrypted.database, encrypted.amqp, "safe") as own:
        yield own


async def test_worker_api_and_runner_work_over_tls(encrypted: Encrypted, safe: WorkerHarness, tmp_path: Path) -> None:
    """A task is created over HTTP, its agent runs and speaks, the API reads it, watches it and deletes it."""
    token = await token_for(encrypted.database, "alice")
    headers = {"Coder-Session-Token": token}
    async with (
        running_worker(safe),
        running_api(*safe.urls, safe.prefix) as api,
        runner_harness(safe, tmp_path) as runners,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}/api/v2", headers=headers, timeout=TIMEOUT) as client,
    ):
        await runners.start()
        task = await runners.task("say:up", "sleep")
        await runners.until_output(task, "up")
        told = (await client.get(f"/tasks/me/{task}?wait=30s&until=active")).raise_for_status().json()
        assert told["status"] == "active"
        asked = {"template_version_id": str(VERSION), "input": "Say hello"}
        made = (await client.post("/tasks/me", json=asked)).raise_for_status().json()
        async with client.stream("GET", f"/tasks/me/{made['id']}/watch") as stream:
            async for line in stream.aiter_lines():
                if made["id"] in line:
                    break
        assert (await client.delete(f"/tasks/me/{task}")).is_success
        assert await _wrong(encrypted.database, encrypted.amqp, safe.prefix) == []


async def test_a_server_of_another_authority_is_not_spoken_to(
    encrypted: Encrypted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither server is believed when its certificate is not from the authority that was named, and doctor says so."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    monkeypatch.setenv(ROOT_CERTIFICATE, str(other))
    amqp = encrypted.amqp.replace(str(encrypted.authority), str(other))
    database, broker = await _wrong(encrypted.database, amqp, "any")
    for said in (database, broker):
        assert "certificate verify failed" in said.lower()


async def _wrong(database_url: str, amqp_url: str, prefix: str) -> list[str]:
    """What `taskherd doctor` finds wrong with the two."""
    settings = Settings(database_url=database_url, amqp_url=amqp_url, amqp_prefix=prefix, secret_key=SECRET)
    return [
        finding.found
        for look in (check_database, check_broker)
        async for finding in look(settings)
        if finding.state is FindingState.ERROR
    ]
