"""Following a stream: what is reconnected to, from where, and how long that is tried."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from taskherd.client.errors import ApiError, ClientError, ExitCode, Unreachable
from taskherd.client.events import TRIES, TaskEvent, stream_events
from taskherd.client.http import Client


class Server(Client):
    """Answers each request with the next stream or error, and then is away."""

    def __init__(self, *answers: bytes | ClientError) -> None:
        super().__init__("http://nowhere", "token")
        self._answers = iter(answers)
        self.positions: list[str | None] = []
        self.slept: list[float] = []
        self.notices: list[str] = []

    @contextmanager
    def stream(self, *_: str, headers: Mapping[str, str] | None = None, **__: Any) -> Iterator[Any]:
        """Give the next answer."""
        self.positions.append((headers or {}).get("Last-Event-ID"))
        answer = next(self._answers, Unreachable("away"))
        if isinstance(answer, ClientError):
            raise answer
        yield io.BytesIO(answer)

    def follow(self) -> Iterator[TaskEvent]:
        """Follow without waiting."""
        return stream_events(self, "tasks", "watch", notice=self.notices.append, sleep=self.slept.append)


def test_a_stream_that_ends_goes_on_where_it_was() -> None:
    """It is requested again from the last position, one without data included; then it is given up."""
    server = Server(
        b'event: task.updated\ndata: {"a":1}\nid: 4\n\nid: 5\n\nevent: task.upd',
        b'event: resume\ndata: {}\n\nevent: task.deleted\ndata: {"a":2}\n\n',
    )
    found = []
    with pytest.raises(ClientError, match="did not come back"):
        found += list(server.follow())
    assert server.positions == [None, "5", *["5"] * TRIES]
    assert len(server.notices) == TRIES


def test_events_about_tasks_come_with_their_positions() -> None:
    """Only events about tasks are yielded, with their content decoded."""
    events = Server(b'event: reset\ndata: 1\n\nid: 7\nevent: task.created\ndata: {"a":1}\n\n').follow()
    assert next(events) == TaskEvent("task.created", "7", {"a": 1})


def test_waits_grow_while_nothing_comes() -> None:
    """The first reconnection is at once; further ones wait longer and longer, and what came ends the series."""
    server = Server(Unreachable("away"), Unreachable("away"), b": hi\n\n")
    with pytest.raises(ClientError):
        list(server.follow())
    assert server.slept[0] == server.slept[2] == 0
    assert 0.8 <= server.slept[1] <= 1
    assert server.slept[3:8] == sorted(server.slept[3:8])
    assert 12 <= server.slept[-1] <= 15


def test_the_server_may_ask_for_a_longer_wait() -> None:
    """Its reconnection time is honoured up to the longest wait of ours."""
    server = Server(b"retry: 3000\n\n", b"retry: 99999999\n\n")
    with pytest.raises(ClientError):
        list(server.follow())
    assert server.slept[:2] == [3, 15]


def test_a_refusal_ends_it() -> None:
    """What won't be better the next time is raised; a server that is overloaded is asked again."""
    busy, denied = (ApiError(status, ExitCode.ERROR, "no", "", 1) for status in (503, 403))
    server = Server(busy, denied)
    with pytest.raises(ApiError):
        list(server.follow())
    assert server.notices == ["no"]
