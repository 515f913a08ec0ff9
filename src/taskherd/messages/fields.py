"""The field types of incoming messages, as strict as the contract: no text for a number, no time without offset."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field, GetPydanticSchema, StringConstraints, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from taskherd.messages.limits import INPUT_BYTES, MAX_BUILD, MAX_SEQ, NAME_CHARACTERS

_RFC3339 = r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)$"
_LONGEST_TIME = 64


def instant(text: str) -> datetime:
    """An RFC 3339 time in UTC, to the microsecond; what is finer is dropped.

    Raises ValueError when there is no such time, or when it has no place in the years 1 to 9999 of UTC.
    """
    moment = datetime.fromisoformat(text.upper())
    if moment.tzinfo is UTC:
        return moment
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("out of range") from error


def _instant_schema(_source: Any, _handler: Any) -> CoreSchema:
    # The pattern runs first, in Rust: fromisoformat alone would take weeks, ordinals and naive times too.
    text = core_schema.str_schema(strict=True, pattern=_RFC3339, max_length=_LONGEST_TIME)
    chain = core_schema.chain_schema([text, core_schema.no_info_plain_validator_function(instant)])
    return core_schema.custom_error_schema(
        chain, custom_error_type="instant", custom_error_message="A time as in RFC 3339, with an offset, was expected"
    )


def _small(text: str) -> str:
    if len(text.encode()) > INPUT_BYTES:
        raise ValueError(f"at most {INPUT_BYTES} bytes of UTF-8 were expected")
    return text


Instant = Annotated[
    datetime, GetPydanticSchema(_instant_schema), WithJsonSchema({"type": "string", "format": "date-time"})
]
BuildNumber = Annotated[int, Field(strict=True, ge=1, le=MAX_BUILD)]
Seq = Annotated[int, Field(strict=True, ge=0, le=MAX_SEQ)]
EntryId = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Text = Annotated[str, Field(strict=True)]

# A name must have something left when its control characters are taken out.
Name = Annotated[str, StringConstraints(strict=True, max_length=NAME_CHARACTERS, pattern=r"[^\x00-\x1f\x7f-\x9f]")]
RunnerName = Annotated[str, StringConstraints(strict=True, max_length=NAME_CHARACTERS, pattern=r"^[a-z0-9-]+$")]
Input = Annotated[str, Field(strict=True), AfterValidator(_small)]
