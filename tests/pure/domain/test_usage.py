"""Law 10 on pure code: usage adds up, whatever the order, repetition and batching of its reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain import erasure, recovery
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import AgentUsage, Cost, Transition
from taskherd.domain.task_update import apply_report
from taskherd.domain.updates import TaskUpdate
from taskherd.domain.usage import NOTHING, UsageAmounts, UsageKey, UsageLedger, total_of
from taskherd.domain.value import replace
from taskherd.domain.view import derive_view
from taskherd.messages.usage import render_usage
from tests.harness.histories import NOON, TASK, randoms, shuffled_batches
from tests.harness.tasks import make_task
from tests.harness.usage import expected_usage, usage_report
from tests.pure.domain.test_fold import build, status
from tests.pure.domain.test_recovery import HALF_HOUR, POLICY, SECOND, stalled, working
from tests.pure.domain.test_task_update import context

if TYPE_CHECKING:
    from taskherd.domain.reports import Report
    from taskherd.domain.task import Task

DAY = timedelta(days=1)


def usage(build_number: int = 1, seq: int = 1, **fields: Any) -> AgentUsage:
    """Return a report of usage."""
    return AgentUsage(task_id=TASK, build_number=build_number, seq=seq, **fields)


def dollars(amount: str) -> Cost:
    """Return an amount of US dollars."""
    return Cost(Decimal(amount), "USD")


@dataclass
class Books:
    """A task with its rows and bookings, as a worker keeps them in the database."""

    task: Task = field(default_factory=lambda: make_task(TASK))
    rows: dict[UsageKey, UsageAmounts] = field(default_factory=dict)
    booked: dict[str, UsageAmounts] = field(default_factory=dict)
    outcomes: list[ReportOutcome] = field(default_factory=list)

    def apply(self, *reports: Report, at: datetime = NOON) -> list[ReportOutcome]:
        """Apply a batch, and return the outcomes of its reports."""
        update = TaskUpdate(self.task, self.task, usage=UsageLedger({**self.rows}))
        outcomes = [apply_report(update, report, at, context()) for report in reports]
        assert update.usage is not None
        self.task = update.existing_task
        for key, growth in update.usage.new.items():
            self.rows[key] = update.usage.known[key]
            assert growth
        for model, growth in update.usage.new_by_model().items():
            self.booked[model] = self.booked.get(model, NOTHING).plus(growth)
        self.outcomes += outcomes
        return outcomes

    def document(self) -> dict[str, Any] | None:
        """Return the usage in the task's document."""
        view = derive_view(self.task.state, self.task.name)
        return None if view.usage is None else render_usage(view.usage)


def shown(books: Books, *names: str) -> list[Any]:
    """Return fields of the usage in the task's document."""
    document = books.document()
    assert document is not None
    return [document[name] for name in names]


@given(st.lists(randoms().map(usage_report), min_size=1, max_size=20), randoms())
def test_usage_adds_up_in_any_order(reports: list[AgentUsage], rng: Random) -> None:
    """The document, the rows and the bookings have the same sums: those of the greatest reported."""
    books = Books()
    for batch in shuffled_batches(rng, reports):
        books.apply(*batch)
    assert books.document() == expected_usage(reports)
    total = NOTHING if books.task.state.usage is None else books.task.state.usage.total
    assert total_of(books.rows.values()) == total_of(books.booked.values()) == total


@given(st.lists(randoms().map(usage_report), min_size=1, max_size=20))
def test_what_is_told_again_is_stale(reports: list[AgentUsage]) -> None:
    """Reports that were all applied before change and book nothing."""
    books = Books()
    books.apply(*reports)
    booked, task = {**books.booked}, books.task
    assert set(books.apply(*reports)) == {ReportOutcome.STALE}
    assert (books.booked, books.task) == (booked, task)


def test_a_counter_never_falls() -> None:
    """Each counter and cost is the greatest that was reported, and what a report leaves out says nothing."""
    books = Books()
    books.apply(usage(input_tokens=10, cost=dollars("1.5")), usage(seq=2, input_tokens=4, output_tokens=3))
    books.apply(usage(seq=3, cost=dollars("0.7")), usage(seq=3, cost=Cost(Decimal(2), "EUR")))
    assert books.document() == {
        "input_tokens": 10, "output_tokens": 3, "cache_read_tokens": 0, "cache_write_tokens": 0,
        "cost": [{"amount": "2", "currency": "EUR"}, {"amount": "1.5", "currency": "USD"}],
        "context_used": None, "context_size": None,
    }  # fmt: skip


def test_models_and_builds_are_added() -> None:
    """A total is the sum over builds and models, of which no model is one."""
    books = Books()
    books.apply(
        *(usage(build_number=number, model=model, input_tokens=1) for number in (1, 2) for model in (None, "a"))
    )
    assert books.task.state.usage is not None
    assert books.task.state.usage.total.tokens == (4, 0, 0, 0)
    assert {model: amounts.tokens[0] for model, amounts in books.booked.items()} == {"": 2, "a": 2}


def test_money_is_exact() -> None:
    """Costs are added as decimals: ten times ten cents are a dollar."""
    books = Books()
    books.apply(*(usage(build_number=number, cost=dollars("0.1")) for number in range(1, 11)))
    assert shown(books, "cost") == [[{"amount": "1", "currency": "USD"}]]


def test_the_context_is_that_of_the_latest_report() -> None:
    """The tokens in the context follow build number and seq, each by itself, and may fall; ties take the greater."""
    books = Books()
    books.apply(usage(seq=5, context_used=100, context_size=200), usage(seq=4, context_used=150, context_size=300))
    assert shown(books, "context_used", "context_size") == [100, 200]
    books.apply(usage(build_number=2, seq=1, context_used=7), usage(build_number=2, seq=1, context_used=9))
    assert shown(books, "context_used", "context_size") == [9, 200]


def test_a_report_that_says_nothing_changes_nothing() -> None:
    """A report without numbers is stale, one with zeros shows that there is usage, and books none."""
    books = Books()
    assert books.apply(usage(model="a")) == [ReportOutcome.STALE]
    assert books.document() is None
    assert books.apply(usage(model="a", input_tokens=0)) == [ReportOutcome.APPLIED]
    assert books.document() is not None
    assert books.apply(usage(seq=2, context_size=200)) == [ReportOutcome.APPLIED]
    assert books.apply(usage(seq=3, context_used=100)) == [ReportOutcome.APPLIED]
    assert shown(books, "input_tokens", "context_used", "context_size") == [0, 100, 200]
    assert (books.rows, books.booked) == ({}, {})


def test_a_build_has_sixteen_models() -> None:
    """The usage of a 17th model is refused and books nothing, its context shows; another build has its own models."""
    books = Books()
    names = [None, *(f"m{number}" for number in range(16))]
    outcomes = books.apply(*(usage(model=model, input_tokens=1) for model in names))
    assert outcomes == [ReportOutcome.APPLIED] * 16 + [ReportOutcome.USAGE_OVERFLOW]
    assert books.apply(usage(model=names[-1], context_used=5, output_tokens=1)) == [ReportOutcome.USAGE_OVERFLOW]
    assert books.apply(usage(model=names[-2], input_tokens=2)) == [ReportOutcome.APPLIED]
    assert books.apply(usage(build_number=2, model=names[-1], input_tokens=1)) == [ReportOutcome.APPLIED]
    assert shown(books, "input_tokens", "context_used") == [18, None]
    assert books.apply(usage(model=names[-1], context_used=7, input_tokens=0)) == [ReportOutcome.APPLIED]
    assert shown(books, "input_tokens", "context_used") == [18, 7]


def test_a_total_has_a_bound() -> None:
    """A report beyond what the total of a task can hold is refused and books nothing."""
    books = Books()
    count = 2**10 - 1
    most = [usage(build_number=number, input_tokens=2**53 - 1) for number in range(1, 1001)]
    assert set(books.apply(*most)) == {ReportOutcome.APPLIED}
    books.apply(*(usage(build_number=number, model="b", input_tokens=2**53 - 1) for number in range(1, count - 999)))
    assert shown(books, "input_tokens") == [(2**53 - 1) * count]
    refused = usage(model="c", input_tokens=2**53 - 1, output_tokens=1)
    books.apply(usage(model="d", input_tokens=2**53 - 1), refused)
    assert books.outcomes[-1] is ReportOutcome.USAGE_OVERFLOW
    assert shown(books, "output_tokens") == [0]


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"input_tokens": 2**63 - 3}, ReportOutcome.APPLIED),
        ({"input_tokens": 2**63 - 2}, ReportOutcome.USAGE_OVERFLOW),
        ({"cost": dollars(str(2**63 - 6))}, ReportOutcome.APPLIED),
        ({"cost": dollars(f"{2**63 - 6}.000000001")}, ReportOutcome.USAGE_OVERFLOW),
        ({"cost": Cost(Decimal(2**63 - 1), "EUR")}, ReportOutcome.APPLIED),
        ({"cost": Cost(Decimal(2**63), "EUR")}, ReportOutcome.USAGE_OVERFLOW),
    ],
)
def test_a_total_reaches_its_bound(fields: dict[str, Any], outcome: ReportOutcome) -> None:
    """Each counter, and the cost in each currency, is at most 2^63 - 1."""
    books = Books()
    books.apply(usage(input_tokens=2, cost=dollars("5")))
    assert books.apply(usage(build_number=2, **fields)) == [outcome]


def test_a_deleted_task_is_still_billed() -> None:
    """A tombstone folds usage, also after its contents were erased, and keeps numbers only."""
    books = Books(make_task(TASK, deleted_at=NOON))
    assert books.apply(usage(model="a", input_tokens=1)) == [ReportOutcome.APPLIED]
    books.task = erasure.erase(books.task, NOON + DAY)
    assert books.apply(usage(model="a", input_tokens=3), status()) == [ReportOutcome.APPLIED, ReportOutcome.TOMBSTONE]
    assert books.apply(build(2, transition=Transition.STOP)) == [ReportOutcome.APPLIED]
    assert shown(books, "input_tokens") == [3]
    assert books.booked["a"].tokens[0] == 3


def test_usage_without_a_build_number_is_of_the_latest_build() -> None:
    """A report without a build number is about the latest build at that moment, as every report."""
    books = Books()
    books.apply(replace(usage(input_tokens=1), build_number=None), build(2))
    books.apply(replace(usage(input_tokens=1), build_number=None))
    assert set(books.rows) == {UsageKey(1, ""), UsageKey(2, "")}


def test_usage_is_a_word() -> None:
    """An agent that reports usage is not stalled, and ends a stall with it."""
    late = NOON + HALF_HOUR + SECOND
    checked = recovery.detect_stall(working(), NOON - DAY, late, POLICY)
    assert derive_view(checked, "task").stalled_since == NOON
    books = Books(make_task(TASK, state=checked))
    books.apply(usage(input_tokens=1), at=late)
    assert books.task.state.stall is None
    assert stalled(books.task.state, late + HALF_HOUR) is None
