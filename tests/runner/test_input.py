from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from taskherd.runner.agents import stdin
from taskherd.runner.agents.context import DeliveryUnknown, NotDelivered
from taskherd.runner.workspaces.folders import RunFolder
from tests.harness.runner import RunnerHarness, eventually, eventually_async
from tests.harness.tasks import prompt_of

pytestmark = pytest.mark.timeout(180)


async def outcome(harness: RunnerHarness, input_id: str) -> dict[str, Any]:
    """Return the row of an input, or an empty dictionary."""
    row = await harness.worker.database.fetchrow("SELECT * FROM inputs WHERE input_id = $1", uuid.UUID(input_id))
    return dict(row) if row else {}


async def test_inputs_reach_the_agent_in_order(harness: RunnerHarness) -> None:
    """Inputs sent while the agent is busy are delivered later, in order, once."""
    await harness.start()
    task_id = await harness.task("echo")
    await harness.until_state(task_id, "idle")
    for number in range(3):
        assert (await harness.worker.command("task.send", task_id, input=f"input {number}"))["ok"]
    await harness.until_output(task_id, "got input 2")
    lines = "\n".join(await harness.output(task_id)).splitlines()
    assert [line for line in lines if line.startswith("got")] == ["got input 0", "got input 1", "got input 2"]
    given = [prompt_of(task_id), "input 0", "input 1", "input 2"]  # the answer may come before the entry of its input
    await eventually_async(lambda: harness.inputs(task_id), lambda inputs: inputs == given)


async def test_an_input_that_may_have_been_delivered_is_not_delivered_again(harness: RunnerHarness) -> None:
    """If the runner dies while it delivers an input, the outcome is failed, and its detail says that it is unknown."""
    first = await harness.start()
    task_id = await harness.task("echo")
    await harness.until_state(task_id, "idle")
    await first.kill()
    reply = await harness.worker.command("task.send", task_id, input="perhaps")
    journal = harness.state(task_id) / "journal.json"
    record = json.loads(journal.read_text())
    journal.write_text(json.dumps({**record, "inputs": {reply["input_id"]: "delivering"}}))
    await harness.start()
    await eventually_async(lambda: outcome(harness, reply["input_id"]), lambda row: row.get("state") == "failed")
    assert "unknown" in (await outcome(harness, reply["input_id"]))["detail"]
    assert not any("perhaps" in text for text in await harness.output(task_id))


async def test_an_input_for_an_exited_agent_fails(harness: RunnerHarness) -> None:
    """The reason is in the input's outcome and in the task's log."""
    await harness.start()
    task_id = await harness.task("say:done")
    await harness.until_state(task_id, "complete")
    reply = await harness.worker.command("task.send", task_id, input="one more thing")
    assert reply["ok"]
    await eventually_async(lambda: outcome(harness, reply["input_id"]), lambda row: row.get("state") == "failed")
    assert (await outcome(harness, reply["input_id"]))["detail"] == "The agent is not running."
    await harness.until_output(task_id, "input delivery failed: The agent is not running.")


async def test_an_input_is_delivered_when_the_agent_has_read_it(harness: RunnerHarness) -> None:
    """An input of 256 KiB waits in the pipe, and counts as delivered only when a late agent has read all of it."""
    await harness.start()
    task_id = await harness.task("say:::taskherd state=idle", "await:go", "echo")
    await harness.until_state(task_id, "idle")
    reply = await harness.worker.command("task.send", task_id, input="x" * 262_000)
    fifo = harness.state(task_id) / "run-1/input"
    descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    await eventually(lambda: stdin.unread_bytes(descriptor) == 262_001)
    assert (await outcome(harness, reply["input_id"]))["state"] not in {"delivered", "failed"}
    (harness.work(task_id) / "go").touch()
    await eventually_async(lambda: outcome(harness, reply["input_id"]), lambda row: row.get("state") == "delivered")
    assert stdin.unread_bytes(descriptor) == 0
    os.close(descriptor)
    await harness.until_output(task_id, "got xxx")


async def test_an_input_is_delivered_to_an_agent_that_exits_after_reading_it(harness: RunnerHarness) -> None:
    """What was read was delivered, however soon the agent exits afterwards; what was not read, was not."""
    await harness.start()
    command = ["sh", "-c", "echo '::taskherd state=idle'; read line; exit 3"]
    await harness.template({"command": command, "grace": 1})
    task_id = await harness.worker.create()
    await harness.until_state(task_id, "idle")
    reply = await harness.worker.command("task.send", task_id, input="bye")
    await eventually_async(lambda: outcome(harness, reply["input_id"]), lambda row: row.get("state") == "delivered")
    command = ["sh", "-c", "echo '::taskherd state=idle'; while [ ! -e go ]; do sleep 0.1; done"]
    await harness.template({"command": command, "grace": 1})
    task_id = await harness.worker.create(input="hello")
    await harness.until_state(task_id, "idle")
    reply = await harness.worker.command("task.send", task_id, input="too late")
    descriptor = os.open(harness.state(task_id) / "run-1/input", os.O_WRONLY | os.O_NONBLOCK)
    await eventually(lambda: stdin.unread_bytes(descriptor) > 0)
    os.close(descriptor)
    (harness.work(task_id) / "go").touch()
    await eventually_async(lambda: outcome(harness, reply["input_id"]), lambda row: row.get("state") == "failed")
    assert (await outcome(harness, reply["input_id"]))["detail"] == "The agent exited before it read the input."
    assert await harness.inputs(task_id) == ["hello"]


@pytest.mark.parametrize(
    ("kind", "shell", "detail"),
    [
        ("pipe", "exec <&-; echo '::taskherd state=idle'; exec sleep 1000", "has closed its stdin"),
        ("none", "cat; echo '::taskherd state=idle'; exec sleep 1000", "`stdin: none`"),
        ("prompt", "cat; echo; echo '::taskherd state=idle'; exec sleep 1000", "`stdin: prompt`"),
    ],
)
async def test_an_input_that_cannot_be_read_is_refused(
    harness: RunnerHarness, kind: str, shell: str, detail: str
) -> None:
    """An agent that closed its stdin, or whose stdin is no pipe, gets no input, and the outcome says why.

    With ``none`` it reads the end of file at once, with ``prompt`` the prompt and then the end of file.
    """
    await harness.start()
    await harness.template({"command": ["sh", "-c", shell], "stdin": kind, "grace": 1})
    task_id = await harness.worker.create(input="Read me")
    await harness.until_state(task_id, "idle")
    reply = await harness.worker.command("task.send", task_id, input="hello?")
    await eventually_async(lambda: outcome(harness, reply["input_id"]), lambda row: row.get("state") == "failed")
    assert detail in (await outcome(harness, reply["input_id"]))["detail"]
    assert await harness.inputs(task_id) == ["Read me"]
    output = "\n".join(await harness.output(task_id))
    assert ("Read me" in output) == (kind == "prompt")


async def test_an_input_that_nobody_reads_is_taken_back(tmp_path: Path) -> None:
    """What was not read in time is removed from the pipe, so that the agent cannot read it after it was refused."""
    folder = RunFolder(tmp_path)
    os.mkfifo(folder.input)
    command = "echo up; exec sleep 1000"
    with folder.input.open("r+b", buffering=0) as fifo:
        agent = await asyncio.create_subprocess_exec("sh", "-c", command, stdin=fifo, stdout=asyncio.subprocess.PIPE)
        folder.started.write_text(json.dumps({"pid": os.getpid()}))
        assert agent.stdout
        await agent.stdout.readline()
        with pytest.raises(NotDelivered, match=r"did not read the input from its stdin within 0\.5 s"):
            await stdin.write(folder, "hello", recorded, read_timeout=0.5)
        assert stdin.unread_bytes(fifo.fileno()) == 0
        agent.kill()
        await agent.wait()


async def test_an_input_that_is_read_in_part_is_of_unknown_outcome(tmp_path: Path) -> None:
    """The detail says how much of it was read."""
    folder = RunFolder(tmp_path)
    os.mkfifo(folder.input)
    program = "import os, signal; os.write(1, b'up\\n'); os.read(0, 3); signal.pause()"
    with folder.input.open("r+b", buffering=0) as fifo:
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=fifo, stdout=asyncio.subprocess.PIPE
        )
        folder.started.write_text(json.dumps({"pid": os.getpid()}))
        assert agent.stdout
        await agent.stdout.readline()
        with pytest.raises(DeliveryUnknown, match="only a part of the input: 3 of 6 bytes"):
            await stdin.write(folder, "hello", recorded, read_timeout=3)
        agent.kill()
        await agent.wait()


async def recorded() -> None:
    """Record nothing: these tests have no journal."""
