"""The executor of task actions, as far as it needs neither a database nor a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from taskherd.api.actions import executor
from taskherd.api.actions.executor import ActionExecutor, _result
from taskherd.api.command_slots import MAX_BULK, CommandSlots
from taskherd.api.commands import CommandResult
from taskherd.api.context import ApiContext
from taskherd.domain.command_results import NOT_FOUND, CommandRefused
from taskherd.domain.commands import Command
from taskherd.observability.metrics import Metrics
from taskherd.store import task_actions
from taskherd.store.task_actions import ClaimedStep, PendingTask, TaskResult

ALICE, BOB = UUID(int=1), UUID(int=2)


def step_of(action: str, text: str | None = None) -> ClaimedStep:
    """Return a step of an action of Alice."""
    return ClaimedStep(
        id=UUID(int=3),
        user_id=ALICE,
        action=action,
        input=text,
        failures=0,
        canceled=False,
        signed_in=True,
        age=timedelta(0),
        lease_id=UUID(int=4),
    )


async def test_an_executor_that_is_always_busy_forgets_when_steps_were_due() -> None:
    """A process that never waits for a step remembers only those that are still to come."""
    tested = ActionExecutor(rate=50, command_timeout=10)
    now = asyncio.get_running_loop().time()
    for number in range(1_000):
        tested._note_due(now - 1_000 + number)
    tested._note_due(now + 60)
    tested._note_due(now + 30)
    assert tested._due == [now + 30, now + 60]


async def test_whoever_waits_for_a_step_learns_when_the_next_one_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not known when the wait began; otherwise the step would be late."""
    saved: list[timedelta] = []

    @asynccontextmanager
    async def transaction(engine: object) -> AsyncIterator[object]:
        yield engine

    async def pending(*_: object) -> list[PendingTask]:
        return [PendingTask(number, UUID(int=8), visible=False) for number in range(10)]

    async def save(*_: object, failed: bool, delay: timedelta) -> None:
        assert not failed
        saved.append(delay)

    monkeypatch.setattr(executor, "LOOK_INTERVAL", 60.0)
    monkeypatch.setattr(executor, "transaction", transaction)
    monkeypatch.setattr(task_actions, "pending", pending)
    monkeypatch.setattr(task_actions, "save", save)
    tested = ActionExecutor(rate=1, command_timeout=10)
    waiting = asyncio.create_task(tested._wait())
    await asyncio.sleep(0)
    now = asyncio.get_running_loop().time
    api = SimpleNamespace(engine=None, failpoint=lambda _: None, metrics=Metrics(), command_slots=CommandSlots(now))
    await tested._execute(cast("ApiContext", api), step_of("pause"))
    async with asyncio.timeout(30):
        await waiting
    assert timedelta(seconds=1) < saved[0] <= timedelta(seconds=10)
    (due,) = tested._due
    assert 1 < due - now() <= 10


async def test_a_command_of_a_step_waits_for_its_turn_no_longer_than_for_its_reply() -> None:
    """While others use all slots, it is not sent, and counts as not confirmed before the lease of its step ends."""
    now = asyncio.get_running_loop().time
    slots = CommandSlots(now)
    step = step_of("pause")
    async with AsyncExitStack() as others, asyncio.timeout(60):
        for _ in range(MAX_BULK):
            await others.enter_async_context(slots.bulk(BOB, now() + 60))
        api = cast("ApiContext", SimpleNamespace(command_slots=slots))
        assert await _result(api, step, PendingTask(0, UUID(int=5), visible=True), now() + 0.05) is None


@pytest.mark.parametrize(
    ("action", "kind", "status"),
    [
        ("pause", "task.pause", 202),
        ("resume", "task.resume", 202),
        ("delete", "task.delete", 202),
        ("interrupt", "task.interrupt", 202),
        ("send", "task.send", 204),
    ],
)
async def test_each_task_of_an_action_gets_its_command(
    monkeypatch: pytest.MonkeyPatch, action: str, kind: str, status: int
) -> None:
    """Always with the same id for the same task, and another one for another; a refusal is kept in short."""
    now = asyncio.get_running_loop().time
    api = cast("ApiContext", SimpleNamespace(command_slots=CommandSlots(now)))
    sent: list[Command] = []
    results: list[CommandResult | CommandRefused] = [
        CommandResult({}, queued=False, repeated=False),
        CommandRefused(409, "m" * 501, "d" * 501),
        CommandRefused(409, "No", None),
    ]

    async def execute(_: ApiContext, command: Command, deadline: float) -> CommandResult | CommandRefused:
        assert deadline > now()
        sent.append(command)
        return results[len(sent) - 1]

    monkeypatch.setattr(executor, "execute", execute)
    step = step_of(action, "Go on" if action == "send" else None)
    tasks = [PendingTask(number, UUID(int=8 + number % 2), visible=True) for number in range(3)]
    found = [await _result(api, step, task, now() + 60) for task in tasks]
    assert found == [TaskResult(0, status), TaskResult(1, 409, "m" * 500, "d" * 500), TaskResult(2, 409, "No")]
    assert [(each.type, each.task_id, each.actor_id) for each in sent] == [
        (kind, task.task_id, ALICE) for task in tasks
    ]
    assert len({each.command_id for each in sent}) == 2
    assert sent[0].command_id == sent[2].command_id
    assert [getattr(each, "input", None) for each in sent] == [step.input] * 3
    hidden = await _result(api, step, PendingTask(3, UUID(int=8), visible=False), now() + 60)
    assert (hidden, len(sent)) == (TaskResult(3, 404, NOT_FOUND.message), 3)


class Steps:
    """The steps of an action: what an executor reads and stores, and how its commands end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tasks: list[PendingTask] = []
        self.results: list[TaskResult | None] = []
        self.deadlines: list[float] = []
        self.limits: list[int] = []
        self.finished: list[tuple[UUID, str | None]] = []
        self.saved: list[tuple[list[TaskResult], bool, timedelta]] = []
        self.points: list[str] = []
        self.metrics = Metrics()
        self.api = cast(
            "ApiContext", SimpleNamespace(engine="engine", failpoint=self.points.append, metrics=self.metrics)
        )
        monkeypatch.setattr(executor, "transaction", self._transaction)
        monkeypatch.setattr(executor, "_result", self._result)
        monkeypatch.setattr(task_actions, "pending", self._pending)
        monkeypatch.setattr(task_actions, "save", self._save)
        monkeypatch.setattr(task_actions, "finish", self._finish)

    def counted(self) -> dict[str, float]:
        """Return how many tasks had which outcome."""
        name = "taskherd_api_action_tasks_total"
        outcomes = ("succeeded", "refused", "unconfirmed")
        return {each: self.metrics.registry.get_sample_value(name, {"outcome": each}) or 0 for each in outcomes}

    @asynccontextmanager
    async def _transaction(self, engine: object) -> AsyncIterator[str]:
        assert engine == "engine"
        yield "connection"

    async def _pending(self, connection: object, step: ClaimedStep, limit: int) -> list[PendingTask]:
        assert (connection, step.id) == ("connection", UUID(int=3))
        self.limits.append(limit)
        return self.tasks

    async def _result(
        self, api: ApiContext, step: ClaimedStep, task: PendingTask, deadline: float
    ) -> TaskResult | None:
        assert (api, step.id) == (self.api, UUID(int=3))
        self.deadlines.append(deadline)
        return self.results[task.ordinal]

    async def _save(
        self, connection: object, step: ClaimedStep, results: list[TaskResult], *, failed: bool, delay: timedelta
    ) -> None:
        assert (connection, step.id) == ("connection", UUID(int=3))
        self.saved.append((results, failed, delay))

    async def _finish(self, connection: object, action_id: UUID, failure: str | None) -> None:
        assert connection == "connection"
        self.finished.append((action_id, failure))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Return an action without tasks."""
    return Steps(monkeypatch)


async def test_a_step_is_stored_with_what_became_of_its_tasks(steps: Steps) -> None:
    """Each outcome is counted; the next step is due when the rate allows it, and looked for at once."""
    tested = ActionExecutor(rate=2, command_timeout=10)
    steps.tasks = [PendingTask(number, UUID(int=number), visible=True) for number in range(3)]
    results: list[TaskResult | None] = [TaskResult(0, 202), TaskResult(1, 409, "No"), TaskResult(2, 204)]
    steps.results = results
    now = asyncio.get_running_loop().time
    began = now()
    await tested._execute(steps.api, step_of("pause"))
    assert all(began + 10 <= each <= now() + 10 for each in steps.deadlines)
    assert (len(steps.deadlines), steps.limits) == (3, [1])
    ((stored, failed, delay),) = steps.saved
    assert (stored, failed) == (results, False)
    assert timedelta(seconds=1) < delay <= timedelta(seconds=1.5)
    assert steps.counted() == {"succeeded": 2, "refused": 1, "unconfirmed": 0}
    assert tested._awake.is_set()
    (due,) = tested._due
    assert began + 1 < due <= now() + 1.5
    assert steps.points == ["action_claimed", "action_replied", "action_saved"]


async def test_a_step_that_was_not_confirmed_is_repeated_later(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was confirmed is stored; the wait grows with the failures before it, not with the number of tasks."""
    monkeypatch.setattr("taskherd.backoff.random.random", lambda: 0.0)
    tested = ActionExecutor(rate=50, command_timeout=10)
    steps.tasks = [PendingTask(number, UUID(int=number), visible=True) for number in range(2)]
    steps.results = [None, TaskResult(1, 202)]
    await tested._execute(steps.api, replace(step_of("pause"), failures=3))
    assert steps.saved == [([TaskResult(1, 202)], True, timedelta(seconds=4))]
    assert steps.counted() == {"succeeded": 1, "refused": 0, "unconfirmed": 1}
    await tested._execute(steps.api, replace(step_of("pause"), failures=30))
    assert steps.saved[1][2] == timedelta(seconds=60)


async def test_a_slow_step_is_followed_by_the_next_at_once(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that it took counts; a step is never due before now."""
    loop = asyncio.get_running_loop()
    tested = ActionExecutor(rate=1, command_timeout=10)
    steps.tasks, steps.results = [PendingTask(0, UUID(int=0), visible=True)], [TaskResult(0, 202)]
    real, shift = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: real() + shift[0])

    async def slowly(*_: object) -> TaskResult:
        shift[0] += 7
        return TaskResult(0, 202)

    monkeypatch.setattr(executor, "_result", slowly)
    await tested._execute(steps.api, step_of("pause"))
    assert steps.saved[0][2] == timedelta(0)


@pytest.mark.parametrize(
    ("fields", "failure"),
    [
        ({"canceled": True}, None),
        ({"signed_in": False}, executor.SIGNED_OUT),
        ({"age": timedelta(hours=12, microseconds=1)}, executor.EXPIRED),
        ({"age": timedelta(hours=13), "signed_in": False}, executor.EXPIRED),
        ({"age": timedelta(hours=13), "signed_in": False, "canceled": True}, None),
    ],
)
async def test_an_action_that_may_not_go_on_ends(steps: Steps, fields: dict[str, Any], failure: str | None) -> None:
    """It says why, unless that was wanted; none of its tasks is looked at."""
    tested = ActionExecutor(rate=1, command_timeout=10)
    await tested._execute(steps.api, replace(step_of("pause"), **fields))
    assert (steps.finished, steps.limits, steps.saved) == ([(UUID(int=3), failure)], [], [])
    await tested._execute(steps.api, replace(step_of("pause"), age=timedelta(hours=12)))
    assert (len(steps.finished), len(steps.saved)) == (1, 1)


async def ends_soon(waiting: asyncio.Task[None]) -> bool:
    """Return whether a wait ends without any time."""
    for _ in range(20):
        await asyncio.sleep(0)
    return waiting.done()


async def test_a_look_for_steps_waits_until_one_is_due_or_it_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that was due before does not matter any more."""
    monkeypatch.setattr(executor, "LOOK_INTERVAL", 60.0)
    tested = ActionExecutor(rate=50, command_timeout=10)
    now = asyncio.get_running_loop().time
    tested._due = [now() - 1]
    waiting = asyncio.create_task(tested._wait())
    assert not await ends_soon(waiting)
    assert tested._due == []
    tested.wake()
    assert await ends_soon(waiting)
    tested._awake.clear()
    tested._due = [now() + 0.001]
    async with asyncio.timeout(30):
        await tested._wait()
    tested._due = [now() + 3_600]
    monkeypatch.setattr(executor, "LOOK_INTERVAL", 0.001)
    async with asyncio.timeout(30):
        await tested._wait()


async def test_a_process_executes_four_steps_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it does, it looks for no further one; once it stops, it begins none."""
    release = asyncio.Event()
    claimed: list[ClaimedStep] = []
    executed: list[ClaimedStep] = []

    async def claim(_: ActionExecutor, _api: ApiContext) -> ClaimedStep:
        claimed.append(step_of("pause"))
        return claimed[-1]

    async def execute(_: ActionExecutor, _api: ApiContext, step: ClaimedStep) -> None:
        await release.wait()
        executed.append(step)

    monkeypatch.setattr(ActionExecutor, "_claim", claim)
    monkeypatch.setattr(ActionExecutor, "_execute", execute)
    stopping = asyncio.Event()
    api = cast("ApiContext", SimpleNamespace(stopping=stopping, metrics=Metrics()))
    running = asyncio.create_task(ActionExecutor(rate=50, command_timeout=10).run(api))
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(claimed) == 4
    stopping.set()
    release.set()
    async with asyncio.timeout(30):
        await running
    assert executed == claimed[:4] == claimed
