"""Which runner may begin a build, and which runner a task belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from taskherd.domain.claims import BuildClaim, ClaimDecision, ClaimOutcome, Ownership, decide_claim, ownership
from taskherd.domain.reports import JobStatus, Transition
from taskherd.domain.value import replace
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, folded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskherd.domain.reports import Report
    from taskherd.domain.task import TaskState

MINE = BuildClaim(TASK, 2, "mine")


def after(reports: Iterable[Report]) -> TaskState:
    """Return the state of a task whose build 1 a runner called "first" has reported, after further reports."""
    state: TaskState = folded(unchanged_core(), [build(job=JobStatus.SUCCEEDED, runner="first"), *reports])
    return state


@pytest.mark.parametrize(
    ("reports", "holder", "outcome", "by"),
    [
        ([build(2)], None, ClaimOutcome.GRANTED, None),
        ([build(2)], BuildClaim(TASK, 1, "mine"), ClaimOutcome.GRANTED, None),
        ([build(2)], MINE, ClaimOutcome.REPEATED, None),
        ([build(2)], BuildClaim(TASK, 2, "other"), ClaimOutcome.TAKEN, "other"),
        ([build(2, runner="mine")], None, ClaimOutcome.REPEATED, None),
        ([build(2, runner="other")], None, ClaimOutcome.TAKEN, "other"),
        ([build(2, runner="other")], BuildClaim(TASK, 1, "mine"), ClaimOutcome.TAKEN, "other"),
        ([build(2, runner="other")], MINE, ClaimOutcome.REPEATED, None),
        ([build(2, runner="mine")], BuildClaim(TASK, 2, "other"), ClaimOutcome.TAKEN, "other"),
        ([], None, ClaimOutcome.GONE, None),
        ([build(3)], None, ClaimOutcome.GONE, None),
        ([build(2, transition=Transition.STOP)], None, ClaimOutcome.GONE, None),
    ],
)
def test_who_may_begin_a_build(
    reports: list[Report], holder: BuildClaim | None, outcome: ClaimOutcome, by: str | None
) -> None:
    """The first claim of the latest start, which counts more than what reports say; without one the reports decide."""
    decision = decide_claim(make_task(TASK, state=after(reports)), holder, MINE)
    assert decision == ClaimDecision(outcome, by)
    assert decision.granted is (outcome in {ClaimOutcome.GRANTED, ClaimOutcome.REPEATED})


def test_nobody_may_begin_a_build_of_a_task_that_is_gone() -> None:
    """Whether it never was, or is deleted."""
    task = make_task(TASK, state=after([build(2)]))
    for gone in (None, replace(task, deleted_at=NOON)):
        assert decide_claim(gone, MINE, MINE) == ClaimDecision(ClaimOutcome.GONE)


@pytest.mark.parametrize(
    ("reports", "holder", "place"),
    [
        ([], None, Ownership.ELSEWHERE),
        ([build(2, runner="mine")], None, Ownership.OWNED),
        ([build(2, runner="mine"), build(3, transition=Transition.STOP)], None, Ownership.OWNED),
        ([build(2, runner="mine")], BuildClaim(TASK, 3, "other"), Ownership.ELSEWHERE),
        ([build(3, runner="other")], MINE, Ownership.ELSEWHERE),
        ([build(2, runner="other")], MINE, Ownership.OWNED),
    ],
)
def test_where_a_task_is(reports: list[Report], holder: BuildClaim | None, place: Ownership) -> None:
    """The runner of the latest build of which one is known has it."""
    assert owner_of(after(reports), holder) is place


def test_a_task_that_no_runner_is_known_of_is_of_who_asks() -> None:
    """The runner that asks has it on its disk."""
    assert owner_of(folded(unchanged_core(), [build()]), None) is Ownership.OWNED


def owner_of(state: TaskState, holder: BuildClaim | None) -> Ownership | None:
    """Return where the task is for the runner "mine", in the presence of a task that another runner has."""
    other = UUID(int=0xBAD)
    holders = {other: BuildClaim(other, 9, "other")} | ({TASK: holder} if holder else {})
    states = {TASK: (state, None), other: (after([build(9, runner="other")]), None)}
    return ownership(states, holders, TASK, "mine")


def test_a_task_that_is_deleted_is_gone_and_one_without_a_record_is_unknown() -> None:
    """Also if the runner that asks has it."""
    states = {TASK: (after([build(2, runner="mine")]), NOON)}
    assert ownership(states, {TASK: MINE}, TASK, "mine") is Ownership.GONE
    assert ownership({}, {TASK: MINE}, TASK, "mine") is None
