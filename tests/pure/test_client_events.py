"""Following a stream: reconnecting, resuming and giving up."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from taskherd.client.errors import ApiError, ClientError, ExitCode, Unreachable
from taskherd.client.events import MIN_DURATION, StreamEvent, stream_events
from taskherd.client.http import Client
from taskherd.client.outages import MAX_FAILURES


class Server(Client):
    """A server that answers each request with the next stream or error, and is unreachable after the last."""

    def __init__(self, *answers: bytes | ClientError) -> None:
        super().__init__("http://nowhere", "token")
        self._answers = iter(answers)
        self.positions: list[str | None] = []
        self.slept: list[float] = []
        self.notices: list[str] = []
        self.time = 0.0
        self.seconds = 0.0
        """How long each stream lasts."""

    @contextmanager
    def stream(self, *_: str, headers: Mapping[str, str] | None = None, **__: Any) -> Iterator[Any]:
        """Return the next stream, or raise the next error."""
        self.positions.append((headers or {}).get("Last-Event-ID"))
        answer = next(self._answers, Unreachable("away"))
        if isinstance(answer, ClientError):
            raise answer
        self.time += self.seconds
        yield io.BytesIO(answer)

    def follow(self) -> Iterator[StreamEvent]:
        """Follow the stream without waiting."""
        return stream_events(
            self, "tasks", "watch", notice=self.notices.append, sleep=self.slept.append, now=lambda: self.time
        )


def test_a_stream_is_resumed_at_its_last_position() -> None:
    """Reconnecting continues after the last event id, also one without data, and stops after ``MAX_FAILURES``."""
    server = Server(
        b'event: task.updated\ndata: {"a":1}\nid: 4\n\nid: 5\n\nevent: task.upd',
        b'event: resume\ndata: {}\n\nevent: task.deleted\ndata: {"a":2}\n\n',
    )
    events: list[StreamEvent] = []
    with pytest.raises(ClientError, match="did not come back"):
        events += server.follow()
    assert server.positions == [None, "5", *["5"] * MAX_FAILURES]
    assert len(server.notices) == MAX_FAILURES


def test_task_events_have_their_positions() -> None:
    """Only task events are yielded, with decoded content."""
    events = Server(b'event: reset\ndata: 1\n\nid: 7\nevent: task.created\ndata: {"a":1}\n\n').follow()
    assert next(events) == StreamEvent("task.created", "7", {"a": 1})


def test_waits_grow_while_nothing_is_received() -> None:
    """The first reconnect is immediate, further ones wait longer; anything received resets the waits."""
    server = Server(Unreachable("away"), Unreachable("away"), b": hi\n\n")
    with pytest.raises(ClientError):
        list(server.follow())
    assert server.slept[0] == server.slept[2] == 0
    assert 0.8 <= server.slept[1] <= 1
    assert server.slept[3:8] == sorted(server.slept[3:8])
    assert 12 <= server.slept[-1] <= 15


def test_waits_grow_while_streams_end_soon() -> None:
    """Each brings something, so that it is no failure, but a proxy or a server may end every one of them at once."""
    server = Server(*[b": hi\n\n"] * 6)
    with pytest.raises(ClientError):
        list(server.follow())
    assert server.slept[0] == 0
    lows = (0.8, 1.6, 3.2, 6.4, 12)
    assert [low <= wait <= 1.25 * low for low, wait in zip(lows, server.slept[1:6], strict=True)] == [True] * 5


def test_a_stream_that_lasted_is_reconnected_at_once() -> None:
    """Also after others that ended soon."""
    server = Server(*[b"event: task.updated\ndata: 1\n\n"] * 6)
    events = server.follow()
    for lasts in (0, 0, 0, MIN_DURATION, MIN_DURATION, 0):
        server.seconds = lasts
        next(events)
    assert [wait > 0 for wait in server.slept] == [False, True, True, False, False]


def test_the_server_may_request_a_longer_wait() -> None:
    """The server's reconnection time is used, up to the client's maximum."""
    server = Server(b"retry: 3000\n\n", b"retry: 99999999\n\n")
    with pytest.raises(ClientError):
        list(server.follow())
    assert server.slept[:2] == [3, 15]


def test_a_permanent_error_is_raised() -> None:
    """A permanent error is raised; a request to an overloaded server is repeated."""
    busy, denied = (ApiError(status, ExitCode.ERROR, "no", "", 1) for status in (503, 403))
    server = Server(busy, denied)
    with pytest.raises(ApiError):
        list(server.follow())
    assert server.notices == ["no"]


def test_the_reason_of_the_last_refusal_is_raised() -> None:
    """A server that answers, but never with a stream, has said why; one that went away since then has not."""
    busy = ApiError(503, ExitCode.ERROR, "too many streams", "", 1)
    with pytest.raises(ApiError, match="too many streams"):
        list(Server(*[busy] * (MAX_FAILURES + 1)).follow())
    with pytest.raises(ClientError, match="did not come back"):
        list(Server(*[busy] * MAX_FAILURES).follow())
    with pytest.raises(ClientError, match="did not come back"):
        list(Server(*[busy] * MAX_FAILURES, b": hi\n\n").follow())
