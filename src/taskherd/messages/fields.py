"""Field types and base class of incoming messages; as strict as the contract: no strings as numbers, no naive times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetPydanticSchema, StringConstraints, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from taskherd.domain.task import MAX_BUILD_NUMBER
from taskherd.messages.limits import MAX_INPUT_BYTES, MAX_NAME_CHARACTERS, MAX_SEQ

_RFC3339 = r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)$"
_MAX_TIME_CHARACTERS = 64

EARLIEST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""The earliest time that a message keeps; that of a machine whose clock was never set."""

LATEST_TIME = datetime(2999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
"""The latest time that a message keeps. PostgreSQL's driver takes the last microsecond of the year 9999 as infinity."""


class IncomingModel(BaseModel):
    """Base of all incoming models. Unknown fields are ignored, because producers may be newer than the worker."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def parse_instant(text: str) -> datetime:
    """Parse an RFC 3339 time as UTC, with digits after the microseconds dropped.

    A time before ``EARLIEST_TIME`` or after ``LATEST_TIME`` becomes that time: what an agent says counts, whatever its
    clock shows. Raises ValueError if there is no such time, or if it is outside the years 1 to 9999 in UTC.
    """
    time = datetime.fromisoformat(text.upper())
    if time.tzinfo is not UTC:
        try:
            time = time.astimezone(UTC)
        except OverflowError as error:
            raise ValueError("out of range") from error
    return time if EARLIEST_TIME <= time <= LATEST_TIME else min(max(time, EARLIEST_TIME), LATEST_TIME)


def _instant_schema(_source: Any, _handler: Any) -> CoreSchema:
    # The pattern is checked first, in Rust: fromisoformat alone would accept week dates, ordinal dates and naive times.
    text = core_schema.str_schema(strict=True, pattern=_RFC3339, max_length=_MAX_TIME_CHARACTERS)
    chain = core_schema.chain_schema([text, core_schema.no_info_plain_validator_function(parse_instant)])
    return core_schema.custom_error_schema(
        chain, custom_error_type="instant", custom_error_message="A time as in RFC 3339, with an offset, was expected"
    )


def _check_input_size(text: str) -> str:
    if len(text.encode()) > MAX_INPUT_BYTES:
        raise ValueError(f"at most {MAX_INPUT_BYTES} bytes of UTF-8 were expected")
    return text


Instant = Annotated[
    datetime, GetPydanticSchema(_instant_schema), WithJsonSchema({"type": "string", "format": "date-time"})
]
"""A time; one outside the years 1970 to 2999 becomes the nearest time within them, see ``parse_instant``."""

BuildNumber = Annotated[int, Field(strict=True, ge=1, le=MAX_BUILD_NUMBER)]
Seq = Annotated[int, Field(strict=True, ge=0, le=MAX_SEQ)]
EntryId = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
ExitStatus = Annotated[int, Field(strict=True, ge=-(2**31), le=2**32 - 1)]
StrictText = Annotated[str, Field(strict=True)]

# At least one character must remain when control characters, also bidirectional ones, are removed.
_NAME_CHARACTER = r"[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
Name = Annotated[str, StringConstraints(strict=True, max_length=MAX_NAME_CHARACTERS, pattern=_NAME_CHARACTER)]
RunnerName = Annotated[str, StringConstraints(strict=True, max_length=MAX_NAME_CHARACTERS, pattern=r"^[a-z0-9-]+$")]
Input = Annotated[str, Field(strict=True), AfterValidator(_check_input_size)]
