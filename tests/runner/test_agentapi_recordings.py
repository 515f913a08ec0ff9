"""The emulator does what the real AgentAPI did, as recorded in ``recordings/``."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest

from taskherd import sse
from tests.harness.runner import eventually

SERVER = Path(__file__).parent / "agentapi.py"
RECORDING = Path(__file__).parent / "recordings" / "agentapi-0.12.1-claude-code-2.1.197.jsonl"
pytestmark = pytest.mark.timeout(60)

Event: TypeAlias = tuple[str, dict[str, Any]]
Shape: TypeAlias = tuple[str, ...]


def recorded(scenario: str) -> list[dict[str, Any]]:
    """Return the rows of one recorded scenario."""
    rows = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    return [row for row in rows if row["scenario"] == scenario]


def shapes(events: list[Event]) -> list[Shape]:
    """Return what matters of events: their order, fields and status, not their texts and how often a message changed.

    Message 0, the agent's first screen, changes while the agent starts, seen or not.
    """
    found: list[Shape] = []
    for name, fields in events:
        values = (str(fields[key]) for key in ("id", "role", "status", "level") if key in fields)
        shape = (name, ",".join(sorted(fields)), *values)
        if fields.get("id") == 0:
            continue
        if not found or found[-1] != shape:
            found.append(shape)
    return found


def recorded_shapes(scenario: str) -> list[Shape]:
    """Return the shapes of a scenario's events."""
    return shapes([(row["event"][0], row["event"][1]) for row in recorded(scenario) if "event" in row])


def recorded_answers(scenario: str) -> list[tuple[int, str, str]]:
    """Return the status, content type and body of each answer that was recorded."""
    return [answer_shape(*row["answer"][1:4]) for row in recorded(scenario) if "answer" in row]


def answer_shape(status: int, content_type: str, text: str) -> tuple[int, str, str]:
    """Return an answer without its schema's address."""
    body = json.loads(text)
    del body["$schema"]
    return status, content_type, json.dumps(body, sort_keys=True)


class Emulator:
    """A running emulator and the events of its first stream."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.events: list[Event] = []
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10)
        self.closed = False

    async def listen(self, events: list[Event]) -> None:
        """Collect the events of a stream until it ends; connect as soon as the server listens."""
        parser = sse.Parser()
        while True:
            try:
                async with self.client.stream("GET", "/events") as response:
                    async for chunk in response.aiter_raw():
                        events += [(event.type, json.loads(event.data)) for event in parser.feed(chunk)]
                    self.closed = True
                    return
            except httpx.ConnectError:
                await asyncio.sleep(0.02)

    async def post(self, text: str) -> tuple[int, str, str]:
        """Post a message and return the answer."""
        response = await self.client.post("/message", json={"content": text, "type": "user"})
        return answer_shape(response.status_code, response.headers["content-type"], response.text)

    async def until(self, *last: Shape | str) -> None:
        """Wait until the last events are of these types or shapes; a status stands for its change."""
        wanted = [status_shape(each) if isinstance(each, str) else each for each in last]
        await eventually(lambda: shapes(self.events)[-len(wanted) :] == wanted)


def status_shape(status: str) -> Shape:
    """Return the shape of a change of the status."""
    return ("status_change", "agent_type,status", status)


@asynccontextmanager
async def emulator(port: int, initial_prompt: str = "", hold: Path | str = "") -> AsyncIterator[Emulator]:
    """Run the emulator with a piped stdin, as the real one ran; no turn ends while the file ``hold`` exists."""
    arguments = (sys.executable, str(SERVER), "server", "--type=claude", f"--port={port}", "--", "claude")
    environment = {**os.environ, "AGENTAPI_HOLD": str(hold)}
    process = await asyncio.create_subprocess_exec(*arguments, stdin=asyncio.subprocess.PIPE, env=environment)
    running = Emulator(process, port)
    listening = asyncio.create_task(running.listen(running.events))
    try:
        _close_stdin(process, initial_prompt)
        yield running
    finally:
        listening.cancel()
        if process.returncode is None:
            process.kill()
        await process.wait()
        await asyncio.gather(listening, return_exceptions=True)
        await running.client.aclose()


def _close_stdin(process: asyncio.subprocess.Process, text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text.encode())
    process.stdin.close()


async def test_a_turn(unused_tcp_port: int, tmp_path: Path) -> None:
    """Statuses, messages and answers come in the recorded order, and rejections have the recorded texts."""
    hold = tmp_path / "hold"
    hold.touch()
    async with emulator(unused_tcp_port, hold=hold) as agent:
        await eventually(lambda: bool(agent.events))
        answers = [await agent.post("too early")]
        hold.unlink()
        await agent.until("stable")
        hold.touch()
        answers += [await agent.post(text) for text in ("hello", "busy?", "")]
        hold.unlink()
        await agent.until("stable")
        assert shapes(agent.events) == recorded_shapes("turn")
        assert answers == recorded_answers("turn")


async def test_the_initial_prompt_comes_from_stdin(unused_tcp_port: int) -> None:
    """It is read to its end first; later the screen is redrawn, which looks like work but changes no message."""
    async with emulator(unused_tcp_port, "redraw\n") as agent:
        await agent.until("stable", "running", "stable")
        assert shapes(agent.events) == recorded_shapes("initial_prompt")


async def test_the_agent_ends(unused_tcp_port: int) -> None:
    """The stream ends as it should, not with an error, and the exit status is 0 after ``/exit``."""
    async with emulator(unused_tcp_port) as agent:
        await agent.until("stable")
        before = len(shapes(agent.events))
        assert [await agent.post("/exit")] == recorded_answers("exit")
        assert await agent.process.wait() == 0
        await eventually(lambda: agent.closed)
        assert shapes(agent.events)[before:] == recorded_shapes("exit")
        assert [row["closed"] for row in recorded("exit") if "closed" in row] == ["end"]


async def test_the_agent_dies(unused_tcp_port: int) -> None:
    """The stream ends as it should, and AgentAPI's exit status is 1, whatever the agent's was."""
    async with emulator(unused_tcp_port) as agent:
        await agent.until("stable")
        await agent.post("die")
        assert await agent.process.wait() == 1
        await eventually(lambda: agent.closed)
        assert [row["closed"] for row in recorded("killed") if "closed" in row] == ["end"]


async def test_errors_are_sent_to_each_new_stream(unused_tcp_port: int) -> None:
    """A stream begins with the messages, the status and the errors until then, as recorded."""
    async with emulator(unused_tcp_port) as agent:
        await agent.until("stable")
        await agent.post("error")
        await agent.until("stable")
        replayed: list[Event] = []
        listening = asyncio.create_task(agent.listen(replayed))
        await eventually(lambda: any(name == "agent_error" for name, _ in replayed))
        listening.cancel()
        recorded_start = [shape[:2] for shape in recorded_shapes("error")[:2]]
        assert [shape[0] for shape in recorded_start] == ["status_change", "agent_error"]
        assert [shape[:2] for shape in shapes(replayed)[-2:]] == recorded_start
