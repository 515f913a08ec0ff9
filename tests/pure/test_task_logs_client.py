"""What a follower of a conversation prints, and when."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import Queue
from typing import Any

import pytest

from taskherd.backoff import Backoff
from taskherd.client import conversation, events, task_logs, tasks
from taskherd.client.errors import ApiError, ExitCode
from taskherd.client.http import ApiResponse, Client

ID = "11111111-1111-1111-1111-111111111111"


class Server(Client):
    """A server with one task and one stream, which sends what is put into ``events``."""

    def __init__(self) -> None:
        super().__init__("http://nowhere", "token")
        self.events: Queue[bytes] = Queue()
        self.logs: list[conversation.Entry] = []
        self.refusal: ApiError | None = None

    def request(self, method: str, *path: str, query: Mapping[str, str] | None = None, **_: Any) -> ApiResponse:
        """Return the task, or the entries of its log; when older ones are asked for, it was deleted."""
        assert method == "GET"
        if "before" in (query or {}):
            raise ApiError(404, ExitCode.NOT_FOUND, "not found", "", 1)
        after = int((query or {}).get("after", -1))
        entries = [each for each in self.logs if each["id"] > after]
        return ApiResponse(200, {}, {"logs": entries} if path[-1] == "logs" else task("working"))

    @contextmanager
    def stream(self, *_: str, **__: Any) -> Iterator[Any]:
        """Return the stream, unless it is refused."""
        if self.refusal is not None:
            raise self.refusal
        yield self

    def read1(self, _: int) -> bytes:
        """Return the next event of the stream, when there is one."""
        return self.events.get(timeout=20)

    def send(self, kind: str, data: Any) -> None:
        """Send an event."""
        self.events.put(f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode())

    def send_entries(self, *entries: conversation.Entry, truncated: bool = False) -> None:
        """Send entries of the log."""
        self.send("task.logs", {"logs": entries, "truncated": truncated})

    def send_state(self, state: str) -> None:
        """Send a change of the agent's state."""
        self.send("task.updated", {"data": {"task": task(state)}})


def task(state: str) -> tasks.Task:
    """Return the document of a task whose agent is in a state."""
    return {"id": ID, "owner_id": ID, "status": "active", "current_state": {"state": state}}


def entry(number: int, content: str, **fields: Any) -> conversation.Entry:
    """Return an entry of an agent."""
    return {"id": number, "type": "output", "content": content, "place": [0, 1, number, number], **fields}


def contents(entries: list[conversation.Entry]) -> list[str]:
    """Return the contents of entries."""
    return [each["content"] for each in entries]


@pytest.mark.parametrize("is_idle_first", [True, False])
def test_the_last_words_of_an_idle_agent_are_printed(monkeypatch: pytest.MonkeyPatch, *, is_idle_first: bool) -> None:
    """Also of an entry that was printed before because it was quiet, whichever event comes first."""
    monkeypatch.setattr(conversation, "QUIET", 0.0)
    monkeypatch.setattr(task_logs, "INTERVAL", 0.05)
    server = Server()
    server.send("task.snapshot", task("working"))
    server.send_entries(entry(5, "Hel"))
    followed = task_logs.follow(server, ID, notice=print)
    assert contents(next(followed)) == ["Hel"]
    if is_idle_first:
        server.send_state("idle")
    server.send_entries(entry(5, "Hello world"))
    if not is_idle_first:
        server.send_state("idle")
    assert contents(next(followed)) == ["Hello world"]
    server.send("task.deleted", {"data": {"task": task("idle")}})
    assert list(followed) == []
    server.events.put(b"")


def test_what_a_stream_left_out_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first entry that may have changed; what the stream has is newer than what is read."""
    monkeypatch.setattr(conversation, "QUIET", 0.0)
    server = Server()
    server.send("task.snapshot", task("working"))
    server.send_entries(entry(4, "Hi", type="input"), entry(5, "Hel"))
    followed = task_logs.follow(server, ID, notice=print)
    assert contents(next(followed)) == ["Hi", "Hel"]
    server.logs = [entry(4, "Hi"), entry(5, "Hello world"), entry(6, "make"), entry(7, "And goo")]
    server.send_entries(entry(7, "And goodbye"), truncated=True)
    assert contents(next(followed)) == ["Hello world", "make", "And goodbye"]
    server.send("task.deleted", {"data": {"task": task("idle")}})
    assert list(followed) == []
    server.events.put(b"")


def test_the_log_so_far_is_printed_without_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server has no room for another stream, the follower prints the log before it says so."""
    monkeypatch.setattr(events, "BACKOFF", Backoff(first=0.01, maximum=0.01, jitter=0))
    server = Server()
    server.logs = [entry(0, "Fix it", type="input"), entry(1, "Hel")]
    server.refusal = ApiError(503, ExitCode.ERROR, "too many streams", "", 1)
    followed = task_logs.follow(server, ID, notice=print)
    assert contents(next(followed)) == ["Fix it", "Hel"]
    with pytest.raises(ApiError, match="too many streams"):
        next(followed)


def test_a_log_is_printed_although_its_task_was_deleted_meanwhile() -> None:
    """It was read before; then there are no older entries to tell of."""
    server = Server()
    server.logs = [entry(3, "Read in time")]
    assert task_logs.newest(server, ID) == ({"logs": server.logs}, False)
