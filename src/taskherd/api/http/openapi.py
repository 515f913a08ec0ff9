"""The OpenAPI document, made from the table of routes: `python -m taskherd.api.http.openapi > docs/openapi.json`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import orjson
from pydantic import TypeAdapter

from taskherd.api.http.route import Auth, Header, ResponseSpec, Route, SocketRoute
from taskherd.api.query import declared
from taskherd.api.routes import EXPERIMENTAL, PREFIX, ROUTES, SOCKETS
from taskherd.api.tasks.schemas import ErrorOut

_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
_EVENT: Final[Mapping[str, Any]] = {
    "type": "object",
    "description": "Each event of the stream.",
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "event": {"enum": ["task.snapshot", "task.created", "task.updated", "task.deleted", "reset", "resume"]},
        "data": {"type": "string", "contentMediaType": _JSON},
    },
}
_REF: Final = "#/components/schemas/{model}"
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_PATH_PARAMETERS: Final = {
    "user": "Username, user ID, or 'me' for the authenticated user",
    "task": "Task ID, or task name",
}
_DESCRIPTION: Final = (
    "Coder's Tasks API as its clients speak it, and what taskherd has beyond it. Every error is JSON. Fields that may"
    " be absent are left out when empty, unless they are told as null."
)
_RETRY: Final = {"Retry-After": "Seconds after which to try again."}
_COMMON: Final[Mapping[int, ResponseSpec]] = {
    400: ResponseSpec("The request is wrong; the message says how."),
    429: ResponseSpec("The caller asks too often.", headers=_RETRY),
    500: ResponseSpec("A mistake of ours."),
    503: ResponseSpec("Something that the API stands on is away.", headers=_RETRY),
}
_SIGNED_OUT: Final = ResponseSpec(
    "No token that holds.", headers={"WWW-Authenticate": 'Always `Bearer realm="coder"`.'}
)
_BODY_RESPONSES: Final[Mapping[int, ResponseSpec]] = {
    408: ResponseSpec("The body did not arrive in time."),
    413: ResponseSpec("The body is too large: over 1 MiB, a log snapshot over 64 KiB."),
}
_NOT_FOUND: Final = ResponseSpec("Not there, or not the caller's.")


class _Schemas:
    """The schemas of everything that routes take and give, by what asks for them."""

    def __init__(self, routes: Iterable[Route]) -> None:
        wanted: dict[tuple[str, Literal["validation", "serialization"]], Any] = {
            (repr(ErrorOut), "serialization"): ErrorOut
        }
        for route in routes:
            if route.body is not None:
                wanted[repr(route.body), "validation"] = route.body
            for says in route.responses.values():
                if says.body is not None:
                    wanted[repr(says.body), "serialization"] = says.body
        inputs = [(key, mode, TypeAdapter(kind)) for (key, mode), kind in wanted.items()]
        self._found, definitions = TypeAdapter.json_schemas(inputs, ref_template=_REF)
        self.components: dict[str, Any] = definitions["$defs"]

    def of(self, kind: Any, mode: Literal["validation", "serialization"]) -> dict[str, Any]:
        """The schema of one of them."""
        return dict(self._found[repr(kind), mode])


def document(routes: Sequence[Route] = ROUTES, sockets: Sequence[SocketRoute] = SOCKETS) -> dict[str, Any]:
    """The document, in JSON's own types."""
    schemas = _Schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for prefix in (PREFIX, EXPERIMENTAL) if route.experimental else (PREFIX,):
            paths.setdefault(prefix + route.path, {})[route.method.lower()] = _operation(route, prefix, schemas)
    for socket in sockets:
        upgrade = _upgrade(socket)
        told = paths.setdefault(PREFIX + socket.path, {}).setdefault("get", upgrade)
        told["responses"] = {**upgrade["responses"], **told["responses"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "taskherd", "version": "1.0.0", "description": _DESCRIPTION, "license": _LICENSE},
        "servers": [{"url": "/"}],
        "security": [{"session": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "header", "name": "Coder-Session-Token"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


_LICENSE: Final = {"name": "Apache-2.0", "identifier": "Apache-2.0"}


def encoded(routes: Sequence[Route] = ROUTES, sockets: Sequence[SocketRoute] = SOCKETS) -> bytes:
    """The document as it is served and checked in."""
    return orjson.dumps(document(routes, sockets), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _operation(route: Route, prefix: str, schemas: _Schemas) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": _identifier(route.method, prefix + route.path),
        "summary": route.summary,
        "tags": [route.tag],
    }
    if route.description:
        told["description"] = route.description
    if route.auth is Auth.NONE:
        told["security"] = []
    parameters = [*_path_parameters(route.path), *declared(route.query), *map(_header, route.headers)]
    if parameters:
        told["parameters"] = parameters
    if route.body is not None:
        schema = schemas.of(route.body, "validation")
        told["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    told["responses"] = {
        str(status): _response(status, says, schemas) for status, says in sorted(_responses(route).items())
    }
    return told


def _responses(route: Route) -> Mapping[int, ResponseSpec]:
    """All that a route may answer, in its own words where it has some."""
    common = dict(_COMMON)
    if route.auth is not Auth.NONE:
        common[401] = _SIGNED_OUT
    if "{" in route.path:
        common[404] = _NOT_FOUND
    if route.body is not None:
        common |= _BODY_RESPONSES
    return common | dict(route.responses)


def _response(status: int, says: ResponseSpec, schemas: _Schemas) -> dict[str, Any]:
    told: dict[str, Any] = {"description": says.description}
    if says.headers:
        told["headers"] = {
            name: {"description": meaning, "schema": {"type": "string"}} for name, meaning in says.headers.items()
        }
    kind = says.body if says.body is not None else ErrorOut if status >= 400 else None  # noqa: PLR2004 - an error
    if says.media:
        told["content"] = {says.media: {"schema": _EVENT if says.media == _EVENTS else {"type": "string"}}}
    elif kind is not None:
        told["content"] = {_JSON: {"schema": schemas.of(kind, "serialization")}}
    return told


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_PARAMETERS.get(name, name),
            "schema": {"type": "string"},
        }
        for name in _PARAMETER.findall(path)
    ]


def _header(header: Header) -> dict[str, Any]:
    return {
        "name": header.name,
        "in": "header",
        "description": header.description,
        "schema": dict(header.schema),
    }


def _upgrade(socket: SocketRoute) -> dict[str, Any]:
    return {
        "operationId": _identifier("GET", PREFIX + socket.path),
        "summary": socket.summary,
        "tags": [socket.tag],
        "description": "A WebSocket.",
        "parameters": [*_path_parameters(socket.path), *declared(socket.query)],
        "responses": {"101": {"description": "With Upgrade: the WebSocket is open."}},
    }


def _identifier(method: str, path: str) -> str:
    words = re.findall(r"\w+", path)
    return "-".join([method.lower(), *words[1:]])


if __name__ == "__main__":
    sys.stdout.write(encoded().decode())
