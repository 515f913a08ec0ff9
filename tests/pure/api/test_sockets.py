"""Requests that stay open: how long they may send, and how WebSockets are denied and closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest
from starlette.websockets import WebSocket
from structlog.testing import capture_logs

from taskherd.api.http import websocket
from taskherd.api.http.authenticator import CACHE_TTL, Caller
from taskherd.api.http.errors import not_found
from taskherd.api.http.open_requests import CHECK_INTERVAL, MAX_CHECK_AGE, OUTAGE_GRACE, AccessLoss, AccessMonitor
from taskherd.api.http.query_parameters import QueryModel
from taskherd.api.http.route import SocketRoute
from taskherd.api.http.websocket import SocketEndpoint, serve
from taskherd.errors import Retry, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.store import access_queries
from taskherd.store.access_queries import AccessKey

if TYPE_CHECKING:
    from taskherd.api.context import ApiContext, RequestContext

ALICE, TASK = UUID(int=1), UUID(int=2)
CALLER = Caller(ALICE, "alice", "token")
KEY = AccessKey("token", ALICE, TASK)


class Query(QueryModel):
    """The query of a socket."""


class Access:
    """A monitor whose clock and whose database a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 1000.0
        self.lost: dict[AccessKey, bool] | Exception = {}
        self.asked: list[set[AccessKey]] = []
        self.seconds_of_a_check = 0.0
        self.monitor = AccessMonitor(cast("Any", None), lambda: self.time)
        monkeypatch.setattr(access_queries, "lost", self._lost)

    async def _lost(self, _reader: object, keys: list[AccessKey]) -> dict[AccessKey, bool]:
        assert len(keys) == len(set(keys))
        self.asked.append(set(keys))
        self.time += self.seconds_of_a_check
        if isinstance(self.lost, Exception):
            raise self.lost
        return self.lost


@pytest.fixture
def access(monkeypatch: pytest.MonkeyPatch) -> Access:
    """Return a monitor."""
    return Access(monkeypatch)


async def is_waiting(awaitable: Awaitable[Any]) -> bool:
    """Return whether this does not end by itself."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(10):
        await asyncio.sleep(0)
    waits = not task.done()
    task.cancel()
    return waits


async def test_the_numbers_that_limit_open_requests() -> None:
    """With the time that sending takes, no client sees anything five seconds after it has lost its access."""
    assert (CHECK_INTERVAL, MAX_CHECK_AGE, OUTAGE_GRACE) == (1, 4, 60)


async def test_data_is_sent_as_long_as_the_latest_check_is_new(access: Access) -> None:
    """Its age counts from the beginning of the check, at first from the oldest that signed the caller in."""
    with access.monitor.watch(CALLER, TASK) as request:
        assert (request.key, request.checked_at) == (KEY, 1000 - CACHE_TTL)
        access.time = 1000 - CACHE_TTL + MAX_CHECK_AGE
        assert await request.may_send()
        access.time += 0.1
        assert await is_waiting(request.may_send())
        waiting = asyncio.create_task(request.may_send())
        await asyncio.sleep(0)
        access.seconds_of_a_check = MAX_CHECK_AGE
        started = access.time
        await access.monitor.check_once()
        assert await asyncio.wait_for(waiting, 5)
        assert request.checked_at == started
        access.time += 0.1
        assert await is_waiting(request.may_send())
        access.lost = {KEY: True}
        waiting = asyncio.create_task(request.may_send())
        await asyncio.sleep(0)
        await access.monitor.check_once()
        assert not await asyncio.wait_for(waiting, 5)
        assert not await request.may_send()


@pytest.mark.parametrize(("signed_in", "loss"), [(True, AccessLoss.NOT_VISIBLE), (False, AccessLoss.SIGNED_OUT)])
async def test_all_open_requests_are_checked_at_once(access: Access, loss: AccessLoss, *, signed_in: bool) -> None:
    """Those that have lost their access end with the reason, the others go on; without any nothing is asked."""
    await access.monitor.check_once()
    assert access.asked == []
    with (
        access.monitor.watch(CALLER, TASK) as one,
        access.monitor.watch(CALLER, TASK) as same,
        access.monitor.watch(CALLER, None) as other,
        capture_logs() as lines,
    ):
        assert await is_waiting(one.wait_lost())
        access.lost = {KEY: signed_in}
        await access.monitor.check_once()
        assert access.asked == [{KEY, AccessKey("token", ALICE, None)}]
        assert [await each.wait_lost() for each in (one, same)] == [loss, loss]
        assert (other.loss, other.checked_at) == (None, 1000)
        line = {"event": "open request ended", "reason": loss, "user_id": str(ALICE), "log_level": "info"}
        assert lines == [line, line]
    await access.monitor.check_once()
    assert len(access.asked) == 1


@pytest.mark.parametrize("error", [Unavailable("away"), Retry("again")])
async def test_an_outage_of_the_database_ends_requests_after_a_while(access: Access, error: Exception) -> None:
    """Until then they send nothing."""
    access.lost = error
    with access.monitor.watch(CALLER, TASK) as request, capture_logs() as lines:
        access.time = request.checked_at + OUTAGE_GRACE
        await access.monitor.check_once()
        assert request.loss is None
        access.time += 1
        await access.monitor.check_once()
        assert await request.wait_lost() is AccessLoss.UNCHECKED
    event = {"event": "cannot check the access of open requests", "requests": 1, "reason": str(error)}
    assert lines == [{**event, "log_level": "warning"}] * 2


async def test_a_check_that_began_before_is_not_the_next(access: Access) -> None:
    """What was true before is not what was asked for."""
    with access.monitor.watch(CALLER, TASK) as request:
        access.time += 1
        waiting = asyncio.create_task(request.next_check())
        await asyncio.sleep(0)
        request.record_check(access.time - 0.5)
        await asyncio.sleep(0.01)
        assert not waiting.done()
        request.record_check(access.time)
        await asyncio.wait_for(waiting, 5)
        await asyncio.wait_for(request.next_check(), 5)
        access.time += 1
        waiting = asyncio.create_task(request.next_check())
        await asyncio.sleep(0)
        request.end(AccessLoss.SIGNED_OUT)
        await asyncio.wait_for(waiting, 5)


class Client:
    """A client of a socket: what it sends and receives."""

    def __init__(self, access: Access) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.incoming.put_nowait({"type": "websocket.connect"})
        self.sent: list[dict[str, Any]] = []
        self.metrics = Metrics()
        self.stopping = asyncio.Event()
        self.api = cast(
            "ApiContext", SimpleNamespace(access=access.monitor, stopping=self.stopping, metrics=self.metrics)
        )
        self.scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": [], "query_string": b""}

    async def send(self, message: Any) -> None:
        """Take a message of the server."""
        self.sent.append(message)

    async def serve(self, send_all: Callable[[websocket.SendText], Awaitable[int]]) -> None:
        """Serve a socket about the task."""
        request = cast("RequestContext", SimpleNamespace(api=self.api, caller=CALLER))
        socket = WebSocket(self.scope, self.incoming.get, self.send)
        await asyncio.wait_for(serve(request, socket, TASK, send_all), 5)

    @property
    def closed(self) -> list[int]:
        """The codes with which the server closed the socket."""
        return [message["code"] for message in self.sent if message["type"] == "websocket.close"]


async def for_ever(_send: websocket.SendText) -> int:
    """Send nothing, and go on."""
    await asyncio.Event().wait()
    return 0


async def test_a_socket_ends_with_what_it_sends(access: Access) -> None:
    """When the check after the last frame allowed it, with the code of what it sent."""
    client = Client(access)

    async def send_all(send: websocket.SendText) -> int:
        await send("one")
        await send("two")
        access.time += 1
        sent_all.set()
        return websocket.NORMAL

    sent_all = asyncio.Event()
    serving = asyncio.create_task(client.serve(send_all))
    await sent_all.wait()
    await asyncio.sleep(0.01)
    assert client.closed == []
    await access.monitor.check_once()
    await serving
    assert [message["type"] for message in client.sent] == [
        "websocket.accept",
        *["websocket.send"] * 2,
        "websocket.close",
    ]
    assert [message.get("text") for message in client.sent[1:3]] == ["one", "two"]
    assert client.closed == [1000]


@pytest.mark.parametrize(("loss", "code"), [
    (AccessLoss.SIGNED_OUT, 1008), (AccessLoss.NOT_VISIBLE, 1008), (AccessLoss.UNCHECKED, 1013),
])  # fmt: skip
async def test_a_socket_ends_with_the_access_of_the_caller(access: Access, loss: AccessLoss, code: int) -> None:
    """Nothing is sent any more, and the code says whether the client may come back."""
    client = Client(access)

    async def send_all(send: websocket.SendText) -> int:
        for request in access.monitor._requests:
            request.end(loss)
        await send("late")
        return await for_ever(send)

    await client.serve(send_all)
    assert [message["type"] for message in client.sent] == ["websocket.accept", "websocket.close"]
    assert client.closed == [code]


async def test_a_socket_ends_with_the_process(access: Access) -> None:
    """The client is told to go elsewhere."""
    client = Client(access)
    client.stopping.set()
    await client.serve(for_ever)
    assert client.closed == [1001]


async def test_a_socket_ends_with_its_client(access: Access) -> None:
    """What it sends besides is ignored; nobody is there to be told."""
    client = Client(access)
    client.incoming.put_nowait({"type": "websocket.receive", "text": "hello"})
    client.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await client.serve(for_ever)
    assert client.incoming.empty()
    assert [message["type"] for message in client.sent] == ["websocket.accept"]


async def test_an_error_while_sending_is_not_hidden(access: Access) -> None:
    """It ends the socket without a code of its own."""

    async def send_all(_send: websocket.SendText) -> int:
        raise Unavailable("away")

    client = Client(access)
    with pytest.raises(Unavailable, match="away"):
        await client.serve(send_all)
    assert client.closed == []


@pytest.mark.parametrize(
    ("error", "status"), [(not_found(), 404), (Unavailable("away"), 503), (Retry("again"), 503), (None, 101)]
)
async def test_a_handshake_is_answered_as_a_request(
    access: Access, monkeypatch: pytest.MonkeyPatch, error: Exception | None, status: int
) -> None:
    """What it is denied with is that of a request, and it is counted as one."""

    async def allow(*_: object) -> None:
        """Sign everybody in."""

    async def handler(request: RequestContext, _socket: WebSocket) -> None:
        assert request.query_model is Query
        if error is not None:
            raise error

    monkeypatch.setattr(websocket, "authenticate", allow)
    client = Client(access)
    route = SocketRoute(path="/examples", summary="", handler=handler, query=Query)
    with capture_logs() as lines:
        await SocketEndpoint(client.api, route)(client.scope, client.incoming.get, client.send)
    counted = client.metrics.api_requests.labels("/api/v2/examples", "GET", str(status))
    assert counted._value.get() == 1
    if error is None:
        assert client.sent == []
    else:
        start, body = client.sent
        assert (start["type"], start["status"]) == ("websocket.http.response.start", status)
        assert body["type"] == "websocket.http.response.body"
        assert b"message" in body["body"]
    reasons = [line["reason"] for line in lines]
    assert reasons == ([str(error)] if status == 503 else [])
