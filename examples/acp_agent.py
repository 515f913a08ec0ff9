"""An agent that speaks the Agent Client Protocol, version 1, in one file without any library: an example to read.

Run it as ``python -m examples.acp_agent``. It is an agent of kind ``acp``: its client, here taskherd's runner, writes
messages to its stdin and reads them from its stdout, each a JSON-RPC message on a line of its own:

1. ``initialize`` and ``session/new`` open a session.
2. ``session/prompt`` begins a turn. During the turn the agent tells what it does (``session/update``) and asks for
   permission (``session/request_permission``) or for an answer (``elicitation/create``). The turn is over when the
   agent answers ``session/prompt``.
3. ``session/cancel`` asks it to end its turn.

In place of a model it takes the prompt at its word: it asks whether it may run what is in backticks, and asks people
each sentence with a question mark.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import count
from typing import Any, Final

ALLOW: Final = "allow"
REJECT: Final = "reject"
OPTIONS: Final = (
    {"optionId": ALLOW, "name": "Allow once", "kind": "allow_once"},
    {"optionId": REJECT, "name": "Reject", "kind": "reject_once"},
)
"""What people can choose from when the agent asks for permission."""
SESSION: Final = "the-only-session"
METHOD_NOT_FOUND: Final = -32601
"""JSON-RPC's code for an unknown method."""
_STEP: Final = re.compile(r"`([^`]+)`|([A-Z][^`.?]*\?)")
"""A command in backticks, or a question."""


class AcpAgent:
    """An agent with one session, in which one turn at a time is in flight."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        """The requests to the client that wait for its response, by id."""
        self._turn: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Handle the client's messages until stdin ends."""
        while line := await asyncio.to_thread(sys.stdin.readline):
            self._handle(json.loads(line))

    def _handle(self, message: dict[str, Any]) -> None:
        match message:
            case {"method": "initialize", "id": request}:
                info = {"name": "example", "title": "Example agent", "version": "1"}
                self._respond(request, {"protocolVersion": 1, "agentCapabilities": {}, "agentInfo": info})
            case {"method": "session/new", "id": request}:
                self._respond(request, {"sessionId": SESSION})
            case {"method": "session/prompt", "id": request, "params": {"prompt": blocks}}:
                text = "\n".join(block["text"] for block in blocks if block["type"] == "text")
                self._turn = asyncio.create_task(self._carry_out(request, text))
            case {"method": "session/cancel"}:
                if self._turn is not None:
                    self._turn.cancel()
            case {"method": _, "id": request}:
                _write({"id": request, "error": {"code": METHOD_NOT_FOUND, "message": "Method not found"}})
            case {"id": number} if (waiting := self._asked.pop(number, None)) is not None and not waiting.done():
                waiting.set_result(message.get("result") or {})  # an error is no permission and no answer
            case _:
                pass  # a notification that this agent does not know

    async def _carry_out(self, request: int, text: str) -> None:
        """Carry out a turn: each step of the prompt, one after the other."""
        reason = "end_turn"
        try:
            for command, question in _STEP.findall(text):
                await (self._run(command) if command else self._ask(question))
        except asyncio.CancelledError:
            reason = "cancelled"
        self._respond(request, {"stopReason": reason})

    async def _run(self, command: str) -> None:
        """Ask for permission to run a command; run it if that is given, and say what became of it."""
        call = f"call-{next(self._numbers)}"
        about = {"toolCallId": call, "title": command, "kind": "execute", "rawInput": {"command": command}}
        self._tell("tool_call", **about, status="pending")
        permission = await self._request("session/request_permission", toolCall=about, options=OPTIONS)
        if permission.get("outcome", {}).get("optionId") != ALLOW:
            self._tell("tool_call_update", toolCallId=call, status="failed")
            self._say(f"I did not run `{command}`.")
            return
        self._tell("tool_call_update", toolCallId=call, status="in_progress")
        status, output = await _execute(command)
        content = [{"type": "content", "content": {"type": "text", "text": output}}]
        self._tell("tool_call_update", toolCallId=call, status="failed" if status else "completed", content=content)
        self._say(f"`{command}` ended with exit status {status}. {output}")

    async def _ask(self, question: str) -> None:
        """Ask a question with a form of one text field, and say what the answer was."""
        form = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
        response = await self._request("elicitation/create", mode="form", message=question, requestedSchema=form)
        answer = response.get("content", {}).get("answer")
        self._say("I was told nothing." if answer is None else f"I was told {answer}.")

    async def _request(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request to the client and wait for the result, however long people take; {} if there is none."""
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        _write({"id": number, "method": method, "params": {"sessionId": SESSION, **params}})
        return await self._asked[number]

    def _tell(self, event: str, /, **fields: Any) -> None:
        """Tell the client what happens in the session."""
        params = {"sessionId": SESSION, "update": {"sessionUpdate": event, **fields}}
        _write({"method": "session/update", "params": params})

    def _say(self, text: str) -> None:
        self._tell("agent_message_chunk", content={"type": "text", "text": f"{text.strip()}\n"})

    def _respond(self, request: int, result: dict[str, Any]) -> None:
        _write({"id": request, "result": result})


async def _execute(command: str) -> tuple[int, str]:
    """Run a shell command, and return its exit status and its output; if the turn is cancelled, end all of it."""
    process = _start(command)
    try:
        output, _ = await asyncio.to_thread(process.communicate)
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def _start(command: str) -> subprocess.Popen[str]:
    """Start a command, at once: asyncio's own way can hang if it is cancelled while the command starts."""
    return subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
        start_new_session=True,
    )


def _write(message: dict[str, Any]) -> None:
    """Write a message on a line of its own."""
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


if __name__ == "__main__":
    asyncio.run(AcpAgent().serve())
