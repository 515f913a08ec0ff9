"""``taskherd task`` as users and scripts call it, with a real API."""

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
    """Keep the log of the worker, which runs in the same process, out of the output of commands."""
    logs.configure("warning", "auto")


class Shell:
    """The shell of one user."""

    def __init__(self, api_harness: ApiHarness, username: str = "alice") -> None:
        self.env = {
            "TASKHERD_URL": api_harness.base,
            "TASKHERD_TOKEN": api_harness.tokens[username],
            "COLUMNS": "200",
        }

    async def run(self, *words: str, stdin: str | None = None, **env: str) -> Result:
        """Run a command and return its result."""
        return await asyncio.to_thread(CliRunner().invoke, app, ["task", *words], input=stdin, env={**self.env, **env})

    async def json(self, *words: str, **env: str) -> Any:
        """Run a command that must succeed, and return its JSON output."""
        result = await self.run(*words, "-o", "json", **env)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    async def code(self, *words: str, **env: str) -> tuple[int, str]:
        """Run a command and return its exit code and stderr."""
        result = await self.run(*words, **env)
        assert "Traceback" not in result.output
        return result.exit_code, result.stderr


async def test_a_task_is_created_shown_listed_and_deleted(api_harness: ApiHarness) -> None:
    """Each command prints the API's document as JSON, and a text for people."""
    shell = Shell(api_harness)
    created = await shell.json(
        "create", "Fix the flaky test", "--name", "flaky", "--preset", "default", "--title", "Flaky"
    )
    assert (created["name"], created["display_name"], created["status"]) == ("flaky", "Flaky", "pending")
    assert await shell.json("show", "flaky") == created == await shell.json("show", created["id"])
    assert await shell.json("list") == [created]
    assert await shell.json("list", "--status", "active") == []
    for words, expected in ((("show", "alice/flaky"), "Fix the flaky test"), (("list",), "alice/flaky")):
        result = await shell.run(*words)
        assert expected in result.stdout
    assert (await shell.code("delete", "flaky"))[0] == 0
    assert (await shell.code("show", "flaky"))[0] == 5


async def test_a_list_combines_pages(api_harness: ApiHarness) -> None:
    """A list longer than a page is printed in full, or up to ``--limit``."""
    for number in range(4):
        await api_harness.create(name=f"n{number}")
    shell = Shell(api_harness)
    assert [each["name"] for each in await shell.json("list", "--limit", "3")] == ["n3", "n2", "n1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taskherd.client.tasks.PAGE", 2)
        assert [each["name"] for each in await shell.json("list")] == ["n3", "n2", "n1", "n0"]


async def test_a_prompt_from_stdin_with_an_idempotency_key(api_harness: ApiHarness) -> None:
    """``-`` reads the prompt from stdin; the same ``--idempotency-key`` returns the same task."""
    shell = Shell(api_harness)
    words = ("create", "-", "--idempotency-key", "k1", "-o", "json")
    first, second = [json.loads((await shell.run(*words, stdin="From a file\n")).stdout) for _ in range(2)]
    assert first["id"] == second["id"]
    assert first["initial_prompt"] == "From a file\n"


async def test_send_logs_explain_pause_and_resume(api_harness: ApiHarness) -> None:
    """Send delivers a text, logs print the conversation, explain the reasons, pause and resume their builds."""
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
    code, stderr = await shell.code("send", "talk", "Hello?")
    assert (code, "Task is paused. Resume the task to send messages." in stderr) == (6, True)
    assert "Build 3 (start) was requested" in (await shell.run("resume", "talk")).stdout


async def test_the_exit_codes_of_wait(api_harness: ApiHarness) -> None:
    """0 if the task has one of the values, 3 if it failed instead, 124 on timeout, 5 if there is no such task."""
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


async def test_watch_ends_when_the_task_is_deleted(api_harness: ApiHarness) -> None:
    """Watch prints the current task, each change, and the deletion."""
    task = await api_harness.active(name="seen")
    process = await _start_watch(api_harness, "seen", "-o", "json")
    assert process.stdout is not None
    first = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
    assert (first["event"], first["data"]["id"]) == ("task.snapshot", task["id"])
    await api_harness.alice.delete("/tasks/me/seen")
    stdout, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert json.loads(stdout.splitlines()[-1])["event"] == "task.deleted"
    assert (process.returncode, stderr) == (0, b"")


async def test_ctrl_c_ends_watch_cleanly(api_harness: ApiHarness) -> None:
    """On SIGINT watch exits with 130 and prints no error."""
    await api_harness.create(name="here")
    process = await _start_watch(api_harness)
    assert process.stdout is not None
    assert b"alice/here  pending" in await asyncio.wait_for(process.stdout.readline(), 20)
    process.send_signal(signal.SIGINT)
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, stderr.strip()) == (130, b"")


async def test_errors_have_an_exit_code_and_advice(api_harness: ApiHarness) -> None:
    """Every kind of error has its exit code, one line and advice; the token is never printed."""
    shell = Shell(api_harness)
    code, stderr = await shell.code("list", TASKHERD_TOKEN="abc")
    assert (code, "taskherd token create" in stderr) == (4, True)
    code, stderr = await shell.code("list", TASKHERD_URL="")
    assert (code, "TASKHERD_URL is not set" in stderr, ". .taskherd/env" in stderr) == (2, True, True)
    code, stderr = await shell.code("list", TASKHERD_URL="http://127.0.0.1:9")
    assert (code, "Connection refused" in stderr) == (1, True)
    assert (await shell.code("list", TASKHERD_URL="file:///etc"))[0] == 2
    assert (await shell.code("show", "a/b/c"))[0] == 2
    assert (await shell.code("create", "x", "--template", "none"))[0] == 5
    assert (await shell.code("list", "--status", "busy"))[0] == 6
    await api_harness.create(name="taken")
    code, stderr = await shell.code("create", "x", "--name", "taken")
    assert (code, 'Workspace "taken" already exists.' in stderr) == (6, True)
    assert api_harness.tokens["alice"] not in stderr


async def _start_watch(api_harness: ApiHarness, *words: str) -> asyncio.subprocess.Process:
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
