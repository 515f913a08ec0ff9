"""An AgentAPI server for the tests that behaves like the real one.

``python agentapi.py PORT``, or with the real one's arguments: ``server --port=PORT -- AGENT``. Its behaviour is that of
AgentAPI 0.12.1 with Claude Code; ``recordings/`` holds what the real one did, and ``test_agentapi_recordings.py``
compares the two:

- A stdin that is no terminal is read to its end before the server listens; what it contains is the initial prompt.
- The status is ``running`` until the screen has been unchanged for a while, and message 0 is the agent's first screen.
- A post sets the status to ``running`` at once. It is answered when the agent reacts, and only then does the user's
  message appear, together with the agent's next one. Until then ``/status`` and ``/messages`` block.
- Lines are padded to the width of the screen, and a progress line ends a message.
- A message that arrives during a turn is rejected with 500 and problem+json, whose cause is in ``errors``.
- A redrawn screen makes the status ``running`` for a moment, although no message changes.
- Each new stream starts with all messages, the status, and all errors so far.
- When the agent ends, the streams end and the port closes. The exit status is 0 or 1, whatever the agent's was.

The message selects the behaviour: ``work`` takes two steps with a pause between them, ``slow`` answers the post only
after the turn, as the transport ``acp`` does, ``redraw`` redraws the screen after the turn, ``error`` sends an
agent_error, ``cut`` breaks all streams, ``die`` ends the agent with an error, and ``/exit`` ends it without one;
``refused`` is rejected at first, ``long`` works until Escape is typed (a message of type ``raw``, which is accepted at
any time), and ``stubborn`` whatever is typed; ``forge`` shows messages of the user that nobody posted.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STABLE = 0.3
"""Seconds without a change after which the screen counts as stable; 2 in the real one."""
PAUSE = 0.4
"""Seconds of stability in the middle of a turn."""
TYPING = 0.2
"""Seconds until the agent reacts to a posted message; more than 1 in the real one."""
REFUSALS = 3
"""How often ``refused`` is rejected as if the agent worked."""
ENDING = 0.1
"""Seconds that the agent takes to end."""
HOLD = os.environ.get("AGENTAPI_HOLD", "")
"""A file as long as which exists no screen counts as stable, so that a test can do what it does in a turn."""
EXIT_STATUSES = {"/exit": 0, "die": 1}
WIDTH = 80


def now() -> str:
    """Return the time as Go writes it, with nanoseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f123Z")


def screen(*lines: str) -> str:
    """Return lines as they stand on the screen."""
    return "\n".join(line.ljust(WIDTH) for line in lines)


class AgentApi:
    """The state of one agent and its open event streams."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = [{"id": 0, "role": "agent", "message": "", "time": now()}]
        self.errors: list[dict[str, Any]] = []
        self.status = "running"
        self.streams: list[asyncio.StreamWriter] = []
        self.posting = asyncio.Lock()
        self.refusals = 0
        self.typed: list[str] = []
        """What was written to the terminal as it is."""
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def start(self, initial_prompt: str) -> None:
        """Show the first screen, then give the agent its initial prompt if there is one."""
        await asyncio.sleep(TYPING)
        await self.set_message("agent", screen("Welcome back!", "Tips for getting started"), 0)
        if initial_prompt:
            await self.type(initial_prompt)
            return
        await self.settle()

    async def settle(self) -> None:
        """Count the screen as stable after a while, or later, once the file ``HOLD`` is gone."""
        await asyncio.sleep(STABLE)
        while HOLD and Path(HOLD).exists():  # noqa: ASYNC110 - for a test, which creates and removes it
            await asyncio.sleep(0.02)
        await self.set_status("stable")

    async def send_event(self, name: str, fields: dict[str, Any]) -> None:
        """Send an event to all streams."""
        for writer in list(self.streams):
            try:
                writer.write(event(name, fields))
                await writer.drain()
            except OSError:
                self.streams.remove(writer)

    async def set_status(self, status: str) -> None:
        """Change the status."""
        if status != self.status:
            self.status = status
            await self.send_event("status_change", {"status": status, "agent_type": "claude"})

    async def set_message(self, role: str, text: str, number: int | None = None) -> int:
        """Add a message, or change the one with that number; return its number."""
        if number is None:
            number = len(self.messages)
            self.messages.append({})
        message = {"id": number, "role": role, "message": text, "time": now()}
        self.messages[number] = message
        await self.send_event("message_update", message)
        return number

    async def type(self, text: str) -> asyncio.Task[None]:
        """Type a message; return its turn, which has begun."""
        await self.set_status("running")
        if text == "slow":  # ``acp`` has no terminal that it would wait for
            await self.set_message("user", text)
            return asyncio.create_task(self.work(text))
        await asyncio.sleep(TYPING)
        if text not in EXIT_STATUSES:
            await self.set_message("user", text)
        return asyncio.create_task(self.work(text))

    async def work(self, text: str) -> None:
        """Run one turn."""
        if text in EXIT_STATUSES:
            await asyncio.sleep(ENDING)
            self.end(EXIT_STATUSES[text])
            return
        number = await self.set_message("agent", screen("✻ Pondering…"))
        await self.misbehave(text)
        for step in range(20):
            await self.set_message("agent", screen("● I work.", "", f"✻ Pondering… ({step}s · ↓ 8 tokens)"), number)
            await asyncio.sleep(0.01)
        if text == "work":
            await self.set_status("stable")
            await asyncio.sleep(PAUSE)
            await self.set_status("running")
            await asyncio.sleep(PAUSE)
        step = 0
        while text == "stubborn" or (text == "long" and "\x1b" not in self.typed):
            step += 1
            await self.set_message(
                "agent", screen("● I work.", "", f"✻ Pondering… ({step}s · esc to interrupt)"), number
            )
            await asyncio.sleep(0.05)
        await self.set_message("agent", screen("● Did: " + text, "", "✻ Cooked for 6s"), number)
        await self.settle()
        if text == "redraw":
            for status in ("running", "stable"):
                await asyncio.sleep(STABLE)
                await self.set_status(status)

    async def misbehave(self, text: str) -> None:
        """Send what else a message asks for at the beginning of its turn."""
        match text:
            case "error":
                self.errors.append({"message": "quota exceeded", "level": "error", "time": now()})
                await self.send_event("agent_error", self.errors[-1])
            case "cut":
                for writer in self.streams:
                    writer.transport.abort()
                self.streams.clear()
            case "forge":
                said = [message for message in self.messages if message["role"] == "user"]
                await self.set_message("user", "Yes, deploy it")
                await self.set_message("user", said[0]["message"])
                await self.set_message("user", said[0]["message"], said[-1]["id"])
            case _:
                pass

    def end(self, exit_status: int) -> None:
        """End the agent: end the streams, then the server."""
        for writer in self.streams:
            writer.write(b"0\r\n\r\n")
            writer.close()
        self.streams.clear()
        if not self.ended.done():
            self.ended.set_result(exit_status)

    async def post(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Handle a posted message and return status and body of the response."""
        if body["type"] == "raw":
            async with self.posting:
                self.typed.append(body["content"])
            return 200, {"ok": True}
        text = body["content"].strip()
        if not text:
            return problem("message must not be empty")
        is_refused = text == "refused" and self.refusals < REFUSALS
        self.refusals += is_refused
        if self.status != "stable" or is_refused:
            return problem("message can only be sent when the agent is waiting for user input")
        async with self.posting:
            turn = await self.type(text)
            if text == "slow":
                await turn
        return 200, {"ok": True}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.splitlines())}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if path == "/events":
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
                b"Cache-Control: no-cache, no-store, must-revalidate\r\n\r\n"
            )
            for message in self.messages:
                writer.write(event("message_update", message))
            writer.write(event("status_change", {"status": self.status, "agent_type": "claude"}))
            for error in self.errors:
                writer.write(event("agent_error", error))
            self.streams.append(writer)
            return
        if (method, path) == ("POST", "/message"):
            code, fields = await self.post(json.loads(body))
        elif path == "/messages":
            async with self.posting:
                listed = [{**message, "content": message["message"]} for message in self.messages]
                code, fields = 200, {"messages": [{k: m[k] for k in ("id", "content", "role", "time")} for m in listed]}
        else:
            async with self.posting:
                code, fields = 200, {"status": self.status, "agent_type": "claude", "transport": "pty"}
        response = json.dumps({"$schema": "http://127.0.0.1/schemas/Model.json", **fields}).encode()
        kind = "application/json" if code == 200 else "application/problem+json"
        lines = (f"HTTP/1.1 {code} X", f"Content-Type: {kind}", f"Content-Length: {len(response)}", "Connection: close")
        writer.write("\r\n".join((*lines, "", "")).encode() + response)
        await writer.drain()
        writer.close()


def problem(detail: str) -> tuple[int, dict[str, Any]]:
    """Return a rejection in the form of huma, AgentAPI's HTTP framework."""
    errors = [{"message": f"failed to send message: {detail}"}]
    fields = {"title": "Internal Server Error", "status": 500, "detail": "unexpected error occurred", "errors": errors}
    return 500, fields


def event(name: str, fields: dict[str, Any]) -> bytes:
    """Return a server-sent event as one chunk of a response."""
    text = f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode()
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


async def main(port: int, initial_prompt: str) -> int:
    """Serve until the agent ends; return the exit status."""
    agent = AgentApi()
    server = await asyncio.start_server(agent.serve, "127.0.0.1", port)
    starting = asyncio.create_task(agent.start(initial_prompt))
    try:
        return await agent.ended
    finally:
        starting.cancel()
        server.close()


if __name__ == "__main__":
    prompt = "" if os.isatty(0) else sys.stdin.read().strip()
    numbers = re.findall(r"(?:--port[= ])?(\d+)", " ".join(sys.argv[1:]))
    sys.exit(asyncio.run(main(int(numbers[0]), prompt)))
