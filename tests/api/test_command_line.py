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
import typer
from typer.testing import CliRunner, Result

from taskherd.cli.agent_requests import app as task_app
from taskherd.cli.main import app
from taskherd.client import tasks
from taskherd.observability import logs
from taskherd.store import deleted_tasks
from tests.api.conftest import StartApi
from tests.api.test_interrupts import end as end_interrupt
from tests.api.test_interrupts import working
from tests.api.test_sse import until_subscribers
from tests.harness.api import CAROL, ApiHarness
from tests.harness.tcp_proxy import TcpProxy
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
    page = f"{api_harness.base}/tasks/alice/flaky"
    shown = ("show", "alice/flaky")
    for words, expected in ((shown, "Fix the flaky test"), (shown, page), (("list",), "alice/flaky")):
        result = await shell.run(*words)
        assert expected in result.stdout
    assert (await shell.code("delete", "flaky"))[0] == 0
    assert (await shell.code("show", "flaky"))[0] == 5


@pytest.mark.parametrize(
    "words",
    [
        ("create", "-"),
        ("create", "--from", "-"),
        ("send", "first", "-"),
        ("send", "--query", "owner:me", "-", "--yes"),
        ("answer", "first", "--text", "-"),
    ],
)
async def test_stdin_that_is_no_text_is_refused(api_harness: ApiHarness, words: tuple[str, ...]) -> None:
    """With one line and the code of a wrong command line, also if Python would read bytes that are not UTF-8."""
    await api_harness.create(name="first")
    variables = {**os.environ, **Shell(api_harness).env}
    for encoding in ("utf-8:strict", "utf-8:surrogateescape"):  # the latter is that of Python without a locale
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "taskherd", "task", *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**variables, "PYTHONIOENCODING": encoding},
        )
        output, said = await process.communicate(b"caf\xe9")
        lines = said.decode().splitlines()
        assert (process.returncode, output, lines[1:]) == (2, b"", ["  expected text in UTF-8"]), said.decode()
        assert lines[0].startswith("taskherd: cannot read stdin: ")
    assert [each["name"] for each in await Shell(api_harness).json("list")] == ["first"]


async def test_deleted_tasks_are_listed_with_who_deleted_them(api_harness: ApiHarness) -> None:
    """The owner sees who deleted a task, its name stays text, and filters and the limit hold."""
    alice, carol, bob = (Shell(api_harness, name) for name in ("alice", "carol", "bob"))
    assert await alice.json("deleted") == []
    assert "No deleted tasks." in (await alice.code("deleted"))[1]
    await alice.json("create", "Fix it", "--name", "first", "--title", "\x1b[31mFirst")
    await alice.json("create", "Fix that", "--name", "second")
    assert (await alice.code("delete", "first"))[0] == 0
    assert (await carol.code("delete", "alice/second"))[0] == 0
    second, first = await alice.json("deleted")
    assert (first["name"], first["deleted_by"], second["name"], second["deleted_by"]) == (
        *("first", "alice"),
        *("second", "carol"),
    )
    assert await alice.json("deleted", "--name", "sec") == [second]
    assert await alice.json("deleted", "--limit", "1") == [second]
    assert await carol.json("deleted") == []
    assert await carol.json("deleted", "--all") == await carol.json("deleted", "--owner", "alice") == [second, first]
    assert await bob.json("deleted", "--all") == []
    shown = await alice.run("deleted", "--limit", "2")
    assert shown.stdout.split("\n")[0].split() == ["TASK", "DELETED", "BY", "AGE", "TEMPLATE", "TITLE"]
    assert [shown.stdout.split("\n")[1].split()[each] for each in (0, 2)] == ["alice/second", "carol"]
    assert "\x1b" not in shown.stdout
    assert "At most the last 2" in shown.stderr
    assert (await alice.code("deleted", "--limit", "101"))[0] == 2
    code, message = await alice.code("deleted", "--owner", "nobody")
    assert (code, "owner" in message) == (6, True)
    assert "No deleted tasks match." in (await alice.code("deleted", "--name", "third"))[1]


async def test_deleted_tasks_are_found_among_many_of_others(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list asks for pages until it has enough, and says so if it stops before the last one."""
    monkeypatch.setattr(deleted_tasks, "MAX_SCANNED", 3)
    alice, bob = Shell(api_harness), Shell(api_harness, "bob")
    for shell, name in ((alice, "oldest"), *((bob, f"between-{number}") for number in range(4)), (alice, "newest")):
        await shell.json("create", "Fix it", "--name", name)
        assert (await shell.code("delete", name))[0] == 0
    assert [each["name"] for each in await alice.json("deleted")] == ["newest", "oldest"]
    assert (await alice.code("deleted"))[1] == ""
    assert [each["name"] for each in await alice.json("deleted", "--limit", "1")] == ["newest"]
    monkeypatch.setattr(tasks, "MAX_DELETED_PAGES", 1)
    shown = await alice.run("deleted")
    assert ("alice/newest" in shown.stdout, "alice/oldest" in shown.stdout) == (True, False)
    assert shown.stderr == "There may be earlier ones: others have deleted very many tasks since.\n"
    none = await alice.run("deleted", "--name", "old")
    assert (none.exit_code, none.stdout) == (0, "")
    assert none.stderr.startswith("No deleted tasks among the last ones.\nThere may be earlier ones")


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


async def test_interrupt_and_send_on_the_command_line(api_harness: ApiHarness) -> None:
    """`interrupt` says what happens, `send --interrupt` steers, and `show` and `explain` tell of it."""
    task = await working(api_harness, "shell")
    shell = Shell(api_harness)
    interrupt_id = (await shell.json("interrupt", "shell"))["interrupt_id"]
    assert "is being interrupted" in (await shell.run("interrupt", "shell")).stdout
    assert "interrupt  since" in (await shell.run("show", "shell")).stdout
    assert "The agent is being interrupted" in (await shell.run("explain", "shell")).stdout
    assert (await shell.run("send", "shell", "Now", "--interrupt")).stdout == "Queued until the agent is idle.\n"
    await end_interrupt(api_harness, task, interrupt_id, "stopped")
    assert "ended what the agent did." in (await shell.run("explain", "shell")).stdout
    await api_harness.worker.until(lambda: api_harness.worker.requests_of(task, "agent.input"))
    code, stderr = await shell.code("send", "All", "--query", "owner:me", "--interrupt")
    assert (code, "--interrupt is for one task" in stderr) == (2, True)
    await api_harness.active(name="quiet")
    code, stderr = await shell.code("interrupt", "quiet")
    assert (code, "The agent is not working." in stderr) == (6, True)
    result = await shell.run("interrupt", "--query", "owner:me state:working", "--yes")
    assert result.stdout == "Interrupted 1 of 1 tasks.\n"


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


ENDS = [
    ({"why": "exited", "status": 3, "words": "disk full\x1b[2J"}, "exited with status 3", '("disk full'),
    ({"why": "signalled", "signal": 9}, "was ended by signal 9 (SIGKILL)", ""),
    ({"why": "out_of_memory"}, "was ended because it ran out of memory", ""),
    ({"why": "timeout"}, "was ended because it exceeded its time limit", ""),
    ({"why": "lost"}, "is lost", ""),
    ({"why": "not_started", "words": "No such file"}, "could not be started", '("No such file")'),
    ({"why": "exited", "status": 0}, "exited with status 0", ""),
]


@pytest.mark.parametrize(("fields", "how", "words"), ENDS, ids=lambda each: str(each) if isinstance(each, str) else "")
async def test_each_command_says_how_an_agent_ended(
    api_harness: ApiHarness, fields: dict[str, Any], how: str, words: str
) -> None:
    """``show`` and ``explain`` also print the next step, which works; ``wait`` ends with 3, and names it."""
    task = uuid.UUID((await api_harness.active(name="w"))["id"])
    shell = Shell(api_harness)
    await api_harness.worker.report(make_report("app.status", task, state="working", message="Busy"))
    await api_harness.worker.until(lambda: api_harness.worker.state(task).get("state") == "working")
    waiting = asyncio.create_task(shell.code("wait", "w", "--timeout", "60s"))
    await api_harness.worker.report(make_report("agent.exit", task, **fields))
    code, stderr = await waiting
    assert (code, how in stderr, words in stderr, "taskherd task resume" in stderr) == (3, True, True, True)
    listed = (await shell.run("list")).stdout
    assert how in listed
    shown = (await shell.run("show", "w")).stdout
    assert how in shown
    assert words in shown
    explained = (await shell.run("explain", "alice/w")).stdout
    assert how in explained
    assert "alice created the task, " in explained
    assert "\x1b" not in listed + shown + explained + stderr
    step = shown.split("next")[1].strip()
    assert step == "taskherd task resume w"
    assert "taskherd task resume alice/w" in explained
    assert (await shell.code(*step.split()[2:]))[0] == 0
    assert (await shell.json("show", "w"))["agent_exit"] is None
    assert "next" not in (await shell.run("show", "w")).stdout


async def test_the_last_state_of_an_agent_that_ended_is_awaited(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report of the end comes first, the true last state follows; it decides what ``wait`` exits with."""
    task = uuid.UUID((await api_harness.active(name="w"))["id"])
    shell = Shell(api_harness)
    await api_harness.worker.report(make_report("agent.exit", task, why="exited", status=0))
    await api_harness.worker.until(lambda: api_harness.worker.document(task).get("agent_exit"))
    with monkeypatch.context() as patch:
        patch.setattr("taskherd.client.tasks.SETTLE", 30.0)
        waiting = asyncio.create_task(shell.code("wait", "w", "--until", "complete", "--timeout", "60s"))
        await until_subscribers(api_harness, 1)
        await api_harness.worker.report(make_report("app.status", task, state="complete", message="Done"))
        assert (await waiting)[0] == 0
    assert (await shell.code("wait", "w", "--timeout", "60s"))[0] == 0
    assert (await shell.code("wait", "w", "--until", "idle", "--timeout", "60s"))[0] == 3


async def test_wait_ends_if_the_agent_ends_before_it_is_ready(api_harness: ApiHarness) -> None:
    """Such a task stays ``initializing``, although nothing starts any more; ``logs -f`` ends, too."""
    task = uuid.UUID((await api_harness.create(name="w"))["id"])
    shell = Shell(api_harness)
    await api_harness.worker.report(
        build_report(task, 1, "start", "succeeded", agent_id=str(uuid.uuid4()), runner="r1"),
        make_report("agent.lifecycle", task, lifecycle="starting"),
        make_report("agent.exit", task, why="exited", status=0),
    )
    code, stderr = await shell.code("wait", "w", "--timeout", "60s")
    assert (code, "the agent exited with status 0" in stderr) == (3, True)
    assert api_harness.worker.document(task)["status"] == "initializing"
    assert (await shell.code("logs", "w", "-f"))[0] == 0
    assert (await shell.code("resume", "w"))[0] == 0


async def test_wait_ends_when_the_agent_is_lost(start_api: StartApi) -> None:
    """Though no report says so, and the state that it reported stands."""
    async with start_api(agent_lost_after=1) as api_harness:
        await api_harness.active(name="w")
        shell = Shell(api_harness)
        code, stderr = await shell.code("wait", "w", "--timeout", "60s")
        assert (code, "the agent is lost: its heartbeats stopped" in stderr) == (3, True)
        assert "is lost" in (await shell.run("list")).stdout
        assert "taskherd task resume w" in (await shell.run("show", "w")).stdout
        assert (await shell.code("resume", "w"))[0] == 0


async def test_wait_goes_on_if_the_worker_starts_a_lost_agent_again(start_api: StartApi) -> None:
    """The first loss does not end the wait, since the template asks for a restart; the state after it does."""
    async with start_api(agent_lost_after=1) as api_harness:
        worker = api_harness.worker
        run = json.dumps({"on_loss": {"action": "restart", "most": 1, "backoff": "1s"}})
        await worker.database.execute("UPDATE template_versions SET run = $1", run)
        await worker.database.execute("UPDATE directory_revision SET revision = revision + 1")
        task = uuid.UUID((await api_harness.active(name="w"))["id"])
        shell = Shell(api_harness)
        waiting = asyncio.create_task(shell.code("wait", "w", "--timeout", "60s"))
        await worker.until(lambda: worker.document(task).get("workspace_build_number") == 2)
        assert not waiting.done()
        await worker.report(  # in one message, so that the second loss cannot come in between
            build_report(task, 2, "start", "succeeded", agent_id=str(uuid.uuid4()), runner="r1"),
            make_report("agent.lifecycle", task, build_number=2, lifecycle="ready"),
            make_report("agent.heartbeat", task, build_number=2),
            make_report("app.status", task, build_number=2, state="idle", message="Hello again"),
        )
        assert (await waiting)[0] == 0


async def test_a_stalled_agent_is_shown_with_the_step_that_works(start_api: StartApi) -> None:
    """A resume of a running agent is refused, so the step begins with a pause."""
    async with start_api(stalled_after=1) as api_harness:
        task = uuid.UUID((await api_harness.active(name="slow"))["id"])
        shell = Shell(api_harness)
        await api_harness.worker.report(make_report("app.status", task, state="working", message="Compiling"))
        await api_harness.worker.until(lambda: api_harness.worker.document(task).get("stalled_since"))
        since = api_harness.worker.document(task)["stalled_since"][:19].replace("T", " ")
        assert "agent has stalled for " in (await shell.run("list")).stdout
        assert f"has stalled since {since} UTC" in (await shell.run("show", "slow")).stdout
        for words in (("show", "slow"), ("explain", "slow")):
            assert (
                "taskherd task pause slow, and when it is paused: taskherd task resume slow"
                in (await shell.run(*words)).stdout
            )
        assert since in (await shell.run("explain", "slow")).stdout
        code, stderr = await shell.code("resume", "slow")
        assert (code, "already running" in stderr) == (6, True)
        assert (await shell.code("pause", "slow"))[0] == 0
        await api_harness.worker.report(build_report(task, 2, "stop", "succeeded"))
        await api_harness.worker.until(lambda: api_harness.worker.document(task).get("status") == "paused")
        assert (await shell.code("resume", "slow"))[0] == 0


async def test_several_tasks_are_resumed_each_by_itself(api_harness: ApiHarness) -> None:
    """One that is refused or missing does not keep the others from it; a wrong reference does, before all of them."""
    for name in ("one", "two", "runs"):
        task = uuid.UUID((await api_harness.active(name=name))["id"])
        if name != "runs":
            await api_harness.worker.report(make_report("agent.exit", task, why="lost"))
            await api_harness.worker.until(lambda task=task: api_harness.worker.document(task).get("agent_exit"))  # type: ignore[misc]
    shell = Shell(api_harness)
    assert (await shell.code("resume", "one", "a/b/c"))[0] == 2
    assert (await shell.json("show", "one"))["status"] == "active"
    result = await shell.run("resume", "one", "runs", "none", "two")
    assert result.exit_code == 6
    assert "one: Build 2 (start) was requested" in result.stdout
    assert "two: Build 2 (start) was requested" in result.stdout
    assert "runs: Task workspace is already running." in result.stderr
    assert "none: Resource not found" in result.stderr
    result = await shell.run("pause", "runs", "two", "-o", "json")
    assert (result.exit_code, json.loads(result.stdout)["workspace_build"]["transition"]) == (6, "stop")
    assert (await shell.code("resume"))[0] == 2


async def test_a_list_is_filtered_by_state_and_template(api_harness: ApiHarness) -> None:
    """``--state`` is what the agent reported, ``--template`` the name; an empty list says what to do on stderr."""
    for name in ("busy", "done"):
        await api_harness.active(name=name)
    task = uuid.UUID((await api_harness.alice.get("/tasks/me/done")).json()["id"])
    await api_harness.worker.report(make_report("app.status", task, state="failure", message="No", uri=""))
    await api_harness.worker.until(lambda: api_harness.worker.state(task).get("state") == "failed")
    shell = Shell(api_harness)
    assert [each["name"] for each in await shell.json("list", "--state", "failed")] == ["done"]
    assert [each["name"] for each in await shell.json("list", "--template", "CLAUDE")] == ["done", "busy"]
    assert await shell.json("list", "--template", "claude", "--state", "idle", "--status", "active") == []
    assert await shell.json("list", "--template", "other") == []
    assert (await shell.code("list", "--state", "failure"))[0] == 6
    result = await shell.run("list", "--state", "idle")
    assert (result.stdout, "No tasks match." in result.stderr) == ("", True)
    result = await shell.run("list", "--limit", "1")
    assert (len(result.stdout.splitlines()), "newest 1" in result.stderr) == (2, True)


async def test_labels_are_set_listed_and_removed(api_harness: ApiHarness) -> None:
    """A task is created with labels, found by one, and shown with them in a column that only labelled tasks need."""
    shell = Shell(api_harness)
    assert (await shell.code("create", "Fix it", "--name", "fix", "--label", "repo=acme/app", "--label", "team=a b"))[
        0
    ] == 0
    assert "LABELS" in (await shell.run("list")).stdout
    assert (await shell.run("show", "fix")).stdout.count("repo=acme/app, team=a b") == 1
    assert [each["name"] for each in await shell.json("list", "--label", "repo=ACME/app")] == ["fix"]
    assert [each["name"] for each in await shell.json("list", "--query", 'label:"team=a b" status:pending')] == ["fix"]
    assert [each["name"] for each in await shell.json("list", "--sort", "changed")] == ["fix"]
    assert await shell.json("list", "--query", "label:repo=other") == []
    changed = await shell.json("label", "fix", "repo=acme/docs", "team-")
    assert changed["labels"] == {"repo": "acme/docs"}
    await shell.json("label", "fix", "repo-")
    assert "LABELS" not in (await shell.run("list")).stdout
    for words in (
        *(("label", "fix", "repo"), ("create", "x", "--label", "repo")),
        ("list", "--query", "status:active", "--label", "a=b"),
    ):
        assert (await shell.code(*words))[0] == 2
    assert (await shell.code("label", "fix", "a b=c"))[0] == 6


async def test_a_followed_conversation_ends_with_its_agent(api_harness: ApiHarness) -> None:
    """New entries are printed as they arrive, each once; the exit code is 0 once the agent has ended."""
    task = uuid.UUID((await api_harness.active(name="talk"))["id"])
    worker = api_harness.worker
    texts = ("first", "second", "third")
    process = await _start(api_harness, "logs", "-f", "talk", "-o", "json")
    assert process.stdout is not None
    for number, text in enumerate(texts):
        entry = {"id": number, "type": "output", "content": text, "time": "2026-01-01T10:00:00Z"}
        await worker.report(make_report("task.log", task, entries=[entry]))
        assert json.loads(await asyncio.wait_for(process.stdout.readline(), 20))["content"] == text
    await worker.report(make_report("agent.exit", task, why="exited", status=0))
    stdout, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, stdout, stderr) == (0, b"", b"")
    lines = (await Shell(api_harness).run("logs", "--follow", "talk")).stdout.splitlines()
    assert [each[11:] for each in lines] == list(texts)


async def test_a_followed_conversation_ends_quietly(api_harness: ApiHarness) -> None:
    """With 130 on Ctrl-C, and without a word when the reader of a pipe goes away, or when the task is deleted."""
    task = uuid.UUID((await api_harness.active(name="talk"))["id"])
    entry = {"id": 0, "type": "output", "content": "Working on it", "time": "2026-01-01T10:00:00Z"}
    await api_harness.worker.report(make_report("task.log", task, entries=[entry]))
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs", is_=1)
    interrupted, deleted = [await _start(api_harness, "logs", "-f", "talk") for _ in range(2)]
    for process in (interrupted, deleted):
        assert process.stdout is not None
        assert b"Working on it" in await asyncio.wait_for(process.stdout.readline(), 20)
    interrupted.send_signal(signal.SIGINT)
    _, stderr = await asyncio.wait_for(interrupted.communicate(), 20)
    assert (interrupted.returncode, stderr.strip()) == (130, b"")
    command = f"{sys.executable} -m taskherd task logs talk | exec true"
    env = {**os.environ, **Shell(api_harness).env}
    piped = await asyncio.create_subprocess_shell(command, env=env, stderr=asyncio.subprocess.PIPE)
    assert (await asyncio.wait_for(piped.communicate(), 20))[1] == b""
    assert (await Shell(api_harness).code("delete", "talk"))[0] == 0
    _, stderr = await asyncio.wait_for(deleted.communicate(), 20)
    assert (deleted.returncode, stderr) == (0, b"")


@pytest.mark.parametrize("end", ["paused", "lost"])
async def test_a_followed_conversation_ends_without_an_agent(api_harness: ApiHarness, end: str) -> None:
    """With 0 when the task is paused, and when its agent is lost; what was written until then is printed."""
    worker = api_harness.worker
    task = uuid.UUID((await api_harness.active(name="talk"))["id"])
    process = await _start(api_harness, "logs", "-f", "talk")
    assert process.stdout is not None
    await worker.report(make_report("task.log", task, entries=[log_entry(0, f"Until it is {end}")]))
    assert f"Until it is {end}" in (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
    if end == "paused":
        assert (await Shell(api_harness).code("pause", "talk"))[0] == 0
        await worker.report(build_report(task, 2, "stop", "succeeded"))
    else:
        await worker.report(make_report("agent.exit", task, why="lost"))
    stdout, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, stdout, stderr) == (0, b"", b"")


async def test_following_into_a_closed_pipe_ends_quietly(api_harness: ApiHarness) -> None:
    """At the next entry after its reader went away, as ``tail -f`` does."""
    task = uuid.UUID((await api_harness.active(name="talk"))["id"])
    await api_harness.worker.report(make_report("task.log", task, entries=[log_entry(0, "Read by head")]))
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs", is_=1)
    reader, writer = os.pipe()
    process = await _start(api_harness, "logs", "-f", "talk", stdout=writer)
    os.close(writer)
    try:
        line = await asyncio.wait_for(asyncio.to_thread(os.read, reader, 1000), 20)
        assert b"Read by head" in line
    finally:
        os.close(reader)
    await api_harness.worker.report(make_report("task.log", task, entries=[log_entry(1, "Read by none")]))
    assert (await asyncio.wait_for(process.communicate(), 30))[1] == b""


async def test_several_tasks_are_deleted_each_by_itself(api_harness: ApiHarness) -> None:
    """One that is missing does not keep the others from it, in both formats; a wrong reference does."""
    for name in ("one", "two", "three", "four"):
        await api_harness.create(name=name)
    shell = Shell(api_harness)
    assert (await shell.code("delete", "one", "a/b/c"))[0] == 2
    result = await shell.run("delete", "one", "none", "alice/two")
    assert result.exit_code == 5
    assert result.stdout.splitlines() == [
        "one: Deleted; its workspace will be removed.",
        "alice/two: Deleted; its workspace will be removed.",
    ]
    assert "none: Resource not found" in result.stderr
    result = await shell.run("delete", "none", "three", "four", "-o", "json")
    assert (result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]) == (
        5,
        [{"task": "three", "deleted": True}, {"task": "four", "deleted": True}],
    )
    assert await shell.json("list") == []
    assert (await shell.code("delete"))[0] == 2


def log_entry(number: int, content: str) -> dict[str, Any]:
    """Return an entry of a conversation that an agent wrote."""
    return {"id": number, "type": "output", "content": content, "time": "2026-01-01T10:00:00Z"}


async def test_each_command_prints_json(api_harness: ApiHarness) -> None:
    """Every command of ``taskherd task`` takes ``-o json``."""
    await api_harness.active(name="one")
    shell = Shell(api_harness)
    assert set(typer.main.get_group(task_app).list_commands(None)) == {  # type: ignore[arg-type]
        *("create", "list", "show", "send", "interrupt", "pause", "resume", "delete", "explain", "events", "wait"),
        *("watch", "logs", "label", "requests", "answer", "deleted", "durations", "builds"),
        *("totals", "overview"),
    }
    for words in (
        *(("create", "x"), ("list",), ("show", "one"), ("logs", "one"), ("explain", "one"), ("events", "one")),
        *(("durations", "one"), ("builds", "one"), ("builds", "one", "--log", "1")),
        *(("send", "one", "Hello"), ("interrupt", "one"), ("wait", "one", "--until", "active")),
        *(("requests", "one"), ("pause", "one"), ("label", "one", "a=b"), ("delete", "one"), ("deleted",)),
        *(("totals",), ("overview",)),
    ):
        assert await shell.json(*words) is not None


async def test_events_shows_who_did_what(api_harness: ApiHarness) -> None:
    """The timeline merges changes and sends by time, with their causes in words, up to ``--limit``."""
    task = uuid.UUID((await api_harness.active(name="talk"))["id"])
    shell = Shell(api_harness)
    assert (await shell.code("send", "talk", "And the \x1b docs?"))[0] == 0
    sent = await api_harness.carol.post(f"/tasks/alice/{task}/send", json={"input": "Hurry"})
    assert sent.status_code == 204
    assert (await api_harness.carol.post(f"/tasks/alice/{task}/pause")).status_code == 202
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    entries = await shell.json("events", "talk")
    assert [each["time"] for each in entries] == sorted(each["time"] for each in entries)
    lines = (await shell.run("events", "talk")).stdout.splitlines()
    assert len(lines) == len(entries)
    assert lines[0].endswith("alice created the task  new → pending")
    narrow = (await shell.run("events", "talk", COLUMNS="60")).stdout.splitlines()
    assert max(map(len, narrow)) <= 60
    assert " ".join("".join(narrow).split()) == " ".join("".join(lines).split())
    who = [line[21:].split("  ")[0] for line in lines]
    assert [each for each in who if each.startswith(("alice", "carol"))] == [
        "alice created the task",
        "alice sent an input",
        "carol sent an input",
        "carol paused the task",
    ]
    assert "\x1b" not in "".join(lines)
    assert any("docs? (" in line for line in lines)
    assert await shell.json("events", "talk", "--limit", "2") == entries[-2:]
    assert (await shell.code("events", "talk", "--limit", "501"))[0] == 2
    assert (await shell.code("events", "nothing"))[0] == 5


async def test_durations_and_builds_are_told_in_words(api_harness: ApiHarness) -> None:
    """How long a task was in each state, the longest first, and what became of its starts and stops, and why."""
    task = uuid.UUID((await api_harness.active(name="spent"))["id"])
    shell = Shell(api_harness)
    header, *lines = (await shell.run("durations", "spent")).stdout.splitlines()
    assert header.split() == ["STATE", "TIME", "SHARE"]
    assert {line.split()[0] for line in lines} == {"starting", "working"}
    shares = [int(line.split()[-2]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert 99 <= sum(shares) <= 101
    assert {"since", "totals", "spans"} <= set(await shell.json("durations", "spent"))
    assert (await shell.code("pause", "spent"))[0] == 0
    await api_harness.worker.report(build_report(task, 2, "stop", "failed", error="The disk is full"))
    await api_harness.worker.until(lambda: api_harness.worker.document(task)["status"] == "error")
    header, stop, start = (await shell.run("builds", "spent")).stdout.splitlines()
    assert header.split() == ["BUILD", "TRANSITION", "STATUS", "AGE", "TOOK", "ERROR"]
    assert stop.split()[:3] == ["2", "stop", "failed"]
    assert stop.endswith("The disk is full")
    assert start.split()[:3] == ["1", "start", "succeeded"]
    assert [each["build_number"] for each in await shell.json("builds", "spent")] == [2, 1]
    for command in ("durations", "builds"):
        assert (await shell.code(command, "nothing"))[0] == 5


async def test_the_log_of_a_build_has_that_of_its_agent(api_harness: ApiHarness) -> None:
    """``builds --log`` prints the steps of both in their order, and as JSON the entries of both routes."""
    task = uuid.UUID((await api_harness.active(name="logged"))["id"])
    shell = Shell(api_harness)
    assert (await shell.code("pause", "logged"))[0] == 0
    await api_harness.worker.report(build_report(task, 2, "stop", "failed", error="The \x1b disk is full"))
    await api_harness.worker.until(lambda: api_harness.worker.document(task)["status"] == "error")
    builds = {each["build_number"]: each for each in await shell.json("builds", "logged")}
    agents = [agent for each in builds[1]["resources"] for agent in each["agents"]]
    paths = [f"/workspacebuilds/{builds[1]['id']}/logs", *(f"/workspaceagents/{each['id']}/logs" for each in agents)]
    answers = [(await api_harness.alice.get(path)).json() for path in paths]
    expected = sorted((entry for each in answers for entry in each), key=lambda entry: entry["created_at"])
    assert len(answers) == 2
    with pytest.MonkeyPatch.context() as patch:
        for most in (1_000, 1):
            patch.setattr("taskherd.api.workspaces.logs.MAX_ENTRIES", most)
            assert await shell.json("builds", "logged", "--log", "1") == expected
    lines = (await shell.run("builds", "logged", "--log", "1")).stdout.splitlines()
    assert [line[21:] for line in lines] == [each["output"] for each in expected]
    assert {"The workspace is running.", "Agent is ready."} <= {each["output"] for each in expected}
    failed = await shell.run("builds", "alice/logged", "--log", "2", COLUMNS="60")
    assert "  error: The" in failed.stdout
    assert "\x1b" not in failed.stdout
    assert max(map(len, failed.stdout.splitlines())) <= 60
    code, stderr = await shell.code("builds", "logged", "--log", "3")
    assert (code, "there is no build 3" in stderr, "taskherd task builds logged" in stderr) == (5, True, True)
    assert (await shell.code("builds", "logged", "--log", "0"))[0] == 2


async def test_watch_says_how_an_agent_ended(api_harness: ApiHarness) -> None:
    """As part of the line of each change."""
    task = uuid.UUID((await api_harness.active(name="seen"))["id"])
    process = await _start_watch(api_harness, "seen")
    assert process.stdout is not None
    assert b"alice/seen  active" in await asyncio.wait_for(process.stdout.readline(), 20)
    await api_harness.worker.report(make_report("agent.exit", task, why="exited", status=3, words="disk full"))
    line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
    assert line.rstrip().endswith('alice/seen  active  [agent exited with status 3 ("disk full")]')
    deleted = await api_harness.carol.delete(f"/tasks/alice/{task}")
    assert deleted.status_code == 202
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_watch_ends_when_the_task_is_deleted(api_harness: ApiHarness) -> None:
    """Watch prints the task, each change, and the deletion with who it was: nothing else shows a deleted task."""
    task = await api_harness.active(name="seen")
    process = await _start_watch(api_harness, "seen", "-o", "json")
    assert process.stdout is not None
    first = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
    assert (first["event"], first["data"]["id"]) == ("task.snapshot", task["id"])
    await api_harness.carol.delete(f"/tasks/alice/{task['id']}")
    stdout, stderr = await asyncio.wait_for(process.communicate(), 20)
    last = json.loads(stdout.splitlines()[-1])
    assert last["event"] == "task.deleted"
    assert (last["data"]["data"]["cause"]["type"], last["data"]["data"]["cause"]["actor_id"]) == (
        "task.delete",
        str(CAROL),
    )
    assert (process.returncode, stderr) == (0, b"")


async def test_watch_stays_with_its_task_when_another_one_takes_the_name(api_harness: ApiHarness) -> None:
    """A connection that was lost meanwhile is resumed where it was, so that the watch ends with its own task."""
    first = await api_harness.active(name="reused", display_name="The first")
    proxy = await TcpProxy.before(api_harness.base)
    try:
        url = f"http://127.0.0.1:{proxy.port}"
        process = await _start_watch(api_harness, "reused", "-o", "json", url=url)
        assert process.stdout is not None
        snapshot = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
        assert (snapshot["event"], snapshot["data"]["id"]) == ("task.snapshot", first["id"])
        report = make_report("app.status", uuid.UUID(first["id"]), state="working", message="At it", uri="")
        await api_harness.worker.report(report)
        assert json.loads(await asyncio.wait_for(process.stdout.readline(), 20))["event"] == "task.updated"
        proxy.freeze()  # until another task has the name
        proxy.cut()
        assert (await api_harness.alice.delete("/tasks/me/reused")).status_code == 202
        second = await api_harness.create(name="reused", display_name="The second")
        proxy.thaw()
        stdout, _ = await asyncio.wait_for(process.communicate(), 20)
    finally:
        await proxy.stop()
    shown = [(each["event"], each["data"]["data"]["task"]["id"]) for each in map(json.loads, stdout.splitlines())]
    assert (process.returncode, shown) == (0, [("task.deleted", first["id"])])
    assert second["id"] != first["id"]


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


async def _start_watch(api_harness: ApiHarness, *words: str, url: str = "") -> asyncio.subprocess.Process:
    return await _start(api_harness, "watch", *words, url=url)


async def _start(
    api_harness: ApiHarness, *words: str, stdout: int = asyncio.subprocess.PIPE, url: str = ""
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "taskherd",
        "task",
        *words,
        env={**os.environ, **Shell(api_harness).env, "TASKHERD_URL": url or api_harness.base},
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )
