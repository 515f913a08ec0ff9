"""An AgentAPI for the tests, with the quirks of the real one: `python agentapi.py PORT`.

From the published interface (github.com/coder/agentapi, openapi.json): while a message is posted, `/status` and
`/messages` hang; a message is echoed by the events before the post is answered; a screen is stable for a while between
two steps of the same turn; what comes while it works is refused with 500 and problem+json.

What it does follows from the message: `work` works in two steps with a pause between them; `slow` answers the post only
after the turn, as the transport `acp` does; `error` says an agent_error; `cut` breaks all streams; `die` exits with 7.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

PAUSE = 0.4
"""Seconds of stability in the middle of a turn."""


class AgentApi:
    """The state of one agent, and everybody who listens."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.status = "running"
        self.listeners: list[asyncio.StreamWriter] = []
        self.posting = asyncio.Lock()

    async def tell(self, name: str, said: dict[str, Any]) -> None:
        """Tell an event to everybody."""
        for writer in list(self.listeners):
            try:
                writer.write(event(name, said))
                await writer.drain()
            except OSError:
                self.listeners.remove(writer)

    async def turn_to(self, status: str) -> None:
        """Change the status."""
        self.status = status
        await self.tell("status_change", {"status": status, "agent_type": "custom"})

    async def say(self, role: str, text: str, number: int | None = None) -> int:
        """Add a message, or change one."""
        if number is None:
            number = len(self.messages)
            self.messages.append({})
        message = {"id": number, "role": role, "message": text, "time": datetime.now(UTC).isoformat()}
        self.messages[number] = message
        await self.tell("message_update", message)
        return number

    async def work(self, text: str) -> None:
        """One turn."""
        number = await self.say("agent", "Thinking")
        if text == "die":
            os._exit(7)
        if text == "error":
            await self.tell(
                "agent_error", {"message": "quota exceeded", "level": "error", "time": datetime.now(UTC).isoformat()}
            )
        if text == "cut":
            for writer in self.listeners:
                writer.transport.abort()
            self.listeners.clear()
        for step in range(20):
            await self.say("agent", f"Thinking {'.' * step}", number)
            await asyncio.sleep(0.01)
        if text == "work":
            await self.turn_to("stable")
            await asyncio.sleep(PAUSE)
            await self.turn_to("running")
            await asyncio.sleep(PAUSE)
        await self.say("agent", f"Did: {text}", number)
        await self.turn_to("stable")

    async def post(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Take a message."""
        text = body["content"]
        if text != text.strip():
            return problem("message must be trimmed of leading and trailing whitespace")
        if self.status != "stable":
            return problem("message can only be sent when the agent is waiting for user input")
        async with self.posting:
            await self.turn_to("running")
            await self.say("user", text)
            turn = asyncio.create_task(self.work(text))
            await (turn if text == "slow" else asyncio.sleep(0.2))
        return 200, {"ok": True}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.splitlines())}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if path == "/events":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            for message in self.messages:
                writer.write(event("message_update", message))
            writer.write(event("status_change", {"status": self.status, "agent_type": "custom"}))
            self.listeners.append(writer)
            return
        if (method, path) == ("POST", "/message"):
            code, said = await self.post(json.loads(body))
        else:
            async with self.posting:  # the quirk: these wait for the post
                code, said = 200, {"status": self.status, "agent_type": "custom", "transport": "pty"}
        answer = json.dumps(said).encode()
        kind = "application/json" if code == 200 else "application/problem+json"
        lines = (f"HTTP/1.1 {code} X", f"Content-Type: {kind}", f"Content-Length: {len(answer)}", "Connection: close")
        writer.write("\r\n".join((*lines, "", "")).encode() + answer)
        await writer.drain()
        writer.close()


def problem(detail: str) -> tuple[int, dict[str, Any]]:
    """A refusal as huma writes it."""
    return 500, {"title": "Internal Server Error", "status": 500, "detail": f"failed to send message: {detail}"}


def event(name: str, said: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(said)}\n\n".encode()


async def main(port: int) -> None:
    """Serve, and be ready after a moment."""
    agent = AgentApi()
    server = await asyncio.start_server(agent.serve, "127.0.0.1", port)
    await asyncio.sleep(0.3)
    await agent.turn_to("stable")
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
