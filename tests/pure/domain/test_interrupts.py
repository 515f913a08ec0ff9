"""An interrupt always ends, and says what really happened (law 9); while one is open, nothing leaves the inbox."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given, settings

from taskherd.domain.command_results import NOT_FOUND, NOT_WORKING, CommandAccepted, CommandRefused
from taskherd.domain.commands import Delete, Interrupt, Pause, Resume, Send
from taskherd.domain.handle_command import handle_command
from taskherd.domain.inbox import QueuedInput
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import (
    AgentExit,
    AgentInterrupted,
    AgentState,
    ExitReason,
    Health,
    InputOutcome,
    InputOutcomeReport,
    InterruptOutcome,
    JobStatus,
    Lifecycle,
    Transition,
)
from taskherd.domain.task_update import apply_command, apply_report, apply_timer_check, due_at, finalize
from taskherd.domain.updates import TaskUpdate, TimerCheck, UpdateContext
from taskherd.domain.value import replace
from taskherd.domain.view import derive_view
from taskherd.messages.commands import encode_command
from taskherd.messages.run_policy import default_policy
from tests.harness.histories import NOON, TASK, randoms
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, folded, heartbeat, lifecycle, status, timeouts
from tests.pure.domain.test_inbox import active, delivered
from tests.pure.domain.test_task_update import WATERMARK, context, new_update

if TYPE_CHECKING:
    from datetime import datetime
    from random import Random

    from tests.pure.domain.mutated_core import Core

SECOND = timedelta(seconds=1)
TIMEOUT = timedelta(seconds=60)
ONE, TWO, THREE, USER = (UUID(int=number) for number in range(1, 5))
ENDING = (InterruptOutcome.STOPPED, InterruptOutcome.ENDED)


def interrupted(
    interrupt_id: UUID = ONE, outcome: InterruptOutcome = InterruptOutcome.STOPPED, detail: str | None = None
) -> AgentInterrupted:
    """Return a report about an interrupt."""
    return AgentInterrupted(
        task_id=TASK, build_number=1, seq=9, interrupt_id=interrupt_id, outcome=outcome, detail=detail
    )


def working(core: Core) -> Any:
    """Return the state of an active task whose agent works."""
    return active(core, status(AgentState.WORKING))


def test_an_interrupt_ends_with_its_outcome(core: Core) -> None:
    """The first report about it ends it; reports about other interrupts, or after that, have no effect."""
    state = core.interrupts.begin(working(core), ONE, NOON)
    assert core.interrupts.record_outcome(state, interrupted(TWO), NOON) is state
    for outcome in InterruptOutcome:
        after = core.interrupts.record_outcome(state, interrupted(ONE, outcome, "words"), NOON + SECOND)
        assert after.interrupt is None
        last = after.last_interrupt
        assert (last.id, last.outcome, last.detail, last.at) == (ONE, outcome, "words", NOON + SECOND)
        assert not last.unreported
        for other in InterruptOutcome:
            assert core.interrupts.record_outcome(after, interrupted(ONE, other), NOON + 2 * SECOND) is after


def test_an_interrupt_without_an_outcome_fails(core: Core) -> None:
    """It fails after more than the timeout, in drained time; a report that comes later says what really happened."""
    state = core.interrupts.begin(working(core), ONE, NOON)
    limits = timeouts(core)
    assert core.interrupts.deadline(state, None, NOON, limits) == NOON + TIMEOUT
    assert core.interrupts.deadline(state, NOON + SECOND, NOON + SECOND, limits) == NOON + SECOND + TIMEOUT
    assert core.interrupts.expire(state, NOON, NOON + TIMEOUT, limits) is state
    assert core.interrupts.expire(state, NOON + SECOND, NOON + TIMEOUT + SECOND, limits) is state
    failed = core.interrupts.expire(state, NOON, NOON + TIMEOUT + SECOND, limits)
    assert (failed.interrupt, failed.last_interrupt.outcome) == (None, InterruptOutcome.FAILED)
    assert failed.last_interrupt.detail == core.interrupts.NOT_REPORTED
    assert core.interrupts.deadline(failed, None, NOON, limits) is None
    assert core.interrupts.expire(failed, NOON, NOON + 10 * TIMEOUT, limits) is failed
    assert core.interrupts.record_outcome(failed, interrupted(TWO), NOON + 2 * TIMEOUT) is failed
    late = core.interrupts.record_outcome(failed, interrupted(ONE), NOON + 2 * TIMEOUT)
    assert (late.last_interrupt.outcome, late.last_interrupt.detail) == (InterruptOutcome.STOPPED, None)
    assert core.interrupts.counts_as_working(failed)
    assert not core.interrupts.counts_as_working(late)
    again = core.interrupts.begin(failed, TWO, NOON + TIMEOUT)
    late = core.interrupts.record_outcome(again, interrupted(ONE), NOON + 2 * TIMEOUT)
    assert late.interrupt.id == TWO


def test_an_interrupt_that_a_clock_ahead_has_noted_still_fails(core: Core) -> None:
    """After the clock was set back, it does not wait until it is as late again; small skew counts."""
    state = core.interrupts.begin(working(core), ONE, NOON)
    for back, is_over in ((30 * SECOND, False), (31 * SECOND, True), (timedelta(days=1), True)):
        now = NOON - back
        assert (core.interrupts.expire(state, now - TIMEOUT - SECOND, now, timeouts(core)).interrupt is None) is is_over


def test_a_later_build_ends_an_interrupt(core: Core) -> None:
    """The interrupt of an agent that a later build stops or has replaced has ended."""
    state = core.interrupts.begin(working(core), ONE, NOON)
    assert core.interrupts.end_superseded(state, NOON) is state
    stopping = core.builds.request_next_build(TASK, state, Transition.STOP, NOON)
    after = core.interrupts.end_superseded(stopping, NOON + SECOND)
    assert after.interrupt is None
    assert (after.last_interrupt.outcome, after.last_interrupt.at) == (InterruptOutcome.ENDED, NOON + SECOND)
    assert after.last_interrupt.detail == core.interrupts.NEXT_BUILD
    assert core.interrupts.end_superseded(after, NOON + SECOND) is after
    told = core.interrupts.record_outcome(after, interrupted(ONE), NOON + 2 * SECOND)
    assert told.last_interrupt.outcome is InterruptOutcome.STOPPED


def test_stopped_and_ended_count_as_another_state(core: Core) -> None:
    """The state that was reported before no longer keeps the inbox; a new one does, and a failed interrupt is none."""
    before = core.interrupts.begin(delivered(core, working(core)), ONE, NOON)
    assert core.inbox.is_busy(before)
    for outcome in InterruptOutcome:
        after = core.interrupts.record_outcome(before, interrupted(ONE, outcome), NOON)
        assert core.inbox.is_ready(after, NOON) == (outcome in ENDING)
        assert core.inbox.is_busy(after) == (outcome not in ENDING)
        at_work = core.fold.fold(after, status(AgentState.WORKING, seq=10), NOON + SECOND).state
        assert core.inbox.is_busy(at_work)
    unheard = core.interrupts.begin(core.inbox.mark_sent(core.inbox.enqueue(active(core)), TWO), ONE, NOON)
    ended = core.interrupts.record_outcome(unheard, interrupted(ONE, InterruptOutcome.ENDED), NOON)
    assert not core.interrupts.counts_as_working(ended)
    assert core.inbox.is_busy(ended)


def test_an_interrupt_of_an_earlier_agent_does_not_overrule_the_next_one(core: Core) -> None:
    """It is recorded, but the agent of a later build goes on working, and settles after the input it has got."""
    began = core.interrupts.begin(working(core), ONE, NOON)
    expired = core.interrupts.expire(began, NOON - TIMEOUT, NOON + TIMEOUT + SECOND, timeouts(core))
    for interrupted_state in (began, expired):
        state = folded(core, [build(2, job=JobStatus.SUCCEEDED), lifecycle(number=2)], interrupted_state)
        settling = replace(state, inbox=replace(state.inbox, delivered_at=NOON))
        at_work = core.fold.fold(settling, status(AgentState.WORKING, number=2, seq=5), NOON).state
        for before in (settling, at_work):
            for outcome in ENDING:
                after = core.interrupts.record_outcome(before, interrupted(ONE, outcome), NOON)
                assert after.last_interrupt.outcome is outcome
                assert core.interrupts.counts_as_working(after) is (before is at_work)
                assert after.inbox.delivered_at == NOON
            superseded = core.interrupts.end_superseded(before, NOON)
            assert core.interrupts.counts_as_working(superseded) is (before is at_work)
            assert superseded.inbox.delivered_at == NOON


def test_nothing_leaves_the_inbox_while_an_interrupt_is_open(core: Core) -> None:
    """An agent that is being interrupted is busy, whatever state it reports."""
    idle = core.inbox.enqueue(active(core, status(AgentState.IDLE)))
    assert core.inbox.is_ready(idle, NOON)
    state = core.interrupts.begin(idle, ONE, NOON)
    assert core.inbox.send_next(state, [TWO], (), NOON) == (state, None)
    assert core.inbox.next_check_at(core.interrupts.begin(delivered(core, active(core)), ONE, NOON), NOON) is None


def test_inputs_wait_for_the_agent_after_one_that_was_ended(core: Core) -> None:
    """The inbox of an agent that an interrupt had to end stays, and goes on with the next start."""
    ended = AgentExit(task_id=TASK, build_number=1, seq=8, why=ExitReason.INTERRUPTED)
    state = core.inbox.enqueue(active(core, status(AgentState.IDLE), ended))
    assert not core.inbox.is_ready(state, NOON)
    settling = core.fold.fold(delivered(core, active(core)), ended, NOON).state
    assert core.inbox.next_check_at(settling, NOON) is None
    exited = core.inbox.enqueue(active(core, status(AgentState.IDLE), replace(ended, why=ExitReason.EXITED, status=0)))
    assert core.inbox.is_ready(exited, NOON)
    resumed = [build(2, job=JobStatus.SUCCEEDED), lifecycle(number=2)]
    for report in resumed:
        state = core.fold.fold(state, report, NOON).state
    assert core.inbox.is_ready(state, NOON)


def test_an_input_that_an_interrupted_agent_did_not_get_is_queued_again(core: Core) -> None:
    """After an interrupt that ended the agent, the input in flight waits again; after another it stays in flight."""
    state = core.inbox.mark_sent(core.inbox.enqueue(core.inbox.enqueue(active(core))), ONE)
    assert core.inbox.requeue_undelivered(state) == (state, None)
    ended = AgentExit(task_id=TASK, build_number=1, seq=8, why=ExitReason.INTERRUPTED)
    exited = core.fold.fold(state, replace(ended, why=ExitReason.SIGNALLED), NOON).state
    assert core.inbox.requeue_undelivered(exited) == (exited, None)
    after, requeued = core.inbox.requeue_undelivered(core.fold.fold(state, ended, NOON).state)
    assert (requeued, after.inbox.queued, after.inbox.in_flight) == (ONE, 2, None)
    assert core.inbox.requeue_undelivered(after) == (after, None)


def test_inputs_that_steer_go_first(core: Core) -> None:
    """Steers go before other inputs, each kind in its order."""
    kinds = [core.inbox.QueuedInput(UUID(int=n), steers) for n, steers in ((1, True), (2, False), (3, False))]
    new = [core.inbox.QueuedInput(UUID(int=n), steers) for n, steers in ((4, False), (5, True))]
    assert [each.int for each in core.inbox.in_order(kinds, new)] == [1, 5, 2, 3, 4]


def run(state: Any, command: Any) -> CommandAccepted | CommandRefused:
    """Execute a command on a task with this state."""
    return handle_command(make_task(TASK, state=state), command, NOON, context().command_context)


def interrupt(command_id: UUID = ONE) -> Interrupt:
    """Return a command that interrupts the agent."""
    return Interrupt(command_id=command_id, task_id=TASK, actor_id=USER)


def send(command_id: UUID, *, steers: bool) -> Send:
    """Return a command that sends an input."""
    return Send(command_id=command_id, task_id=TASK, actor_id=USER, input=f"input {command_id.int}", interrupt=steers)


def test_when_an_interrupt_is_accepted() -> None:
    """It is if the task is active and the agent reported that it works, or an input is in flight; else 409."""
    core = unchanged_core()
    in_flight = core.inbox.mark_sent(core.inbox.enqueue(active(core)), TWO)
    for state in (working(core), in_flight, core.inbox.mark_sent(core.inbox.enqueue(working(core)), TWO)):
        accepted = run(state, interrupt())
        assert isinstance(accepted, CommandAccepted)
        assert accepted.interrupt_id == ONE
        assert accepted.task.state.interrupt is not None
        assert (accepted.task.state.interrupt.id, accepted.task.state.interrupt.since) == (ONE, NOON)
    assert CommandRefused(409, "The agent is not working.") == NOT_WORKING
    starting = core.builds.initial_state(TASK, NOON)
    stopped = core.fold.fold(working(core), build(2, transition=Transition.STOP, job=JobStatus.SUCCEEDED), NOON).state
    unhealthy = core.task.Stamped(
        core.fold.AppHealth(task_id=TASK, build_number=1, seq=1, health=Health.UNHEALTHY), NOON
    )
    refused = [active(core), starting, stopped, replace(working(core), app_health=unhealthy)]
    refused += [active(core, status(state)) for state in AgentState if state is not AgentState.WORKING]
    for state in refused:
        assert run(state, interrupt()) == NOT_WORKING
    deleted = make_task(TASK, state=working(core), deleted_at=NOON)
    assert handle_command(deleted, interrupt(), NOON, context().command_context) == NOT_FOUND


def test_a_reported_state_is_interrupted_again() -> None:
    """What counts is what was reported: a second interrupt is accepted until the agent reports another state."""
    core = unchanged_core()
    state = core.interrupts.record_outcome(core.interrupts.begin(working(core), ONE, NOON), interrupted(), NOON)
    accepted = run(state, interrupt(TWO))
    assert isinstance(accepted, CommandAccepted)
    assert accepted.interrupt_id == TWO


def test_another_interrupt_joins_the_open_one() -> None:
    """It has the id of the open one and changes nothing, also when the agent has become idle meanwhile."""
    core = unchanged_core()
    for base in (working(core), active(core, status(AgentState.IDLE))):
        state = core.interrupts.begin(base, ONE, NOON)
        joined = run(state, interrupt(TWO))
        assert isinstance(joined, CommandAccepted)
        assert (joined.interrupt_id, joined.task.state) == (ONE, state)
        steer = run(state, send(TWO, steers=True))
        assert isinstance(steer, CommandAccepted)
        assert (steer.interrupt_id, steer.steers, steer.task.state.inbox.queued) == (ONE, True, 1)
        assert steer.task.state.interrupt == state.interrupt


def test_a_steer_interrupts_an_agent_that_works_only() -> None:
    """To an agent that does not work it is an ordinary send, which is sent at once; strict or not."""
    core = unchanged_core()
    ordinary = run(active(core, status(AgentState.IDLE)), send(ONE, steers=True))
    assert isinstance(ordinary, CommandAccepted)
    assert (ordinary.steers, ordinary.interrupt_id, ordinary.queued) == (False, None, False)
    strict = replace(context().command_context, strict_send=True)
    task = make_task(TASK, state=working(core))
    steer = handle_command(task, send(ONE, steers=True), NOON, strict)
    assert isinstance(steer, CommandAccepted)
    assert (steer.steers, steer.interrupt_id, steer.queued) == (True, ONE, True)
    assert isinstance(handle_command(task, send(ONE, steers=False), NOON, strict), CommandRefused)
    assert run(core.builds.initial_state(TASK, NOON), send(ONE, steers=True)) == CommandRefused(409, "Task is pending.")


def test_an_ordinary_send_has_the_digest_of_earlier_releases() -> None:
    """A field that is false is left out of a command, so that a repeat is recognized after an upgrade."""
    assert b"interrupt" not in encode_command(send(ONE, steers=False))
    assert b'"interrupt":true' in encode_command(send(ONE, steers=True))


def test_a_delete_drops_the_interrupt() -> None:
    """Its work request is closed with the batch that deletes the task."""
    core = unchanged_core()
    update = new_update(core.interrupts.begin(working(core), ONE, NOON))
    apply_command(update, Delete(command_id=TWO, task_id=TASK, actor_id=USER), NOON, context())
    finalize(update, NOON, context())
    assert update.existing_task.state.interrupt is None
    assert (update.opened_interrupt, update.closed_interrupt) == (None, ONE)


def test_what_a_report_and_a_timer_do() -> None:
    """An outcome is the cause of the change and closes the request; without one the timer does."""
    core = unchanged_core()
    state = core.interrupts.begin(working(core), ONE, NOON)
    reported = new_update(state)
    assert apply_report(reported, interrupted(TWO), NOON, context()) is ReportOutcome.STALE
    assert apply_report(reported, interrupted(ONE), NOON, context()) is ReportOutcome.APPLIED
    assert apply_report(reported, interrupted(ONE), NOON, context()) is ReportOutcome.STALE
    finalize(reported, NOON, context())
    assert reported.cause is not None
    assert (reported.cause.type, reported.cause.id, reported.cause.outcome) == ("agent.interrupted", ONE, "stopped")
    assert (reported.closed_interrupt, reported.interrupt_expired) == (ONE, False)
    expired = new_update(state)
    apply_timer_check(expired, TimerCheck(WATERMARK), NOON + TIMEOUT + SECOND, context())
    finalize(expired, NOON + TIMEOUT + SECOND, context())
    assert expired.cause is not None
    assert (expired.cause.kind, expired.cause.type) == ("sweep", "agent.interrupt_expired")
    assert (expired.closed_interrupt, expired.interrupt_expired) == (ONE, True)
    assert derive_view(state, "t").interrupted_since == NOON
    assert derive_view(expired.existing_task.state, "t").interrupted_since is None


@pytest.mark.parametrize("outcome", [*InterruptOutcome])
def test_steers_go_first_whatever_becomes_of_the_interrupt(outcome: InterruptOutcome) -> None:
    """Two steers wait for the interrupt, then go in their order before what waited; also if the interrupt failed."""
    world = World(unchanged_core())
    world.report(status(AgentState.WORKING, seq=world.tick()))
    for number, steers in ((10, False), (11, True), (12, True), (13, False)):
        world.command(send(UUID(int=number), steers=steers))
    assert world.opened == [UUID(int=11)]
    world.report(interrupted(UUID(int=11), outcome))
    assert world.sent == ([UUID(int=11)] if outcome in ENDING else [])
    while len(world.sent) < 4:
        if world.state.inbox.in_flight:
            world.report(world.outcome(InputOutcome.DELIVERED))
        world.report(status(AgentState.IDLE, seq=world.tick()))
    assert [each.int for each in world.sent] == [11, 12, 10, 13]


@dataclass
class World:
    """A task with its inbox as the database holds it, and what its runner was asked; checks the laws at each step."""

    core: Core
    now: datetime = NOON
    seq: int = 0
    queue: list[QueuedInput] = field(default_factory=list)
    accepted: list[UUID] = field(default_factory=list)
    steers: set[UUID] = field(default_factory=set)
    sent: list[UUID] = field(default_factory=list)
    opened: list[UUID] = field(default_factory=list)
    closed: list[UUID] = field(default_factory=list)
    outcomes: dict[UUID, InterruptOutcome] = field(default_factory=dict)
    """By interrupt: what its first report said."""

    def __post_init__(self) -> None:
        self.state = active(self.core, heartbeat())

    def tick(self) -> int:
        """Return the next seq; a second passes."""
        self.now += SECOND
        self.seq += 1
        return self.seq

    def context(self) -> UpdateContext:
        """Return the context of a batch, in which the input in flight is known."""
        in_flight = self.state.inbox.in_flight
        known = frozenset({(TASK, in_flight)} if in_flight else ())
        return replace(context(), default_policy=default_policy(0), known_inputs=known, open_inputs=known)

    def outcome(self, outcome: InputOutcome) -> InputOutcomeReport:
        """Return the report about the input in flight."""
        in_flight = self.state.inbox.in_flight
        assert in_flight is not None
        return InputOutcomeReport(
            task_id=TASK, build_number=self.state.build_number, seq=self.tick(), input_id=in_flight, outcome=outcome
        )

    def command(self, command: Any) -> CommandAccepted | CommandRefused:
        """Execute a command in a batch of its own, and return the result."""
        update = self._begin()
        apply_command(update, command, self.now, self.context())
        self._finish(update)
        assert update.command_result is not None
        return update.command_result

    def report(self, report: Any) -> None:
        """Apply a report in a batch of its own."""
        if isinstance(report, AgentInterrupted) and report.interrupt_id in self.opened:
            self.outcomes.setdefault(report.interrupt_id, report.outcome)
        update = self._begin()
        apply_report(update, report, self.now, self.context())
        self._finish(update)

    def check(self) -> None:
        """Check the timers, as a sweeper does whose queues are drained."""
        update = self._begin()
        apply_timer_check(update, TimerCheck(NOON - TIMEOUT), self.now, self.context())
        self._finish(update)

    def _begin(self) -> TaskUpdate:
        task = make_task(TASK, state=self.state)
        ordered = sorted(self.queue, key=lambda each: not each.steers)
        return TaskUpdate(task, task, queue=ordered[:1])

    def _finish(self, update: TaskUpdate) -> None:
        finalize(update, self.now, self.context())
        before, after = self.state, update.existing_task.state
        if update.requeued_input:
            assert update.requeued_input == before.inbox.in_flight
            steered = update.requeued_input in self.steers
            self.queue.append(QueuedInput(update.requeued_input, steered))
            self.queue.sort(key=lambda each: self.accepted.index(each.input_id))
        self.steers |= {new.input_id for new in update.new_inputs if new.steers}
        self.accepted += [new.input_id for new in update.new_inputs]
        self.queue += [QueuedInput(new.input_id, new.steers) for new in update.new_inputs]
        if update.opened_interrupt:
            self.opened.append(update.opened_interrupt)
        if update.closed_interrupt:
            self.closed.append(update.closed_interrupt)
        if update.sent_input:
            assert after.interrupt is None, "nothing leaves the inbox while an interrupt is open"
            assert before.inbox.in_flight is None or update.input_outcomes, "one is in flight at a time"
            first = min(self.queue, key=lambda each: (not each.steers, self.queue.index(each)))
            assert update.sent_input == first.input_id, "steers go first, each kind in its order"
            self.queue.remove(first)
            self.sent.append(update.sent_input)
        assert after.inbox.queued == len(self.queue)
        open_now = [after.interrupt.id] if after.interrupt else []
        assert self.opened == [*self.closed, *open_now], (
            "each interrupt is asked for once, and its request ends with it"
        )
        if after.interrupt:
            due = due_at(after, None, self.now, timeouts(self.core), default_policy(0))
            assert due is not None
            assert due <= max(after.interrupt.since + TIMEOUT, self.now + SECOND), "somebody looks at it in time"
        last = after.last_interrupt
        if last and last.id in self.outcomes:
            assert last.outcome is self.outcomes[last.id], "what it says is what was reported"
        self.state = after


def random_step(rng: Random, world: World) -> None:
    """Do one of the things that can happen to a task."""
    seq, number = world.tick(), world.state.build_number
    choice = rng.randrange(13)
    new = UUID(int=1000 + seq)
    if choice > 8:
        random_step_of_a_build(rng, world)
    elif choice == 0:
        world.command(send(new, steers=rng.random() < 0.5))
    elif choice == 1:
        open_interrupt = world.state.interrupt
        result = world.command(interrupt(new))
        if open_interrupt is not None and isinstance(result, CommandAccepted):
            assert result.interrupt_id == open_interrupt.id, "another one joins it"
    elif choice in {2, 3}:
        world.report(status(rng.choice((AgentState.WORKING, AgentState.IDLE)), number=number, seq=seq))
    elif choice in {4, 5} and world.state.inbox.in_flight:
        world.report(world.outcome(rng.choice([*InputOutcome])))
    elif choice in {6, 7} and world.opened:
        world.report(interrupted(rng.choice(world.opened[-2:]), rng.choice([*InterruptOutcome])))
    elif choice == 8:
        world.now += timedelta(seconds=rng.choice((1, 30, 61)))
        world.check()


def random_step_of_a_build(rng: Random, world: World) -> None:
    """Pause or resume the task, report its build as done, or its agent as ended."""
    seq, number, choice = world.tick(), world.state.build_number, rng.random()
    if choice < 0.1:
        kind = Pause if world.state.is_start else Resume
        world.command(kind(command_id=UUID(int=1000 + seq), task_id=TASK, actor_id=USER))
    elif choice > 0.15:
        transition = world.state.build.report.transition
        world.report(build(number, seq=seq, job=JobStatus.SUCCEEDED, transition=transition))
        if transition is Transition.START:
            world.report(lifecycle(Lifecycle.READY, number=number, seq=seq))
            world.report(heartbeat(number=number, seq=seq))
    else:
        world.report(AgentExit(task_id=TASK, build_number=number, seq=seq, why=ExitReason.INTERRUPTED))


@settings(max_examples=300)
@given(randoms())
def test_an_interrupt_always_ends(rng: Random) -> None:
    """Law 9: whatever happens, in the end none is open, each was closed once, and says what was reported about it.

    What else ``World`` asserts holds after each step.
    """
    world = World(unchanged_core())
    for _ in range(rng.randrange(40)):
        random_step(rng, world)
    world.now += TIMEOUT + SECOND
    world.check()
    assert world.state.interrupt is None
    assert world.closed == world.opened


@settings(max_examples=100)
@given(randoms())
def test_the_order_of_reports_about_an_interrupt_does_not_matter_to_the_document(rng: Random) -> None:
    """Law 1: whatever the order and repetition, the interrupt is over once one of the reports about it was taken."""
    core = unchanged_core()
    reports: list[Any] = [interrupted(ONE, outcome) for outcome in (InterruptOutcome.STOPPED, InterruptOutcome.ENDED)]
    reports += [status(AgentState.IDLE, seq=4), status(AgentState.WORKING, seq=3), interrupted(TWO)]
    views = set()
    for _ in range(3):
        order = [*reports, rng.choice(reports)]
        rng.shuffle(order)
        update = new_update(core.interrupts.begin(working(core), ONE, NOON))
        for report in order:
            apply_report(update, report, NOON, context())
        finalize(update, NOON, context())
        views.add(repr(derive_view(update.existing_task.state, "t")))
    assert len(views) == 1
