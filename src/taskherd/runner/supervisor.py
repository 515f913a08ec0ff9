"""Supervise one task: execute its work requests in order, each once, and report the results.

A build request is accepted when it is in the journal. From then on it is executed, by this runner or by the next one
that finds the journal. An input is accepted when its outcome is known.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, assert_never
from uuid import UUID

import structlog

from taskherd.domain.reports import JobStatus, Transition
from taskherd.messages.work import (
    AgentAnswer,
    AgentInput,
    AgentInterrupt,
    WorkspaceStart,
)
from taskherd.runner.answers import TaskAnswers
from taskherd.runner.build_queue import BuildQueue, DiscardTask, DrainTask, LoopFailure, TakenOver
from taskherd.runner.claims import Claim
from taskherd.runner.drain import NOTICE, REASON
from taskherd.runner.inputs import TaskInputs
from taskherd.runner.interrupts import TaskInterrupts
from taskherd.runner.journal import Journal, Phase
from taskherd.runner.journal_writer import JournalWriter
from taskherd.runner.outbox import Outbox
from taskherd.runner.reporter import Reporter, SequenceGenerator
from taskherd.runner.requests import PendingRequest
from taskherd.runner.workspaces import removal
from taskherd.runner.workspaces.workspace import StartEnded, TaskWorkspace

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from taskherd.runner.context import RunnerContext
    from taskherd.runner.workspaces.folders import TaskFolder

log = structlog.get_logger(__name__)

CANNOT_RECORD = (
    "The runner cannot write its journal: {}. Free disk space under its TASKHERD_RUNNER_ROOT or fix the permissions, "
    "then resume the task."
)
"""Error of a start that could not be recorded."""


class TaskSupervisor:
    """The supervisor of one task on this runner; ``run`` executes its requests."""

    def __init__(self, context: RunnerContext, folder: TaskFolder, journal: Journal) -> None:
        self._context = context
        self._folder = folder
        self._journal = journal
        self._outbox = Outbox(folder.outbox, context.budget, context.schedule_outbox)
        self._writer = writer = JournalWriter(journal, folder.journal)
        above = self._outbox.last_seq
        self._sequence = SequenceGenerator(journal, context.now, writer.save_in_background, above=above)
        self._inputs = TaskInputs(journal, start_reporter=self._start_reporter, save=writer.save, count=self._count)
        self._interrupts = TaskInterrupts(
            journal,
            self._inputs,
            start_reporter=self._start_reporter,
            save=writer.save_if_possible,
            failpoint=context.failpoint,
            count=self._count,
        )
        self._answers = TaskAnswers(failpoint=context.failpoint, count=self._count)
        context.isolation.hold_user(journal.task_id, journal.agent_uid)
        self._workspace = TaskWorkspace(
            context,
            folder,
            journal,
            outbox=self._outbox,
            start_reporter=self._start_reporter,
            save=writer.save,
            deliver_once=self._deliver_once,
            has_ending=lambda: self._builds.has_ending(journal),
        )
        self._builds = BuildQueue()
        self._not_claimed = False
        self._holds_starts = self._draining = self._is_recovered = False

    @property
    def task_id(self) -> UUID:
        """The id of the task."""
        return self._journal.task_id

    @property
    def build_number(self) -> int:
        """The latest build that this runner has accepted; 0 if none."""
        return self._journal.build_number

    @property
    def running(self) -> bool:
        """True while an agent is running."""
        return self._workspace.running

    def is_working(self) -> bool:
        """Return whether an agent is running that is not known to wait, or that is just getting an input."""
        is_getting_input = self.running and self._inputs.pending
        return is_getting_input or self._workspace.is_working(asyncio.get_running_loop().time())

    @property
    def drained(self) -> bool:
        """True if no agent is running, or about to be started or stopped, or perhaps to be adopted."""
        return self._is_recovered and not self.running and self._journal.phase is not Phase.ACCEPTED

    def heartbeat(self) -> bytes | None:
        """Return an encoded heartbeat, or None if the workspace is not up."""
        start = self._journal.start
        if start is None or not self._journal.workspace_is_up:
            return None
        return self._start_reporter(start.build_number).heartbeat()

    def submit(self, pending: PendingRequest) -> None:
        """Queue a request for execution."""
        if isinstance(pending.request, AgentInput):
            self._inputs.submit(pending)
        elif isinstance(pending.request, AgentInterrupt):
            self._interrupts.submit(pending)
        elif isinstance(pending.request, AgentAnswer):
            self._answers.submit(pending)
        else:
            self._builds.put(pending)

    def take_pending(self) -> list[PendingRequest]:
        """Remove and return the requests that were submitted and not started."""
        others = self._inputs.take_pending() + self._interrupts.take_pending() + self._answers.take_pending()
        return self._builds.take_requests() + others

    def hold_starts(self) -> None:
        """Leave starts that are not accepted yet to the next runner."""
        self._holds_starts = True

    def drain(self) -> None:
        """Stop the agent and have it started again; inputs that it has not received are left to the next runner."""
        if not self._draining:
            self._draining = self._holds_starts = True
            self._inputs.drain()
            self._builds.put(DrainTask())

    def kill_agent(self) -> None:
        """Cut short the grace time of an agent that is being stopped."""
        if self._journal.transition != "start":
            self._workspace.kill()

    def discard(self) -> bool:
        """Stop the agent and remove everything, without reports: the task was deleted.

        Return False if a delete is in progress or done: the worker may wait for its report.
        """
        if self._journal.transition == "delete" and self._journal.phase is not Phase.FAILED:
            return False
        self._builds.put(DiscardTask(self._journal.build_number + 1))
        return True

    def end_taken_over(self, build_number: int) -> None:
        """Stop the agent, because another runner has taken the task over, unless a build was accepted since."""
        self._builds.put(TakenOver(build_number))

    async def run(self) -> None:
        """Finish what an earlier runner started, then execute requests until the task is removed from this runner."""
        delivery = self._inputs.run(self._workspace, self._writer.save_if_possible)
        loops = [self._start_loop(delivery, "inputs")]
        try:
            await self._workspace.recover()
            self._is_recovered = True
            answering, interruption = self._answers.run(self._workspace), self._interrupts.run(self._workspace)
            loops += [self._start_loop(answering, "answers"), self._start_loop(interruption, "interrupts")]
            await self._recover()
            while not self._is_finished():
                match item := await self._builds.take():
                    case PendingRequest():
                        await self._handle(item)
                    case DiscardTask():
                        await self._handle_discard(item)
                    case DrainTask():
                        await self._handle_drain()
                    case TakenOver():
                        await self._handle_taken_over(item)
                    case LoopFailure():
                        raise item.error
                    case _:
                        assert_never(item)
            if self._journal.build_number:
                await self._outbox.wait_empty()
                await self._remove_folder()
                self._context.isolation.release_user(self.task_id)
                for pending in self.take_pending():  # requests after the delete cannot be executed
                    pending.on_accepted()
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await self._workspace.detach()
            await self._writer.wait_saved()
            self._context.drop_outbox(self._outbox)
            self._outbox.close()

    async def _remove_folder(self) -> None:
        """Remove what a delete has left, among it the journal; if that fails, the next runner tries it again."""
        try:
            await removal.in_background(self._folder.remove)
        except OSError as error:
            log.warning("cannot remove the folder of a deleted task", task_id=str(self.task_id), reason=str(error))

    def _start_loop(self, loop: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Start a background loop. If it fails unexpectedly, so does the supervisor, which is then restarted."""
        task = asyncio.create_task(loop, name=f"{name} of {self.task_id}")
        task.add_done_callback(self._on_loop_end)
        return task

    def _on_loop_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._builds.put(LoopFailure(error))

    async def _recover(self) -> None:
        """Finish what an earlier runner began, after its agent was adopted."""
        if self._inputs.fail_interrupted():
            await self._writer.save()
        is_drained = self._journal.restart_reason is not None
        if is_drained:
            self._inputs.hold()
        if (self._journal.phase is Phase.ACCEPTED or is_drained) and self._journal.build_number:
            await self._execute()  # a drain is reported again, in case its reports are lost

    def _is_finished(self) -> bool:
        """Return whether the task was deleted, or this runner never claimed it; nothing is kept then."""
        journal = self._journal
        if not journal.build_number:
            is_waiting = self._inputs.pending or self._interrupts.pending
            return self._not_claimed and not self._builds and not is_waiting
        return journal.transition == "delete" and journal.phase is Phase.DONE

    async def _handle(self, pending: PendingRequest) -> None:
        """Execute a build request, unless it was executed before or another runner claimed it."""
        request, journal = pending.request, self._journal
        assert not isinstance(request, AgentInput | AgentInterrupt | AgentAnswer)
        if self._holds_starts and isinstance(request, WorkspaceStart):
            return  # it is not acknowledged, so the broker delivers it again
        if journal.is_superseded(request):
            same = request.build_number == journal.build_number
            self._count(request.type, "repeated" if same and request.type.endswith(journal.transition) else "ignored")
            pending.on_accepted()
            return
        if isinstance(request, WorkspaceStart):
            claim = await self._context.claims.claim(request, only_copy=pending.only_copy)
            if claim is not Claim.WON:
                await self._yield_build(request, claim)
                pending.on_accepted()
                return
        journal.accept(request)
        await self._save_accepted()
        pending.on_accepted()
        if self._holds_starts and journal.transition == "start":
            await self._handle_drain()  # it was claimed before, and so no other runner may start it
        elif journal.phase is Phase.ACCEPTED:
            await self._execute()

    async def _handle_drain(self) -> None:
        """Stop the agent and have it started again, unless there is none or it has just done its work."""
        journal = self._journal
        is_accepted = journal.phase is Phase.ACCEPTED
        if journal.transition == "start" and (is_accepted or (self.running and not self._workspace.has_succeeded())):
            if self.running:
                self._workspace.append_notice(self._start_reporter(journal.build_number), NOTICE)
            journal.accept_drain(REASON)
            await self._save_accepted()
            await self._execute()

    async def _handle_discard(self, discard: DiscardTask) -> None:
        """Delete the task, unless a later build was accepted since the request: then that is reported, or it exists."""
        if discard.build_number > self._journal.build_number:
            self._outbox.discard()
            self._journal.accept_build("delete", discard.build_number)
            await self._save_accepted()
            await self._execute()

    async def _handle_taken_over(self, item: TakenOver) -> None:
        """Stop the agent, unless a later build was accepted since the question whose the task is, or it is stopped."""
        journal = self._journal
        if item.build_number == journal.build_number and (self.running or journal.transition == "start"):
            await self._end_taken_over(item.build_number)

    async def _yield_build(self, request: WorkspaceStart, claim: Claim) -> None:
        """Leave a build to the runner that claimed it."""
        self._count(request.type, claim.value)
        if not self._journal.build_number:
            self._not_claimed = True
        elif claim is Claim.LOST:
            await self._end_taken_over(request.build_number)

    async def _end_taken_over(self, build_number: int) -> None:
        """Stop this runner's agent of an earlier build than another runner's: its reports no longer have any effect."""
        error = await self._workspace.stop()
        log.warning("another runner took over the task, agent stopped", task_id=str(self.task_id), error=error)
        self._journal.accept_build("stop", build_number)
        self._journal.phase = Phase.DONE
        await self._writer.save_if_possible()

    async def _save_accepted(self) -> None:
        """Save the accepted build. If that fails, fail a start; a stop or delete is executed anyway."""
        journal = self._journal
        try:
            self._folder.create()
            await self._writer.save()
        except OSError as error:
            log.warning("cannot write journal", task_id=str(self.task_id), reason=str(error))
            if journal.transition == "start":
                journal.phase = Phase.FAILED
                reporter = self._start_reporter(journal.build_number)
                reporter.build(JobStatus.FAILED, error=CANNOT_RECORD.format(error))
                self._count("workspace.start", "failed")

    async def _execute(self) -> None:
        """Execute the accepted build, and report and record the result."""
        journal, request_type = self._journal, f"workspace.{self._journal.transition}"
        reporter = self._reporter(journal.build_number, Transition(journal.transition))
        reporter.build(JobStatus.RUNNING, restart_reason=journal.restart_reason)
        try:
            error = await self._workspace.execute(reporter)
        except StartEnded:
            return  # the next runner goes on with the start if this one does not get to what ends it
        journal.phase = Phase.FAILED if error else Phase.DONE
        if journal.restart_reason is not None and self._workspace.has_succeeded():
            journal.restart_reason = None  # it ended well before it could be stopped
        if journal.transition != "stop" or journal.restart_reason is None:
            self._inputs.resume()
        if error:
            log.warning("build failed", task_id=str(self.task_id), type=request_type, reason=error)
            reporter.build(JobStatus.FAILED, error=error, restart_reason=journal.restart_reason)
        else:
            reason = journal.restart_reason
            reporter.build(JobStatus.SUCCEEDED, health=self._workspace.health, restart_reason=reason)
        self._count(request_type, "failed" if error else "done")
        await self._writer.save_if_possible()

    async def _deliver_once(self, input_id: UUID, text: str) -> str | None:
        """Deliver an input at most once. Return an error message, or None if that is not known to have failed."""
        return await self._inputs.deliver_once(self._workspace, input_id, text)

    def _start_reporter(self, build_number: int) -> Reporter:
        """Return a reporter for a start build, its agent and its inputs."""
        return self._reporter(build_number, Transition.START)

    def _reporter(self, build_number: int, transition: Transition) -> Reporter:
        return Reporter(
            self._journal,
            build_number,
            transition=transition,
            runner=self._context.name,
            outbox=self._outbox,
            sequence=self._sequence,
            now=self._context.now,
        )

    def _count(self, request_type: str, outcome: str) -> None:
        self._context.metrics.runner_requests.labels(request_type, outcome).inc()
