"""The tests' agent that speaks ACP: a prompt is a list of steps, one a line, each a verb with its argument.

Its arguments are traits, such as ``load`` or ``ignore-cancel``. It appends every line that it reads to
``received.jsonl`` in its working directory.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TRAITS = sys.argv[1:]
SESSION = f"session-{os.getpid()}"
FOLDER = Path.cwd()
inbox: "queue.Queue[dict[str, Any]]" = queue.Queue()
responses: "dict[object, dict[str, Any]]" = {}
state: dict[str, Any] = {"cancelled": False, "session": SESSION, "turn": None, "after": []}


def send(message: dict[str, Any]) -> None:
    """Write a message."""
    write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")


def write(text: str) -> None:
    """Write a text, whatever it is."""
    data = text.encode()
    while data:
        data = data[os.write(1, data) :]


def update(name: str, /, **fields: object) -> None:
    """Send a session update."""
    fields = {"sessionUpdate": name, **fields}
    send({"method": "session/update", "params": {"sessionId": state["session"], "update": fields}})


def text(words: str) -> dict[str, Any]:
    """Return a block of text."""
    return {"type": "text", "text": words}


def lines() -> "Iterator[str]":
    """Yield the lines of stdin until it is closed."""
    try:
        yield from sys.stdin
        os._exit(0)
    except OSError:
        return


def read() -> None:
    """Read stdin: responses and cancellations at once, requests one after the other."""
    for line in lines():
        with (FOLDER / "received.jsonl").open("a") as file:
            file.write(line)
        message = json.loads(line)
        if "method" not in message:
            responses[message["id"]] = message
        elif message["method"] == "session/cancel":
            state["cancelled"] = "ignore-cancel" not in TRAITS
        else:
            if message["method"] == "session/prompt":
                state["cancelled"] = False  # here: a cancel that follows at once is one of this turn
            inbox.put(message)
            if "deaf" in TRAITS and message["method"] == "session/new":
                return
            if "late" in TRAITS and message["method"] == "session/prompt":
                wait((FOLDER / "read").exists)


def wait(is_over: Callable[[], object]) -> None:
    """Wait until a condition holds or the turn is cancelled."""
    while not is_over() and not state["cancelled"]:
        time.sleep(0.01)


def ask(number: str, title: str, kind: str, options: "list[str] | None" = None) -> None:
    """Ask for permission, wait for the answer, and say what it was."""
    names = options if options is not None else ["allow_once", "allow_always", "reject_once"]
    params = {
        "sessionId": state["session"],
        "toolCall": {"toolCallId": f"call-{number}", "title": title, "kind": kind, "rawInput": {"command": title}},
        "options": [{"optionId": f"o-{name}", "name": name, "kind": name} for name in names],
    }
    send({"id": f"ask-{number}", "method": "session/request_permission", "params": params})


def answer_of(number: str) -> None:
    """Wait for the answer to a request, and say what it was."""
    while f"ask-{number}" not in responses:
        time.sleep(0.01)
    response = responses[f"ask-{number}"]
    say(f"{number}: {json.dumps(response.get('result') or response.get('error'), sort_keys=True)}\n")


def say(words: str) -> None:
    """Send a chunk of a message."""
    update("agent_message_chunk", content=text(words))


def step(verb: str, argument: str) -> "str | None":  # noqa: PLR0915
    """Execute a step; return the reason why the turn ends, if it does."""
    first, _, rest = argument.partition(" ")
    match verb:
        case "say":
            say(argument)
        case "line":
            say(argument + "\n")
        case "think":
            update("agent_thought_chunk", content=text(argument))
        case "plan":
            names = ("completed", "in_progress", "pending")
            entries = [
                {"content": each, "priority": "high", "status": names[number]}
                for number, each in enumerate(argument.split(";"))
            ]
            update("plan", entries=entries)
        case "tool":
            update("tool_call", toolCallId=first, title=rest, kind="execute", status="in_progress")
        case "edit":
            diff = {"type": "diff", "path": "/a", "oldText": "x" * int(rest), "newText": 'y"' * int(rest)}
            locations = [{"path": "/a", "line": 3}]
            update("tool_call", toolCallId=first, title="Edit a", kind="edit", content=[diff], locations=locations)
        case "done":
            content = [{"type": "content", "content": text(rest)}]
            update("tool_call_update", toolCallId=first, status="completed", content=content)
        case "usage":
            amount, _, turn = rest.partition(" ")
            cost = {"amount": float(amount), "currency": "USD"} if amount else None
            update("usage_update", used=int(first), size=1000, cost=cost)
            state["turn"] = {"inputTokens": int(turn), "outputTokens": 1} if turn else None
        case "ask":
            kind, _, title = rest.partition(" ")
            ask(first, title, kind)
            answer_of(first)
        case "ask-until":
            number = 0
            while not (FOLDER / first).exists():
                ask(str(number), f"{rest} {number}", "execute")
                answer_of(str(number))
                number += 1
                step("usage", f"{number} {number}.5")
        case "ask-only":
            ask(first, rest, "edit")
        case "ask-options":
            kinds, _, title = rest.partition(" ")
            ask(first, title, "edit", kinds.split(","))
            answer_of(first)
        case "ask-nothing":
            ask(first, rest, "edit", [])
            answer_of(first)
        case "answer-of":
            answer_of(argument)
        case "form":
            schema = {"type": "object", "properties": json.loads(rest)}
            params = {"sessionId": state["session"], "mode": "form", "message": first, "requestedSchema": schema}
            send({"id": f"ask-{first}", "method": "elicitation/create", "params": params})
            answer_of(first)
        case "request" | "post":
            method, _, given = rest.partition(" ")
            fields = {"sessionId": state["session"], **json.loads(given)}
            send({"id": f"ask-{first}", "method": method, "params": fields})
            if verb == "request":
                answer_of(first)
        case "calls":
            method, _, given = rest.partition(" ")
            params = {"sessionId": state["session"], **json.loads(given)}
            calls = [{"jsonrpc": "2.0", "id": each, "method": method, "params": params} for each in range(int(first))]
            write("".join(json.dumps(call) + "\n" for call in calls))
        case "plans":
            for _ in range(int(first)):
                update("plan", entries=[0] * int(rest))
        case "answer-to":
            wait(lambda: int(first) in responses)
        case "show":
            content = [{"type": "terminal", "terminalId": rest}]
            update("tool_call_update", toolCallId=first, content=content)
        case "wait":
            wait((FOLDER / argument).exists)
        case "trait":
            TRAITS.append(argument)
        case "hang":
            wait(lambda: False)
        case "once-cancelled":
            wait(lambda: False)
            return step(first.removesuffix(":"), rest)
        case "after":
            state["after"].append((first.removesuffix(":"), rest))
        case "raw":
            write(argument + "\n")
        case "torn":
            write(argument)
        case "garbage":
            write("no JSON\n" * int(argument))
        case "flood":
            write("x" * int(argument) + "\n")
        case "stderr":
            sys.stderr.write(argument + "\n")
            sys.stderr.flush()
        case "close-stdin":
            os.close(0)
        case "exit":
            os._exit(int(argument))
        case "stop":
            return argument
        case _:
            say(f"You said: {verb}")
    return None


def prompt(message: dict[str, Any]) -> None:
    """Carry out a turn."""
    words = "\n".join(block["text"] for block in message["params"]["prompt"])
    reason = None
    for line in words.split("\n"):
        verb, _, argument = line.partition(": ")
        reason = step(verb, argument)
        if state["cancelled"]:
            reason = "end_turn" if "lie" in TRAITS else "cancelled"
        if reason is not None:
            break
    if reason == "error":
        send({"id": message["id"], "error": {"code": -32603, "message": "Internal error", "data": "the model is away"}})
        return
    for _ in range(2 if reason == "twice" else 1):
        usage = {} if state["turn"] is None else {"usage": state["turn"]}
        stop = "end_turn" if reason in {None, "twice"} else reason
        send({"id": message["id"], "result": {"stopReason": stop, **usage}})
    while state["after"]:
        step(*state["after"].pop(0))


def answer(message: dict[str, Any]) -> None:
    """Answer a request."""
    match message["method"]:
        case "initialize":
            if "hang-initialize" in TRAITS:
                return
            capabilities: dict[str, Any] = {"loadSession": "load" in TRAITS}
            if "resume" in TRAITS:
                capabilities["sessionCapabilities"] = {"resume": {}}
            result = {
                "protocolVersion": 2 if "version-2" in TRAITS else 1,
                "agentCapabilities": capabilities,
                "agentInfo": {"name": "fake", "title": "Fake Agent", "version": "1"},
                "authMethods": [{"id": "key", "name": "API key", "type": "env_var", "vars": [{"name": "FAKE_KEY"}]}],
            }
            send({"id": message["id"], "result": result})
        case "session/new":
            if "auth" in TRAITS:
                send({"id": message["id"], "error": {"code": -32000, "message": "Authentication required"}})
                return
            send({"id": message["id"], "result": {"sessionId": SESSION}})
        case "session/load" | "session/resume":
            if "forgetful" in TRAITS:
                send({"id": message["id"], "error": {"code": -32002, "message": "Resource not found"}})
                return
            state["session"] = message["params"]["sessionId"]
            if message["method"] == "session/load":
                update("user_message_chunk", content=text("replayed prompt"))
                say("replayed answer")
                for trait in TRAITS:
                    if trait.startswith("replay-cost="):
                        step("usage", f"7 {trait.partition('=')[2]}")
            send({"id": message["id"], "result": {}})
        case "session/prompt" if "auth-at-prompt" in TRAITS:
            send({"id": message["id"], "error": {"code": -32000, "message": "Authentication required"}})
        case "session/prompt":
            prompt(message)
        case _:
            return


def main() -> None:
    """Answer requests until stdin ends."""
    if "ignore-sigint" in TRAITS:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "ignore-sigterm" in TRAITS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "banner" in TRAITS:
        write("Welcome to the agent!\n\n")
    if "die" in TRAITS:
        sys.exit("it cannot start")
    threading.Thread(target=read, daemon=True).start()
    while True:
        answer(inbox.get())


if __name__ == "__main__":
    main()
