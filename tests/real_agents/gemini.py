"""The script of ``model.py`` in the words of the Gemini API, for Gemini CLI."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.real_agents import script

ERRORS: Final = {400: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL"}
"""The statuses of errors (ai.google.dev, "Troubleshooting")."""
RETRY: Final = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"}
_CONTEXT = "<session_context>"
"""With what the text begins that Gemini CLI puts before what the user writes."""
_OUTPUT = re.compile(r"Output: (?P<output>.*?)\nProcess Group", re.DOTALL)


def tools_of(body: dict[str, Any]) -> set[str]:
    """Return the names of the tools that a request offers."""
    declared = (tool.get("functionDeclarations", []) for tool in body.get("tools") or ())
    return {function["name"] for functions in declared for function in functions}


def conversation(contents: list[dict[str, Any]]) -> script.Conversation:
    """Return what a request's contents contain."""
    first, said, results = "", "", []
    for content in contents:
        parts = content["parts"]
        responses = [part["functionResponse"]["response"] for part in parts if "functionResponse" in part]
        texts = [part["text"].strip() for part in parts if "text" in part]
        if responses:
            results += [result_text(response) for response in responses]
        elif content["role"] == "user" and texts and not texts[-1].startswith(_CONTEXT):
            first, said, results = first or texts[-1], texts[-1], []
    return script.Conversation(first, said, results)


def result_text(response: dict[str, Any]) -> str:
    """Return what a tool returned: of a command, what it printed."""
    result = str(response.get("output") or response.get("error"))
    found = _OUTPUT.search(result)
    return found["output"] if found else result


def answer(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts with which the script answers a request."""
    text, call = script.answer(conversation(body["contents"]), tools_of(body))
    parts: list[dict[str, Any]] = [{"text": text}]
    if call is not None:
        parts.append({"functionCall": {"name": call.name, "args": call.arguments}})
    return parts


def refusal(failed: script.Failure) -> Response:
    """Return the response that says that a request has failed."""
    error = {"code": failed.status, "message": failed.words, "status": ERRORS[failed.status]}
    details = [RETRY] if failed.headers else []
    return JSONResponse({"error": {**error, "details": details}}, failed.status, failed.headers)


async def generate(request: Request) -> Response:
    """Answer ``POST /v1beta/models/MODEL:generateContent`` and ``…:streamGenerateContent``, or with an error."""
    body = await request.json()
    if failed := script.failure(conversation(body["contents"]).said, tools_of(body)):
        return refusal(failed)
    content = {"role": "model", "parts": answer(body)}
    message = {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120},
    }
    if request.path_params["method"].startswith("stream"):
        return Response(f"data: {json.dumps(message)}\n\n", media_type="text/event-stream")
    return JSONResponse(message)
