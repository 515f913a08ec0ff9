"""The script of ``model.py`` in the words of OpenAI's Responses and Chat Completions APIs, for Codex and OpenCode."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Item = dict[str, Any]

BEFORE_TOOL = "I run the command."
MODEL: Final = "gpt-scripted"
USAGE: Final = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120}
SHELLS: Final = {"exec_command": "cmd", "bash": "command", "terminal": "command"}
"""The tools of Codex, OpenCode and OpenHands that run a command, each with the name of its argument."""
EXTRA: Final = {
    "exec_command": {"sandbox_permissions": "require_escalated", "justification": "May I run the command?"},
    "bash": {"description": "Run the command of the script"},
    "terminal": {"security_risk": "LOW", "summary": "Run the command of the script"},
}
"""Further arguments of these tools. Codex asks for permission only outside of its sandbox."""
NEVER_ASKS: Final = "Approval policy is currently never"
"""What Codex tells a model that may not ask, as that of `codex exec`."""
SUBMIT: Final = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""The command with which a model tells mini-SWE-agent, by that agent's own instructions, that it is done."""
_AIDER = "\n\nTo suggest changes to a file"
"""With what Aider's own instructions begin, below what the user wrote."""
_WRITE = re.compile(r"write: (?P<path>\S+) (?P<text>.+)")
_MINI = re.compile(r"Please solve this issue: (?P<task>.*?)\n\nYou can execute", re.DOTALL)
_THINK = re.compile(r"think: (?P<thought>.+)")
_REFUSE = re.compile(r"refuse: (?P<words>.+)")
_RUN = re.compile(r"run: (?P<command>.+)", re.DOTALL)
_OUTPUT = re.compile(r"Output:\n(?P<output>.*)", re.DOTALL)


def shell(tools: list[Item]) -> tuple[str, str] | None:
    """Return the name of the tool that runs a command, and that of its argument, or None if none is offered."""
    names = [tool.get("function", tool).get("name") for tool in tools]
    return next(((name, SHELLS[name]) for name in names if name in SHELLS), None)


def text_of(content: str | list[Item]) -> str:
    """Return the text of a message's content."""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def printed(result: str) -> str:
    """Return what a command printed, from the result of the tool."""
    found = _OUTPUT.search(result)
    return (found["output"] if found else result).strip()


def script(said: str, result: str | None, tools: list[Item], *, asks: bool = True) -> tuple[str, Item | None]:
    """Return the text that answers, and the call of a tool: its name and arguments. ``asks``: whether it may ask."""
    if result is not None:
        return f"The command printed: {printed(result)}", None
    tool = shell(tools)
    if tool is not None and (match := _RUN.search(said)):
        arguments = {tool[1]: match["command"].strip(), **(EXTRA[tool[0]] if asks else {})}
        return BEFORE_TOOL, {"name": tool[0], "arguments": json.dumps(arguments)}
    if match := _WRITE.search(said):  # as Aider wants a file that is changed
        return f"I write the file.\n\n{match['path']}\n```\n{match['text']}\n```", None
    return f"You said: {said}", None


def response_items(body: Item) -> list[Item]:
    """Return the output items with which the script answers a request to the Responses API."""
    last = body["input"][-1]
    is_result = last["type"].endswith("_output")
    result = text_of(last["output"]) if is_result else None
    said = "" if is_result else text_of(last["content"]).strip()
    asks = NEVER_ASKS not in json.dumps(body["input"])
    text, call = script(said, result, body.get("tools") or [], asks=asks)
    content = [{"type": "output_text", "text": text, "annotations": []}]
    items: list[Item] = []
    if match := _THINK.search(said):
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
        items.append({"type": "function_call", "id": f"fc_{name}", "call_id": name, "status": "completed", **call})
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


def refused(last: Item) -> Response | None:
    """Return the error with which the script answers a message that is to be refused, None for others."""
    match = _REFUSE.search(text_of(last.get("content") or ""))
    error = {"message": match["words"], "type": "invalid_request_error"} if match else None
    return JSONResponse({"error": error}, 400) if error else None


async def responses(request: Request) -> Response:
    """Answer ``POST /v1/responses``, streamed; what is to be refused, with an error."""
    body = await request.json()
    if refusal := refused(body["input"][-1]):
        return refusal
    events = [
        {**event, "sequence_number": number}
        for number, event in enumerate(response_events(response_items(body), len(body["input"])))
    ]
    stream = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return Response(stream, media_type="text/event-stream")


def completion(body: Item) -> Item:
    """Return the message with which the script answers a request to the Chat Completions API."""
    last = body["messages"][-1]
    is_result = last["role"] == "tool"
    content = text_of(last["content"]).strip()
    content = content.partition(_AIDER)[0]
    submits = SUBMIT in json.dumps(body["messages"])
    if task := _MINI.search(content):
        content = task["task"]
    text, call = script(content, content if is_result else None, body.get("tools") or [])
    if submits and call is None:
        call = {"name": "bash", "arguments": json.dumps({"command": SUBMIT})}
    message: Item = {"role": "assistant", "content": text}
    if call is not None:
        name = f"call_{len(body['messages']):04d}"
        message["tool_calls"] = [{"index": 0, "id": name, "type": "function", "function": call}]
    return message


async def chat_completions(request: Request) -> Response:
    """Answer ``POST /v1/chat/completions``, streamed or whole; what is to be refused, with an error."""
    body = await request.json()
    if refusal := refused(body["messages"][-1]):
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
