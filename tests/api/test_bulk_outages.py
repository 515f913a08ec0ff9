"""``taskherd task … --query`` whose requests are lost, late or interrupted: each task is changed at most once."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from typing import TypeAlias
from urllib.parse import urlsplit

import pytest

from taskherd.backoff import Backoff
from taskherd.cli import bulk as commands
from taskherd.client import bulk, outages
from tests.api.conftest import StartApi
from tests.api.test_command_line import Shell, quiet
from tests.api.test_gateway_errors import gateway
from tests.harness.api import TIMEOUT, ApiHarness

__all__ = ["quiet"]

Forward: TypeAlias = Callable[[], Awaitable[bytes]]
"""Passes a request on, and returns the API's answer."""
SEND = ("send", "--query", "owner:me", "And now?", "--yes")
DELETE = ("delete", "--query", "owner:me", "--yes")
COUNTS = "SELECT succeeded + refused FROM task_actions WHERE canceled_at IS NOT NULL AND finished_at IS NOT NULL"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat requests soon."""
    monkeypatch.setattr(outages, "BACKOFF", Backoff(first=0.01, maximum=0.05, jitter=0))
    monkeypatch.setattr(bulk, "_RETRY", Backoff(first=0.01, maximum=0.05, jitter=0))
    monkeypatch.setattr(bulk, "_INTERVAL", 0.01)


@asynccontextmanager
async def proxy(base: str, *starts: Callable[[Forward], Awaitable[bytes]]) -> AsyncIterator[str]:
    """Yield the URL of a proxy that has the first starts of actions answered by ``starts``; it passes others on."""
    target, left, serving = urlsplit(base), list(starts), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            content = head + (await reader.readexactly(int(length[1])) if length else b"")

            async def forward() -> bytes:
                from_api, to_api = await asyncio.open_connection(target.hostname, target.port)
                with closing(to_api):
                    to_api.write(content)
                    return await from_api.read()

            is_start = head.startswith(b"POST /api/v2/task-actions ")
            answer = await (left.pop(0)(forward) if is_start and left else forward())
            with suppress(OSError):
                writer.write(answer)
                await writer.drain()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def lose(forward: Forward) -> bytes:
    """Close the connection once the API has answered."""
    await forward()
    return b""


async def sign_out(_: Forward) -> bytes:
    """Answer as the API does once the token is revoked."""
    return b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}"


class Held:
    """A start that is held back until it is released; ``answer`` is then that of the API."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.released = asyncio.Event()
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def __call__(self, forward: Forward) -> bytes:
        """Hold the request back."""
        self.arrived.set()
        await self.released.wait()
        self.answer.set_result(await forward())
        return b""


async def start(api_harness: ApiHarness, url: str, *words: str) -> asyncio.subprocess.Process:
    """Start ``taskherd task``."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "taskherd", "task", *words),
        env={**os.environ, **Shell(api_harness).env, "TASKHERD_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process) -> str:
    """Wait for the end of a command that was interrupted, which prints no result; return its stderr."""
    stdout, stderr = await asyncio.wait_for(process.communicate(), TIMEOUT)
    assert (process.returncode, stdout) == (130, b""), stderr
    assert b"Traceback" not in stderr
    return stderr.decode()


def key_of(stderr: str) -> str:
    """Return the key that a command names with which to repeat it."""
    key = re.search(r"repeat the command with --idempotency-key (\S+):", stderr)
    assert key is not None, stderr
    return key[1]


async def count(api_harness: ApiHarness, what: str) -> int:
    """Return a count of rows."""
    found: int = await api_harness.worker.database.fetchval(f"SELECT count(*) FROM {what}")
    return found


async def two_agents(api_harness: ApiHarness) -> None:
    """Make two tasks whose agents take inputs."""
    for number in range(2):
        await api_harness.active(name=f"busy{number}")


async def assert_sent_once(api_harness: ApiHarness) -> None:
    """Both agents have got the input once, from one action."""
    assert await count(api_harness, "task_actions") == 1
    sent = await api_harness.worker.database.fetch("SELECT count(*) FROM inputs GROUP BY task_id")
    assert [row["count"] for row in sent] == [1, 1]


async def test_an_action_whose_start_got_no_answer_is_started_once(api_harness: ApiHarness) -> None:
    """The command repeats the start with its key, follows the one action, and says on stderr what it does."""
    await two_agents(api_harness)
    async with proxy(api_harness.base, lose, lose) as url:
        result = await Shell(api_harness).run(*SEND, "-o", "json", TASKHERD_URL=url)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed["action"]["succeeded"], printed["refused"]) == (2, [])
    assert result.stderr.count("; trying again\n") == 2
    await assert_sent_once(api_harness)


async def test_a_command_without_any_answer_can_be_repeated(api_harness: ApiHarness) -> None:
    """When no repeat was answered either, the key is printed with which the command starts nothing twice."""
    await two_agents(api_harness)
    shell = Shell(api_harness)
    async with proxy(api_harness.base, *[lose] * (outages.MAX_FAILURES + 1)) as url:
        code, message = await shell.code(*SEND, TASKHERD_URL=url)
    assert (code, "cannot reach" in message) == (1, True)
    result = await shell.run(*SEND, "--idempotency-key", key_of(message))
    assert (result.exit_code, result.stdout) == (0, "Sent to 2 of 2 tasks.\n")
    await assert_sent_once(api_harness)


async def test_the_key_is_printed_only_if_something_may_have_been_started(api_harness: ApiHarness) -> None:
    """A refusal of the first request says that nothing was; one after a lost answer does not."""
    await two_agents(api_harness)
    shell = Shell(api_harness)
    async with proxy(api_harness.base, lose, sign_out) as url:
        code, message = await shell.code(*SEND, "--idempotency-key", "monday", TASKHERD_URL=url)
    assert (code, key_of(message)) == (4, "monday")
    async with proxy(api_harness.base, sign_out) as url:
        code, message = await shell.code(*SEND, TASKHERD_URL=url)
    assert (code, "--idempotency-key" in message) == (4, False)
    assert (await shell.run(*SEND, "--idempotency-key", "monday")).exit_code == 0
    await assert_sent_once(api_harness)


@pytest.mark.parametrize(
    ("request_line", "failures"), [(b"GET /api/v2/task-actions/", bulk.MAX_FAILURES + 1), (b"/results?", 1)]
)
async def test_an_action_that_cannot_be_followed_is_named(
    start_api: StartApi, request_line: bytes, failures: int
) -> None:
    """With how to look at it, cancel it and follow it; so is one whose results cannot be read."""
    async with start_api(api_action_rate=1) as api_harness:
        shell = Shell(api_harness)
        for number in range(3):
            await api_harness.create(name=f"young{number}")
        answers = [(request_line, b"502 Bad Gateway")] * failures
        async with gateway(api_harness.base, answers) as url:
            code, message = await shell.code(*DELETE, TASKHERD_URL=url)
        path = f"/api/v2/task-actions/{await api_harness.worker.database.fetchval('SELECT id FROM task_actions')}"
        assert (code, answers) == (1, [])
        assert f"GET {path} shows it, POST {path}/cancel cancels it\n" in message
        result = await shell.run(*DELETE, "--idempotency-key", key_of(message))
        assert (result.exit_code, result.stdout) == (0, "Deleted 3 of 3 tasks.\n")
        assert await count(api_harness, "task_actions") == 1


async def test_ctrl_c_cancels_an_action_whose_start_was_not_answered(start_api: StartApi) -> None:
    """The action is found by its key and canceled; the counts printed are those of its end."""
    async with start_api(api_action_rate=1) as api_harness:
        for number in range(30):
            await api_harness.create(name=f"young{number}")
        answered = asyncio.Event()

        async def answer_too_late(forward: Forward) -> bytes:
            await forward()
            answered.set()
            await asyncio.Event().wait()
            return b""

        async with proxy(api_harness.base, answer_too_late) as url:
            process = await start(api_harness, url, *DELETE, "-o", "json")
            await asyncio.wait_for(answered.wait(), TIMEOUT)
            process.send_signal(signal.SIGINT)
            stderr = await end(process)
        done = await api_harness.worker.database.fetchval(COUNTS)
        assert done < 30
        assert f"Canceled after {done} of 30 tasks.\n" in stderr
        assert (await api_harness.alice.get("/tasks")).json()["count"] == 30 - done
        assert await count(api_harness, "task_actions") == 1


async def test_ctrl_c_starts_nothing_that_was_not_started(api_harness: ApiHarness) -> None:
    """Not even when the request arrives after all: its key is that of an action without tasks."""
    await two_agents(api_harness)
    held = Held()
    async with proxy(api_harness.base, held) as url:
        process = await start(api_harness, url, *DELETE)
        await asyncio.wait_for(held.arrived.wait(), TIMEOUT)
        process.send_signal(signal.SIGINT)
        assert "Canceled before anything was changed; its idempotency key starts nothing any more.\n" in await end(
            process
        )
        held.released.set()
        late = await asyncio.wait_for(held.answer, TIMEOUT)
    assert json.loads(late.partition(b"\r\n\r\n")[2])["total"] == 0
    assert (await api_harness.alice.get("/tasks")).json()["count"] == 2


async def test_a_second_ctrl_c_leaves_at_once(api_harness: ApiHarness) -> None:
    """With the key that tells whether something was started."""
    await two_agents(api_harness)
    first, second = Held(), Held()
    async with proxy(api_harness.base, first, second) as url:
        process = await start(api_harness, url, *SEND, "--idempotency-key", "tuesday")
        for held in (first, second):
            await asyncio.wait_for(held.arrived.wait(), TIMEOUT)
            process.send_signal(signal.SIGINT)
        stderr = await end(process)
    assert ("Canceling; Ctrl-C again leaves at once." in stderr, key_of(stderr)) == (True, "tuesday")
    assert await count(api_harness, "task_actions") == 0


async def test_ctrl_c_waits_for_the_step_in_progress(start_api: StartApi) -> None:
    """What it changes is counted, although it had no result yet when the action was canceled."""
    async with start_api(api_action_rate=1) as api_harness:
        for number in range(3):
            await api_harness.create(name=f"young{number}")
        database = api_harness.worker.database
        transaction = await api_harness.worker.block_writes("tasks")
        process = await start(api_harness, api_harness.base, *DELETE)
        await api_harness.worker.until_row("SELECT count(*) FROM task_actions WHERE started_at IS NOT NULL", is_=1)
        process.send_signal(signal.SIGINT)
        await api_harness.worker.until_row("SELECT count(*) FROM task_actions WHERE canceled_at IS NOT NULL", is_=1)
        assert await database.fetchval("SELECT succeeded FROM task_actions") == 0
        await transaction.rollback()
        assert "Canceled after 1 of 3 tasks.\n" in await end(process)
        assert await database.fetchval(COUNTS) == 1


async def test_an_action_whose_cancel_takes_too_long_is_named(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C does not wait for its end for ever, and says how to look at it."""
    await api_harness.create(name="young")
    loop = asyncio.get_running_loop()

    def interrupt(*_: object) -> None:
        started = api_harness.worker.until_row("SELECT started_at IS NOT NULL FROM task_actions")
        asyncio.run_coroutine_threadsafe(started, loop).result(timeout=TIMEOUT)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_follow", interrupt)
    monkeypatch.setattr(commands, "CANCEL_SECONDS", 0.0)
    transaction = await api_harness.worker.block_writes("tasks")
    code, message = await Shell(api_harness).code(*DELETE, "--idempotency-key", "friday")
    await transaction.rollback()
    action = await api_harness.worker.database.fetchrow("SELECT id, canceled_at FROM task_actions")
    assert (code, key_of(message), f"its action is {action['id']}: GET " in message) == (130, "friday", True)
    assert action["canceled_at"] is not None


async def test_a_key_that_no_header_can_have_is_refused(api_harness: ApiHarness) -> None:
    """It is named, and nothing is sent."""
    for words in (("create", "Go"), ("send", "busy", "Go"), SEND, DELETE):
        code, message = await Shell(api_harness).code(*words, "--idempotency-key", "montag\nfr\u00fch")
        assert (code, "expected printable ASCII characters" in message) == (2, True), words
