"""The tests' Claude Code: ``claude -p --input-format stream-json --output-format stream-json``, without a model.

It reads messages from stdin. Each is a list of steps, one a line: ``say: TEXT``, ``think: TEXT``,
``tool: NAME COMMAND``, ``done: TEXT``, ``fail: TEXT``, ``wait: FILE``, ``raw: LINE``, ``error: WORDS``,
``exit: STATUS``. Each turn costs 0.001 USD.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SESSION = sys.argv[1]
totals = {"inputTokens": 0, "outputTokens": 0, "costUSD": 0.0, "contextWindow": 200_000}
state = {"call": 0}


def write(line: str) -> None:
    """Write a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def send(kind: str, **fields: Any) -> None:
    """Write an event."""
    write(json.dumps({"type": kind, "session_id": SESSION, **fields}))


def message(role: str, *blocks: "dict[str, Any]") -> None:
    """Write a message with blocks of content."""
    usage = {"input_tokens": 90, "output_tokens": 10}
    send(role, message={"role": role, "content": list(blocks), "usage": usage}, parent_tool_use_id=None)


def step(verb: str, argument: str) -> "str | None":
    """Execute a step; return an error that ends the turn, if it is one."""
    match verb:
        case "say":
            message("assistant", {"type": "text", "text": argument})
        case "think":
            message("assistant", {"type": "thinking", "thinking": argument})
        case "tool":
            name, _, command = argument.partition(" ")
            state["call"] += 1
            message(
                "assistant",
                {"type": "tool_use", "id": f"t{state['call']}", "name": name, "input": {"command": command}},
            )
        case "done" | "fail":
            block = {"type": "tool_result", "tool_use_id": f"t{state['call']}", "content": argument}
            message("user", {**block, "is_error": verb == "fail"})
        case "wait":
            while not (Path.cwd() / argument).exists():
                time.sleep(0.01)
        case "raw":
            write(argument)
        case "error":
            return argument
        case "exit":
            os._exit(int(argument))
        case _:
            message("assistant", {"type": "text", "text": f"You said: {verb}"})
    return None


def main() -> None:
    """Answer messages until stdin ends."""
    for line in sys.stdin:
        send("system", subtype="init", model="claude-opus")
        words = json.loads(line)["message"]["content"]
        error = None
        for each in words.split("\n"):
            verb, _, argument = each.partition(": ")
            error = error or step(verb, argument)
        totals.update(
            inputTokens=totals["inputTokens"] + 100,
            outputTokens=totals["outputTokens"] + 20,
            costUSD=totals["costUSD"] + 0.001,
        )
        subtype = "error_during_execution" if error else "success"
        send("result", subtype=subtype, is_error=bool(error), result=error, modelUsage={"claude-opus": totals})


if __name__ == "__main__":
    main()
