"""The outcomes of reports, with their metric labels, and the reason codes of dead letters.

These are the only lists of them: the codes for commands and those that RabbitMQ sets are included.
"""

from __future__ import annotations

from enum import Enum, StrEnum


class DeadLetterReason(StrEnum):
    """Why a message is a dead letter. The codes are part of the contract: their meaning never changes."""

    NOT_JSON = "not_json"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    UNKNOWN_TYPE = "unknown_type"
    INVALID = "invalid"
    BUILD_CONFLICT = "build_conflict"
    BUILD_OUT_OF_RANGE = "build_out_of_range"
    UNKNOWN_INPUT = "unknown_input"
    UNTRUSTED_SENDER = "untrusted_sender"
    USAGE_OVERFLOW = "usage_overflow"
    REQUESTS_OVERFLOW = "requests_overflow"
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


EXTERNAL_REASONS = frozenset(
    {
        DeadLetterReason.REJECTED,
        DeadLetterReason.EXPIRED,
        DeadLetterReason.MAXLEN,
        DeadLetterReason.DELIVERY_LIMIT,
        DeadLetterReason.UNKNOWN,
    }
)
"""Reasons of dead letters that taskherd did not publish: those of RabbitMQ, from ``x-death``, and ``unknown`` if the
message has neither ``x-death`` nor a reason of taskherd.

https://www.rabbitmq.com/docs/dlx#effects
"""


class ReportOutcome(Enum):
    """The outcome of a report.

    ``metric`` is its label in ``taskherd_reports_total``. A report with a ``dead_letter_reason`` is published as a dead
    letter with that code and the explanation ``detail``.
    """

    APPLIED = ("applied",)
    """The report changed the task document. (The fold returns it for any change of the task state, log or inbox.)"""
    UNCHANGED = ("unchanged",)
    """The report was stored, for example as a renewed lease, and did not change the task document."""
    STALE = ("stale",)
    """The report changed nothing: its facet holds the same or a greater one, or its input already has an outcome."""
    PARKED = ("parked",)
    """The report is stored until its task is created."""
    TOMBSTONE = ("tombstone",)
    """The report changed nothing: its task is deleted, and it is not about a build."""
    CONFLICT = (
        "conflict",
        DeadLetterReason.BUILD_CONFLICT,
        "The worker requested another transition under this build number.",
    )
    BUILD_OUT_OF_RANGE = (
        "invalid",
        DeadLetterReason.BUILD_OUT_OF_RANGE,
        "The build number is more than 1,000 above the highest one that the worker requested.",
    )
    UNKNOWN_INPUT = ("invalid", DeadLetterReason.UNKNOWN_INPUT, "The task has no input with this id.")
    USAGE_OVERFLOW = (
        "invalid",
        DeadLetterReason.USAGE_OVERFLOW,
        "The build has reported the usage of 16 other models already, or the task's total would exceed 2^63 - 1.",
    )
    REQUESTS_OVERFLOW = (
        "invalid",
        DeadLetterReason.REQUESTS_OVERFLOW,
        "The task has 100 open requests of its agent already.",
    )
    REQUESTS_REFUSED = ("refused",)
    """The report changed nothing: the agent, which fetches its answers itself, has too many requests.

    It can see that, and with a dead letter for each it could fill the broker.
    """
    UNTRUSTED_SENDER = (
        "invalid",
        DeadLetterReason.UNTRUSTED_SENDER,
        "TASKHERD_REPORT_SENDERS does not name this pool for its sender, or the task is unknown.",
    )
    PARKED_OVERFLOW = (
        "invalid",
        DeadLetterReason.PARKED_OVERFLOW,
        "The task does not exist, and too many reports for it are parked already.",
    )
    DATA_ERROR = ("invalid", DeadLetterReason.DATA_ERROR, "PostgreSQL rejected a value of this report.")
    FAULT = (
        "invalid",
        DeadLetterReason.FAULT,
        "Processing failed because of a bug in taskherd; see the worker's log around that time.",
    )

    def __init__(self, metric: str, dead_letter_reason: DeadLetterReason | None = None, detail: str = "") -> None:
        """Set the attributes from the value of the member."""
        self.metric = metric
        self.dead_letter_reason = dead_letter_reason
        self.detail = detail
