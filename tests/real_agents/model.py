"""A scripted model server on loopback (``python -m tests.real_agents.model PORT``): Anthropic, Google, OpenAI.

It plays the script of ``script.py``. What an agent sends contains the whole conversation, so that the server keeps
nothing but which prompts it has answered with a rate limit. Requests without tools (titles, summaries, quota checks)
get a short answer that no test looks for.

``GET /requests`` returns how often a route was called, by ``METHOD PATH``, and how often each error was the answer, by
its status; ``GET /spans`` when the agent's turns called the model, which is what a test of states compares them with.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, TypeAlias

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.real_agents import gemini, openai, script

Block: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]

ERRORS: Final = {400: "invalid_request_error", 429: "rate_limit_error", 500: "api_error"}
"""The types of errors by their status (docs.claude.com, "Errors")."""
_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)
_INTERRUPTED = re.compile(r"\[Request interrupted by user[^]]*\]")
_PROBE = "x\b"
"""The keys that AgentAPI types before a message; on a busy machine Claude Code takes them for a part of it."""
_PIECE = 12
"""Characters of one streamed piece of text."""

counts: Counter[str] = Counter()
spans: list[tuple[float, float]] = []


def blocks(message: Message) -> list[Block]:
    """Return the content blocks of a message, whose content may also be a plain text."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def user_text(message: Message) -> str:
    """Return what the user wrote last in a message, after an interrupt, without what Claude Code adds.

    Claude Code puts what was written after a turn that failed into the message of that turn, as a further block.
    """
    texts = (block["text"] for block in blocks(message) if block["type"] == "text")
    kept = [text for each in texts if (text := _REMINDER.sub("", each).replace(_PROBE, "").strip())]
    return _INTERRUPTED.split(kept[-1])[-1].strip() if kept else ""


def result_text(block: Block) -> str:
    """Return the text of a tool's result."""
    content = block.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def tools_of(body: dict[str, Any]) -> set[str]:
    """Return the names of the tools that a request offers."""
    return {tool["name"] for tool in body.get("tools") or ()}


def conversation(messages: list[Message]) -> script.Conversation:
    """Return what a request's messages contain; what the user wrote after an interrupt ends the turn before it."""
    given = [message for message in messages if message["role"] == "user"]
    first = next((text for message in given if (text := user_text(message))), "")
    results: list[str] = []
    for message in reversed(given):
        if said := user_text(message):
            return script.Conversation(first, said, results)
        results[:0] = [result_text(block) for block in blocks(message) if block["type"] == "tool_result"]
    return script.Conversation(first, "", results)


def answer(body: dict[str, Any]) -> list[Block]:
    """Return the content blocks with which the script answers a request."""
    tools = tools_of(body)
    if script.shell(tools) is None:
        return [{"type": "text", "text": '{"title": "A scripted conversation"}'}]
    text, call = script.answer(conversation(body["messages"]), tools)
    content: list[Block] = [{"type": "text", "text": text}]
    if call is not None:
        name = f"toolu_{len(body['messages']):04d}"
        content.append({"type": "tool_use", "id": name, "name": call.name, "input": call.arguments})
    return content


def events(message: Message) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events that stream a message."""
    start = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 0}}
    yield "message_start", {"message": start}
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            empty, text = {**block, "text": ""}, block["text"]
            deltas = [{"type": "text_delta", "text": text[at : at + _PIECE]} for at in range(0, len(text), _PIECE)]
        else:
            empty = {**block, "input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
        yield "content_block_start", {"index": index, "content_block": empty}
        for delta in deltas:
            yield "content_block_delta", {"index": index, "delta": delta}
        yield "content_block_stop", {"index": index}
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield "message_delta", {"delta": delta, "usage": message["usage"]}
    yield "message_stop", {}


async def stream(message: Message) -> AsyncIterator[bytes]:
    """Yield a message as server-sent events."""
    for name, fields in events(message):
        yield f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


async def create_message(request: Request) -> Response:
    """Answer ``POST /v1/messages``, streamed or whole, or with an error."""
    body = await request.json()
    if failed := script.failure(conversation(body["messages"]).said, tools_of(body)):
        error = {"type": ERRORS[failed.status], "message": failed.words}
        return JSONResponse({"type": "error", "error": error}, failed.status, failed.headers)
    content = answer(body)
    calls_tool = any(block["type"] == "tool_use" for block in content)
    message = {
        "id": f"msg_{counts['POST /v1/messages']:04d}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": "tool_use" if calls_tool else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 20},
    }
    if body.get("stream"):
        return StreamingResponse(stream(message), media_type="text/event-stream")
    return JSONResponse(message)


async def count_tokens(_request: Request) -> Response:
    """Answer ``POST /v1/messages/count_tokens``."""
    return JSONResponse({"input_tokens": 100})


async def requests(_request: Request) -> Response:
    """Return how often each route was called."""
    return JSONResponse(dict(counts))


async def unknown(_request: Request) -> Response:
    """Answer everything else as the real API answers what it does not know."""
    return JSONResponse({"type": "error", "error": {"type": "not_found_error", "message": "Not found"}}, 404)


async def list_spans(_request: Request) -> Response:
    """Return when each request with tools began and ended, in seconds since the epoch; an open one is left out."""
    return JSONResponse(spans)


class RecordRequests:
    """ASGI middleware that counts the requests, and notes the time of those that are part of an agent's turn."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Record a request and pass it on."""
        if scope["type"] == "http":
            counts[f"{scope['method']} {scope['path']}"] += 1

        async def send_recorded(message: Any) -> None:
            if (status := message.get("status", 200)) >= HTTPStatus.BAD_REQUEST:
                counts[str(status)] += 1
            await send(message)

        begin, body = time.time(), bytearray()

        async def receive_recorded() -> Any:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        await self._app(scope, receive_recorded, send_recorded)
        with suppress(ValueError, AttributeError):  # what is no JSON object is no request to a model
            if json.loads(body).get("tools"):
                spans.append((begin, time.time()))


app = RecordRequests(
    Starlette(
        routes=[
            Route("/requests", requests),
            Route("/spans", list_spans),
            Route("/v1/messages", create_message, methods=["POST"]),
            Route("/v1beta/models/{name}:{method}", gemini.generate, methods=["POST"]),
            Route("/v1/responses", openai.responses, methods=["POST"]),
            Route("/v1/chat/completions", openai.chat_completions, methods=["POST"]),
            Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
            Route("/{path:path}", unknown, methods=["GET", "POST", "HEAD"]),
        ]
    )
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
