"""Execute task actions step by step: claim a step, send the commands of its tasks, store their results.

A step may be executed again, by this process or another, after any crash: the row of each task keeps the id of its
command, so the worker executes it once and gives a repeated one the same reply.
"""

from __future__ import annotations

import asyncio
import heapq
from contextlib import suppress
from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, assert_never
from uuid import uuid4

import structlog

from taskherd.api.actions.schemas import ActionType
from taskherd.api.commands import execute
from taskherd.backoff import Backoff
from taskherd.domain.command_results import NOT_FOUND, CommandRefused
from taskherd.domain.commands import Delete, Interrupt, Pause, Resume, Send
from taskherd.errors import TaskherdError, Unavailable
from taskherd.messages.replies import decode_reply
from taskherd.observability.failpoints import Failpoint
from taskherd.store import command_log, task_actions
from taskherd.store.engine import transaction
from taskherd.store.task_actions import UNCONFIRMED, TaskResult

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskherd.api.context import ApiContext
    from taskherd.domain.commands import Command
    from taskherd.store.command_log import RecordedCommand
    from taskherd.store.task_actions import ClaimedStep, PendingTask

log = structlog.get_logger(__name__)

MAX_STEPS: Final = 4
"""Maximum number of steps that one process executes at the same time."""
STEP_SECONDS: Final = 0.5
"""Duration of a step at the configured rate, which decides how many tasks it is for."""
MAX_STEP: Final = 100
"""Maximum number of tasks of one step, and so of commands in flight for one action."""
MAX_AGE: Final = timedelta(hours=12)
"""Age at which an action ends. It is less than the minimum time for which the worker knows repeated commands."""
LEASE_MARGIN: Final = 15.0
"""Seconds of a lease in addition to the time limit of the step's commands, which wait for their turns together."""
LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks for steps that other processes made due."""
_BACKOFF: Final = Backoff(first=1.0, maximum=60.0)
_MAX_DETAIL: Final = 500
MAX_SAVED: Final = 500
"""Maximum number of results that one statement saves at the end of an action, so that it ends in time in any plan."""

EXPIRED: Final = "The action was not finished within 12 hours."
SIGNED_OUT: Final = "The token with which the action was requested is no longer valid."
NOT_CONFIRMED: Final = "Not confirmed: it may still take effect."


class ActionOutcome(StrEnum):
    """What became of the command for one task of an action."""

    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    UNCONFIRMED = "unconfirmed"

    @classmethod
    def of(cls, result: TaskResult | None) -> ActionOutcome:
        """Return the outcome of a result, or of None: no reply in time."""
        if result is None or result.status == UNCONFIRMED:
            return cls.UNCONFIRMED
        return cls.SUCCEEDED if result.status < HTTPStatus.MULTIPLE_CHOICES else cls.REFUSED


class ActionExecutor:
    """The executor of actions in one process."""

    def __init__(self, rate: float, command_timeout: float) -> None:
        """Create the executor; ``run`` starts it.

        Args:
            rate: tasks per second of one user's actions.
            command_timeout: seconds after which a command that was not sent or has no reply counts as failed.
        """
        self._rate = rate
        self._step_size = max(1, min(MAX_STEP, round(rate * STEP_SECONDS)))
        self._command_timeout = command_timeout
        self._lease = timedelta(seconds=command_timeout + LEASE_MARGIN)
        self._looking = asyncio.Lock()
        self._awake = asyncio.Event()
        self._due: list[float] = []
        """When the next steps of the actions that this process executes are due."""

    def wake(self) -> None:
        """Look for due steps now: an action was made or canceled, or the process stops."""
        self._awake.set()

    async def run(self, api: ApiContext) -> None:
        """Execute due steps, up to ``MAX_STEPS`` at the same time, until the process stops."""
        async with asyncio.TaskGroup() as group:
            for _ in range(MAX_STEPS):
                group.create_task(self._run_steps(api))
            await api.stopping.wait()
            self.wake()

    async def _run_steps(self, api: ApiContext) -> None:
        while not api.stopping.is_set():
            try:
                async with self._looking:  # one looks at a time; while none is due, the others wait for it
                    self._awake.clear()  # before the look, which may miss what is made meanwhile
                    step = None if api.stopping.is_set() else await self._claim(api)
                    if step is None and not api.stopping.is_set():
                        await self._wait()
                if step is not None:
                    await self._execute(api, step)
            except TaskherdError as error:
                log.warning("step of an action failed, it is repeated", reason=str(error))
                await self._wait()
            except Exception:
                api.metrics.api_crashes.inc()
                log.exception("step of an action failed, it is repeated")
                await self._wait()

    async def _wait(self) -> None:
        """Wait until a step of this process is due again, ``wake`` is called, or it is time to look for others."""
        self._forget_due()
        now = asyncio.get_running_loop().time()
        seconds = min(LOOK_INTERVAL, self._due[0] - now) if self._due else LOOK_INTERVAL
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._awake.wait()

    async def _claim(self, api: ApiContext) -> ClaimedStep | None:
        if not await task_actions.is_due(api.reader):
            return None
        async with transaction(api.engine) as connection:
            return await task_actions.claim(connection, self._lease, uuid4())

    async def _execute(self, api: ApiContext, step: ClaimedStep) -> None:
        """Execute a claimed step, and store its results and when the next one is due."""
        api.failpoint(Failpoint.ACTION_CLAIMED)
        loop = asyncio.get_running_loop()
        started = loop.time()
        failure = EXPIRED if step.age > MAX_AGE else None if step.signed_in else SIGNED_OUT
        if step.canceled or failure:
            await _end(api, step, None if step.canceled else failure)
            return
        async with transaction(api.engine) as connection:
            tasks = await task_actions.begin(connection, step, self._step_size)
        if tasks is None:
            log.warning("the lease of a step has ended before it began", action_id=str(step.id))
            return
        deadline = loop.time() + self._command_timeout
        outcomes = await asyncio.gather(*(_result(api, step, task, deadline) for task in tasks))
        api.failpoint(Failpoint.ACTION_REPLIED)
        _count(api, outcomes)
        results = [outcome for outcome in outcomes if outcome is not None]
        failed = bool(tasks) and not results  # what few tasks wait for holds up no others: they come last
        seconds = _pause(step.failures if failed else None, len(tasks) / self._rate, loop.time() - started)
        async with transaction(api.engine) as connection:
            await task_actions.save(connection, step, results, failed=failed, delay=timedelta(seconds=seconds))
        api.failpoint(Failpoint.ACTION_SAVED)
        self._note_due(loop.time() + seconds)
        self.wake()

    def _note_due(self, time: float) -> None:
        """Remember when a step is due, and forget those that have been due: ``_wait`` may not be called for long."""
        self._forget_due()
        heapq.heappush(self._due, time)

    def _forget_due(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._due and self._due[0] <= now:
            heapq.heappop(self._due)


async def _end(api: ApiContext, step: ClaimedStep, failure: str | None) -> None:
    """Finish an action that sends no more commands, with results for all tasks whose command it has sent.

    A command without a record may still be executed: a worker that holds it may wait for the database, or for a row.
    """
    async with transaction(api.engine) as connection:
        if not await task_actions.lock(connection, step):
            return
        sent = await task_actions.sent(connection, step)
        executed = await command_log.find(connection, list(sent))
        action = ActionType(step.action)
        results = [_last_result(action, ordinal, executed.get(command_id)) for command_id, ordinal in sent.items()]
        for start in range(0, max(1, len(results)), MAX_SAVED):
            part = results[start : start + MAX_SAVED]
            await task_actions.save(connection, step, part, failed=False, delay=timedelta())
        await task_actions.finish(connection, step.id, failure)
    _count(api, results)
    log.info("action ended", action_id=str(step.id), reason=failure or "canceled")


def _last_result(action: ActionType, ordinal: int, executed: RecordedCommand | None) -> TaskResult:
    """Return what became of a task when its action ended, by the record of its command."""
    if executed is None:
        return TaskResult(ordinal, UNCONFIRMED, NOT_CONFIRMED)
    return _task_result(action, ordinal, decode_reply(executed.reply.encode()))


def _count(api: ApiContext, results: Iterable[TaskResult | None]) -> None:
    for result in results:
        api.metrics.api_action_tasks.labels(ActionOutcome.of(result)).inc()


def _pause(failures: int | None, paced: float, elapsed: float) -> float:
    """Return the seconds from the end of a step until the next one of its action is due.

    Args:
        failures: how many steps before this one have failed in a row, or None if this one has not.
        paced: the seconds that a step for so many tasks takes at the configured rate.
        elapsed: the seconds that it has taken.
    """
    return max(0.0, paced - elapsed) if failures is None else _BACKOFF.delay(failures)


async def _result(api: ApiContext, step: ClaimedStep, task: PendingTask, deadline: float) -> TaskResult | None:
    """Execute the action for one task and return its result, or None without a reply until ``deadline``."""
    if not task.visible:
        return TaskResult(task.ordinal, NOT_FOUND.status, NOT_FOUND.message)
    action = ActionType(step.action)
    try:
        async with api.command_slots.bulk(step.user_id, deadline):
            result = await execute(api, _command(step, action, task), deadline)
    except Unavailable as error:
        log.warning("command of an action was not confirmed, it is repeated", reason=str(error))
        return None
    return _task_result(action, task.ordinal, result)


def _task_result(action: ActionType, ordinal: int, result: object) -> TaskResult:
    """Return what became of a task, by what its command resulted in."""
    if isinstance(result, CommandRefused):
        detail = None if result.detail is None else result.detail[:_MAX_DETAIL]
        return TaskResult(ordinal, result.status, result.message[:_MAX_DETAIL], detail)
    return TaskResult(ordinal, 204 if action is ActionType.SEND else 202)


def _command(step: ClaimedStep, action: ActionType, task: PendingTask) -> Command:
    """Return the command for one task."""
    command_id, task_id = task.command_id, task.task_id
    match action:
        case ActionType.PAUSE:
            return Pause(command_id=command_id, task_id=task_id, actor_id=step.user_id)
        case ActionType.RESUME:
            return Resume(command_id=command_id, task_id=task_id, actor_id=step.user_id)
        case ActionType.DELETE:
            return Delete(command_id=command_id, task_id=task_id, actor_id=step.user_id)
        case ActionType.SEND:
            return Send(command_id=command_id, task_id=task_id, actor_id=step.user_id, input=step.input or "")
        case ActionType.INTERRUPT:
            return Interrupt(command_id=command_id, task_id=task_id, actor_id=step.user_id)
        case _:
            assert_never(action)
