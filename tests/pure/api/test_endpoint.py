"""One path of the API: how requests are answered, counted and logged, whatever their handlers do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import httpx
import orjson
import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from taskherd.api.context import RequestContext
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.bodies import ClientDisconnected
from taskherd.api.http.endpoint import HttpEndpoint
from taskherd.api.http.errors import not_found
from taskherd.api.http.responses import BufferedResponse, empty, json
from taskherd.api.http.route import Auth, Route
from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.observability.tracing import Tracing
from taskherd.store.engine import DataError

if TYPE_CHECKING:
    from taskherd.api.context import ApiContext
    from taskherd.api.http.route import Handler

PATH = "/api/v2/examples"


class Example(BaseModel):
    """The body of an example."""

    number: int


class Endpoint:
    """An endpoint whose GET and POST are answered by these functions, and what it has counted and logged."""

    def __init__(self, get: Handler | None = None, post: Handler | None = None, level: str = "info") -> None:
        self.metrics = Metrics()
        self.lines: list[Any] = []
        settings = SimpleNamespace(log_level=level, api_read_timeout=30)
        reads = SimpleNamespace(written_lsn=self.written_lsn)
        api = SimpleNamespace(metrics=self.metrics, settings=settings, tracing=Tracing(), reads=reads)
        common: dict[str, Any] = {"path": "/examples", "summary": "", "responses": {}, "auth": Auth.NONE}
        routes = [Route(method="GET", handler=get, compressed=True, **common)] if get else []
        if post:
            routes.append(Route(method="POST", handler=post, body=Example, max_body=100, **common))
        self._app = HttpEndpoint(cast("ApiContext", api), PATH, routes)

    async def written_lsn(self) -> str:
        """Return the position of the last write."""
        return "0/7"

    async def request(self, method: str, **fields: Any) -> httpx.Response:
        """Send a request, and keep what is logged about it."""
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            with capture_logs() as lines:
                response = await client.request(method, PATH, **fields)
        self.lines += lines
        return response

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(f"taskherd_api_{name}", labels)

    def answered(self, method: str, status: int) -> float | None:
        """Return how many requests were answered like this."""
        return self.value("requests_total", route=PATH, method=method, status=str(status))


def raising(error: Exception) -> Handler:
    """Return a handler that fails."""

    async def handle(_: RequestContext) -> BufferedResponse:
        raise error

    return handle


async def hello(_: RequestContext) -> BufferedResponse:
    """Answer with a large document."""
    return json({"hello": "x" * 5_000})


async def echo(request: RequestContext) -> BufferedResponse:
    """Answer with the number of the body."""
    request.log_fields = {"number": request.body.number}
    return json(request.body.number, 201)


async def test_a_request_is_answered_counted_and_timed() -> None:
    """HEAD as GET; another method is refused, and counted under one name, whatever it is called."""
    endpoint = Endpoint(hello, echo)
    response = await endpoint.request("GET", headers={"Accept-Encoding": "identity"})
    assert (response.status_code, response.json()) == (200, {"hello": "x" * 5_000})
    assert (await endpoint.request("HEAD")).status_code == 200
    for method in ("PUT", "BREW"):
        refused = await endpoint.request(method)
        assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD, POST")
    counted = [endpoint.answered(*each) for each in (("GET", 200), ("HEAD", 200), ("other", 405), ("PUT", 405))]
    assert counted == [1, 1, 2, None]
    assert (endpoint.value("seconds_count"), endpoint.value("requests_in_flight")) == (4, 0)
    assert (await Endpoint(post=echo).request("HEAD")).status_code == 405


async def test_a_large_answer_is_compressed_for_who_takes_it() -> None:
    """Only the answers of routes that say so are compressed."""
    endpoint = Endpoint(hello, echo)
    response = await endpoint.request("GET", headers={"Accept-Encoding": "gzip"})
    assert (response.headers["Content-Encoding"], response.json()) == ("gzip", {"hello": "x" * 5_000})
    posted = await endpoint.request("POST", json={"number": 7}, headers={"Accept-Encoding": "gzip"})
    assert (posted.status_code, posted.json()) == (201, 7)
    assert "Content-Encoding" not in posted.headers


@pytest.mark.parametrize(
    ("error", "status", "crashes"),
    [
        (not_found(), 404, 0),
        (Unavailable("no database"), 503, 0),
        (Retry("again"), 503, 0),
        (Misconfigured("database_url", "a user with privileges"), 503, 0),
        (DataError("a null byte"), 400, 0),
        (ValueError("a secret"), 500, 1),
    ],
)
async def test_every_failure_is_an_answer(error: Exception, status: int, crashes: int) -> None:
    """In JSON, without what only operators should read; what nobody foresaw is counted."""
    endpoint = Endpoint(raising(error))
    response = await endpoint.request("GET")
    assert (response.status_code, set(orjson.loads(response.content)) <= {"message", "detail"}) == (status, True)
    assert not any(word in response.text for word in ("no database", "again.", "privileges", "null byte", "secret"))
    assert (endpoint.answered("GET", status), endpoint.value("crashes_total")) == (1, crashes)
    assert endpoint.value("requests_in_flight") == 0


async def test_a_body_is_validated_before_its_handler() -> None:
    """By its length, and by its model; only where the route has one."""
    endpoint = Endpoint(hello, echo)
    for sent, status in (
        ({"json": {"number": 7}}, 201),
        ({"json": {"number": "x"}}, 400),
        ({"content": b" " * 101}, 413),
    ):
        assert (await endpoint.request("POST", **sent)).status_code == status
    assert (await endpoint.request("GET", content=b"{")).status_code == 200


async def test_a_client_that_is_gone_gets_no_answer() -> None:
    """It is counted as nginx does."""
    endpoint = Endpoint(raising(ClientDisconnected()))
    with pytest.raises(AssertionError):  # of the client: there is no response
        await endpoint.request("GET")
    assert (endpoint.answered("GET", 499), endpoint.value("requests_in_flight")) == (1, 0)


async def test_the_answer_to_a_write_names_the_position_that_shows_it() -> None:
    """That to a read does not, nor that to a stranger."""

    def signed_in(handle: Callable[[RequestContext], BufferedResponse]) -> Handler:
        async def handler(request: RequestContext) -> BufferedResponse:
            request.set_caller(Caller(UUID(int=1), "alice", "token"))
            return handle(request)

        return handler

    endpoint = Endpoint(signed_in(lambda _: json([])), signed_in(lambda _: empty(204, {"X-Other": "1"})))
    written = await endpoint.request("POST", json={"number": 1})
    assert (written.headers["X-Taskherd-LSN"], written.headers["X-Other"]) == ("0/7", "1")
    assert "X-Taskherd-LSN" not in (await endpoint.request("GET")).headers
    assert "X-Taskherd-LSN" not in (await Endpoint(post=echo).request("POST", json={"number": 1})).headers


async def test_writes_are_logged() -> None:
    """With what they were about; reads and refusals that any stranger can cause only while debugging."""
    endpoint = Endpoint(hello, echo)
    await endpoint.request("POST", json={"number": 7})
    await endpoint.request("GET")
    await endpoint.request("HEAD")
    await endpoint.request("PUT")
    (line,) = endpoint.lines
    assert {key: value for key, value in line.items() if key != "ms"} == {
        "event": "request", "log_level": "info", "method": "POST", "route": PATH, "status": 201, "user": None,
        "number": 7,
    }  # fmt: skip
    assert 0 <= line["ms"] < 60_000
    for status in (401, 404, 405, 429, 400):
        quiet = Endpoint(post=lambda _, status=status: answer(status))  # type: ignore[misc]
        await quiet.request("POST", json={"number": 7})
        assert [each["status"] for each in quiet.lines] == ([400] if status == 400 else [])
    debugging = Endpoint(hello, echo, level="debug")
    await debugging.request("GET")
    await debugging.request("POST", json={"number": 7})
    assert [(each["method"], each["log_level"]) for each in debugging.lines] == [("GET", "debug"), ("POST", "info")]


async def answer(status: int) -> BufferedResponse:
    """Answer with a status."""
    return empty(status)
