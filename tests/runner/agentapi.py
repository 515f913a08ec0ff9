"""An AgentAPI server for the tests that behaves like the real one: ``python agentapi.py PORT``.

See github.com/coder/agentapi, openapi.json. While a message is being posted, ``/status`` and ``/messages`` block. The
event stream echoes a message before the post is answered. The screen may be stable for a while between two steps of one
turn. Messages that arrive during a turn are rejected with 500 and problem+json.

The message selects the behaviour: ``work`` takes two steps with a pause between them, ``slow`` answers the post only
after the turn, as the transport ``acp`` does, ``error`` sends an agent_error, ``cut`` breaks all streams, and ``die``
exits with status 7.
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
    """The state of one agent and its open event streams."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.status = "running"
        self.streams: list[asyncio.StreamWriter] = []
        self.posting = asyncio.Lock()

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
        self.status = status
        await self.send_event("status_change", {"status": status, "agent_type": "custom"})

    async def set_message(self, role: str, text: str, number: int | None = None) -> int:
        """Add a message, or change the one with that number; return its number."""
        if number is None:
            number = len(self.messages)
            self.messages.append({})
        message = {"id": number, "role": role, "message": text, "time": datetime.now(UTC).isoformat()}
        self.messages[number] = message
        await self.send_event("message_update", message)
        return number

    async def work(self, text: str) -> None:
        """Run one turn."""
        number = await self.set_message("agent", "Thinking")
        if text == "die":
            os._exit(7)
        if text == "error":
            await self.send_event(
                "agent_error", {"message": "quota exceeded", "level": "error", "time": datetime.now(UTC).isoformat()}
            )
        if text == "cut":
            for writer in self.streams:
                writer.transport.abort()
            self.streams.clear()
        for step in range(20):
            await self.set_message("agent", f"Thinking {'.' * step}", number)
            await asyncio.sleep(0.01)
        if text == "work":
            await self.set_status("stable")
            await asyncio.sleep(PAUSE)
            await self.set_status("running")
            await asyncio.sleep(PAUSE)
        await self.set_message("agent", f"Did: {text}", number)
        await self.set_status("stable")

    async def post(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Handle a posted message and return status and body of the response."""
        text = body["content"]
        if text != text.strip():
            return problem("message must be trimmed of leading and trailing whitespace")
        if self.status != "stable":
            return problem("message can only be sent when the agent is waiting for user input")
        async with self.posting:
            await self.set_status("running")
            await self.set_message("user", text)
            turn = asyncio.create_task(self.work(text))
            await (turn if text == "slow" else asyncio.sleep(0.2))
        return 200, {"ok": True}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.splitlines())}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if path == "/events":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            for message in self.messages:
                writer.write(event("message_update", message))
            writer.write(event("status_change", {"status": self.status, "agent_type": "custom"}))
            self.streams.append(writer)
            return
        if (method, path) == ("POST", "/message"):
            code, fields = await self.post(json.loads(body))
        else:
            async with self.posting:  # as in the real one, these wait for the post
                code, fields = 200, {"status": self.status, "agent_type": "custom", "transport": "pty"}
        response = json.dumps(fields).encode()
        kind = "application/json" if code == 200 else "application/problem+json"
        lines = (f"HTTP/1.1 {code} X", f"Content-Type: {kind}", f"Content-Length: {len(response)}", "Connection: close")
        writer.write("\r\n".join((*lines, "", "")).encode() + response)
        await writer.drain()
        writer.close()


def problem(detail: str) -> tuple[int, dict[str, Any]]:
    """Return a rejection in the form of huma, AgentAPI's HTTP framework."""
    return 500, {"title": "Internal Server Error", "status": 500, "detail": f"failed to send message: {detail}"}


def event(name: str, fields: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode()


async def main(port: int) -> None:
    """Serve, and become stable after a moment."""
    agent = AgentApi()
    server = await asyncio.start_server(agent.serve, "127.0.0.1", port)
    await asyncio.sleep(0.3)
    await agent.set_status("stable")
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
