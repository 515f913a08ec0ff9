from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.harness.runner import RunnerHarness, eventually

pytestmark = pytest.mark.timeout(600)


def peak_memory(pid: int) -> int:
    """Return the peak memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


async def test_a_line_of_100_mb_does_not_use_memory(harness: RunnerHarness) -> None:
    """The start of a long line is kept and the rest counted; neither runner nor shim grows with its size."""
    runner = await harness.start()
    task_id = await harness.task("say:before", "await:go", "flood:100", "say:", "say:after", "sleep")
    await harness.until_output(task_id, "before")
    before = peak_memory(runner.process.pid)
    (harness.work(task_id) / "go").touch()
    await harness.until_output(task_id, "after")
    assert peak_memory(runner.process.pid) - before < 30_000_000
    assert peak_memory(harness.agent(task_id)["pid"]) < 40_000_000
    entries = await harness.output(task_id)
    assert all(len(text.encode()) <= 65_536 for text in entries)
    assert any(text.startswith("xxx") for text in entries)
    assert any("bytes" in text and text.startswith("…") for text in entries)
    assert sum(path.stat().st_size for path in (harness.state(task_id) / "run-1/output").iterdir()) <= 17_000_000


async def test_binary_output_is_logged_as_text(harness: RunnerHarness) -> None:
    """Invalid UTF-8 becomes replacement characters, control characters are removed, and no report is rejected."""
    await harness.start()
    task_id = await harness.task("binary", "say:after", "sleep")
    await harness.until_output(task_id, "after")
    text = "\n".join(await harness.output(task_id))
    assert "\ufffd" in text
    assert "\x00" not in text
    assert harness.worker.reasons() == []


async def test_an_agent_can_set_its_state_with_a_line(harness: RunnerHarness) -> None:
    """A status line sets state, message and URI and is not logged; from then on silence no longer means idle."""
    await harness.start()
    steps = ["say:hello", 'say:::taskherd state=idle message="Shall I?" uri=https://example.com/pr/1', "sleep:1.5"]
    task_id = await harness.task(*steps, "say:more", "say:::taskherd state=working message=On it", "sleep")
    await harness.until_state(task_id, "idle", "Shall I?")
    assert harness.worker.state(task_id)["uri"] == "https://example.com/pr/1"
    await harness.until_state(task_id, "working", "On it")
    await harness.until_output(task_id, "more")
    assert await harness.output(task_id) == ["hello", "more"]
    states = [event["task"]["current_state"] for event in harness.worker.events_of(task_id)]
    assert not any(state and state["message"] in {"hello", "more"} and state["state"] == "idle" for state in states)


async def test_the_latest_line_is_told_while_the_agent_is_silent(harness: RunnerHarness) -> None:
    """What an agent prints just before a long silence becomes its message, however soon it follows other lines."""
    await harness.start()
    steps = ["say:I read the issue.", "sleep:0.5", "say:I run all tests.", "sleep"]
    task_id = await harness.task(*steps, stdin="none")
    await harness.until_state(task_id, "working", "I run all tests.")


async def test_an_agent_gets_its_task_and_none_of_the_secrets(harness: RunnerHarness) -> None:
    """Its environment has prompt, id, token and API address, under both names, and the variables that are listed."""
    await harness.start(
        secret_key="k" * 40, database_url="postgresql://u:hush-hush@localhost/x", agent_api_url="http://api:7080"
    )
    environment = {"inherit": ["PATH"], "set": {"GREETING": "hello {task_name}"}}
    task_id = await harness.task("env", "say:that is all", "sleep", env=environment, prompt="Write a poem")
    await harness.until_output(task_id, "that is all")
    text = "\n".join(await harness.output(task_id))
    variables = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    await harness.until(lambda: harness.worker.document(task_id))
    name = harness.worker.document(task_id)["name"]
    assert variables["GREETING"] == f"hello {name}"
    assert variables["TASKHERD_TASK_ID"] == variables["CODER_TASK_ID"] == str(task_id)
    assert variables["TASKHERD_PROMPT"] == variables["CODER_TASK_PROMPT"] == "Write a poem"
    assert Path(variables["TASKHERD_PROMPT_FILE"]).read_text() == "Write a poem"
    assert variables["TASKHERD_API_URL"] == variables["CODER_AGENT_URL"] == "http://api:7080"
    assert variables["CODER_AGENT_TOKEN"].startswith(task_id.hex)
    assert not {"HOME", "TASKHERD_AMQP_URL", "TASKHERD_SECRET_KEY", "TASKHERD_DATABASE_URL"} & variables.keys()
    assert "hush-hush" not in text
    assert "k" * 40 not in text


async def test_a_full_disk_loses_only_output(harness: RunnerHarness) -> None:
    """Agents continue, their exit status is reported, and a start fails with an error that names the full disk.

    Deleting a task frees its space.
    """
    mounted = harness.folder / "disk"
    mounted.mkdir()
    runner = await harness.start(prefix=_on_a_disk_of_2_mib(mounted), runner_root=str(mounted))
    disk = Path(f"/proc/{runner.process.pid}/root{mounted}")
    task_id = await harness.task("say:before", "flood:8", "say:", "say:after", "exit:3")
    await harness.until_state(task_id, "failed", "exit status 3")
    await harness.until_output(task_id, "were dropped since 20")
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    other = await harness.task("say:up", "sleep")
    await harness.until_state(other, "failed", "No space left on device")
    filler.unlink()
    assert (await harness.worker.command("task.delete", task_id))["ok"]  # also its output, which filled the disk
    await eventually(lambda: not (disk / str(task_id)).exists())
    third = await harness.task("say:up", "sleep")
    await harness.until_output(third, "up")


def _on_a_disk_of_2_mib(folder: Path) -> list[str]:
    """Return a command that runs another in a mount namespace of its own, in which the folder is a small disk.

    Only root may mount, so anybody else is that in a user namespace.
    """
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    mount = 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"'
    return ["unshare", *user, "--mount", "sh", "-c", mount, str(folder)]


async def test_an_agent_that_never_stops_printing_adds_few_entries(harness: RunnerHarness) -> None:
    """Its lines come together in as many entries as the rate admits, and none of them is lost."""
    await harness.start(log_entries_rate="1")
    task_id = await harness.task("say:before", "chatter:4", "say:after", "sleep")
    await harness.until_output(task_id, "after")
    entries = await harness.output(task_id)
    assert len(entries) <= 12
    lines = [line for entry in entries for line in entry.split("\n")]
    assert (lines[0], lines[-1]) == ("before", "after")
    assert set(lines[1:-1]) == {"chatter"}
    assert len(lines) > 100
