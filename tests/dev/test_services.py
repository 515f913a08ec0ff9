"""The laws of our own services, nodes or containers: data outlive them, a crash blocks nothing, nothing is left."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aio_pika
import asyncpg
import pytest

from taskherd.dev import docker_engine, processes, services
from taskherd.errors import Misconfigured
from tests.dev.conftest import HOMES

NOTHING_GIVEN: dict[str, str] = {}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def quiet(_line: str) -> None:
    """Say nothing."""


@contextmanager
def private(data: Path, *, fast: bool = True) -> Iterator[services.Services]:
    """Services of our own in `data`, whatever the environment names; not `fast` where their data are wanted back."""
    with services.start(data, announce=quiet, fast=fast, environ=NOTHING_GIVEN) as running:
        yield running


def leftovers(data: Path) -> set[tuple[str, str]]:
    """What still runs of the services in `data`: the name of each program, and which process or container it is."""
    found = set()
    for home in HOMES:
        found |= {(each.name(), f"process {each.pid}") for each in processes.belonging_to(data / home)}
        with docker_engine.holding(data / home) as containers:
            for each in containers:
                found |= {(row[-1], each.id) for row in each.top(ps_args="-eo pid,comm")["Processes"]}
    return found


def freeze_orphan(home: Path) -> None:
    """Freeze what a killed owner left of one service."""
    processes.send(processes.belonging_to(home), signal.SIGSTOP)
    with docker_engine.holding(home) as containers:
        for each in containers:
            each.pause()


async def write_something(running: services.Services) -> None:
    """Commit a row, and have a persistent message in a durable queue."""
    connection = await asyncpg.connect(running.database_url, timeout=10)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await connection.close()
    async with await aio_pika.connect(running.amqp_url, timeout=10) as amqp:
        channel = await amqp.channel()
        queue = await channel.declare_queue("kept", durable=True)
        message = aio_pika.Message(b"42", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, queue.name, timeout=10)


async def read_it_back(running: services.Services) -> tuple[int, bytes]:
    """The row and the message of write_something."""
    connection = await asyncpg.connect(running.database_url, timeout=10)
    row = await connection.fetchval("SELECT answer FROM kept")
    await connection.close()
    async with await aio_pika.connect(running.amqp_url, timeout=10) as amqp:
        queue = await (await amqp.channel()).get_queue("kept")
        message = await queue.get(timeout=10)
        await message.reject(requeue=True)
        return row, message.body


async def test_a_second_start_finds_what_the_first_one_left(tmp_path: Path) -> None:
    """Ports, passwords and data are kept over a stop; no process of the first start is left."""
    with private(tmp_path, fast=False) as first:
        await write_something(first)
        urls = (first.amqp_url, first.database_url)
    assert leftovers(tmp_path) == set()
    with private(tmp_path, fast=False) as second:
        assert (second.amqp_url, second.database_url) == urls
        assert await read_it_back(second) == (42, b"42")
    assert leftovers(tmp_path) == set()


async def test_a_removed_folder_takes_its_data_with_it(tmp_path: Path) -> None:
    """Where somebody removed the folder, the next start begins anew."""
    with private(tmp_path, fast=False) as first:
        await write_something(first)
    for home in HOMES:
        shutil.rmtree(tmp_path / home)
    with private(tmp_path, fast=False) as second:
        assert second.database_url != first.database_url
        await write_something(second)


async def test_a_killed_owner_blocks_nothing(tmp_path: Path) -> None:
    """Servers orphaned by kill -9 of their owner, even frozen ones, are ended by the next start."""
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
        await write_something(running)
    assert leftovers(tmp_path) == set()


async def test_a_node_that_was_killed_starts_again_with_its_data(tmp_path: Path) -> None:
    """After kill -9 of both servers, start() brings both back on the same ports with what was committed."""
    with private(tmp_path) as running:
        assert running.rabbit is not None
        assert running.postgres is not None
        await write_something(running)
        running.rabbit.settle()
        for node in (running.rabbit, running.postgres):
            node.kill()
            assert node.pid is None
            node.start()
            assert node.url in (running.amqp_url, running.database_url)
        assert await read_it_back(running) == (42, b"42")
        assert "kept" in running.rabbit.ctl("list_queues", "name")
    assert leftovers(tmp_path) == set()


async def test_a_frozen_server_answers_again_when_thawed(tmp_path: Path) -> None:
    """freeze() leaves the port open and silent; thaw() goes on where it stopped."""
    with private(tmp_path) as running:
        assert running.postgres is not None
        running.postgres.freeze()
        with pytest.raises(TimeoutError):
            await asyncpg.connect(running.database_url, timeout=1)
        running.postgres.thaw()
        connection = await asyncpg.connect(running.database_url, timeout=10)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """Two owners of one folder would end each other's servers, so the second is refused, naming the first."""
    given = {services.AMQP_URL: "amqp://somewhere/", services.DATABASE_URL: "postgresql://somewhere/x"}
    with (
        services.start(tmp_path, announce=quiet, environ=given),
        pytest.raises(Misconfigured, match="in use by process"),
        services.start(tmp_path, announce=quiet, environ=given),
    ):
        pass


def test_given_urls_come_first(tmp_path: Path) -> None:
    """What the environment names is used as it is, said in a line without its password, and nothing is started."""
    said: list[str] = []
    given = {services.AMQP_URL: "amqp://u:secret@mq/", services.DATABASE_URL: "postgresql://u:secret@pg/x"}
    with services.start(tmp_path, announce=said.append, environ=given) as running:
        assert (running.amqp_url, running.database_url) == tuple(given.values())
        assert (running.rabbit, running.postgres) == (None, None)
    assert sorted(said) == ["PostgreSQL from TASKHERD_DATABASE_URL", "RabbitMQ from TASKHERD_AMQP_URL"]
    assert leftovers(tmp_path) == set()


OWNER = """
import sys, threading
from pathlib import Path
from taskherd.dev import services
with services.start(Path(sys.argv[1]), announce=lambda line: None, fast=True, environ={}):
    print("up", flush=True)
    threading.Event().wait()
"""
