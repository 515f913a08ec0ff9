"""Random reports of usage, and what they add up to: for law 10, on pure code and through a real database."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from taskherd.domain.reports import AgentUsage, Cost
from taskherd.domain.usage import COUNTERS
from tests.harness.histories import TASK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskherd.domain.reports import Report

MODELS = (None, "opus", "sonnet")
CURRENCIES = ("USD", "USD", "EUR")
AMOUNTS = ("0", "0.1", "0.2", "0.3", "0.000000001", "7", "999999999999.999999999")
TOKENS = (None, None, 0, 1, 7, 100, 2**53 - 1)


def usage_report(rng: Random, task_id: UUID = TASK) -> AgentUsage:
    """Return a random report, which often conflicts with others: of few builds, models, seqs and numbers."""
    counters: dict[str, Any] = {name: rng.choice(TOKENS) for name in (*COUNTERS, "context_used", "context_size")}
    cost = None if rng.random() < 0.4 else Cost(Decimal(rng.choice(AMOUNTS)), rng.choice(CURRENCIES))
    return AgentUsage(
        task_id=task_id,
        build_number=rng.choice((1, 1, 2, 3)),
        seq=rng.choice((0, 1, 2)),
        model=rng.choice(MODELS),
        cost=cost,
        **counters,
    )


def expected_usage(reports: Iterable[Report]) -> dict[str, Any] | None:
    """Return the usage in the document of a task after these reports, in any order: written from the contract alone."""
    told = [report for report in reports if isinstance(report, AgentUsage)]
    greatest: dict[tuple[int | None, str | None, str], Decimal] = defaultdict(Decimal)
    for report in told:
        numbers = {name: getattr(report, name) for name in COUNTERS}
        if report.cost is not None:
            numbers[report.cost.currency] = report.cost.amount
        for name, number in numbers.items():
            key = (report.build_number, report.model, name)
            greatest[key] = max(greatest[key], Decimal(number or 0))
    total: dict[str, Decimal] = defaultdict(Decimal)
    for (_, _, name), number in greatest.items():
        total[name] += number
    numbers_of = [*COUNTERS, "cost", "context_used", "context_size"]
    if all(getattr(report, name) is None for report in told for name in numbers_of):
        return None
    return {
        **{name: int(total[name]) for name in COUNTERS},
        "cost": [
            {"amount": plain(total[name]), "currency": name} for name in sorted(total) if total[name] and name.isupper()
        ],
        "context_used": _latest(told, "context_used"),
        "context_size": _latest(told, "context_size"),
    }


def plain(amount: Decimal) -> str:
    """Return an amount without an exponent and final zeros."""
    return format(amount.normalize(), "f")


def _latest(reports: list[AgentUsage], name: str) -> int | None:
    named = [(*report.sort_key, getattr(report, name)) for report in reports if getattr(report, name) is not None]
    return max(named)[2] if named else None
