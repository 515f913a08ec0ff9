from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.harness.runner import RunnerHarness, eventually

pytestmark = pytest.mark.timeout(180)


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


async def test_a_hundred_megabytes_without_a_newline_cost_no_memory(own: RunnerHarness) -> None:
    """Of a line of any size the beginning is kept and the rest counted; neither runner nor shim grow with it."""
    runner = await own.start()
    task_id = await own.task("say:before", "await:go", "flood:100", "say:", "say:after", "sleep")
    await own.until_output(task_id, "before")
    before = peak(runner.process.pid)
    (own.work(task_id) / "go").touch()
    await own.until_output(task_id, "after")
    assert peak(runner.process.pid) - before < 30_000_000
    assert peak(own.agent(task_id)["pid"]) < 40_000_000
    said = await own.output(task_id)
    assert all(len(text.encode()) <= 65_536 for text in said)
    assert any(text.startswith("xxx") for text in said)
    assert any("bytes" in text and text.startswith("…") for text in said)
    assert sum(path.stat().st_size for path in (own.state(task_id) / "run-1/output").iterdir()) <= 17_000_000


async def test_binary_output_is_text_in_the_log(own: RunnerHarness) -> None:
    """Bytes that are no UTF-8 become replacement characters, control characters are taken out, nothing is refused."""
    await own.start()
    task_id = await own.task("binary", "say:after", "sleep")
    await own.until_output(task_id, "after")
    said = "\n".join(await own.output(task_id))
    assert "\ufffd" in said
    assert "\x00" not in said
    assert own.worker.reasons() == []


async def test_an_agent_may_say_its_state_itself(own: RunnerHarness) -> None:
    """A line of its output sets state, message and URI; such lines are no log entries, and its silence says nothing."""
    await own.start()
    words = ["say:hello", 'say:::taskherd state=idle message="Shall I?" uri=https://example.com/pr/1', "sleep:1.5"]
    task_id = await own.task(*words, "say:more", "say:::taskherd state=working message=On it", "sleep")
    await own.until_state(task_id, "idle", "Shall I?")
    assert own.worker.state(task_id)["uri"] == "https://example.com/pr/1"
    await own.until_state(task_id, "working", "On it")
    await own.until_output(task_id, "more")
    assert await own.output(task_id) == ["hello", "more"]
    states = [told["task"]["current_state"] for told in own.worker.events_of(task_id)]
    assert not any(state and state["message"] in {"hello", "more"} and state["state"] == "idle" for state in states)


async def test_an_agent_knows_its_task_and_none_of_our_secrets(own: RunnerHarness) -> None:
    """It is given its prompt, id, token and the API's address, under our names and Coder's, and what is listed."""
    await own.start(
        secret_key="k" * 40, database_url="postgresql://u:hush-hush@localhost/x", agent_api_url="http://api:7080"
    )
    environment = {"inherit": ["PATH"], "set": {"GREETING": "hello {task_name}"}}
    task_id = await own.task("env", "say:that is all", "sleep", env=environment, prompt="Do as told")
    await own.until_output(task_id, "that is all")
    said = "\n".join(await own.output(task_id))
    given = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    await own.until(lambda: own.worker.document(task_id))
    name = own.worker.document(task_id)["name"]
    assert given["GREETING"] == f"hello {name}"
    assert given["TASKHERD_TASK_ID"] == given["CODER_TASK_ID"] == str(task_id)
    assert given["TASKHERD_PROMPT"] == given["CODER_TASK_PROMPT"] == "Do as told"
    assert Path(given["TASKHERD_PROMPT_FILE"]).read_text() == "Do as told"
    assert given["TASKHERD_API_URL"] == given["CODER_AGENT_URL"] == "http://api:7080"
    assert given["CODER_AGENT_TOKEN"].startswith(task_id.hex)
    assert not {"HOME", "TASKHERD_AMQP_URL", "TASKHERD_SECRET_KEY", "TASKHERD_DATABASE_URL"} & given.keys()
    assert "hush-hush" not in said
    assert "k" * 40 not in said


async def test_a_full_disk_costs_output_and_nothing_else(own: RunnerHarness) -> None:
    """Agents go on, their end is told as it was, and starting another one fails with a reason that names the disk.

    Deleting a task makes room again.
    """
    disk = own.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        await own.start(runner_root=str(disk))
        task_id = await own.task("say:before", "flood:8", "say:", "say:after", "exit:3")
        await own.until_state(task_id, "failed", "exit status 3")
        await own.until_output(task_id, "were not kept")
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        other = await own.task("say:up", "sleep")
        await own.until_state(other, "failed", "No space left on device")
        filler.unlink()
        assert (await own.worker.command("task.delete", task_id))["ok"]  # what it flooded the disk with goes with it
        await eventually(lambda: not (disk / str(task_id)).exists())
        third = await own.task("say:up", "sleep")
        await own.until_output(third, "up")
        for pid in own.marked(third, disk):
            own.kill(pid)
    finally:
        for runner in own.runners:
            await runner.kill()
        subprocess.run(["umount", "-l", disk], check=True)
