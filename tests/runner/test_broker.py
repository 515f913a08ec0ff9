from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import aio_pika
import pytest

from taskherd.dev.services import start_broker
from taskherd.dev.sources import Broker
from tests.broker.conftest import TcpRelay
from tests.harness.runner import RunnerHarness, eventually, runner_harness
from tests.harness.worker import worker_harness

pytestmark = pytest.mark.timeout(180)


async def test_what_was_said_while_the_broker_was_away_is_sent_after(own: RunnerHarness) -> None:
    """The agent works on while the runner can't reach the broker; afterwards all is told, in order, nothing twice."""
    host, port = re.findall(r"@([^:/]+):(\d+)", own.worker.urls[1])[0]
    relay = TcpRelay(host, int(port))
    here = await relay.start()
    runner = await own.start(amqp_url=own.worker.urls[1].replace(f":{port}", f":{here}"))
    task_id = await own.task("count:20", "await:go", "count:300", "say:done", "exit:4")
    await own.until_output(task_id, "line 19")
    relay.freeze()
    relay.cut()
    (own.work(task_id) / "go").touch()
    await eventually((own.state(task_id) / "run-1/exit.json").exists)
    await eventually(lambda: b"exit status 4" in (own.state(task_id) / "outbox.jsonl").read_bytes())
    assert runner.process.returncode is None
    relay.thaw()
    await own.until_state(task_id, "failed", "exit status 4")
    await own.until_output(task_id, "done")
    counted = [int(number) for text in await own.output(task_id) for number in re.findall(r"line (\d+)", text)]
    assert counted == [*range(20), *range(300)]
    assert own.worker.reasons() == []
    await relay.stop()


async def test_it_is_kept_for_the_next_runner_too(own: RunnerHarness) -> None:
    """What could not be sent survives the runner as well."""
    host, port = re.findall(r"@([^:/]+):(\d+)", own.worker.urls[1])[0]
    relay = TcpRelay(host, int(port))
    here = await relay.start()
    first = await own.start(amqp_url=own.worker.urls[1].replace(f":{port}", f":{here}"))
    task_id = await own.task("say:before", "await:go", "say:meanwhile", "sleep")
    await own.until_output(task_id, "before")
    relay.freeze()
    relay.cut()
    (own.work(task_id) / "go").touch()
    await eventually(lambda: b"meanwhile" in (own.state(task_id) / "outbox.jsonl").read_bytes())
    await first.kill()
    await relay.stop()
    await own.start()
    await own.until_output(task_id, "meanwhile")
    assert await own.output(task_id) == ["before", "meanwhile"]


@pytest.fixture
def broker(tmp_path: Path, announce: Callable[[str], None]) -> Iterator[Broker]:
    """A RabbitMQ of the test's own, to kill."""
    node = start_broker(tmp_path / "rabbitmq", announce, fast=True)
    yield node
    node.stop()


@pytest.mark.timeout(300)
async def test_a_killed_broker_costs_nothing_but_time(broker: Broker, database_url: str, tmp_path: Path) -> None:
    """Kill -9 the broker: agent and runner go on, and when it is back everything is told, once, and work goes on."""
    prefix = "killed"
    async with (
        worker_harness(database_url, broker.url, prefix, log_level="warning") as harness,
        runner_harness(harness, tmp_path) as own,
    ):
        runner = await own.start()
        task_id = await own.task("count:10", "await:go", "count:50", "echo")
        await own.until_output(task_id, "line 9")
        await asyncio.to_thread(broker.settle)
        agent = own.agent(task_id)["agent"]
        broker.kill()
        (own.work(task_id) / "go").touch()
        await eventually(lambda: b"line 49" in (own.state(task_id) / "outbox.jsonl").read_bytes())
        assert runner.process.returncode is None
        await asyncio.to_thread(broker.restart)
        await own.until_output(task_id, "line 49")
        async with await aio_pika.connect(broker.url, timeout=10) as connection:
            harness.channel = await connection.channel()
            await harness.listen()
            assert (await harness.command("task.send", task_id, input="are you there?"))["ok"]
            await own.until_output(task_id, "got are you there?")
            counted = [int(number) for text in await own.output(task_id) for number in re.findall(r"line (\d+)", text)]
            assert counted == [*range(10), *range(50)]
            assert own.agent(task_id)["agent"] == agent
            await runner.kill()
            await harness.channel.queue_delete(f"{prefix}.work.r1", timeout=10)
            own.names.clear()
