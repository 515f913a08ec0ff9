"""Dead letters: why a message could not be taken, in a closed list of codes, and the headers that say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from taskherd.domain.outcome import DeadLetterReason

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DETAIL = 500


MEANINGS: Mapping[DeadLetterReason, str] = {
    DeadLetterReason.NOT_JSON: "The body is not JSON in UTF-8, or nested too deeply to read.",
    DeadLetterReason.TOO_LARGE: "The body is over 1 MiB; its first 64 KiB are kept.",
    DeadLetterReason.TOO_MANY: "An array of more than 1,000 reports.",
    DeadLetterReason.UNKNOWN_TYPE: "The type is not one of the contract.",
    DeadLetterReason.INVALID: "A field is missing or not as the contract says.",
    DeadLetterReason.BUILD_CONFLICT: "A build report whose transition is not the one asked for under its number.",
    DeadLetterReason.UNKNOWN_INPUT: "The outcome of an input that the task never had.",
    DeadLetterReason.PARKED_EXPIRED: "A report whose task was not created within parked_ttl.",
    DeadLetterReason.PARKED_OVERFLOW: "A report beyond what is parked for one task.",
    DeadLetterReason.COMMAND_REFUSED: "A command that was refused and has no reply_to.",
    DeadLetterReason.DATA_ERROR: "The database could not take the values.",
    DeadLetterReason.FAULT: "taskherd itself failed on it; replay it once that is mended.",
    DeadLetterReason.REJECTED: "Written by RabbitMQ (in x-death): a consumer rejected it.",
    DeadLetterReason.EXPIRED: "Written by RabbitMQ (in x-death): it had expired.",
    DeadLetterReason.MAXLEN: "Written by RabbitMQ (in x-death): its queue was full.",
    DeadLetterReason.DELIVERY_LIMIT: "Written by RabbitMQ (in x-death): it was delivered too often.",
    DeadLetterReason.UNKNOWN: "The message has no header with a reason.",
}


class DeadLetterHeaders(BaseModel):
    """The headers of a dead letter; its body is the message as it came, or the element of an array by itself.

    A message that the broker itself took from a queue has none of these, but RabbitMQ's ``x-death``.
    """

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    reason: DeadLetterReason = Field(alias="x-taskherd-reason")
    detail: str = Field("", alias="x-taskherd-detail", max_length=MAX_DETAIL)
    index: int | None = Field(None, alias="x-taskherd-index", ge=0, description="Its place in the array it came in.")
    length: int | None = Field(None, alias="x-taskherd-length", description="Bytes of the body where it was cut.")
    exchange: str | None = Field(None, alias="x-taskherd-exchange", description="Where it was published to.")
    routing_key: str | None = Field(None, alias="x-taskherd-routing-key")
    queue: str | None = Field(None, alias="x-taskherd-queue", description="The queue it was taken from.")
