"""The script of ``model.py`` in the words of the Gemini API, for Gemini CLI."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

BEFORE_TOOL = "I run the command."
_RUN = re.compile(r"run: (?P<command>.+)", re.DOTALL)
_OUTPUT = re.compile(r"Output: (?P<output>.*?)\nProcess Group", re.DOTALL)


def answer(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts with which the script answers a request."""
    parts = body["contents"][-1]["parts"]
    results = [part["functionResponse"]["response"] for part in parts if "functionResponse" in part]
    if results:
        result = str(results[-1].get("output") or results[-1].get("error"))
        found = _OUTPUT.search(result)
        return [{"text": f"The command printed: {found['output'].strip() if found else result}"}]
    said = [part["text"] for part in parts if "text" in part][-1].strip()
    if body.get("tools") and (match := _RUN.search(said)):
        call = {"name": "run_shell_command", "args": {"command": match["command"].strip()}}
        return [{"text": BEFORE_TOOL}, {"functionCall": call}]
    return [{"text": f"You said: {said}"}]


async def generate(request: Request) -> Response:
    """Answer ``POST /v1beta/models/MODEL:generateContent`` and ``…:streamGenerateContent``."""
    content = {"role": "model", "parts": answer(await request.json())}
    message = {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120},
    }
    if request.path_params["method"].startswith("stream"):
        return Response(f"data: {json.dumps(message)}\n\n", media_type="text/event-stream")
    return JSONResponse(message)
