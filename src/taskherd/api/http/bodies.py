"""Reading a request's body: bounded in size and in time, then JSON, then the route's model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from taskherd.api.http.responses import invalid, invalid_json, too_large, too_slow

if TYPE_CHECKING:
    from starlette.types import Receive

Model = TypeVar("Model", bound=BaseModel)
MAX_VALIDATIONS = 20


class ClientDisconnected(Exception):  # noqa: N818 - not an error
    """Whoever asked hung up before the request was whole; nobody is there to be answered."""


def check_length(headers: Mapping[str, str], limit: int) -> None:
    """Refuse a body that says itself that it is larger than so many bytes."""
    told = headers.get("content-length", "")
    if told.isdigit() and int(told[:19]) > limit:
        raise too_large(limit)


async def read(receive: Receive, within: float, limit: int) -> bytes:
    """The whole body; at most so many bytes, and within so many seconds."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(within):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise too_large(limit)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise too_slow() from None


def parse(body: bytes, model: type[Model]) -> Model:
    """The body as the route's model says."""
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid_json(str(error)) from None
    if not isinstance(value, dict):
        raise invalid_json("An object was expected.")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(*_wrong(error)) from None


def _wrong(error: ValidationError) -> list[tuple[str, str]]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        (".".join(str(part) for part in each["loc"]) or "body", each["msg"].removeprefix("Value error, "))
        for each in found[:MAX_VALIDATIONS]
    ]
