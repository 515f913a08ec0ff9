"""The tests' Codex: ``codex exec --json``, without a model.

Its prompt, read from stdin, is a list of steps, one a line: ``say: TEXT``, ``run: COMMAND``, ``done: TEXT``,
``fail: TEXT``, ``wait: FILE``, ``raw: LINE``, ``torn: FILE`` (a message, of which the second half comes once the file
is there), ``flood: NUMBER``, ``error: WORDS``, ``exit: STATUS``, ``kill: SIGNAL``. A turn without ``error`` and
``exit`` is completed. Its session and the tokens that were used in it are its arguments.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SESSION, USED = sys.argv[1], int(sys.argv[2])
items = {"number": 0}


def write(text: str) -> None:
    """Write text."""
    sys.stdout.write(text)
    sys.stdout.flush()


def event(kind: str, **fields: Any) -> str:
    """Return the line of an event."""
    return json.dumps({"type": kind, **fields}, ensure_ascii=False) + "\n"


def item(moment: str, **fields: Any) -> str:
    """Return the line of an event of an item; one that begins is a new one."""
    items["number"] += fields["type"] != "command_execution" or moment == "started"
    return event(f"item.{moment}", item={"id": f"item_{items['number']}", **fields})


def await_file(name: str) -> None:
    """Wait until a file is in the working directory."""
    while not (Path.cwd() / name).exists():
        time.sleep(0.01)


def step(verb: str, argument: str, command: str) -> None:  # noqa: C901 - a case for each kind of step
    """Execute a step; ``command`` is the one that runs."""
    call = {"type": "command_execution", "command": f"/bin/bash -lc '{command}'"}
    match verb:
        case "say":
            write(item("completed", type="agent_message", text=argument))
        case "run":
            write(item("started", **call, aggregated_output="", exit_code=None, status="in_progress"))
        case "done" | "fail":
            status = {"exit_code": int(verb == "fail"), "status": "completed" if verb == "done" else "failed"}
            write(item("completed", **call, aggregated_output=f"{argument}\n", **status))
        case "wait":
            await_file(argument)
        case "raw":
            write(f"{argument}\n")
        case "torn":
            line = item("completed", type="agent_message", text="Grüße in zwei Teilen")
            half = line.index("Gr") + 3
            write(line[:half])
            await_file(argument)
            write(line[half:])
        case "flood":
            for number in range(int(argument)):
                write(item("completed", type="agent_message", text=f"message {number}"))
        case "exit":
            os._exit(int(argument))
        case "kill":
            os.kill(os.getpid(), int(argument))
        case _:
            write(item("completed", type="agent_message", text=f"You said: {verb}"))


def main() -> int:
    """Carry out the prompt."""
    write(event("thread.started", thread_id=SESSION) + event("turn.started"))
    command = ""
    for line in sys.stdin.read().split("\n"):
        verb, _, argument = line.partition(": ")
        command = argument if verb == "run" else command
        if verb == "error":
            write(event("error", message=argument) + event("turn.failed", error={"message": argument}))
            return 1
        step(verb, argument, command)
    usage = {"input_tokens": USED + 100, "cached_input_tokens": 30, "output_tokens": 20, "reasoning_output_tokens": 5}
    write(event("turn.completed", usage=usage))
    return 0


if __name__ == "__main__":
    sys.exit(main())
