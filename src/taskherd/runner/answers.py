"""The answers to requests of one task's agent: pass each on; what became of it is in the report of its request.

Nothing is kept here. The worker repeats an answer until a report closes the request, and the follower gives the agent
each at most once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from taskherd.messages.work import AgentAnswer
from taskherd.observability.failpoints import Failpoint
from taskherd.runner.agents.context import AnswerOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskherd.runner.requests import PendingRequest
    from taskherd.runner.workspaces.workspace import TaskWorkspace

log = structlog.get_logger(__name__)

_RETRY_EVERY: Final = 0.05
"""Seconds between two attempts to pass an answer on to a follower that has just begun."""


class TaskAnswers:
    """The answers for one task's agent; ``run`` passes them on, in the order in which they came."""

    def __init__(self, *, failpoint: Callable[[Failpoint], None], count: Callable[[str, str], None]) -> None:
        self._failpoint = failpoint
        self._count = count
        self._queue: asyncio.Queue[PendingRequest] = asyncio.Queue()

    def submit(self, pending: PendingRequest) -> None:
        """Queue an answer."""
        assert isinstance(pending.request, AgentAnswer)
        self._queue.put_nowait(pending)

    def take_pending(self) -> list[PendingRequest]:
        """Remove and return the answers that were submitted and not passed on."""
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    async def run(self, workspace: TaskWorkspace) -> None:
        """Pass answers on until cancelled."""
        while True:
            pending = await self._queue.get()
            request = pending.request
            assert isinstance(request, AgentAnswer)
            self._failpoint(Failpoint.ANSWER_RECEIVE)
            self._count(request.type, await self._pass_on(workspace, request))
            pending.on_accepted()

    async def _pass_on(self, workspace: TaskWorkspace, request: AgentAnswer) -> str:
        """Pass an answer on, and return the outcome; also an error is one, so that later answers are passed on."""
        try:
            while (outcome := workspace.answer(request)) is AnswerOutcome.LATER:  # noqa: ASYNC110 - as in AgentSession
                await asyncio.sleep(_RETRY_EVERY)
        except OSError as error:
            log.warning("cannot record an answer", task_id=str(request.task_id), reason=str(error))
            return "failed"
        except Exception:
            log.exception("answer failed", task_id=str(request.task_id), request_id=str(request.request_id))
            return "failed"
        return outcome.value
