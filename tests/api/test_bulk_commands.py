"""``taskherd task`` for many tasks: from a file, and for all that match a search."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from taskherd.cli import bulk as commands
from taskherd.client import bulk
from taskherd.client.http import Client
from tests.api.conftest import StartApi
from tests.api.test_command_line import Shell, quiet
from tests.harness.api import VERSION, ApiHarness
from tests.harness.worker import running_worker

__all__ = ["quiet"]

STYLE = re.compile(r"\x1b\[[\d;]*m")
"""What sets colors on a terminal."""
WIPED = "\x1b[1A\x1b[2K"
"""What wipes out the line above on a terminal."""


async def test_tasks_are_created_from_a_file(api_harness: ApiHarness, tmp_path: Path) -> None:
    """Each line is a prompt or a JSON object; the file may be repeated with its key, and blank lines do not count."""
    shell = Shell(api_harness)
    file = tmp_path / "prompts.txt"
    file.write_text('Fix the login\n\n{"input": "Write the docs", "name": "docs"}\n  Sweep the floor  \n')
    result = await shell.run("create", "--from", str(file), "--idempotency-key", "monday")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1] == "alice/docs"
    tasks = (await api_harness.alice.get("/tasks")).json()["tasks"]
    assert {task["initial_prompt"] for task in tasks} == {"Fix the login", "Write the docs", "Sweep the floor"}
    again = await shell.run(
        "create", "--from", "-", "--idempotency-key", "monday", "-o", "json", stdin=file.read_text()
    )
    assert again.exit_code == 0
    rows = [json.loads(line) for line in again.stdout.splitlines()]
    assert [row["status"] for row in rows] == [200, 200, 200]
    assert (await api_harness.alice.get("/tasks")).json()["count"] == 3


async def test_only_newlines_end_a_line_of_a_file(api_harness: ApiHarness, tmp_path: Path) -> None:
    """A prompt may contain what Unicode calls a line separator, as JSON does, or a form feed."""
    file = tmp_path / "separators.txt"
    file.write_text('{"input": "Sort the\u2028names"}\r\nPage one\fpage two\n', encoding="utf-8")
    result = await Shell(api_harness).run("create", "--from", str(file))
    assert result.exit_code == 0, result.output
    tasks = (await api_harness.alice.get("/tasks")).json()["tasks"]
    assert len(tasks) == 2
    assert "Sort the\u2028names" in {task["initial_prompt"] for task in tasks}


async def test_a_file_may_begin_with_a_byte_order_mark(api_harness: ApiHarness, tmp_path: Path) -> None:
    """As editors on Windows write it: it is no part of the first task, from a file and from stdin."""
    shell, file = Shell(api_harness), tmp_path / "marked.txt"
    for name, words in (("from-file", ("--from", str(file))), ("from-stdin", ("--from", "-"))):
        text = f'\ufeff{{"input": "Marked {name}", "name": "{name}"}}\n\ufeffNot at the beginning, {name}\n'
        file.write_text(text, encoding="utf-8")
        result = await shell.run("create", *words, stdin=text)
        assert result.exit_code == 0, result.output
    prompts = {task["initial_prompt"] for task in (await api_harness.alice.get("/tasks")).json()["tasks"]}
    assert {"Marked from-file", "Marked from-stdin"} <= prompts
    assert len(prompts) == 4


async def test_a_create_from_a_file_that_breaks_off_can_be_repeated(api_harness: ApiHarness, tmp_path: Path) -> None:
    """If a request fails as a whole, the key is printed with which a repeat creates nothing twice."""
    shell, file = Shell(api_harness), tmp_path / "long.txt"
    file.write_text(f"Count the stars\n{'x' * (5 * 1024 * 1024)}\n")
    result = await shell.run("create", "--from", str(file))
    assert result.exit_code != 0
    key = re.search(r"repeat the command with --idempotency-key (\S+):", result.stderr)
    assert key is not None, result.stderr
    await shell.run("create", "--from", str(file), "--idempotency-key", key[1])
    assert (await api_harness.alice.get("/tasks")).json()["count"] == 1


async def test_refused_creates_of_a_file_are_named(start_api: StartApi, tmp_path: Path) -> None:
    """The exit code is that of the first refusal; what a repeat can create is said, with its key."""
    async with start_api(api_create_rate=1, api_create_burst=3) as api_harness:
        shell = Shell(api_harness)
        file = tmp_path / "prompts.txt"
        file.write_text('{"input": "Twice", "name": "twice"}\n{"input": "Thrice", "name": "twice"}\nThird\nFourth\n')
        result = await shell.run("create", "--from", str(file), "--idempotency-key", "tuesday")
        assert result.exit_code == 6
        # The two are in flight together, so either may be the first.
        assert re.search(r'task [12]: Workspace "twice" already exists\.', result.stderr), result.stderr
        assert "task 4: You have created too many tasks." in result.stderr
        assert "2 of 4 tasks were not created." in result.stderr
        assert "repeat the command with --idempotency-key tuesday" in result.stderr
        for words, message in (
            (("create",), "give a prompt, or a file of prompts with --from"),
            (("create", "x", "--from", "-"), "give a prompt, or a file of prompts with --from"),
            (("create", "--from", str(file), "--name", "x"), "--name and --title are for one task"),
            (("create", "--from", str(tmp_path / "none")), "cannot read"),
            (("create", "--from", "-"), "0 tasks"),
        ):
            assert (await shell.code(*words))[0] == 2
            assert message in (await shell.code(*words))[1]
        broken = await shell.run("create", "--from", "-", stdin='Fine\n{"input": \n')
        assert (broken.exit_code, "line 2 is not JSON" in broken.stderr) == (2, True)


async def test_all_that_match_are_changed(api_harness: ApiHarness) -> None:
    """The tasks that match are changed after a confirmation; who could not is named, and the exit code says so."""
    shell = Shell(api_harness)
    for number in range(2):
        await api_harness.active(name=f"busy{number}")
    await api_harness.create(name="young")
    shown = await shell.run("pause", "--query", "owner:me", "--dry-run")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == [
        "3 tasks match.",
        "  alice/young  pending",
        "  alice/busy1  active",
        "  alice/busy0  active",
    ]
    code, message = await shell.code("pause", "--query", "owner:me")
    assert (code, "3 tasks match" in message, "add --yes" in message) == (2, True, True)
    result = await shell.run("send", "--query", "owner:me status:active", "And now?", "--yes")
    assert (result.exit_code, result.stdout) == (0, "Sent to 2 of 2 tasks.\n")
    result = await shell.run("pause", "--query", "owner:me", "--yes")
    assert (result.exit_code, result.stdout) == (6, "Paused 2 of 3 tasks.\n")
    assert "alice/young: A workspace build is already active." in result.stderr
    body = await shell.json("delete", "--query", "owner:me", "--yes")
    assert (body["action"]["succeeded"], body["refused"]) == (3, [])
    assert await shell.json("list") == []
    result = await shell.run("resume", "--query", "owner:me", "--yes")
    assert (result.exit_code, result.stdout) == (0, "Resumed 0 of 0 tasks.\n")


async def test_the_progress_is_drawn_on_a_terminal(start_api: StartApi) -> None:
    """A bar on stderr, which is a terminal, grows and is wiped out at the end; stdout has the result alone."""
    async with start_api(api_action_rate=1) as api_harness:
        for number in range(3):
            await api_harness.active(name=f"busy{number}")
        words = ("pause", "--query", "owner:me", "--yes")
        code, output, drawn = await asyncio.to_thread(run_on_terminal, words, Shell(api_harness).env)
        assert (code, output) == (0, "Paused 3 of 3 tasks.\n"), drawn
        plain = STYLE.sub("", drawn)
        bars = [(int(count), bar) for bar, count in re.findall(r"tasks ([━╺╸]+) (\d)/3 [\d:-]+", plain)]
        assert [bars[0], bars[-1]] == [(0, "━" * 40), (3, "━" * 40)], drawn
        assert {(1, "━" * 13 + "╺" + "━" * 26), (2, "━" * 26 + "╸" + "━" * 13)} & set(bars), drawn
        assert [count for count, _ in bars] == sorted(count for count, _ in bars)
        assert plain.endswith(WIPED), drawn


def run_on_terminal(words: Sequence[str], env: Mapping[str, str]) -> tuple[int, str, str]:
    """Run ``taskherd task`` with a terminal of 100 columns as stderr; return its exit code, stdout and stderr."""
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    variables = {**os.environ, **env, "TERM": "xterm-256color", "COLUMNS": "100"}
    command = (sys.executable, "-m", "taskherd", "task", *words)
    with subprocess.Popen(
        command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        os.close(theirs)
        drawn = b""
        with suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as file:  # EIO: no process has it open any more
            while read := file.read(65_536):
                drawn += read
        output, _ = process.communicate(timeout=60)
    return process.returncode, output, drawn.decode()


async def test_a_confirmation_names_the_number_of_tasks(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a yes nothing is changed."""
    monkeypatch.setattr(commands, "is_interactive", lambda: True)
    shell = Shell(api_harness)
    await api_harness.create(name="kept")
    result = await shell.run("delete", "--query", "owner:me", stdin="n\n")
    assert (result.exit_code, "Delete 1 task? [y/N]" in result.stderr) == (2, True)
    assert "nothing was changed" in result.stderr
    assert len(await shell.json("list")) == 1
    result = await shell.run("delete", "--query", "owner:me", stdin="y\n")
    assert (result.exit_code, "Deleted 1 of 1 tasks.\n" in result.stdout) == (0, True)


async def test_an_end_of_input_confirms_nothing(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-D at the question is a no: the exit code is not that of a server that failed."""
    monkeypatch.setattr(commands, "is_interactive", lambda: True)
    shell = Shell(api_harness)
    await api_harness.create(name="kept")
    result = await shell.run("delete", "--query", "owner:me", stdin="")
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        ["Delete 1 task? [y/N]:", "taskherd: nothing was changed", "  confirm with y, or add --yes"],
    )
    assert len(await shell.json("list")) == 1


async def test_ctrl_c_at_a_question_exits_with_130(api_harness: ApiHarness) -> None:
    """As everywhere else; nothing is changed."""
    shell = Shell(api_harness)
    await api_harness.create(name="kept")
    code, printed = await asyncio.to_thread(interrupt_on_terminal, ("delete", "--query", "owner:me"), shell.env)
    assert (code, "Delete 1 task? [y/N]" in printed, "Aborted" in printed) == (130, True, False), printed
    assert len(await shell.json("list")) == 1


def interrupt_on_terminal(words: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
    """Run ``taskherd task`` on a terminal, and interrupt its question; return the exit code and what it printed.

    The signal comes when the process waits for the answer. Python's ``input`` does not see one that comes between
    the prompt and the beginning of its read until a key is pressed. A process that has not ended after 45 seconds
    loses its terminal, which ends its question.
    """
    deadline = time.monotonic() + 45
    terminal, theirs = pty.openpty()
    command = (sys.executable, "-m", "taskherd", "task", *words)
    with subprocess.Popen(
        command, env={**os.environ, **env}, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        printed, interrupted = b"", False
        with suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as file:  # EIO: no process has it open any more
            while time.monotonic() < deadline:
                if select.select([file], [], [], 0.05)[0]:
                    printed += file.read(65_536)
                elif printed.endswith(b"[y/N]: ") and not interrupted and is_asleep(process.pid):
                    process.send_signal(signal.SIGINT)
                    interrupted = True
        process.wait(timeout=60)
    return process.returncode, printed.decode()


def is_asleep(pid: int) -> bool:
    """Return whether the process's main thread waits for something (Linux's state S)."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return stat.rpartition(")")[2].split()[0] == "S"


async def test_only_confirmed_tasks_are_changed(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """What matches only since the question stays, also if nothing matched then; so does what matches no more."""
    monkeypatch.setattr(commands, "is_interactive", lambda: True)
    loop, preview = asyncio.get_running_loop(), bulk.preview_action
    names = ["confirmed", "changed"]
    for name in names:
        await api_harness.active(name=name)

    async def meanwhile() -> None:
        names.append(f"later{len(names)}")
        await api_harness.active(name=names[-1])
        await shell.run("pause", "changed")

    def preview_then_change(*arguments: str) -> Mapping[str, object]:
        shown = preview(Client(api_harness.base, api_harness.tokens["alice"]), *arguments[1:])
        asyncio.run_coroutine_threadsafe(meanwhile(), loop).result(timeout=60)
        return shown

    shell = Shell(api_harness)
    monkeypatch.setattr(bulk, "preview_action", preview_then_change)
    result = await shell.run("delete", "--query", "owner:me status:active", stdin="y\n")
    assert "Delete 2 tasks? [y/N]" in result.stderr
    assert (result.exit_code, "Deleted 1 of 1 tasks.\n" in result.stdout) == (0, True)
    result = await shell.run("delete", "--query", "name:later3")
    assert (result.exit_code, result.stdout) == (0, "Deleted 0 of 0 tasks.\n")
    assert {task["name"] for task in await shell.json("list")} == {"changed", "later2", "later3"}


async def test_tasks_are_named_or_searched(api_harness: ApiHarness) -> None:
    """A command takes tasks or a search; options of the search are refused without one, and a bad search says why."""
    shell = Shell(api_harness)
    for words, message in (
        (("pause",), "name the tasks, or give a search with --query"),
        (("pause", "x", "--query", "owner:me"), "name the tasks, or give a search with --query"),
        (("send", "x"), "give the task and the text to send"),
        (("send", "x", "text", "--query", "owner:me"), "name the tasks, or give a search with --query"),
        (("delete", "x", "--yes"), "--dry-run, --yes and --idempotency-key are for --query"),
    ):
        assert await shell.code(*words) == (2, f"taskherd: {message}\n")
    code, message = await shell.code("pause", "--query", "color:red", "--yes")
    assert (code, "color" in message) == (6, True)


async def test_what_was_not_confirmed_is_sent_again(start_api: StartApi) -> None:
    """The client repeats creates whose result is a 503, and each task is created once."""
    async with start_api(worker=False, api_command_timeout=2) as api_harness:
        client = Client(api_harness.base, api_harness.tokens["alice"])
        entries = [{"template_version_id": str(VERSION), "input": f"Repeated {number}"} for number in range(5)]
        naps: list[float] = []
        results = [dict(each) for each in await _in_thread(client, entries, naps)]
        assert [each["status"] for each in results] == [503] * 5
        assert naps == [2, 2]
        async with running_worker(api_harness.worker):
            results = [dict(each) for each in await _in_thread(client, entries, naps)]
            assert {each["status"] for each in results} <= {200, 201}
            assert await api_harness.worker.database.fetchval("SELECT count(*) FROM tasks") == 5


async def _in_thread(client: Client, entries: list[dict[str, str]], naps: list[float]) -> list[bulk.Result]:
    return await asyncio.to_thread(lambda: list(bulk.create_many(client, entries, "repeated", naps.append)))


def test_requests_are_split_by_size() -> None:
    """No request has more than 1,000 tasks or 3 MiB, unless one task alone is larger."""
    split = bulk.split_requests
    assert [len(chunk) for chunk in split([{"input": "x"}] * 2_001)] == [1_000, 1_000, 1]
    assert [len(chunk) for chunk in split([{"input": "x" * 1_000_000}] * 5)] == [3, 2]


async def test_an_action_that_ended_early_says_what_may_still_change(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks that are left, and those whose command was not confirmed; a server of an earlier version knows none."""
    shell, ended = Shell(api_harness), {"state": "canceled", "failure": None, "succeeded": 0, "pending": 2, "total": 3}
    monkeypatch.setattr(bulk, "action_results", lambda *_, **__: iter(()))
    for known, words in (({"unconfirmed": 1}, "2 tasks left and 1 not confirmed"), ({}, "2 tasks left")):
        monkeypatch.setattr(commands, "_follow", lambda *_, known=known: {**ended, **known})
        code, message = await shell.code("pause", "--query", "owner:me", "--yes")
        assert (code, f"the action ended with {words}: it was canceled" in message) == (1, True), message
