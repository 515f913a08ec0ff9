"""The inputs, interrupts and answers for one task, without an agent: each counts once, and its outcome is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from taskherd.domain.reports import InputOutcome, InterruptOutcome
from taskherd.messages.work import AgentAnswer, AgentInput, AgentInterrupt, WorkRequestOwner
from taskherd.runner import inputs as task_inputs
from taskherd.runner import interrupts as task_interrupts
from taskherd.runner.agents.context import AnswerOutcome, NotInterrupted
from taskherd.runner.answers import TaskAnswers
from taskherd.runner.inputs import INTERRUPTED, UNEXPECTED, TaskInputs
from taskherd.runner.interrupts import TaskInterrupts
from taskherd.runner.journal import AcceptedInterrupt, InputDelivery
from taskherd.runner.requests import PendingRequest
from tests.pure.runner.contexts import make_context, reports_of
from tests.pure.runner.test_context import given_start


class Workspace:
    """A workspace whose agent takes and does what a test says."""

    def __init__(self) -> None:
        self.running = True
        self.works = False
        self.delivered: list[str] = []
        self.notices: list[str] = []
        self.attempts = True
        """Whether a delivery is attempted."""
        self.error: str | Exception | None = None
        self.taken = asyncio.Event()
        """Set while the agent takes its inputs."""
        self.taken.set()
        self.interrupts: list[InterruptOutcome | Exception] = []
        self.answers: list[AnswerOutcome | Exception] = []

    async def deliver(self, text: str, record_attempt: Callable[[], Awaitable[None]]) -> str | None:
        """Take an input."""
        if self.attempts:
            await record_attempt()
        await self.taken.wait()
        self.delivered.append(text)
        if isinstance(self.error, Exception):
            raise self.error
        return self.error

    def append_notice(self, _: object, text: str) -> None:
        """Note it."""
        self.notices.append(text)

    def is_at_work(self, build_number: int) -> bool:
        """Return whether the agent of build 1 is at work."""
        return self.works and build_number == 1

    async def interrupt(self, _: int) -> InterruptOutcome:
        """Have the next outcome."""
        outcome = self.interrupts.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def answer(self, _: AgentAnswer) -> AnswerOutcome:
        """Have the next outcome."""
        outcome = self.answers.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Task:
    """A task whose requests come from a test."""

    def __init__(self, folder: Path) -> None:
        self.context = make_context(folder)
        self.journal = self.context.journal
        given_start(self.context)
        self.workspace = Workspace()
        self.saves = 0
        self.counted: list[tuple[str, str]] = []
        self.accepted: list[str] = []
        self.inputs = TaskInputs(
            self.journal, start_reporter=lambda _: self.context.reporter, save=self._save, count=self._count
        )
        self.make_interrupts()

    def make_interrupts(self) -> None:
        """Begin as a runner that finds the journal."""
        self.interrupts = TaskInterrupts(
            self.journal, self.inputs, start_reporter=lambda _: self.context.reporter, save=self._save,
            failpoint=lambda _: None, count=self._count,
        )  # fmt: skip

    async def _save(self) -> None:
        self.saves += 1

    def _count(self, *counted: str) -> None:
        self.counted.append((counted[0], counted[1]))

    def common(self) -> dict[str, Any]:
        """Return the fields that all requests have."""
        owner = WorkRequestOwner(id=uuid4(), username="u")
        return {
            "request_id": uuid4(), "attempt": 1, "task_id": self.journal.task_id, "task_name": "t", "owner": owner,
            "build_number": 1, "build_id": uuid4(), "template_version_id": uuid4(), "run": {},
        }  # fmt: skip

    def send(self, text: str, input_id: UUID | None = None) -> UUID:
        """Send an input, and return its id."""
        request = AgentInput(**self.common(), input_id=input_id or uuid4(), input=text)
        self.inputs.submit(PendingRequest(request, lambda: self.accepted.append(text)))
        return request.input_id

    def interrupt(self, name: str, interrupt_id: UUID | None = None) -> UUID:
        """Interrupt the agent, and return the id of the interrupt."""
        request = AgentInterrupt(**self.common(), interrupt_id=interrupt_id or uuid4())
        self.interrupts.submit(PendingRequest(request, lambda: self.accepted.append(name)))
        return request.interrupt_id

    @property
    def outcomes(self) -> list[tuple[str, str, str | None]]:
        """Id, outcome and detail of the inputs that were reported."""
        found = reports_of(self.context.outbox, "task.input")
        return [(each["input_id"], each["outcome"], each.get("detail")) for each in found]

    @property
    def interrupted(self) -> list[tuple[str, str | None]]:
        """Outcome and detail of the interrupts that were reported."""
        found = reports_of(self.context.outbox, "agent.interrupted")
        return [(each["outcome"], each.get("detail")) for each in found]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Return a task whose agent has had no requests yet."""
    return Task(tmp_path)


async def steps() -> None:
    """Let what is under way go on as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def delivering(task: Task) -> asyncio.Task[None]:
    """Deliver inputs from now on."""
    running = asyncio.create_task(task.inputs.run(task.workspace, task._save))  # type: ignore[arg-type]
    await steps()
    return running


async def test_inputs_are_delivered_once_and_in_order(task: Task) -> None:
    """What comes again meanwhile, or later, is accepted and not delivered again."""
    assert not task.inputs.pending
    task.workspace.taken.clear()
    running = await delivering(task)
    first, second = task.send("one"), task.send("two")
    task.send("one again", first)
    await steps()
    assert (task.accepted, task.workspace.delivered) == (["one again"], [])
    assert task.inputs.waiting == {first, second}
    assert task.journal.inputs == {first: InputDelivery.DELIVERING}
    assert task.saves == 1
    task.workspace.taken.set()
    await steps()
    assert (task.accepted, task.workspace.delivered) == (["one again", "one", "two"], ["one", "two"])
    assert (task.inputs.pending, task.saves) == (False, 4)
    task.send("one later", first)
    await steps()
    assert (task.accepted[3:], task.workspace.delivered) == (["one later"], ["one", "two"])
    assert task.outcomes == [(str(each), "delivered", None) for each in (first, second)]
    assert task.counted == [("agent.input", "done"), ("agent.input", "done"), ("agent.input", "repeated")]
    assert task.workspace.notices == []
    running.cancel()


@pytest.mark.parametrize(
    ("error", "detail"), [("It has closed its stdin.", "It has closed its stdin."), (RuntimeError("a bug"), UNEXPECTED)]
)
async def test_an_input_that_fails_is_told(task: Task, error: str | Exception, detail: str) -> None:
    """In the log, too; the next one is delivered."""
    running = await delivering(task)
    task.workspace.error = error
    first = task.send("one")
    await steps()
    task.workspace.error = None
    second = task.send("two")
    await steps()
    assert task.outcomes == [(str(first), "failed", detail), (str(second), "delivered", None)]
    assert task.journal.inputs == {first: InputDelivery.FAILED, second: InputDelivery.DELIVERED}
    assert task.workspace.notices == [f"input delivery failed: {detail}"]
    assert task.counted == [("agent.input", "failed"), ("agent.input", "done")]
    running.cancel()


@pytest.mark.parametrize(
    ("interrupted", "attempts", "is_kept"), [(True, False, True), (True, True, False), (False, False, False)]
)
async def test_an_input_for_an_agent_that_an_interrupt_has_ended(
    task: Task, *, interrupted: bool, attempts: bool, is_kept: bool
) -> None:
    """If the agent did not get it, the worker keeps it for the next one: nothing is recorded or told of it."""
    running = await delivering(task)
    task.journal.interrupted, task.workspace.attempts = interrupted, attempts
    task.workspace.error = "The agent exited before it received the input."
    input_id = task.send("one")
    await steps()
    assert task.accepted == ["one"]
    assert task.journal.inputs == ({} if is_kept else {input_id: InputDelivery.FAILED})
    assert (len(task.outcomes), task.counted[0][1]) == ((0, "ignored") if is_kept else (1, "failed"))
    running.cancel()


async def test_inputs_wait_for_an_agent_that_is_started_again(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a time; while the runner drains its agents without a limit, for the next runner has them then."""
    monkeypatch.setattr(task_inputs, "RESTART_TIMEOUT", 0.05)
    task.inputs.hold()
    running = await delivering(task)
    task.send("one")
    await steps()
    assert task.workspace.delivered == []
    async with asyncio.timeout(20):
        while not task.accepted:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.001)
    task.inputs.drain()
    task.send("two")
    await asyncio.sleep(0.1)
    assert task.workspace.delivered == ["one"]
    task.send("three")
    assert [pending.request.input for pending in task.inputs.take_pending()] == ["three"]  # type: ignore[union-attr]
    task.inputs.resume()
    await steps()
    assert task.workspace.delivered == ["one", "two"]
    running.cancel()


async def test_who_waits_for_inputs_is_told_whether_any_was_delivered(task: Task) -> None:
    """In time, once all are decided."""
    running = await delivering(task)
    task.workspace.taken.clear()
    first = task.send("one")
    assert not await task.inputs.wait_delivered({first}, 0.01)
    task.workspace.error = "no"
    second = task.send("two")
    waiting = asyncio.create_task(task.inputs.wait_delivered({first, second}, 20))
    await steps()
    task.workspace.taken.set()
    assert not await waiting
    task.workspace.error = None
    third = task.send("three")
    assert await task.inputs.wait_delivered({first, third}, 20)
    task.workspace.error = "no"
    fourth = task.send("four")
    assert not await task.inputs.wait_delivered({fourth}, 20)
    running.cancel()


async def test_inputs_whose_delivery_a_runner_did_not_finish_have_failed(task: Task) -> None:
    """Those alone; of the prompt the worker knows nothing. Without a start there is nobody to tell it of."""
    assert not task.inputs.fail_interrupted()
    prompt_id = task.journal.prompt_id
    assert prompt_id is not None
    unfinished, done = uuid4(), uuid4()
    delivery = {
        prompt_id: InputDelivery.DELIVERING,
        unfinished: InputDelivery.DELIVERING,
        done: InputDelivery.DELIVERED,
    }
    task.journal.inputs = dict(delivery)
    assert task.inputs.fail_interrupted()
    assert task.outcomes == [(str(unfinished), InputOutcome.FAILED.value, INTERRUPTED)]
    assert task.journal.inputs == {**delivery, unfinished: InputDelivery.FAILED}
    task.journal.start = None
    task.journal.inputs = {unfinished: InputDelivery.DELIVERING}
    assert task.inputs.fail_interrupted()
    assert len(task.outcomes) == 1
    assert await task.inputs.deliver_once(task.workspace, unfinished, "again") is None  # type: ignore[arg-type]
    assert task.workspace.delivered == []


STOPPED, ENDED = InterruptOutcome.STOPPED, InterruptOutcome.ENDED


async def interrupting(task: Task) -> asyncio.Task[None]:
    """Carry out interrupts from now on."""
    running = asyncio.create_task(task.interrupts.run(task.workspace))  # type: ignore[arg-type]
    await steps()
    return running


@pytest.mark.parametrize(
    ("outcome", "running", "told", "notices", "counted"),
    [
        (STOPPED, True, ("stopped", None), ["the agent was interrupted."], "done"),
        (ENDED, True, ("ended", None), [], "done"),
        (ENDED, False, ("ended", "The agent is not running."), [], "done"),
        (NotInterrupted("It lives."), True, ("failed", "It lives."), ["the interrupt failed: It lives."], "failed"),
        (
            RuntimeError("a bug"),
            True,
            ("failed", task_interrupts.UNEXPECTED),
            [f"the interrupt failed: {task_interrupts.UNEXPECTED}"],
            "failed",
        ),
    ],
)
async def test_an_interrupt_has_an_outcome(
    *,
    task: Task,
    outcome: InterruptOutcome | Exception,
    running: bool,
    told: tuple[str, str | None],
    notices: list[str],
    counted: str,
) -> None:
    """It is told and recorded, and a copy of the interrupt changes nothing."""
    task.workspace.running = running
    task.workspace.interrupts = [outcome]
    loop = await interrupting(task)
    interrupt_id = task.interrupt("one")
    assert task.interrupts.pending
    task.interrupt("a copy", interrupt_id)
    assert task.accepted == ["a copy"]
    await steps()
    task.interrupt("a late copy", interrupt_id)
    await steps()
    assert task.accepted == ["a copy", "one", "a late copy"]
    assert task.interrupted == [told]
    assert task.workspace.notices == notices
    assert (task.journal.interrupt, task.journal.ended_interrupts) == (None, [interrupt_id])
    assert task.counted == [(
        "agent.interrupt", each) for each in ("repeated", counted, "repeated")
    ]  # fmt: skip
    assert (task.interrupts.pending, task.saves) == (False, 3)
    loop.cancel()


@pytest.mark.parametrize(
    ("second", "fails", "told"), [(STOPPED, False, "stopped"), (ENDED, False, "ended"), (STOPPED, True, "ended")]
)
async def test_an_interrupt_ends_what_an_input_begins_that_was_sent_before(
    task: Task, *, second: InterruptOutcome, fails: bool, told: str
) -> None:
    """Once it is delivered; one that fails begins nothing."""
    task.workspace.interrupts = [ENDED, second]
    task.workspace.taken.clear()
    delivery, loop = await delivering(task), await interrupting(task)
    task.send("in flight")
    task.interrupt("one")
    await steps()
    assert task.interrupted == []
    assert task.journal.interrupt is not None
    assert task.journal.interrupt.at_work, "an input waits"
    task.workspace.error = "no" if fails else None
    task.workspace.taken.set()
    await steps()
    assert [outcome for outcome, _ in task.interrupted] == [told]
    assert len(task.workspace.interrupts) == int(fails)
    delivery.cancel()
    loop.cancel()


@pytest.mark.parametrize(
    ("at_work", "outcome", "told"), [(True, ENDED, "stopped"), (False, ENDED, "ended"), (True, STOPPED, "stopped")]
)
async def test_an_interrupt_that_an_earlier_runner_accepted_is_carried_out(
    task: Task, *, at_work: bool, outcome: InterruptOutcome, told: str
) -> None:
    """An agent that worked then and does not now was stopped, by that runner; a copy is known."""
    accepted = AcceptedInterrupt(interrupt_id=uuid4(), build_number=1, at_work=at_work)
    task.journal.interrupt = accepted
    task.make_interrupts()
    assert task.interrupts.pending
    task.interrupt("a copy", accepted.interrupt_id)
    assert task.accepted == ["a copy"]
    task.workspace.interrupts = [outcome]
    loop = await interrupting(task)
    assert [each for each, _ in task.interrupted] == [told]
    assert [task.journal.interrupt, task.interrupts.pending, task.saves] == [None, False, 2]
    loop.cancel()


async def test_an_outcome_that_was_recorded_is_told_and_not_carried_out_again(task: Task) -> None:
    """The agent may have begun another turn since."""
    task.journal.interrupt = AcceptedInterrupt(
        interrupt_id=uuid4(), build_number=1, at_work=True, outcome=InterruptOutcome.FAILED, detail="It lives."
    )
    task.make_interrupts()
    loop = await interrupting(task)
    assert task.interrupted == [("failed", "It lives.")]
    assert [task.journal.interrupt, task.saves] == [None, 1]
    loop.cancel()


@pytest.mark.parametrize(("works", "at_work"), [(True, True), (False, False)])
async def test_whether_the_agent_was_at_work_is_recorded(task: Task, *, works: bool, at_work: bool) -> None:
    """Before the interrupt is carried out, and accepted only then; those that wait can be taken back."""
    task.workspace.works = works
    recorded: list[tuple[bool, list[str]]] = []

    async def interrupt(_: int) -> InterruptOutcome:
        assert task.journal.interrupt is not None
        recorded.append((task.journal.interrupt.at_work, list(task.accepted)))
        await asyncio.Event().wait()
        return ENDED

    task.workspace.interrupt = interrupt  # type: ignore[method-assign]
    loop = await interrupting(task)
    task.interrupt("one")
    await steps()
    assert recorded == [(at_work, ["one"])]
    second = task.interrupt("two")
    (left,) = task.interrupts.take_pending()
    assert left.request.interrupt_id == second  # type: ignore[union-attr]
    loop.cancel()


async def test_answers_are_passed_on_in_order(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes too early is passed on again; an error is an outcome, and the next one is passed on."""
    monkeypatch.setattr("taskherd.runner.answers._RETRY_EVERY", 0)
    answers = TaskAnswers(failpoint=lambda _: None, count=task._count)
    results: list[AnswerOutcome | Exception] = [
        AnswerOutcome.LATER,
        AnswerOutcome.DONE,
        OSError("No space"),
        RuntimeError("a bug"),
        AnswerOutcome.IGNORED,
    ]
    task.workspace.answers = [*results]
    common = task.common()

    def submit(*names: str) -> None:
        for name in names:
            request = AgentAnswer(**{**common, "request_id": uuid4()}, option_id="yes", text=None)
            answers.submit(PendingRequest(request, lambda name=name: task.accepted.append(name)))  # type: ignore[misc]

    submit("zero", "zero")
    assert len(answers.take_pending()) == 2
    submit("one", "two", "three", "four")
    running = asyncio.create_task(answers.run(task.workspace))  # type: ignore[arg-type]
    await steps()
    assert [outcome for _, outcome in task.counted] == ["done", "failed", "failed", "ignored"]
    assert task.accepted == ["one", "two", "three", "four"]
    running.cancel()


def test_a_request_has_perhaps_another_copy() -> None:
    """Unless it is known not to have one."""
    assert not PendingRequest(SimpleNamespace(), lambda: None).only_copy  # type: ignore[arg-type]
