"""What a route is: declared once, from which both the server and the OpenAPI document are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel

from taskherd.api.http.responses import BufferedResponse
from taskherd.api.query import NoQuery, QueryModel
from taskherd.messages.limits import BODY_BYTES

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.websockets import WebSocket

    from taskherd.api.context import RequestContext

Handler: TypeAlias = "Callable[[RequestContext], Awaitable[BufferedResponse | Response]]"
"""Answers a request; raises `Refusal`. A Starlette response is for streams, all else is an `BufferedResponse`."""

SocketHandler: TypeAlias = "Callable[[RequestContext, WebSocket], Awaitable[None]]"
"""Serves a WebSocket that is not accepted yet, until it returns."""


class Auth(Enum):
    """Whose token a route asks for."""

    NONE = "none"
    USER = "user"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Header:
    """A header that a route reads; `schema` is its JSON schema."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """A response: what it means, its body (None: empty; a list type works too) and the headers it carries.

    `media`: the content type of what is not JSON, whose form the description tells.
    """

    description: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    media: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation. `path` is below the prefix; `responses` are those beyond what every route can answer.

    With `experimental` it is served under /api/experimental too; the GitHub Action asks there.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    responses: Mapping[int, ResponseSpec]
    description: str = ""
    auth: Auth = Auth.USER
    body: type[BaseModel] | None = None
    max_body: int = BODY_BYTES
    query: type[QueryModel] = NoQuery
    headers: tuple[Header, ...] = ()
    experimental: bool = False
    tag: str = "tasks"


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketRoute:
    """A WebSocket, below /api/v2; it is told of in the OpenAPI document as the GET that asks for the upgrade."""

    path: str
    handler: SocketHandler
    summary: str
    query: type[QueryModel] = NoQuery
    tag: str = "logs"
