"""Usage: what a task's agents used models for and what that cost.

Rules:

1. For each build and model, each counter, and the cost in each currency, is the greatest that was reported; what a
   report leaves out says nothing. A report without a model is of a model of its own, ``NO_MODEL``.
2. A task's total is the sum over its builds and models.
3. What a report adds to the total is new. It is booked once, on the day on which it was received, so the bookings of a
   task add up to its total, whatever the order, repetition and batching of its reports.
4. The tokens in the context are those of the report with the greatest build number and ``seq`` that names them; of two
   with the same, the greater number.
5. A build has at most ``MAX_MODELS`` models, and a total is at most ``MAX_TOTAL``. A report beyond that changes nothing
   and becomes a dead letter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.value import replace, value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from taskherd.domain.reports import AgentUsage

COUNTERS: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
"""The counters of tokens, in their order in ``UsageAmounts.tokens``."""

_EXACT: Final = Context(prec=64)
"""For additions: the default context rounds to 28 digits, and sums over many tasks have more."""
NO_MODEL: Final = ""
MAX_MODELS: Final = 16
MAX_TOTAL: Final = 2**63 - 1
"""Maximum of each counter, and of the cost in each currency, of a task: what a JSON parser can take."""


class UsageKey(NamedTuple):
    """A build and a model, for which usage is reported."""

    build_number: int
    model: str


@value(frozen=True, slots=True)
class UsageAmounts:
    """Numbers of tokens, in the order of ``COUNTERS``, and costs by currency, without those that are zero."""

    tokens: tuple[int, ...] = (0,) * len(COUNTERS)
    cost: Mapping[str, Decimal] = field(default_factory=dict)

    def plus(self, other: UsageAmounts) -> UsageAmounts:
        """Return the sum."""
        cost = {**self.cost}
        for currency, amount in other.cost.items():
            cost[currency] = _EXACT.add(cost.get(currency, Decimal()), amount)
        return UsageAmounts(tuple(map(sum, zip(self.tokens, other.tokens, strict=True))), cost)

    def growth_to(self, other: UsageAmounts) -> UsageAmounts:
        """Return by how much ``other`` is greater: zero for what is not."""
        tokens = tuple(max(after - before, 0) for before, after in zip(self.tokens, other.tokens, strict=True))
        growth = {
            currency: _EXACT.subtract(amount, self.cost.get(currency, Decimal()))
            for currency, amount in other.cost.items()
        }
        return UsageAmounts(tokens, {currency: amount for currency, amount in growth.items() if amount > 0})

    def __bool__(self) -> bool:
        """Return whether any number is greater than zero."""
        return any(self.tokens) or bool(self.cost)

    @property
    def is_within_bounds(self) -> bool:
        """True if no number is greater than ``MAX_TOTAL``."""
        return max(self.tokens) <= MAX_TOTAL and all(amount <= MAX_TOTAL for amount in self.cost.values())


NOTHING: Final = UsageAmounts()


@value(frozen=True, slots=True)
class ContextTokens:
    """A number of tokens in a model's context, as the report with this build number and ``seq`` says."""

    build_number: int
    seq: int
    tokens: int


@value(frozen=True, slots=True)
class TaskUsage:
    """The usage of a task: its total, the tokens in the latest model's context, and how many that can hold."""

    total: UsageAmounts = NOTHING
    context_used: ContextTokens | None = None
    context_size: ContextTokens | None = None


@dataclass(slots=True)
class UsageLedger:
    """What is known of a task's usage by build and model, while a batch is applied, and what is new of it.

    ``known`` contains the builds that the batch's reports are about, and ``new`` what these have added.
    """

    known: dict[UsageKey, UsageAmounts] = field(default_factory=dict)
    new: dict[UsageKey, UsageAmounts] = field(default_factory=dict)

    def fold(self, usage: TaskUsage | None, report: AgentUsage) -> tuple[TaskUsage | None, ReportOutcome]:
        """Fold a report, with its build number set, into the task's usage; None if there was no report before."""
        reported = _amounts(report)
        if reported is None and report.context_used is None and report.context_size is None:
            return usage, ReportOutcome.STALE
        before = usage or TaskUsage()
        key = UsageKey(report.sort_key[0], report.model or NO_MODEL)
        growth = self.known.get(key, NOTHING).growth_to(reported or NOTHING)
        total = before.total.plus(growth) if growth else before.total
        if growth and not (total.is_within_bounds and self._has_room(key)):
            return usage, ReportOutcome.USAGE_OVERFLOW
        after = replace(
            before,
            total=total,
            context_used=_latest(before.context_used, report, report.context_used),
            context_size=_latest(before.context_size, report, report.context_size),
        )
        if after == usage:
            return usage, ReportOutcome.STALE
        if growth:
            self.known[key] = self.known.get(key, NOTHING).plus(growth)
            self.new[key] = self.new.get(key, NOTHING).plus(growth)
        return after, ReportOutcome.APPLIED

    def new_by_model(self) -> dict[str, UsageAmounts]:
        """Return what is new, for each model."""
        by_model: dict[str, UsageAmounts] = {}
        for key, amounts in self.new.items():
            by_model[key.model] = by_model.get(key.model, NOTHING).plus(amounts)
        return by_model

    def _has_room(self, key: UsageKey) -> bool:
        """Return whether the build has this model already, or may have one more."""
        return key in self.known or sum(each.build_number == key.build_number for each in self.known) < MAX_MODELS


def total_of(parts: Iterable[UsageAmounts]) -> UsageAmounts:
    """Return the sum of all parts."""
    total = NOTHING
    for part in parts:
        total = total.plus(part)
    return total


def _amounts(report: AgentUsage) -> UsageAmounts | None:
    """Return what a report says, None if it has no counter and no cost."""
    counters = [getattr(report, name) for name in COUNTERS]
    if report.cost is None and all(tokens is None for tokens in counters):
        return None
    cost = {} if report.cost is None else {report.cost.currency: report.cost.amount}
    return UsageAmounts(tuple(tokens or 0 for tokens in counters), cost)


def _latest(current: ContextTokens | None, report: AgentUsage, tokens: int | None) -> ContextTokens | None:
    if tokens is None:
        return current
    new = ContextTokens(*report.sort_key, tokens)
    if current is None:
        return new
    return max(current, new, key=lambda each: (each.build_number, each.seq, each.tokens))
