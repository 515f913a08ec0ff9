"""Which route answers a path, under which prefixes, and what paths without one are answered with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest

from taskherd.api.http import asgi, openapi
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.http.route import Auth, ResponseSpec, Route, SocketRoute
from taskherd.observability.metrics import Metrics
from taskherd.observability.tracing import Tracing

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from taskherd.api.context import ApiContext, RequestContext


def route(method: str, path: str, *, experimental: bool = False, **headers: str) -> Route:
    """Return a route whose answer says which it is, and with which parameters."""

    async def handle(request: RequestContext) -> BufferedResponse:
        return json([method, path, dict(request.params)])

    responses = {200: ResponseSpec("", headers={name.replace("_", "-"): text for name, text in headers.items()})}
    return Route(
        method=method,
        path=path,
        handler=handle,
        summary="Get",
        responses=responses,
        auth=Auth.NONE,
        experimental=experimental,
    )


async def no_socket(_request: RequestContext, _socket: WebSocket) -> None:
    """Serve nothing."""


class Application:
    """An application of some routes."""

    def __init__(self, *routes: Route, origins: tuple[str, ...] = ()) -> None:
        self.metrics = Metrics()
        self.routes = routes
        settings = SimpleNamespace(cors_origins=origins, log_level="info", api_read_timeout=30)
        api = SimpleNamespace(metrics=self.metrics, settings=settings, tracing=Tracing())
        sockets = [SocketRoute(path="/logs", handler=no_socket, summary="Follow")]
        self.app = asgi.application(cast("ApiContext", api), routes, sockets)

    async def request(self, method: str, path: str, **headers: str) -> httpx.Response:
        """Send a request."""
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    async def answer(self, method: str, path: str) -> Any:
        """Return which route has answered, or the status of an error."""
        response = await self.request(method, path)
        return response.json() if response.status_code == 200 else response.status_code


async def test_a_route_is_below_a_prefix() -> None:
    """An experimental one below both, and the document of all of them below that of Coder's API."""
    app = Application(route("GET", "/tasks/{user}", experimental=True), route("POST", "/tasks/{user}"))
    assert await app.answer("GET", "/api/v2/tasks/me") == ["GET", "/tasks/{user}", {"user": "me"}]
    assert await app.answer("POST", "/api/v2/tasks/me") == ["POST", "/tasks/{user}", {"user": "me"}]
    assert await app.answer("GET", "/api/experimental/tasks/me") == ["GET", "/tasks/{user}", {"user": "me"}]
    assert await app.answer("POST", "/api/experimental/tasks/me") == 405
    assert await app.answer("DELETE", "/api/v2/tasks/me") == 405
    for path in ("/nothing", "/api/v2/tasks/me/", "/api/v2/tasks", "/v2/tasks/me"):
        assert (await app.request("POST", path)).status_code == 404
    document = await app.request("GET", "/api/v2/openapi.json")
    assert document.content == openapi.encoded(
        app.routes, [SocketRoute(path="/logs", handler=no_socket, summary="Follow")]
    )
    assert (await app.request("GET", "/api/experimental/openapi.json")).status_code == 404


async def test_a_fixed_path_leaves_the_other_methods_to_a_wider_one() -> None:
    """So that a user may be called like it; where both have the same method, the fixed one answers all."""
    app = Application(
        route("GET", "/tasks/watch"),
        route("POST", "/tasks/{user}"),
        route("GET", "/users/first"),
        route("GET", "/users/{user}"),
        route("POST", "/users/{user}"),
        route("GET", "/tasks/watch/{part}"),
    )
    assert await app.answer("GET", "/api/v2/tasks/watch") == ["GET", "/tasks/watch", {}]
    assert await app.answer("POST", "/api/v2/tasks/watch") == ["POST", "/tasks/{user}", {"user": "watch"}]
    assert await app.answer("POST", "/api/v2/tasks/me") == ["POST", "/tasks/{user}", {"user": "me"}]
    for method in ("DELETE", "OPTIONS", "PATCH", "PUT", "TRACE"):
        await check_refused(app, method)
    assert await app.answer("GET", "/api/v2/users/first") == ["GET", "/users/first", {}]
    assert await app.answer("POST", "/api/v2/users/first") == 405
    assert await app.answer("POST", "/api/v2/users/me") == ["POST", "/users/{user}", {"user": "me"}]


async def check_refused(app: Application, method: str) -> None:
    """Assert that ``/tasks/watch`` answers that it has another method."""
    response = await app.request(method, "/api/v2/tasks/watch")
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD"), method
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "others",
    [
        [],
        [route("POST", "/tasks/{user}/x")],
        [route("POST", "/tasks/{user}"), route("GET", "/{area}/watch")],
    ],
)
async def test_a_fixed_path_answers_every_method(others: list[Route]) -> None:
    """Where no other path matches it, or one that does has a method in common with it, it leaves none to others."""
    app = Application(route("GET", "/tasks/watch"), *others)
    for method in ("POST", "PROPFIND"):
        await check_refused(app, method)


async def test_a_fixed_path_answers_a_method_of_its_own() -> None:
    """Also if a wider path has that method too."""
    fixed = route("GET", "/tasks/watch"), route("POST", "/tasks/watch")
    app = Application(*fixed, route("POST", "/tasks/{user}"))
    assert await app.answer("POST", "/api/v2/tasks/watch") == ["POST", "/tasks/watch", {}]


@pytest.mark.parametrize(
    ("method", "path", "accept", "is_page"),
    [
        ("GET", "/nothing", "text/html,*/*", True),
        ("GET", "/apis", "text/html", True),
        ("GET", "/nothing", "*/*", False),
        ("GET", "/nothing", "", False),
        ("HEAD", "/nothing", "text/html", False),
        ("POST", "/nothing", "text/html", False),
        ("GET", "/api/nothing", "text/html", False),
        ("GET", "/api", "text/html", False),
        ("GET", "/assets", "text/html", False),
    ],
)
async def test_a_path_that_is_not_there(method: str, path: str, accept: str, *, is_page: bool) -> None:
    """People get a page where pages are, all others JSON; it is counted under one name."""
    app = Application(route("GET", "/tasks"))
    response = await app.request(method, path, accept=accept)
    kind = "text/html; charset=utf-8" if is_page else "application/json"
    assert (response.status_code, response.headers["content-type"]) == (404, kind)
    if not is_page and method != "HEAD":
        assert response.json() == {"message": "Route not found."}
    counted = {"route": "none", "method": "other", "status": "404"}
    assert app.metrics.registry.get_sample_value("taskherd_api_requests_total", counted) == 1


async def test_a_socket_that_is_not_there_is_denied() -> None:
    """Its handshake is denied with the 404 that every path without a route has."""
    app = Application(route("GET", "/tasks"))
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/api/v2/nothing", "headers": [], "query_string": b""}
    await app.app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert (sent[0]["status"], sent[1]["body"]) == (404, b'{"message":"Route not found."}')


async def test_pages_of_other_origins_may_read_what_is_documented() -> None:
    """If their origin is one of the settings; without any, no answer speaks of it."""
    routes = (route("GET", "/tasks", ETag="Tag", X_Taskherd_Queued="Waits"), route("POST", "/tasks", X_Other="Else"))
    app = Application(*routes, origins=("https://board.example",))
    response = await app.request("GET", "/api/v2/tasks", origin="https://board.example")
    assert response.headers["access-control-allow-origin"] == "https://board.example"
    exposed = "ETag, X-Other, X-Taskherd-LSN, X-Taskherd-Queued"
    assert response.headers["access-control-expose-headers"] == exposed
    asked = {"access_control_request_method": "PATCH", "access_control_request_headers": "x-any"}
    preflight = await app.request("OPTIONS", "/api/v2/tasks", origin="https://board.example", **asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-methods"] == "GET, POST, PATCH, DELETE"
    assert preflight.headers["access-control-allow-headers"] == "x-any"
    for other in (
        await app.request("GET", "/api/v2/tasks", origin="https://evil.example"),
        await Application(*routes).request("GET", "/api/v2/tasks", origin="https://board.example"),
    ):
        assert "access-control-allow-origin" not in other.headers
