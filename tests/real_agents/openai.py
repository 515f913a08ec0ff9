"""The script of ``model.py`` in the words of OpenAI's Responses and Chat Completions APIs, for Codex and OpenCode."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.real_agents import script

Item = dict[str, Any]

MODEL: Final = "gpt-scripted"
USAGE: Final = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120}
ERRORS: Final = {400: "invalid_request_error", 429: "rate_limit_exceeded", 500: "server_error"}
"""The types of errors by their status (platform.openai.com, "Error codes")."""
NEVER_ASKS: Final = "Approval policy is currently never"
"""What Codex tells a model that may not ask, as that of `codex exec`."""
SUBMIT: Final = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""The command with which a model tells mini-SWE-agent, by that agent's own instructions, that it is done."""
_AIDER = "\n\nTo suggest changes to a file"
"""With what Aider's own instructions begin, below what the user wrote."""
_CODEX = ("<", "# AGENTS.md")
"""With what the messages of the user begin that Codex writes: of its environment, and that a turn was interrupted."""
_MINI = re.compile(r"Please solve this issue: (?P<task>.*?)\n\nYou can execute", re.DOTALL)
_THINK = re.compile(r"think: (?P<thought>.+)")
_OUTPUT = re.compile(r"Output:\n(?P<output>.*)", re.DOTALL)


def tools_of(body: Item) -> set[str]:
    """Return the names of the tools that a request offers."""
    return {tool.get("function", tool).get("name") for tool in body.get("tools") or ()}


def text_of(content: str | list[Item]) -> str:
    """Return the text of a message's content."""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def printed(result: str) -> str:
    """Return what a command printed, from the result of the tool."""
    found = _OUTPUT.search(result)
    return (found["output"] if found else result).strip()


def conversation(items: list[Item]) -> script.Conversation:
    """Return what the items of a request, or its messages, contain."""
    first, said, results = "", "", []
    for item in items:
        if item.get("type", "").endswith("_output"):
            results.append(printed(text_of(item["output"])))
        elif item.get("role") == "tool":
            results.append(printed(text_of(item["content"])))
        elif item.get("role") == "user" and (text := written(text_of(item["content"]))):
            first, said, results = first or text, text, []
    return script.Conversation(first, said, results)


def written(text: str) -> str:
    """Return what the user wrote, without what Aider and mini-SWE-agent put around it; nothing of what Codex adds."""
    text = text.strip().partition(_AIDER)[0]
    if text.startswith(_CODEX):
        return ""
    found = _MINI.search(text)
    return found["task"] if found else text


def response_items(body: Item) -> list[Item]:
    """Return the output items with which the script answers a request to the Responses API."""
    held = conversation(body["input"])
    asks = NEVER_ASKS not in json.dumps(body["input"])
    text, call = script.answer(held, tools_of(body), asks=asks)
    content = [{"type": "output_text", "text": text, "annotations": []}]
    items: list[Item] = []
    if not held.results and (match := _THINK.search(held.said)):
        summary = [{"type": "summary_text", "text": match["thought"]}]
        items.append({"type": "reasoning", "id": f"rs_{len(body['input']):04d}", "summary": summary})
    items.append(
        {
            "type": "message",
            "id": f"msg_{len(body['input']):04d}",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }
    )
    if call is not None:
        name = f"call_{len(body['input']):04d}"
        function = {"name": call.name, "arguments": json.dumps(call.arguments)}
        items.append({"type": "function_call", "id": f"fc_{name}", "call_id": name, "status": "completed", **function})
    return items


def response_events(items: list[Item], number: int) -> Iterator[Item]:
    """Yield the events that stream a response."""
    response: Item = {
        "id": f"resp_{number:04d}",
        "object": "response",
        "created_at": 1_764_000_000,
        "model": MODEL,
        "status": "in_progress",
        "output": [],
    }
    yield {"type": "response.created", "response": response}
    for index, item in enumerate(items):
        place = {"output_index": index, "item_id": item["id"]}
        yield {"type": "response.output_item.added", "output_index": index, "item": {**item, "status": "in_progress"}}
        if item["type"] == "message":
            text = item["content"][0]["text"]
            yield {"type": "response.output_text.delta", **place, "content_index": 0, "delta": text}
        elif item["type"] == "function_call":
            yield {"type": "response.function_call_arguments.done", **place, "arguments": item["arguments"]}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    yield {
        "type": "response.completed",
        "response": {**response, "status": "completed", "output": items, "usage": {**USAGE, **details}},
    }


def refused(body: Item, items: list[Item]) -> Response | None:
    """Return the error with which the script answers a request, None for none."""
    failed = script.failure(conversation(items).said, tools_of(body))
    if failed is None:
        return None
    error = {"message": failed.words, "type": ERRORS[failed.status]}
    return JSONResponse({"error": error}, failed.status, failed.headers)


async def responses(request: Request) -> Response:
    """Answer ``POST /v1/responses``, streamed, or with an error."""
    body = await request.json()
    if refusal := refused(body, body["input"]):
        return refusal
    events = [
        {**event, "sequence_number": number}
        for number, event in enumerate(response_events(response_items(body), len(body["input"])))
    ]
    stream = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return Response(stream, media_type="text/event-stream")


def completion(body: Item) -> Item:
    """Return the message with which the script answers a request to the Chat Completions API."""
    text, call = script.answer(conversation(body["messages"]), tools_of(body))
    if call is None and SUBMIT in json.dumps(body["messages"]):
        call = script.Call("bash", {"command": SUBMIT})
    message: Item = {"role": "assistant", "content": text}
    if call is not None:
        name = f"call_{len(body['messages']):04d}"
        function = {"name": call.name, "arguments": json.dumps(call.arguments)}
        message["tool_calls"] = [{"index": 0, "id": name, "type": "function", "function": function}]
    return message


async def chat_completions(request: Request) -> Response:
    """Answer ``POST /v1/chat/completions``, streamed or whole, or with an error."""
    body = await request.json()
    if refusal := refused(body, body["messages"]):
        return refusal
    message = completion(body)
    reason = "tool_calls" if "tool_calls" in message else "stop"
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    common = {"id": "chatcmpl-1", "created": 1_764_000_000, "model": MODEL}
    if not body.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return JSONResponse({**common, "object": "chat.completion", "choices": [choice], "usage": usage})
    chunks: list[Item] = [
        {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
        {"choices": [], "usage": usage},
    ]
    lines = [json.dumps({**common, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
    stream = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])
    return Response(stream, media_type="text/event-stream")
