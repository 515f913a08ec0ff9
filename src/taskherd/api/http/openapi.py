"""The OpenAPI document, built from the route table: ``python -m taskherd.api.http.openapi > docs/openapi.json``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import orjson
from pydantic import TypeAdapter

from taskherd.api.http.query_parameters import declared
from taskherd.api.http.route import Auth, Header, ResponseSpec, Route, SocketRoute
from taskherd.api.routes import EXPERIMENTAL, PREFIX, ROUTES, SOCKETS
from taskherd.api.tasks.schemas import ErrorResponse

_JSON: Final = "application/json"
_EVENT: Final[Mapping[str, Any]] = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "data": {"type": "string", "contentMediaType": _JSON},
    },
}
_REF: Final = "#/components/schemas/{model}"
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_PATH_PARAMETERS: Final = {
    "user": "Username or ID of a user; `me` is the authenticated user.",
    "task": "ID or name of a task.",
    "action": "ID of an action.",
    "request": "ID of a request of an agent.",
    "workspace": "Name of a workspace, which is that of its task.",
    "id": "ID in the form of a UUID.",
    "organization": "Name or ID of an organization; `default` is the one of that name, else the caller's first one.",
    "template": "Name or ID of a template.",
    "version": "ID of a template version; its name on the path of a template.",
}
_DESCRIPTION: Final = (
    "Coder's Tasks API as its clients use it, with extensions. Every error is JSON. An optional field without a value"
    " is left out, unless its schema allows null. A response to a write may have the header `X-Taskherd-LSN`: requests"
    " that send the newest one back read nothing older, whichever process they reach."
)
_RETRY: Final = {"Retry-After": "Number of seconds after which to repeat the request."}
_COMMON: Final[Mapping[int, ResponseSpec]] = {
    400: ResponseSpec("The request is invalid; the message explains why."),
    429: ResponseSpec("The caller has exceeded its rate limit.", headers=_RETRY),
    500: ResponseSpec("An internal error."),
    503: ResponseSpec("The database, the broker or the worker is unavailable.", headers=_RETRY),
}
_UNAUTHORIZED: Final = ResponseSpec(
    "The token is missing or not valid.", headers={"WWW-Authenticate": 'Always `Bearer realm="coder"`.'}
)
_BODY_RESPONSES: Final[Mapping[int, ResponseSpec]] = {
    408: ResponseSpec("The body did not arrive in time."),
    413: ResponseSpec("The body is larger than 1 MiB, or a log snapshot larger than 64 KiB."),
}
_NOT_FOUND: Final = ResponseSpec("The resource does not exist, or the caller may not see it.")


class _Schemas:
    """The JSON schemas of all request and response bodies, by type and mode."""

    def __init__(self, routes: Iterable[Route]) -> None:
        types: dict[tuple[str, Literal["validation", "serialization"]], Any] = {
            (repr(ErrorResponse), "serialization"): ErrorResponse
        }
        for route in routes:
            if route.body is not None:
                types[repr(route.body), "validation"] = route.body
            for spec in route.responses.values():
                if spec.body is not None:
                    types[repr(spec.body), "serialization"] = spec.body
        inputs = [(key, mode, TypeAdapter(kind)) for (key, mode), kind in types.items()]
        self._schemas, definitions = TypeAdapter.json_schemas(inputs, ref_template=_REF)
        for schema in definitions["$defs"].values():
            if "description" in schema:  # a docstring, while OpenAPI descriptions are Markdown
                schema["description"] = schema["description"].replace("``", "`")
        self.components: dict[str, Any] = definitions["$defs"]

    def of(self, kind: Any, mode: Literal["validation", "serialization"]) -> dict[str, Any]:
        """Return the schema of one of these types."""
        return dict(self._schemas[repr(kind), mode])


def document(routes: Sequence[Route] = ROUTES, sockets: Sequence[SocketRoute] = SOCKETS) -> dict[str, Any]:
    """Return the document as JSON types."""
    schemas = _Schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for prefix in (PREFIX, EXPERIMENTAL) if route.experimental else (PREFIX,):
            paths.setdefault(prefix + route.path, {})[route.method.lower()] = _operation(route, prefix, schemas)
    for socket in sockets:
        upgrade = _upgrade(socket, schemas)
        operation = paths.setdefault(PREFIX + socket.path, {}).setdefault("get", upgrade)
        operation["responses"] = {**upgrade["responses"], **operation["responses"]}
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
    """Return the document as it is served, and stored in ``docs/``."""
    return orjson.dumps(document(routes, sockets), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _operation(route: Route, prefix: str, schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _identifier(route.method, prefix + route.path),
        "summary": route.summary,
        "tags": [route.tag],
    }
    if route.description:
        operation["description"] = route.description
    if route.auth is Auth.NONE:
        operation["security"] = []
    parameters = [*_path_parameters(route.path), *declared(route.query), *map(_header, route.headers)]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        schema = schemas.of(route.body, "validation")
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    operation["responses"] = {
        str(status): _response(status, spec, schemas) for status, spec in sorted(responses_of(route).items())
    }
    return operation


def responses_of(route: Route) -> Mapping[int, ResponseSpec]:
    """Return all responses of a route; its own override the common ones."""
    common = dict(_COMMON)
    if route.auth is not Auth.NONE:
        common[401] = _UNAUTHORIZED
    if "{" in route.path:
        common[404] = _NOT_FOUND
    if route.body is not None:
        common |= _BODY_RESPONSES
    return common | dict(route.responses)


def _response(status: int, spec: ResponseSpec, schemas: _Schemas) -> dict[str, Any]:
    response: dict[str, Any] = {"description": spec.description}
    if spec.headers:
        response["headers"] = {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in spec.headers.items()
        }
    body = spec.body if spec.body is not None else ErrorResponse if status >= 400 else None  # noqa: PLR2004 - an error
    if spec.media:
        response["content"] = {spec.media: {"schema": _event(spec.events) if spec.events else {"type": "string"}}}
    elif body is not None:
        response["content"] = {_JSON: {"schema": schemas.of(body, "serialization")}}
        if spec.also:
            response["content"][spec.also] = {"schema": {"type": "string"}}
    return response


def _event(names: tuple[str, ...]) -> dict[str, Any]:
    return {**_EVENT, "properties": {**_EVENT["properties"], "event": {"enum": list(names)}}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_PARAMETERS[name],
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


def _upgrade(socket: SocketRoute, schemas: _Schemas) -> dict[str, Any]:
    return {
        "operationId": _identifier("GET", PREFIX + socket.path),
        "summary": socket.summary,
        "tags": [socket.tag],
        "description": "Opens a WebSocket; each text frame is JSON.",
        "parameters": [*_path_parameters(socket.path), *declared(socket.query)],
        "responses": {
            "101": {"description": "The WebSocket is open, if the request asked for the upgrade."},
            "404": _response(404, _NOT_FOUND, schemas),
        },
    }


def _identifier(method: str, path: str) -> str:
    words = re.findall(r"\w+", path)
    return "-".join([method.lower(), *words[1:]])


if __name__ == "__main__":
    sys.stdout.write(encoded().decode())
