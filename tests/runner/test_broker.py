from __future__ import annotations

import re

import pytest

from tests.broker.conftest import Relay
from tests.runner.ranch import Ranch, eventually

pytestmark = pytest.mark.timeout(180)


async def test_what_was_said_while_the_broker_was_away_is_sent_after(own: Ranch) -> None:
    """The agent works on while the runner can't reach the broker; afterwards all is told, in order, nothing twice."""
    host, port = re.findall(r"@([^:/]+):(\d+)", own.herd.urls[1])[0]
    relay = Relay(host, int(port))
    here = await relay.start()
    runner = await own.start(amqp_url=own.herd.urls[1].replace(f":{port}", f":{here}"))
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
    assert own.herd.reasons() == []
    await relay.stop()


async def test_it_is_kept_for_the_next_runner_too(own: Ranch) -> None:
    """What could not be sent survives the runner as well."""
    host, port = re.findall(r"@([^:/]+):(\d+)", own.herd.urls[1])[0]
    relay = Relay(host, int(port))
    here = await relay.start()
    first = await own.start(amqp_url=own.herd.urls[1].replace(f":{port}", f":{here}"))
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
