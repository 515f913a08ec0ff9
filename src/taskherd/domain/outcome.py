"""What becomes of a report: the label it is counted under, and the reason code if it goes to the dead letters.

All codes of dead letters stand here, those of commands and of the broker too: this is the only list of them.
"""

from __future__ import annotations

from enum import Enum, StrEnum


class DeadLetterReason(StrEnum):
    """Why a message is in the dead letters. The codes are part of the contract and never change their meaning."""

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
    DATA_ERROR = "data_error"
    FAULT = "fault"
    REJECTED = "rejected"
    EXPIRED = "expired"
    MAXLEN = "maxlen"
    DELIVERY_LIMIT = "delivery_limit"
    UNKNOWN = "unknown"


FOREIGN_REASONS = frozenset(
    {
        DeadLetterReason.REJECTED,
        DeadLetterReason.EXPIRED,
        DeadLetterReason.MAXLEN,
        DeadLetterReason.DELIVERY_LIMIT,
        DeadLetterReason.UNKNOWN,
    }
)
"""The reasons of dead letters that taskherd did not write: RabbitMQ's, as ``x-death`` has them, and a missing one.

https://www.rabbitmq.com/docs/dlx#effects
"""


class ReportOutcome(Enum):
    """What became of a report.

    ``metric`` is its label in ``taskherd_reports_total``. A report with a ``dead_letter_reason`` goes to the dead
    letters under that code, with ``detail`` for people.
    """

    APPLIED = ("applied",)
    """It is part of the task now, and readers see a change; while folding: it is part of the memory, log or inbox."""
    UNCHANGED = ("unchanged",)
    """It is part of the task now, and readers see no difference."""
    STALE = ("stale",)
    PARKED = ("parked",)
    """It waits for its task's create."""
    TOMBSTONE = ("tombstone",)
    """Its task is deleted."""
    CONFLICT = (
        "conflict",
        DeadLetterReason.BUILD_CONFLICT,
        "The transition is not the one that was asked for under this build number.",
    )
    UNKNOWN_INPUT = ("invalid", DeadLetterReason.UNKNOWN_INPUT, "The task never had an input of this id.")
    PARKED_OVERFLOW = (
        "invalid",
        DeadLetterReason.PARKED_OVERFLOW,
        "Too many reports already wait for this task's create.",
    )
    DATA_ERROR = ("invalid", DeadLetterReason.DATA_ERROR, "The database can't take the values of this report.")
    FAULT = (
        "invalid",
        DeadLetterReason.FAULT,
        "taskherd failed on this report; see the worker's log of that time.",
    )

    def __init__(self, metric: str, dead_letter_reason: DeadLetterReason | None = None, detail: str = "") -> None:
        """Take the member's value apart."""
        self.metric = metric
        self.dead_letter_reason = dead_letter_reason
        self.detail = detail
