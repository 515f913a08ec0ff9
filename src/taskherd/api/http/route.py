"""Declarations of routes, from which both the server and the OpenAPI document are built."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel

from taskherd.api.http.query_parameters import NoQuery, QueryModel
from taskherd.api.http.responses import BufferedResponse
from taskherd.messages.limits import MAX_BODY_BYTES

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.websockets import WebSocket

    from taskherd.api.context import RequestContext

Handler: TypeAlias = "Callable[[RequestContext], Awaitable[BufferedResponse | Response]]"
"""Answers a request or raises ``HTTPError``. Streams are Starlette responses, all others ``BufferedResponse``."""

SocketHandler: TypeAlias = "Callable[[RequestContext, WebSocket], Awaitable[None]]"
"""Accepts and serves a WebSocket until it returns, or raises ``HTTPError`` to deny it."""


Admission: TypeAlias = "Callable[[RequestContext], AbstractContextManager[None]]"
"""Runs from before a request's body is read until it is answered; raises ``HTTPError`` if too many are in progress."""


def _admit_all(_request: RequestContext) -> AbstractContextManager[None]:
    return nullcontext()


class Auth(Enum):
    """The kind of token that a route requires."""

    NONE = "none"
    USER = "user"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Header:
    """A request header that a route reads; ``schema`` is its JSON schema."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """A documented response: description, type of the body (None if it is empty) and headers.

    ``media`` is the content type if it is not JSON; the description explains the format then. ``events`` are the names
    of the events of a stream. ``also`` is a content type in which the same may come as text.
    """

    description: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    media: str = ""
    events: tuple[str, ...] = ()
    also: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation. ``path`` is relative to the prefix; ``responses`` adds to those that all routes have in common.

    An ``experimental`` route is also served under ``/api/experimental``, where the GitHub Action expects it. Large
    answers of a ``compressed`` route are sent as gzip to clients that accept it: for what has no secret and no stream.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    responses: Mapping[int, ResponseSpec]
    description: str = ""
    auth: Auth = Auth.USER
    body: type[BaseModel] | None = None
    max_body: int = MAX_BODY_BYTES
    admit: Admission = _admit_all
    query: type[QueryModel] = NoQuery
    headers: tuple[Header, ...] = ()
    experimental: bool = False
    compressed: bool = False
    tag: str = "tasks"


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketRoute:
    """A WebSocket below ``/api/v2``, documented in OpenAPI as the GET request that is upgraded."""

    path: str
    handler: SocketHandler
    summary: str
    query: type[QueryModel] = NoQuery
    tag: str = "logs"
