from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import aio_pika
import pytest

from taskherd.dev.services import start_broker
from taskherd.dev.sources import Broker
from tests.harness.runner import RunnerHarness, eventually, runner_harness
from tests.harness.tcp_proxy import TcpProxy
from tests.harness.worker import worker_harness

pytestmark = pytest.mark.timeout(180)


async def test_reports_made_during_an_outage_are_sent_afterwards(harness: RunnerHarness) -> None:
    """The agent keeps working while the runner cannot reach the broker; then all reports are sent in order, once."""
    host, port = re.findall(r"@([^:/]+):(\d+)", harness.worker.urls[1])[0]
    relay = TcpProxy(host, int(port))
    relay_port = await relay.start()
    runner = await harness.start(amqp_url=harness.worker.urls[1].replace(f":{port}", f":{relay_port}"))
    task_id = await harness.task("count:20", "await:go", "count:300", "say:done", "exit:4")
    await harness.until_output(task_id, "line 19")
    relay.freeze()
    relay.cut()
    (harness.work(task_id) / "go").touch()
    await eventually((harness.state(task_id) / "run-1/exit.json").exists)
    await eventually(lambda: b"exit status 4" in (harness.state(task_id) / "outbox.jsonl").read_bytes())
    assert runner.process.returncode is None
    relay.thaw()
    await harness.until_state(task_id, "failed", "exit status 4")
    await harness.until_output(task_id, "done")
    numbers = [int(number) for text in await harness.output(task_id) for number in re.findall(r"line (\d+)", text)]
    assert numbers == [*range(20), *range(300)]
    assert harness.worker.reasons() == []
    await relay.stop()


async def test_unsent_reports_survive_the_runner(harness: RunnerHarness) -> None:
    """Reports that could not be sent before the runner was killed are sent by the next one."""
    host, port = re.findall(r"@([^:/]+):(\d+)", harness.worker.urls[1])[0]
    relay = TcpProxy(host, int(port))
    relay_port = await relay.start()
    first = await harness.start(amqp_url=harness.worker.urls[1].replace(f":{port}", f":{relay_port}"))
    task_id = await harness.task("say:before", "await:go", "say:meanwhile", "sleep")
    await harness.until_output(task_id, "before")
    relay.freeze()
    relay.cut()
    (harness.work(task_id) / "go").touch()
    await eventually(lambda: b"meanwhile" in (harness.state(task_id) / "outbox.jsonl").read_bytes())
    await first.kill()
    await relay.stop()
    await harness.start()
    await harness.until_output(task_id, "meanwhile")
    assert await harness.output(task_id) == ["before", "meanwhile"]


@pytest.fixture
def broker(tmp_path: Path, announce: Callable[[str], None]) -> Iterator[Broker]:
    """Yield a private RabbitMQ that the test can kill."""
    node = start_broker(tmp_path / "rabbitmq", announce, fast=True)
    yield node
    node.stop()


@pytest.mark.timeout(300)
async def test_nothing_is_lost_when_the_broker_is_killed(broker: Broker, database_url: str, tmp_path: Path) -> None:
    """Agent and runner survive a SIGKILL of the broker; then all reports are sent once, and work continues."""
    prefix = "killed"
    async with (
        worker_harness(database_url, broker.url, prefix, log_level="warning") as worker,
        runner_harness(worker, tmp_path) as harness,
    ):
        runner = await harness.start()
        task_id = await harness.task("count:10", "await:go", "count:50", "echo")
        await harness.until_output(task_id, "line 9")
        await asyncio.to_thread(broker.flush_definitions)
        agent = harness.agent(task_id)["agent"]
        broker.kill()
        (harness.work(task_id) / "go").touch()
        await eventually(lambda: b"line 49" in (harness.state(task_id) / "outbox.jsonl").read_bytes())
        assert runner.process.returncode is None
        await asyncio.to_thread(broker.restart)
        await harness.until_output(task_id, "line 49")
        async with await aio_pika.connect(broker.url, timeout=30) as connection:
            worker.channel = await connection.channel()
            await worker.listen()
            assert (await worker.command("task.send", task_id, input="are you there?"))["ok"]
            await harness.until_output(task_id, "got are you there?")
            numbers = [
                int(number) for text in await harness.output(task_id) for number in re.findall(r"line (\d+)", text)
            ]
            assert numbers == [*range(10), *range(50)]
            assert harness.agent(task_id)["agent"] == agent
            await runner.kill()
            await worker.channel.queue_delete(f"{prefix}.work.r1", timeout=30)
            harness.names.clear()
