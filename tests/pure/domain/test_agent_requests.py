"""Requests of agents on pure code: law 1, and law 8: each is asked once, and answered once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskherd.domain import agent_requests, builds, erasure, recovery
from taskherd.domain.agent_requests import (
    MAX_OPEN,
    AgentRequestRecord,
    RequestAnswer,
    RequestLedger,
    answers_to_deliver,
    shown_state,
)
from taskherd.domain.command_results import (
    INBOX_FULL,
    NO_INPUT,
    NOT_FOUND,
    REQUEST_NOT_FOUND,
    CommandAccepted,
    CommandRefused,
)
from taskherd.domain.commands import Answer, Delete, Interrupt, Pause, Resume, Send
from taskherd.domain.explain import explain
from taskherd.domain.inbox import MAX_QUEUED
from taskherd.domain.outcome import DeadLetterReason, ReportOutcome
from taskherd.domain.reports import AgentExit, AgentState, ExitReason, JobStatus, Transition
from taskherd.domain.request_values import RequestState
from taskherd.domain.task import Inbox
from taskherd.domain.task_update import apply_command, apply_report, apply_timer_check, finalize
from taskherd.domain.updates import TaskUpdate, TimerCheck
from taskherd.domain.value import replace
from taskherd.domain.view import derive_view
from tests.harness.agent_requests import IDS, agent_request, approval, greatest_requests, random_request
from tests.harness.histories import NOON, TASK, histories, randoms, shuffled_batches
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.oracle import expected_open
from tests.pure.domain.test_fold import build, heartbeat, lifecycle, status, timeouts
from tests.pure.domain.test_inbox import active
from tests.pure.domain.test_recovery import HALF_HOUR, POLICY
from tests.pure.domain.test_task_update import context

if TYPE_CHECKING:
    from taskherd.domain.reports import Report
    from taskherd.domain.task import Task, TaskState

SECOND = timedelta(seconds=1)
QUESTION, APPROVAL, THIRD = IDS[:3]
ALICE = UUID(int=0xA11CE)
OPEN, ANSWERED, WITHDRAWN, EXPIRED = RequestState


@dataclass
class Desk:
    """A task with the records of its requests, as a worker keeps them; checks what holds after each batch."""

    task: Task = field(default_factory=lambda: make_task(TASK, state=active(unchanged_core(), heartbeat(), runs())))
    now: datetime = NOON
    records: dict[UUID, AgentRequestRecord] = field(default_factory=dict)
    shown: dict[UUID, RequestState] = field(default_factory=dict)
    to_deliver: dict[UUID, str | None] = field(default_factory=dict)
    accepted: dict[UUID, Any] = field(default_factory=dict)
    """The accepted answers, by request."""
    closed: dict[UUID, RequestState] = field(default_factory=dict)
    last: TaskUpdate | None = None

    @property
    def state(self) -> TaskState:
        """The task state."""
        return self.task.state

    def report(self, *reports: Report) -> list[ReportOutcome]:
        """Apply a batch of reports, and return their outcomes."""
        update = self._begin()
        outcomes = [apply_report(update, report, self.now, context()) for report in reports]
        self._finish(update)
        return outcomes

    def command(self, command: Any) -> Any:
        """Execute a command, and return the result."""
        update = self._begin()
        apply_command(update, command, self.now, context())
        result = update.command_result
        if isinstance(result, CommandAccepted) and result.answered is not None:
            request_id = result.answered.report.request_id
            assert self.shown[request_id] is OPEN, "only an open request is answered"
            assert request_id not in self.accepted, "the first accepted answer stands"
            self.accepted[request_id] = result.answered.answer
        self._finish(update)
        return result

    def answer(self, request_id: UUID, option_id: str | None = None, text: str | None = None, **more: Any) -> Any:
        """Answer a request, and return the result."""
        command_id = more.pop("command_id", UUID(int=1000 + len(self.accepted)))
        common: dict[str, Any] = {"command_id": command_id, "task_id": TASK, "actor_id": ALICE}
        return self.command(Answer(**common, request_id=request_id, option_id=option_id, text=text))

    def send(self, text: str = "core", *, steers: bool = False) -> Any:
        """Send an input, and return the result."""
        return self.command(Send(command_id=UUID(int=77), task_id=TASK, actor_id=ALICE, input=text, interrupt=steers))

    def check_timers(self, check: TimerCheck) -> None:
        """Check the timers."""
        update = self._begin()
        apply_timer_check(update, check, self.now, context())
        self._finish(update)

    def document(self) -> list[UUID]:
        """Return the ids of the open requests in the document, in order."""
        return [each.id for each in derive_view(self.state, "t").requests]

    def _begin(self) -> TaskUpdate:
        return TaskUpdate(self.task, self.task, requests=RequestLedger({**self.records}))

    def _finish(self, update: TaskUpdate) -> None:
        finalize(update, self.now, context())
        self.last, self.task = update, update.existing_task
        assert update.requests is not None
        assert not update.requests.changed & update.shown_requests.keys()
        for request_id in update.requests.changed:
            self.records[request_id] = update.requests.known[request_id]
            self.shown[request_id] = shown_state(self.state, self.records[request_id])
        self.shown |= update.shown_requests
        for request_id in update.closed_answers:
            del self.to_deliver[request_id]
        assert not self.to_deliver.keys() & update.opened_answers.keys(), "an answer is asked for once"
        self.to_deliver |= update.opened_answers
        self._check_laws()

    def _check_laws(self) -> None:
        assert self.shown == {each: shown_state(self.state, record) for each, record in self.records.items()}
        asked = {each for each, shown in self.shown.items() if shown is OPEN}
        assert set(self.document()) == (asked if self.task.deleted_at is None else set())
        assert self.to_deliver == answers_to_deliver(self.state)
        assert len(self.state.agent_requests) <= MAX_OPEN
        for request_id, record in self.records.items():
            accepted = self.accepted.get(request_id)
            kept = None if record.answer is None else replace(record.answer, delivered_at=None)
            assert kept == (accepted and replace(accepted, delivered_at=None)), (
                "an answer is kept, and of no other request"
            )
            if request_id in self.to_deliver:
                assert self.shown[request_id] is ANSWERED
                assert not record.report.pull
            if request_id in self.closed:
                assert record.is_closed, "a closed request stays closed"
            if record.is_closed:
                self.closed[request_id] = record.report.state


def runs() -> Report:
    """Return a report of build 1 that names its runner."""
    return build(seq=1, job=JobStatus.SUCCEEDED, runner="runner-1")


def closing(report: Any, state: RequestState = ANSWERED, **fields: Any) -> Any:
    """Return the report that closes a request."""
    return replace(report, state=state, seq=report.seq + 1, **fields)


def _desk_of(*reports: Any) -> Desk:
    desk = Desk()
    desk.report(*reports)
    return desk


@settings(max_examples=100, deadline=None)
@given(st.lists(randoms().map(random_request), max_size=12), histories(), randoms())
def test_any_order_shows_the_requests_of_the_contract(requests: list[Any], reports: list[Report], rng: Random) -> None:
    """Law 1: whatever the order, repetition and batching, each request shows as the contract says, and in its order."""
    everything = [*requests, *reports]
    desk = Desk(make_task(TASK, state=builds.initial_state(TASK, NOON)))
    for batch in shuffled_batches(rng, everything):
        desk.report(*batch)
    assert {each: shown.value for each, shown in desk.shown.items()} == expected_open(everything)
    greatest = greatest_requests(everything)
    assert desk.document() == sorted(
        (each for each, shown in desk.shown.items() if shown is OPEN),
        key=lambda each: (greatest[each]["build_number"], greatest[each]["seq"], str(each)),
    )
    in_order = Desk(make_task(TASK, state=builds.initial_state(TASK, NOON)))
    in_order.report(*everything)
    assert in_order.records == desk.records
    assert in_order.state.agent_requests == desk.state.agent_requests


def test_a_closed_report_beats_any_open_one() -> None:
    """However great an open report is, the request stays closed; between closed ones the greater decides."""
    desk = _desk_of(closing(agent_request(), WITHDRAWN))
    assert desk.report(agent_request(build_number=1, seq=99)) == [ReportOutcome.STALE]
    assert desk.report(closing(agent_request(seq=5), EXPIRED)) == [ReportOutcome.APPLIED]
    assert desk.report(closing(agent_request(seq=4), WITHDRAWN)) == [ReportOutcome.STALE]
    assert desk.shown == {QUESTION: EXPIRED}
    assert desk.document() == []


@pytest.mark.parametrize(
    "ending",
    [
        build(seq=9, job=JobStatus.FAILED),
        build(seq=9, job=JobStatus.CANCELED),
        build(2, job=JobStatus.SUCCEEDED),
        build(2, job=JobStatus.RUNNING, transition=Transition.STOP),
        AgentExit(task_id=TASK, build_number=1, seq=9, why=ExitReason.EXITED),
    ],
)
def test_the_end_of_the_agent_withdraws_what_it_asked(ending: Any) -> None:
    """A build that is over and an agent that has ended show open requests as withdrawn, whenever they are reported."""
    late = approval(THIRD)
    for desk in (_desk_of(agent_request(), approval(), ending, late), _desk_of(ending, late)):
        assert set(desk.shown.values()) == {WITHDRAWN}
        refused = desk.answer(THIRD, "allow")
        assert (refused.status, refused.message) == (409, "The request is no longer open.")
        assert refused.detail == "It is withdrawn, because the agent that asked has ended, or its build is over."
    assert _desk_of(agent_request(), build(seq=9, job=JobStatus.CANCELING)).shown == {QUESTION: OPEN}


def test_a_stop_and_a_delete_withdraw_and_a_lost_agent_does_not() -> None:
    """Asking for a stop is enough; an agent that fell silent may come back, and gets its answer then."""
    desk = _desk_of(agent_request())
    desk.command(Pause(command_id=UUID(int=1), task_id=TASK, actor_id=ALICE))
    assert desk.shown == {QUESTION: WITHDRAWN}
    assert desk.state.agent_requests == {}
    desk = _desk_of(agent_request(), approval())
    desk.answer(APPROVAL, "allow")
    desk.command(Delete(command_id=UUID(int=1), task_id=TASK, actor_id=ALICE))
    assert (set(desk.shown.values()), desk.to_deliver) == ({WITHDRAWN}, {})
    assert desk.answer(QUESTION, text="core") == NOT_FOUND
    assert desk.report(agent_request(THIRD)) == [ReportOutcome.TOMBSTONE]
    assert erasure.scrub(_desk_of(agent_request()).state).agent_requests == {}
    desk = _desk_of(agent_request())
    desk.now += timedelta(minutes=5)
    desk.check_timers(TimerCheck(NOON))
    health = derive_view(desk.state, "t").health
    assert health is not None
    assert (health.healthy, desk.shown) == (False, {QUESTION: OPEN})


def test_a_build_that_was_given_up_and_is_reported_again() -> None:
    """Withdrawn is derived: what a later report revives is open again, and its answer is delivered again."""
    desk = Desk(make_task(TASK, state=active(unchanged_core(), build(seq=1, runner="runner-1"))))
    desk.report(agent_request(), approval())
    desk.answer(APPROVAL, "reject")
    desk.now += timedelta(hours=1)
    desk.check_timers(TimerCheck(NOON))
    assert (desk.state.build_timed_out, set(desk.shown.values()), desk.to_deliver) == (True, {WITHDRAWN}, {})
    desk.report(build(seq=2, job=JobStatus.SUCCEEDED))
    assert desk.shown == {QUESTION: OPEN, APPROVAL: ANSWERED}
    assert desk.to_deliver == {APPROVAL: "runner-1"}


def test_requests_of_a_build_that_is_yet_to_come() -> None:
    """They are kept, and open when the build is the latest; the requests of earlier ones are withdrawn with that."""
    desk = _desk_of(agent_request(), approval(build_number=2))
    assert desk.shown == {QUESTION: OPEN, APPROVAL: WITHDRAWN}
    desk.report(build(2))
    assert desk.shown == {QUESTION: WITHDRAWN, APPROVAL: OPEN}
    assert set(desk.state.agent_requests) == {APPROVAL}


def test_an_answer_is_checked_in_order() -> None:
    """Task, request, whether it is open, then the answer itself; each refusal says what to do."""
    desk = _desk_of(agent_request(), approval())
    assert desk.answer(THIRD) == REQUEST_NOT_FOUND
    assert CommandRefused(404, "Request not found.") == REQUEST_NOT_FOUND
    for option_id, text, field_ in (
        (None, None, "option_id"),
        (None, "yes", "option_id"),
        ("maybe", None, "option_id"),
    ):
        refused = desk.answer(APPROVAL, option_id, text)
        assert (refused.status, refused.message, refused.validations[0][0]) == (400, "Invalid answer.", field_)
    assert desk.answer(APPROVAL).validations == (("option_id", "One of these was expected: allow, reject."),)
    texts = ((None, None, "text"), (None, " \n", "text"), (None, "\u200b", "text"), ("allow", "yes", "option_id"))
    for option_id, text, field_ in texts:
        refused = desk.answer(QUESTION, option_id, text)
        assert (refused.status, refused.validations[0][0]) == (400, field_)
    assert isinstance(desk.answer(APPROVAL, "reject"), CommandAccepted)
    assert isinstance(desk.answer(QUESTION, text="core"), CommandAccepted)
    desk.now += SECOND
    refused = desk.answer(APPROVAL, "maybe", command_id=UUID(int=5))
    assert (refused.status, refused.message) == (409, "The request is no longer open.")
    assert refused.detail == f"It was answered with “Reject” by user {ALICE} at 2026-03-01T12:00:00.000000Z."
    assert "“core”" in desk.answer(QUESTION, text="api", command_id=UUID(int=5)).detail


def test_a_refusal_names_who_answered() -> None:
    """The name of the user is loaded with the record; a long text is shortened to one line."""
    desk = _desk_of(agent_request())
    desk.answer(QUESTION, text="a\n" * 300)
    record = desk.records[QUESTION]
    assert record.answer is not None
    named = replace(record.answer, actor_name="alice")
    desk.records[QUESTION], desk.accepted[QUESTION] = replace(record, answer=named), named
    detail = desk.answer(QUESTION, text="b", command_id=UUID(int=5)).detail
    assert detail.startswith("It was answered with “a a a")
    assert detail.endswith("…” by alice at 2026-03-01T12:00:00.000000Z.")
    assert len(detail) < 300


@pytest.mark.parametrize(
    ("report", "detail"),
    [
        (
            closing(approval(), option_id="allow"),
            "It was answered with “Allow” without a person, as was reported at 2026-03-01T12:00:00.000000Z.",
        ),
        (closing(approval(), WITHDRAWN), "It was withdrawn, as was reported at 2026-03-01T12:00:00.000000Z."),
        (closing(approval(), EXPIRED), "It expired, as was reported at 2026-03-01T12:00:00.000000Z."),
    ],
)
def test_a_closed_request_is_not_answered(report: Any, detail: str) -> None:
    """A refusal says what became of the request, and when; that its answer would be invalid does not matter."""
    assert _desk_of(approval(), report).answer(APPROVAL, "maybe") == CommandRefused(
        409, "The request is no longer open.", detail
    )


@pytest.mark.parametrize(
    ("answer", "got", "words"),
    [
        (None, "api", "“api” without a person, as was reported at 2026-03-01T12:00:02.000000Z."),
        (None, None, "“” without a person, as was reported at 2026-03-01T12:00:02.000000Z."),
        ("core", "core", f"“core” by user {ALICE} at 2026-03-01T12:00:01.000000Z."),
        ("core", "api", "“api” without a person, as was reported at 2026-03-01T12:00:02.000000Z."),
    ],
)
def test_a_refusal_says_what_the_agent_got(answer: str | None, got: str | None, words: str) -> None:
    """A person has answered only what is the answer that the agent reports."""
    desk = _desk_of(agent_request())
    desk.now += SECOND
    if answer is not None:
        desk.answer(QUESTION, text=answer)
    desk.now += SECOND
    desk.report(closing(agent_request(), text=got))
    detail = desk.answer(QUESTION, text="docs", command_id=UUID(int=5)).detail
    assert detail == f"It was answered with {words}"


def test_a_refusal_says_that_an_answer_did_not_arrive() -> None:
    """Who answered first may want to know: the agent gave up, or its build ended, before it got the answer."""
    for ending in (closing(approval(), WITHDRAWN), closing(approval(), EXPIRED), build(2)):
        desk = _desk_of(approval())
        desk.answer(APPROVAL, "allow")
        desk.report(ending)
        detail = desk.answer(APPROVAL, "reject", command_id=UUID(int=5)).detail
        assert detail.endswith(f". The answer of user {ALICE} did not reach the agent.")


def test_the_first_answer_stands_and_the_report_decides() -> None:
    """A report with the same answer delivers it; one with another state shows, and our answer is undelivered."""
    for answered, request_id, closed, delivered in (
        (("allow", None), APPROVAL, closing(approval(), option_id="allow"), True),
        (("allow", None), APPROVAL, closing(approval(), option_id="reject"), False),
        (("allow", None), APPROVAL, closing(approval(), WITHDRAWN), False),
        (("allow", None), APPROVAL, closing(approval(), EXPIRED), False),
        ((None, "core"), QUESTION, closing(agent_request(), text="core"), True),
        ((None, "core"), QUESTION, closing(agent_request(), text="api"), False),
        ((None, "core"), QUESTION, closing(agent_request()), False),
    ):
        desk = _desk_of(agent_request(), approval())
        desk.answer(request_id, *answered)
        assert (desk.shown[request_id], desk.to_deliver) == (ANSWERED, {request_id: "runner-1"})
        desk.now += SECOND
        desk.report(closed)
        answer = desk.records[request_id].answer
        assert answer is not None
        assert (answer.option_id, answer.text, answer.actor_id, answer.at) == (*answered, ALICE, NOON)
        assert answer.delivered_at == (NOON + SECOND if delivered else None)
        assert (desk.shown[request_id], desk.to_deliver) == (closed.state, {})
        desk.now += SECOND
        desk.report(replace(closed, seq=9))
        again = desk.records[request_id].answer
        assert again is not None
        assert again.delivered_at == (NOON + SECOND if delivered else None)


@pytest.mark.parametrize("pull", [False, True])
def test_what_was_answered_stays_what_was_asked(*, pull: bool) -> None:
    """An agent that repeats an answered request in other words gets no answer to these, nor does its next build."""
    desk = _desk_of(approval(pull=pull))
    assert desk.report(approval(seq=2, pull=pull, title="Run make check")) == [ReportOutcome.APPLIED]
    desk.answer(APPROVAL, "allow")
    desk.now += SECOND
    for repeated in (
        approval(seq=5, pull=pull, title="Run make clean"),
        approval(seq=6, pull=not pull),
        approval(build_number=2, pull=pull, title="Run make clean"),
    ):
        assert desk.report(repeated) == [ReportOutcome.STALE]
    record = desk.records[APPROVAL]
    assert (record.report.title, record.report.pull, record.since) == ("Run make check", pull, NOON)
    assert (desk.shown, desk.to_deliver) == ({APPROVAL: ANSWERED}, {} if pull else {APPROVAL: "runner-1"})
    desk.report(build(2, seq=1, runner="runner-2"))
    assert (desk.shown, desk.to_deliver) == ({APPROVAL: ANSWERED if pull else WITHDRAWN}, {})
    assert desk.report(closing(approval(seq=7), option_id="allow")) == [ReportOutcome.APPLIED]


def test_an_answer_goes_to_the_runner_of_the_build() -> None:
    """Not to one of an earlier build: it waits until the build's own is known, and goes to another if that changes."""
    desk = Desk()
    desk.report(build(2), agent_request(build_number=2))
    desk.answer(QUESTION, text="core")
    assert desk.to_deliver == {QUESTION: None}
    desk.report(build(2, seq=2, runner="runner-1"))
    assert desk.to_deliver == {QUESTION: "runner-1"}
    desk.report(build(2, seq=3, runner="runner-2"))
    assert desk.to_deliver == {QUESTION: "runner-2"}


def test_with_pull_acceptance_is_delivery() -> None:
    """No work request is needed, and the answer stays given when the build ends; a later report decides."""
    desk = _desk_of(approval(pull=True), agent_request(pull=True))
    desk.answer(APPROVAL, "allow")
    desk.answer(QUESTION, text="core")
    assert (desk.to_deliver, desk.document()) == ({}, [])
    answer = desk.records[APPROVAL].answer
    assert answer is not None
    assert answer.delivered_at == NOON
    desk.report(approval(seq=5, pull=True))
    assert desk.document() == []
    desk.report(AgentExit(task_id=TASK, build_number=1, seq=9, why=ExitReason.EXITED), build(2))
    assert desk.shown == {APPROVAL: ANSWERED, QUESTION: ANSWERED}
    desk.report(closing(agent_request(seq=5, pull=True), WITHDRAWN))
    withdrawn = desk.records[QUESTION].answer
    assert withdrawn is not None
    assert (desk.shown[QUESTION], withdrawn.delivered_at) == (WITHDRAWN, None)


def test_an_input_answers_the_only_question() -> None:
    """It does if the only open request is a question for a text; a blank one is refused, and one that steers steers."""
    desk = _desk_of(agent_request(), status(AgentState.IDLE))
    for blank in (" ", "\u200b", "\u2800"):
        assert desk.send(blank) == NO_INPUT
    answered = desk.send("core")
    assert (answered.answered.report.request_id, answered.input_id, answered.queued) == (QUESTION, None, False)
    assert desk.state.inbox.queued == 0
    assert desk.to_deliver == {QUESTION: "runner-1"}
    assert desk.records[QUESTION].answer == RequestAnswer(None, "core", ALICE, NOON, UUID(int=77))
    assert desk.last is not None
    assert desk.last.cause is not None
    cause = desk.last.cause
    assert (cause.type, cause.actor_id, cause.request, cause.answer) == ("task.send", ALICE, "Which package?", "core")
    queued = desk.send("more")
    assert (queued.answered, queued.queued) == (None, True)
    for reports in ((approval(),), (agent_request(), approval()), (agent_request(), agent_request(THIRD))):
        result = _desk_of(*reports).send()
        assert (result.answered, result.queued) == (None, True)
    steer = _desk_of(agent_request()).send(steers=True)
    assert (steer.answered, steer.steers, steer.interrupt_id is not None) == (None, True, True)
    desk = _desk_of(agent_request(), approval())
    desk.answer(APPROVAL, "allow")
    assert desk.send().answered.report.request_id == QUESTION


def test_an_answer_is_the_cause_with_what_was_answered_and_by_whom() -> None:
    """The history names the request, the label of the option and the actor; a report names what became of it."""
    desk = _desk_of(approval())
    assert desk.last is not None
    assert desk.last.cause is not None
    assert (desk.last.cause.outcome, desk.last.cause.request) == ("open", "Run make")
    desk.answer(APPROVAL, "allow")
    cause = desk.last.cause
    assert cause is not None
    assert (cause.kind, cause.type, cause.actor_id) == ("command", "task.answer", ALICE)
    assert (cause.request, cause.answer) == ("Run make", "Allow")


def test_a_text_to_an_option_steers() -> None:
    """It interrupts the agent and goes first as an input; the answer itself is the option alone."""
    desk = _desk_of(approval(), status(AgentState.IDLE))
    result = desk.answer(APPROVAL, "reject", "Use make check", command_id=UUID(int=9))
    assert (result.input_id, result.input, result.steers) == (UUID(int=9), "Use make check", True)
    assert (result.interrupt_id, result.queued) == (UUID(int=9), True)
    assert (desk.accepted[APPROVAL].option_id, desk.accepted[APPROVAL].text) == ("reject", None)
    assert desk.state.interrupt is not None
    assert desk.last is not None
    assert [new.content for new in desk.last.new_inputs] == ["Use make check"]
    desk = _desk_of(approval())
    assert desk.answer(APPROVAL, "reject", " \u200b").steers is False
    desk = _desk_of(agent_request(), status(AgentState.WORKING))
    told = desk.answer(QUESTION, text="core", command_id=UUID(int=10))
    assert (told.input_id, told.input, told.steers, told.interrupt_id) == (None, None, False, None)
    assert (desk.state.interrupt, desk.state.inbox.queued) == (None, 0)
    assert desk.records[QUESTION].answer == RequestAnswer(None, "core", ALICE, NOON, UUID(int=10))
    starting = _desk_of(approval(), lifecycle(seq=5, at=lifecycle().lifecycle.STARTING))
    queued = starting.answer(APPROVAL, "reject", "later")
    assert (queued.interrupt_id, queued.queued, starting.state.inbox.queued) == (None, True, 1)


def test_a_text_to_an_option_is_refused_while_the_inbox_is_full() -> None:
    """The request stays open, and can be answered without the text; a text that is the answer needs no place."""
    desk = _desk_of(approval(), agent_request(), status(AgentState.IDLE))
    desk.task = replace(desk.task, state=replace(desk.state, inbox=Inbox(queued=MAX_QUEUED)))
    assert desk.answer(APPROVAL, "reject", "Use make check") is INBOX_FULL
    assert (desk.shown[APPROVAL], desk.state.interrupt) == (OPEN, None)
    assert desk.answer(APPROVAL, "reject", " ").answered.report.request_id == APPROVAL
    assert desk.answer(QUESTION, text="core").answered.report.request_id == QUESTION
    assert desk.state.inbox.queued == MAX_QUEUED


def test_an_agent_that_asks_is_busy_and_can_be_interrupted() -> None:
    """Nothing leaves the inbox while a request is open or its answer is on its way; then the agent settles first."""
    core = unchanged_core()
    desk = _desk_of(status(AgentState.IDLE), approval())
    assert core.inbox.is_busy(desk.state)
    assert desk.command(Interrupt(command_id=UUID(int=3), task_id=TASK, actor_id=ALICE)).interrupt_id == UUID(int=3)
    desk = _desk_of(status(AgentState.IDLE), approval())
    desk.answer(APPROVAL, "allow")
    assert core.inbox.is_busy(desk.state)
    desk.now += SECOND
    desk.report(closing(approval(), option_id="allow"))
    assert not core.inbox.is_busy(desk.state)
    assert not core.inbox.is_ready(desk.state, desk.now)
    assert core.inbox.is_ready(desk.state, desk.now + core.inbox.SETTLE_TIME)
    withdrawn = _desk_of(status(AgentState.IDLE), approval(), closing(approval(), WITHDRAWN))
    assert core.inbox.is_ready(withdrawn.state, NOON)
    pulled = _desk_of(status(AgentState.IDLE), approval(pull=True))
    pulled.answer(APPROVAL, "allow")
    assert not core.inbox.is_ready(pulled.state, NOON)
    assert core.inbox.is_ready(_desk_of(status(AgentState.IDLE), approval(build_number=2)).state, NOON)


def test_an_agent_that_asks_does_not_stall() -> None:
    """Whatever state it reports, it waits for a person; its request was a word, too."""
    desk = _desk_of(status(AgentState.WORKING), approval())
    later = NOON + 2 * HALF_HOUR
    assert recovery.detect_stall(desk.state, NOON, later, POLICY) is desk.state
    desk.report(closing(approval(), option_id="allow"))
    assert recovery.detect_stall(desk.state, NOON, later, POLICY) is not desk.state
    assert desk.state.last_log is not None


def test_the_wait_for_an_answer_is_no_silence() -> None:
    """An agent that has its answer at once, because it asked over HTTP, has all the time of the policy from then on."""
    desk = _desk_of(status(AgentState.WORKING), approval(pull=True))
    desk.now = NOON + 4 * POLICY.stalled_after
    desk.answer(APPROVAL, option_id="allow")
    latest = desk.now + recovery.LOG_RESOLUTION + POLICY.stalled_after
    assert recovery.detect_stall(desk.state, NOON, latest, POLICY) is desk.state
    assert recovery.detect_stall(desk.state, NOON, latest + timedelta(seconds=1), POLICY) is not desk.state


def test_a_task_has_at_most_a_hundred_open_requests() -> None:
    """A further one is a dead letter, or counted if its agent fetches the answer; what closes makes room.

    So does a later build.
    """
    desk = Desk()
    ids = [UUID(int=number) for number in range(1, MAX_OPEN + 2)]
    desk.report(*(agent_request(each) for each in ids[:MAX_OPEN]))
    assert desk.report(agent_request(ids[-1])) == [ReportOutcome.REQUESTS_OVERFLOW]
    assert ReportOutcome.REQUESTS_OVERFLOW.dead_letter_reason is DeadLetterReason.REQUESTS_OVERFLOW
    assert desk.report(agent_request(ids[-1], pull=True)) == [ReportOutcome.REQUESTS_REFUSED]
    assert ReportOutcome.REQUESTS_REFUSED.dead_letter_reason is None, "an agent must not fill the broker"
    assert (len(desk.document()), ids[-1] in desk.records) == (MAX_OPEN, False)
    assert desk.report(agent_request(ids[0], seq=5)) == [ReportOutcome.APPLIED]
    assert desk.report(agent_request(ids[-1], build_number=2)) == [ReportOutcome.REQUESTS_OVERFLOW]
    desk.answer(ids[0], text="core")
    assert desk.report(agent_request(ids[-1])) == [ReportOutcome.REQUESTS_OVERFLOW]
    assert desk.report(closing(agent_request(ids[-1]), WITHDRAWN)) == [ReportOutcome.APPLIED]
    desk.report(closing(agent_request(ids[0], seq=5), text="core"))
    assert desk.report(agent_request(UUID(int=999))) == [ReportOutcome.APPLIED]
    desk.report(build(2), *(agent_request(UUID(int=2000 + each), build_number=2) for each in range(MAX_OPEN)))
    assert len(desk.document()) == MAX_OPEN
    assert desk.report(agent_request(UUID(int=5000))) == [ReportOutcome.APPLIED]
    assert desk.shown[UUID(int=5000)] is WITHDRAWN


def test_the_explanation_says_what_is_waited_for() -> None:
    """Its value is that of the document, and its rule says whether a person or the runner is waited for."""
    limits = timeouts(unchanged_core())
    desk = Desk()
    assert explain(desk.state, limits).waiting.rule == "request.none"
    desk.report(agent_request(title="Which package…"))
    waiting = explain(desk.state, limits).waiting
    assert (waiting.value, waiting.rule) == (True, "request.open")
    assert "waits for an answer: “Which package”, since 2026-03-01 12:00:00 UTC. " in waiting.explanation
    desk.report(approval(seq=0), approval(THIRD))
    text = explain(desk.state, limits).waiting.explanation
    assert "waits for approval: “Run make”" in text
    assert "UTC, and 2 more. " in text
    for request_id, answered in ((QUESTION, (None, "core")), (APPROVAL, ("allow",)), (THIRD, ("allow",))):
        desk.answer(request_id, *answered)
    assert (explain(desk.state, limits).waiting.value, explain(desk.state, limits).waiting.rule) == (
        False,
        "request.answered",
    )


def random_step(rng: Random, desk: Desk) -> None:
    """Do one of the things that can happen to a task and its requests."""
    desk.now += SECOND
    number, seq = desk.state.build_number, int((desk.now - NOON).total_seconds())
    ids: dict[str, Any] = {"command_id": UUID(int=10_000 + seq), "task_id": TASK, "actor_id": ALICE}
    choice = rng.random()
    request_id = rng.choice(IDS)
    if choice < 0.35:
        report = random_request(rng)
        desk.report(replace(report, build_number=rng.choice((number, number, number + 1)), pull=rng.random() < 0.2))
    elif choice < 0.65:
        record = desk.records.get(request_id)
        text = record is None or record.wants_text
        answer = (None, "core") if text else (rng.choice(("allow", "reject")), rng.choice((None, "and more")))
        desk.answer(request_id, *answer, command_id=ids["command_id"])
    elif choice < 0.75:
        desk.command(Send(**ids, input="core", interrupt=rng.random() < 0.3))
    elif choice < 0.85:
        transition = desk.state.build.report.transition
        job = rng.choice((JobStatus.SUCCEEDED, JobStatus.SUCCEEDED, JobStatus.RUNNING, JobStatus.FAILED))
        desk.report(build(number, seq=seq, job=job, transition=transition, runner=rng.choice(("a", "b"))))
        desk.report(lifecycle(number=number, seq=seq))
    elif choice < 0.9:
        desk.command(rng.choice((Pause, Resume, Interrupt))(**ids))
    elif choice < 0.93:
        desk.report(AgentExit(task_id=TASK, build_number=number, seq=seq, why=ExitReason.EXITED))
    elif choice < 0.94:
        desk.command(Delete(**ids))
    else:
        desk.now += timedelta(minutes=rng.choice((1, 20, 40)))
        desk.check_timers(TimerCheck(NOON))


@pytest.mark.timeout(300)  # on a busy machine
@settings(max_examples=200, deadline=None)
@given(randoms())
def test_a_request_is_asked_once_and_answered_once(rng: Random) -> None:
    """Law 8, as far as the worker decides it: what ``Desk`` asserts holds whatever happens to the task."""
    desk = Desk()
    for _ in range(rng.randrange(60)):
        random_step(rng, desk)
    states: dict[RequestState, int] = defaultdict(int)
    for shown in desk.shown.values():
        states[shown] += 1
    assert sum(states.values()) == len(desk.records)
    assert agent_requests.prune(desk.state) is desk.state
