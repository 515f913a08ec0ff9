"""``taskherd mcp`` without an API: how fast it starts, and what it answers to invalid messages."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest

from taskherd.client.errors import ClientError, ExitCode
from taskherd.client.http import ApiResponse, Client
from taskherd.client.mcp_stdio import MAX_CALLS, MAX_LINE, VERSIONS, Argument, Server, Tool, call
from taskherd.client.mcp_tools import UserTools

ENVIRONMENT = {"PATH": os.environ["PATH"], "TASKHERD_URL": "http://127.0.0.1:1", "TASKHERD_TOKEN": "x"}
SLOW = {
    "aio_pika",
    "httpx",
    "mcp",
    "pydantic",
    "pydantic_settings",
    "sqlalchemy",
    "starlette",
    "structlog",
    "typer",
    "uvicorn",
}
"""Libraries of which each takes longer to import than everything that ``taskherd mcp`` needs."""
MAX_CPU_SECONDS = 0.5
"""CPU time from the start to the answers; it takes 0.10 s, and took 0.76 s with the SDK, on the same machine."""


def initialize(version: str = VERSIONS[0]) -> dict[str, Any]:
    """Return the first request of a client."""
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    return {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}


def request(request_id: Any, method: str, **params: Any) -> dict[str, Any]:
    """Return a request."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def serve(*messages: Any, tools: tuple[Tool, ...] = ()) -> list[dict[str, Any]]:
    """Return the answers to messages, each a value to send as JSON or a line as bytes."""
    lines = [each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n" for each in messages]
    output = io.BytesIO()
    Server("test", "1", tools, output).run(io.BytesIO(b"".join(lines)))
    return [json.loads(line) for line in output.getvalue().splitlines()]


def codes(*messages: Any, tools: tuple[Tool, ...] = ()) -> list[tuple[Any, int]]:
    """Return the id and the error code of each answer to messages that are all refused."""
    return [(each["id"], each["error"]["code"]) for each in serve(*messages, tools=tools)]


def test_it_starts_without_the_libraries_that_take_long_to_import() -> None:
    """It lists its tools before it has imported any of them, and with little CPU time."""
    messages = "".join(json.dumps(each) + "\n" for each in (initialize(), request(1, "tools/list")))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "taskherd", "mcp"],
        input=messages,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    answers = [json.loads(line) for line in process.stdout.splitlines()]
    assert answers[0]["result"]["serverInfo"]["name"] == "taskherd"
    assert {each["name"] for each in answers[1]["result"]["tools"]} > {"coder_list_templates", "coder_create_task"}
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in process.stderr.splitlines()}
    assert "taskherd" in imported
    assert imported & SLOW == set()
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < MAX_CPU_SECONDS


def test_the_version_is_the_clients_if_it_is_supported() -> None:
    """A client that asks for an unknown version is offered the newest one."""
    for version in VERSIONS:
        assert serve(initialize(version))[0]["result"]["protocolVersion"] == version
    assert serve(initialize("1999-01-01"))[0]["result"]["protocolVersion"] == VERSIONS[0]


def test_every_request_is_answered_and_nothing_else() -> None:
    """A ping is answered; notifications, responses and empty lines are not. What is no request is refused."""
    silent = [{"jsonrpc": "2.0", "method": "notifications/initialized"}, {"jsonrpc": "2.0", "id": 5, "result": {}}]
    assert serve(*silent, b"\n", request("a", "ping")) == [{"jsonrpc": "2.0", "id": "a", "result": {}}]
    assert codes(
        b"{no json\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        [request(1, "ping")],
        request(None, "ping"),
        {"jsonrpc": "2.0", "id": True, "method": "ping"},
        {"jsonrpc": "2.0", "id": 2, "method": 7},
        {"jsonrpc": "2.0", "id": 3, "method": "ping", "params": [1]},
        request(4, "server/discover"),
        request(5, "tools/call", name="missing"),
        request(6, "tools/call", name="echo", arguments=[1]),
        tools=(Tool("echo", "", {}, dict),),
    ) == [
        (None, -32700),
        (None, -32700),
        (None, -32700),
        (None, -32600),
        (None, -32600),
        (None, -32600),
        (2, -32600),
        (3, -32602),
        (4, -32601),
        (5, -32602),
        (6, -32602),
    ]


def test_a_message_that_is_too_long_is_skipped() -> None:
    """It is answered with an error, and the next message as usual."""
    refused, answered = serve(b"x" * (MAX_LINE * 2 + 7) + b"\n", request(1, "ping"))
    assert (refused["error"]["code"], answered["result"]) == (-32600, {})


def test_calls_beyond_the_limit_are_refused() -> None:
    """While the greatest number of calls is in progress, another one is refused, and pings are answered."""
    refused = Event()

    class Source(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            line = super().readline(size)
            if not line:
                refused.set()  # every message was handled
            return line

    def wait() -> dict[str, bool]:
        return {"refused": refused.wait(30)}

    lines = [request(n, "tools/call", name="wait") for n in range(MAX_CALLS + 1)] + [request("p", "ping")]
    output = io.BytesIO()
    source = Source(b"".join(json.dumps(each).encode() + b"\n" for each in lines))
    Server("test", "1", (Tool("wait", "", {}, wait),), output).run(source)
    answers = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [each["id"] for each in answers[:2]] == [MAX_CALLS, "p"]
    assert answers[0]["error"]["code"] == -32000
    assert {each["id"] for each in answers[2:]} == set(range(MAX_CALLS))
    assert all(each["result"]["structuredContent"] == {"refused": True} for each in answers[2:])


def test_a_model_reads_what_was_wrong_with_its_call() -> None:
    """Invalid arguments, errors of the API and bugs are results that the model reads; other arguments are ignored."""
    arguments = {"task": Argument("", required=True), "state": Argument("", choices=("idle", "working"))}
    echo = Tool("echo", "", arguments, lambda task, state: [task, state])
    assert json.loads(call(echo, {"task": "a", "more": 1})["content"][0]["text"]) == ["a", ""]
    for wrong, text in (
        ({}, "task: expected a text that is not empty"),
        ({"task": 1}, "task: expected a string"),
        ({"task": "a", "state": "dancing"}, "state: expected one of: idle, working"),
    ):
        result = call(echo, wrong)
        assert result["isError"]
        assert text in result["content"][0]["text"]

    def refuse() -> None:
        raise ClientError(ExitCode.REFUSED, "Not now.", "try later")

    assert call(Tool("refuse", "", {}, refuse), {})["content"][0]["text"] == "Not now. (try later)"
    assert "KeyError" in call(Tool("bug", "", {}, lambda: ENVIRONMENT["missing"]), {})["content"][0]["text"]


def test_a_call_that_waits_is_cancelled_by_the_client_or_its_end() -> None:
    """What waits for people holds up no other call, and ends when the client cancels it or closes its input."""
    started, cancelled = [Event(), Event()], [Event(), Event()]

    def wait(number: int, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        started[number].set()
        while not is_cancelled():
            time.sleep(0.005)
        cancelled[number].set()
        return {"waited": number}

    class Source(io.BytesIO):
        """Cancels the first of two calls once both run, and ends once it has ended; the other then still runs."""

        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            if b"cancelled" in line:
                assert all(each.wait(20) for each in started)
            if not line:
                assert cancelled[0].wait(20)
                assert not cancelled[1].is_set()
            return line

    argument = {"number": Argument("Which.", is_number=True)}
    tools = (Tool("wait", "", argument, wait, waits=True), Tool("quick", "", {}, lambda: {"quick": True}))
    messages = (
        *(request(each, "tools/call", name="wait", arguments={"number": each}) for each in (0, 1)),
        request(2, "tools/call", name="quick"),
        *(
            {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
            for params in (None, {"requestId": [0]}, {"requestId": 7}, {"requestId": 0})
        ),
    )
    output = io.BytesIO()
    lines = b"".join(json.dumps(each).encode() + b"\n" for each in messages)
    Server("test", "1", tools, output).run(Source(lines))
    answers = {
        each["id"]: each["result"]["structuredContent"] for each in map(json.loads, output.getvalue().splitlines())
    }
    assert answers == {0: {"waited": 0}, 1: {"waited": 1}, 2: {"quick": True}}


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("fix", ("me", "fix")),
        ("fix.agent", ("me", "fix")),
        ("john.doe/fix", ("john.doe", "fix")),
        ("john.doe/fix.agent", ("john.doe", "fix")),
        ("john.doe--fix.agent", ("john.doe", "fix")),
        (" john--fix ", ("john", "fix")),
    ],
)
def test_a_task_is_named_with_its_owner_and_perhaps_an_agent(named: str, meant: tuple[str, str]) -> None:
    """As Coder's tools name it: the agent is left out, and a dot in the name of the owner is part of that."""
    paths: list[tuple[str, ...]] = []

    class Recorder(Client):
        """A client that notes what is requested."""

        def request(self, method: str, *path: str, **_: Any) -> ApiResponse:
            paths.append((method, *path))
            return ApiResponse(200, {}, {"status": "active", "current_state": None})

    UserTools(Recorder("http://nowhere", "token")).get_task_status(named)
    assert paths == [("GET", "tasks", *meant)]
