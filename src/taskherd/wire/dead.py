"""Dead letters: why a message could not be taken, in a closed list of codes, and the headers that say so."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_DETAIL = 500


class Reason(StrEnum):
    """Why a message is in the dead letters; the codes are part of the contract and never change their meaning."""

    NOT_JSON = "not_json"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    UNKNOWN_TYPE = "unknown_type"
    INVALID = "invalid"
    BUILD_CONFLICT = "build_conflict"
    UNKNOWN_INPUT = "unknown_input"
    PARKED_EXPIRED = "parked_expired"
    PARKED_OVERFLOW = "parked_overflow"
    COMMAND_REFUSED = "command_refused"
    REPLY_UNREADABLE = "reply_unreadable"
    DATA_ERROR = "data_error"
    FAULT = "fault"
    BROKER_REJECTED = "broker_rejected"
    BROKER_EXPIRED = "broker_expired"
    BROKER_MAXLEN = "broker_maxlen"
    BROKER_DELIVERY_LIMIT = "broker_delivery_limit"
    UNKNOWN = "unknown"


MEANINGS: Mapping[Reason, str] = {
    Reason.NOT_JSON: "The body is not JSON in UTF-8, or nested too deeply to read.",
    Reason.TOO_LARGE: "The body is over 1 MiB; its first 64 KiB are kept.",
    Reason.TOO_MANY: "An array of more than 1,000 reports.",
    Reason.UNKNOWN_TYPE: "The type is not one of the contract.",
    Reason.INVALID: "A field is missing or not as the contract says.",
    Reason.BUILD_CONFLICT: "A build report whose transition is not the one that was asked for under its number.",
    Reason.UNKNOWN_INPUT: "The outcome of an input that the task never had.",
    Reason.PARKED_EXPIRED: "A report whose task was not created within parked_ttl.",
    Reason.PARKED_OVERFLOW: "A report beyond what is parked for one task.",
    Reason.COMMAND_REFUSED: "A command that was refused, with nobody to answer.",
    Reason.REPLY_UNREADABLE: "A command whose reply_to names no place that can be answered.",
    Reason.DATA_ERROR: "The database could not take the values.",
    Reason.FAULT: "taskherd itself failed on it; replay it once that is mended.",
    Reason.BROKER_REJECTED: "The broker took it from a queue because a consumer rejected it.",
    Reason.BROKER_EXPIRED: "The broker took it from a queue because it had expired.",
    Reason.BROKER_MAXLEN: "The broker took it from a queue that was full.",
    Reason.BROKER_DELIVERY_LIMIT: "The broker took it from a queue because it came back too often.",
    Reason.UNKNOWN: "The message has no header that says why it is here.",
}

BROKERS_WORD: Mapping[str, Reason] = {
    "rejected": Reason.BROKER_REJECTED,
    "expired": Reason.BROKER_EXPIRED,
    "maxlen": Reason.BROKER_MAXLEN,
    "delivery_limit": Reason.BROKER_DELIVERY_LIMIT,
}
"""RabbitMQ's own reasons in ``x-death``, see its page on dead letter exchanges."""


class DeadLetterHeaders(BaseModel):
    """The headers of a dead letter; its body is the message as it came, or the element of an array by itself."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    reason: Reason = Field(alias="x-taskherd-reason")
    detail: str = Field("", alias="x-taskherd-detail", max_length=MOST_DETAIL)
    index: int | None = Field(None, alias="x-taskherd-index", ge=0, description="Its place in the array it came in.")
    length: int | None = Field(None, alias="x-taskherd-length", description="Bytes of the body where it was cut.")
    exchange: str | None = Field(None, alias="x-taskherd-exchange", description="Where it was published to.")
    routing_key: str | None = Field(None, alias="x-taskherd-routing-key")
    queue: str | None = Field(None, alias="x-taskherd-queue", description="The queue it was taken from.")


def why(headers: Mapping[str, object]) -> tuple[Reason, str]:
    """Reason and detail of a dead letter from its headers, ours first, else the broker's ``x-death``."""
    ours = headers.get("x-taskherd-reason")
    if isinstance(ours, str) and ours in set(Reason):
        detail = headers.get("x-taskherd-detail")
        return Reason(ours), detail if isinstance(detail, str) else ""
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    if isinstance(latest, dict):
        word, queue = str(latest.get("reason")), str(latest.get("queue"))
        return BROKERS_WORD.get(word, Reason.UNKNOWN), f"{word} from {queue}, {latest.get('count', 1)} times"
    return Reason.UNKNOWN, ""
