"""`taskherd task`, as people and scripts use it, against a real API."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from taskherd.cli.main import app
from taskherd.observability import logs
from tests.harness.api import ApiHarness
from tests.harness.worker import build_report, make_report


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Keep the worker, which is in this process here, from logging into what a command prints."""
    logs.configure("warning", "auto")


class Shell:
    """A terminal of somebody's."""

    def __init__(self, stage: ApiHarness, username: str = "alice") -> None:
        self.env = {"TASKHERD_URL": stage.base, "TASKHERD_TOKEN": stage.tokens[username], "COLUMNS": "200"}

    async def run(self, *words: str, typed: str | None = None, **env: str) -> Result:
        """Run a command to its end."""
        return await asyncio.to_thread(CliRunner().invoke, app, ["task", *words], input=typed, env={**self.env, **env})

    async def json(self, *words: str, **env: str) -> Any:
        """What a command that goes well prints."""
        result = await self.run(*words, "-o", "json", **env)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    async def code(self, *words: str, **env: str) -> tuple[int, str]:
        """The exit code, and what was said on stderr."""
        result = await self.run(*words, **env)
        assert "Traceback" not in result.output
        return result.exit_code, result.stderr


async def test_a_task_is_created_shown_listed_and_deleted(api_harness: ApiHarness) -> None:
    """Each command answers as JSON with the API's own document, and in words for people."""
    shell = Shell(api_harness)
    made = await shell.json(
        "create", "Fix the flaky test", "--name", "flaky", "--preset", "default", "--title", "Flaky"
    )
    assert (made["name"], made["display_name"], made["status"]) == ("flaky", "Flaky", "pending")
    assert await shell.json("show", "flaky") == made == await shell.json("show", made["id"])
    assert await shell.json("list") == [made]
    assert await shell.json("list", "--status", "active") == []
    for words, seen in ((("show", "alice/flaky"), "Fix the flaky test"), (("list",), "alice/flaky")):
        result = await shell.run(*words)
        assert seen in result.stdout
    assert (await shell.code("delete", "flaky"))[0] == 0
    assert (await shell.code("show", "flaky"))[0] == 5


async def test_a_list_goes_over_pages(api_harness: ApiHarness) -> None:
    """A list longer than a page is told whole, or cut at --limit."""
    for number in range(4):
        await api_harness.create(name=f"n{number}")
    shell = Shell(api_harness)
    assert [each["name"] for each in await shell.json("list", "--limit", "3")] == ["n3", "n2", "n1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taskherd.client.tasks.PAGE", 2)
        assert [each["name"] for each in await shell.json("list")] == ["n3", "n2", "n1", "n0"]


async def test_a_prompt_is_read_from_stdin_and_a_key_makes_it_once(api_harness: ApiHarness) -> None:
    """`-` reads the text; the same --idempotency-key gives the same task."""
    shell = Shell(api_harness)
    words = ("create", "-", "--idempotency-key", "k1", "-o", "json")
    first, second = [json.loads((await shell.run(*words, typed="From a file\n")).stdout) for _ in range(2)]
    assert first["id"] == second["id"]
    assert first["initial_prompt"] == "From a file\n"


async def test_an_agent_is_spoken_to_and_its_words_are_shown(api_harness: ApiHarness) -> None:
    """Send takes the text, logs show the conversation, explain says why, pause and resume name their builds."""
    task = uuid.UUID((await api_harness.active(name="talk"))["id"])
    shell = Shell(api_harness)
    assert await shell.json("send", "talk", "And the docs?") == {"queued": False}
    entry = {"id": 0, "type": "output", "content": "Working on it\x1b[2J", "time": "2026-01-01T10:00:00Z"}
    await api_harness.worker.report(make_report("task.log", task, entries=[entry]))
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs", is_=1)
    assert "Working on it" in (logs := (await shell.run("logs", "talk")).stdout)
    assert "\x1b" not in logs
    assert "status" in (await shell.run("explain", "talk")).stdout
    assert (await shell.json("explain", "talk"))["status"]["value"] == "active"
    assert (await shell.json("pause", "talk"))["workspace_build"]["transition"] == "stop"
    await api_harness.worker.report(build_report(task, 2, "stop", "succeeded"))
    await api_harness.worker.until(lambda: api_harness.worker.document(task).get("status") == "paused")
    code, why = await shell.code("send", "talk", "Hello?")
    assert (code, "Task is paused. Resume the task to send messages." in why) == (6, True)
    assert "Build 3 (start) was asked for" in (await shell.run("resume", "talk")).stdout


async def test_waiting_ends_with_what_a_script_can_use(api_harness: ApiHarness) -> None:
    """0 when it is as wanted, 3 when it failed instead, 124 when the time is up, 5 when there is none."""
    task = uuid.UUID((await api_harness.active(name="w"))["id"])
    shell = Shell(api_harness)
    assert (await shell.code("wait", "w", "--timeout", "300ms"))[0] == 124
    waiting = asyncio.create_task(shell.json("wait", "w", "--timeout", "20s"))
    await api_harness.worker.report(make_report("app.status", task, state="idle", message="Done", uri=""))
    assert (await waiting)["current_state"]["state"] == "idle"
    assert (await shell.code("wait", "w", "--until", "active"))[0] == 0
    await api_harness.worker.report(make_report("app.status", task, state="failure", message="No", uri=""))
    await api_harness.worker.until(lambda: api_harness.worker.state(task).get("state") == "failed")
    assert (await shell.code("wait", "w", "--timeout", "20s"))[0] == 3
    assert (await shell.code("wait", "w", "--until", "failed"))[0] == 0
    assert (await shell.code("wait", "nothing"))[0] == 5
    assert (await shell.code("wait", "w", "--timeout", "soon"))[0] == 2


async def test_watching_a_task_ends_with_it(api_harness: ApiHarness) -> None:
    """Watch tells the task as it is, each change, and the end."""
    task = await api_harness.active(name="seen")
    process = await _watching(api_harness, "seen", "-o", "json")
    assert process.stdout is not None
    first = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
    assert (first["event"], first["data"]["id"]) == ("task.snapshot", task["id"])
    await api_harness.alice.delete("/tasks/me/seen")
    rest, trouble = await asyncio.wait_for(process.communicate(), 20)
    assert json.loads(rest.splitlines()[-1])["event"] == "task.deleted"
    assert (process.returncode, trouble) == (0, b"")


async def test_watching_ends_cleanly_with_ctrl_c(api_harness: ApiHarness) -> None:
    """SIGINT ends with 130, and says nothing that frightens."""
    await api_harness.create(name="here")
    process = await _watching(api_harness)
    assert process.stdout is not None
    assert b"alice/here  pending" in await asyncio.wait_for(process.stdout.readline(), 20)
    process.send_signal(signal.SIGINT)
    _, trouble = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, trouble.strip()) == (130, b"")


async def test_what_is_wrong_is_said_with_what_to_do(api_harness: ApiHarness) -> None:
    """Every error has a code of its own kind, one line, and advice; the token is never shown."""
    shell = Shell(api_harness)
    code, why = await shell.code("list", TASKHERD_TOKEN="abc")
    assert (code, "taskherd token create" in why) == (4, True)
    code, why = await shell.code("list", TASKHERD_URL="")
    assert (code, "TASKHERD_URL is not set" in why, ". .taskherd/env" in why) == (2, True, True)
    code, why = await shell.code("list", TASKHERD_URL="http://127.0.0.1:9")
    assert (code, "Connection refused" in why) == (1, True)
    assert (await shell.code("list", TASKHERD_URL="file:///etc"))[0] == 2
    assert (await shell.code("show", "a/b/c"))[0] == 2
    assert (await shell.code("create", "x", "--template", "none"))[0] == 5
    assert (await shell.code("list", "--status", "busy"))[0] == 6
    await api_harness.create(name="taken")
    code, why = await shell.code("create", "x", "--name", "taken")
    assert (code, 'Workspace "taken" already exists.' in why) == (6, True)
    assert api_harness.tokens["alice"] not in why


async def _watching(api_harness: ApiHarness, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "taskherd",
        "task",
        "watch",
        *words,
        env={**os.environ, **Shell(api_harness).env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
