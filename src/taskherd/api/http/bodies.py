"""Request bodies: read with limits on size and time, then validated by the route's model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from taskherd.api.http.errors import invalid, invalid_json, too_large, too_slow

if TYPE_CHECKING:
    from starlette.types import Receive

BodyModel = TypeVar("BodyModel", bound=BaseModel)
MAX_VALIDATIONS: Final = 20
"""Maximum number of invalid fields that one error names."""


class ClientDisconnected(Exception):  # noqa: N818 - not an error
    """The client disconnected before it had sent the whole request."""


def check_length(headers: Mapping[str, str], limit: int) -> None:
    """Reject a body whose Content-Length exceeds ``limit`` bytes."""
    length = headers.get("content-length", "")
    if length.isdigit() and int(length[:19]) > limit:
        raise too_large(limit)


async def read(receive: Receive, timeout: float, limit: int) -> bytes:  # noqa: ASYNC109 - it becomes a 408
    """Read the body: up to ``limit`` bytes, within ``timeout`` seconds."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
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


def parse(body: bytes, model: type[BodyModel]) -> BodyModel:
    """Validate a body with the route's model. Raise a 400 that names the invalid fields."""
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid_json(str(error)) from None
    return validate(value, model)


def validate(value: Any, model: type[BodyModel]) -> BodyModel:
    """Validate a decoded object. Raise a 400 that names the invalid fields."""
    if not isinstance(value, dict):
        raise invalid_json("Expected an object.")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(*_validations(error)) from None


def _validations(error: ValidationError) -> list[tuple[str, str]]:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        (".".join(str(part) for part in each["loc"]) or "body", each["msg"].removeprefix("Value error, "))
        for each in details[:MAX_VALIDATIONS]
    ]
