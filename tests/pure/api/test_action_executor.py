"""The executor of task actions, as far as it needs neither a database nor a broker."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from types import SimpleNamespace
from typing import cast
from uuid import UUID

import pytest

from taskherd.api.actions import executor
from taskherd.api.actions.executor import ActionExecutor, _pause, _result
from taskherd.api.command_slots import MAX_BULK, CommandSlots
from taskherd.api.commands import CommandResult
from taskherd.api.context import ApiContext
from taskherd.domain.command_results import NOT_FOUND, CommandRefused
from taskherd.domain.commands import Command
from taskherd.errors import Unavailable
from taskherd.observability.metrics import Metrics
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


def pending(ordinal: int, task: int, *, visible: bool = True) -> PendingTask:
    """Return a task of a step."""
    return PendingTask(ordinal, UUID(int=task), visible, command_id=UUID(int=0xC0 + task), sent=False)


async def test_an_executor_that_is_always_busy_forgets_when_steps_were_due() -> None:
    """A process that never waits for a step remembers only those that are still to come."""
    tested = ActionExecutor(rate=50, command_timeout=10)
    now = asyncio.get_running_loop().time()
    for number in range(1_000):
        tested._note_due(now - 1_000 + number)
    tested._note_due(now + 60)
    tested._note_due(now + 30)
    assert tested._due == [now + 30, now + 60]


async def test_a_command_of_a_step_waits_for_its_turn_no_longer_than_for_its_reply() -> None:
    """While others use all slots, it is not sent, and counts as not confirmed before the lease of its step ends."""
    now = asyncio.get_running_loop().time
    slots = CommandSlots(now)
    step = step_of("pause")
    async with AsyncExitStack() as others, asyncio.timeout(60):
        for _ in range(MAX_BULK):
            await others.enter_async_context(slots.bulk(BOB, now() + 60))
        api = cast("ApiContext", SimpleNamespace(command_slots=slots))
        assert await _result(api, step, pending(0, 5), now() + 0.05) is None


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
    """With the id that the row of the task has; a refusal is kept in short."""
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
    tasks = [pending(number, 8 + number % 2) for number in range(3)]
    found = [await _result(api, step, task, now() + 60) for task in tasks]
    assert found == [TaskResult(0, status), TaskResult(1, 409, "m" * 500, "d" * 500), TaskResult(2, 409, "No")]
    assert [(each.type, each.task_id, each.actor_id) for each in sent] == [
        (kind, task.task_id, ALICE) for task in tasks
    ]
    assert [each.command_id for each in sent] == [task.command_id for task in tasks]
    assert [getattr(each, "input", None) for each in sent] == [step.input] * 3
    hidden = await _result(api, step, pending(3, 8, visible=False), now() + 60)
    assert (hidden, len(sent)) == (TaskResult(3, 404, NOT_FOUND.message), 3)


@pytest.mark.parametrize(("elapsed", "seconds"), [(0.0, 1.5), (1.0, 0.5), (1.5, 0.0), (7.0, 0.0)])
def test_the_next_step_comes_when_the_rate_allows_it(elapsed: float, seconds: float) -> None:
    """The time that a step has taken counts; the next one is never due before now."""
    assert _pause(None, 1.5, elapsed) == seconds


@pytest.mark.parametrize(("failures", "seconds"), [(0, 1), (1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1_000, 60)])
def test_a_step_that_was_not_confirmed_is_repeated_later(
    monkeypatch: pytest.MonkeyPatch, failures: int, seconds: float
) -> None:
    """The wait grows with the failures before it up to a minute, whatever the number of tasks, and a part is random."""
    monkeypatch.setattr("taskherd.backoff.random.random", lambda: 0.0)
    assert _pause(failures, 1.5, 7.0) == seconds
    monkeypatch.setattr("taskherd.backoff.random.random", lambda: 0.75)
    assert _pause(failures, 1.5, 7.0) == seconds / 4


async def test_a_look_for_steps_waits_until_one_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for a second at most, since other processes make steps due; one that was due before does not matter."""
    loop, timeout, asked = asyncio.get_running_loop(), asyncio.timeout, list[float]()
    now = loop.time()

    def note_timeout(seconds: float) -> asyncio.Timeout:
        asked.append(seconds)
        return timeout(0)

    tested = ActionExecutor(rate=50, command_timeout=10)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda: now)
        patched.setattr(asyncio, "timeout", note_timeout)
        for due in ([now - 1], [now - 1, now + 0.25, now + 5], [now + 3_600]):
            tested._due = due
            await tested._wait()
    assert (asked, tested._due) == ([1.0, 0.25, 1.0], [now + 3_600])


async def test_a_look_for_steps_ends_when_it_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """An action was made, which is executed at once."""
    monkeypatch.setattr(executor, "LOOK_INTERVAL", 3_600)
    tested = ActionExecutor(rate=50, command_timeout=10)
    waiting = asyncio.create_task(tested._wait())
    await asyncio.sleep(0)
    tested.wake()
    async with asyncio.timeout(30):
        await waiting
    assert waiting.done()


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


@pytest.mark.parametrize("error", [Unavailable("no database"), ValueError("a bug")])
async def test_steps_that_fail_are_not_repeated_at_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """After an error a process waits as it does when nothing is due, and does not ask the database again and again."""
    api = cast("ApiContext", SimpleNamespace(stopping=asyncio.Event(), metrics=Metrics()))
    tested, done = ActionExecutor(rate=50, command_timeout=10), list[str]()

    async def claim(_api: ApiContext) -> ClaimedStep | None:
        done.append("look")
        if len(done) > 3:
            api.stopping.set()
        raise error

    async def wait() -> None:
        done.append("wait")

    monkeypatch.setattr(tested, "_claim", claim)
    monkeypatch.setattr(tested, "_wait", wait)
    async with asyncio.timeout(30):
        await tested._run_steps(api)
    assert done == ["look", "wait"] * 3
