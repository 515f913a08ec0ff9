"""What becomes of the work requests of a task, with workspaces and claims that do what a test says."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from taskherd.broker.delivery import Delivery
from taskherd.domain.reports import Health
from taskherd.messages.work import AgentInput, WorkRequest, WorkspaceDelete, WorkspaceStart, WorkspaceStop
from taskherd.observability.metrics import Metrics
from taskherd.runner import dispatcher, supervisor
from taskherd.runner import journal as journals
from taskherd.runner.agents.log_budget import LogRates
from taskherd.runner.claims import Claim
from taskherd.runner.context import RunnerContext
from taskherd.runner.dispatcher import Dispatcher
from taskherd.runner.drain import NOTICE, REASON
from taskherd.runner.journal import InputDelivery, Journal, Phase
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.requests import PendingRequest
from taskherd.runner.supervisor import TaskSupervisor
from taskherd.runner.workspaces.folders import TaskFolder
from taskherd.runner.workspaces.isolation import Isolation
from taskherd.runner.workspaces.sandbox import Sandbox
from taskherd.runner.workspaces.workspace import StartEnded
from tests.harness.runner import eventually
from tests.pure.runner.contexts import reports_of
from tests.pure.runner.life import a_few_steps


def is_idle(of_task: TaskSupervisor) -> bool:
    """Return whether a supervisor waits for the next request."""
    return bool(of_task._builds._arrival._waiters)


class Workspace:
    """A workspace whose agent runs from a start until a stop."""

    def __init__(self, journal: Journal, outbox: Outbox) -> None:
        self.journal = journal
        self.outbox = outbox
        self.running = False
        self.works = True
        self.succeeded = False
        self.health = Health.HEALTHY
        self.error: str | None = None
        self.failure: Exception | None = None
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.executed: list[tuple[str, int]] = []
        self.notices: list[tuple[int, str]] = []
        self.deeds: list[str] = []
        self.has_ending: Callable[[], bool] = lambda: False
        self.has_given_way = False
        self.deliver_once: Callable[[UUID, str], Awaitable[str | None]]

    async def deliver(self, text: str, record_attempt: Callable[[], Awaitable[None]]) -> str:
        """Find that a text cannot be delivered."""
        await record_attempt()
        return f"the agent cannot read {text}"

    async def recover(self) -> None:
        """Note it."""
        self.deeds.append("recover")

    async def execute(self, _: object) -> str | None:
        """Execute the accepted build."""
        self.executed.append((self.journal.transition, self.journal.build_number))
        while not self.may_go_on.is_set():
            if self.journal.transition == "start" and self.has_ending():
                self.running, self.has_given_way = True, True
                raise StartEnded
            await asyncio.sleep(0.001)
        if self.failure is not None:
            raise self.failure
        self.running = self.journal.transition == "start" and self.error is None
        return self.error

    async def stop(self) -> str | None:
        """End the agent."""
        self.deeds.append("stop")
        self.running = False
        return None

    def kill(self) -> None:
        """Note it."""
        self.deeds.append("kill")

    async def detach(self) -> None:
        """Note it."""
        self.deeds.append("detach")

    def append_notice(self, reporter: Any, notice: str) -> None:
        """Note it."""
        self.notices.append((reporter.build_number, notice))

    def has_succeeded(self) -> bool:
        """Return whether the agent has ended well."""
        return self.succeeded

    def is_working(self, _now: float) -> bool:
        """Return whether the agent works."""
        return self.running and self.works


class Consumer:
    """A consumer of given batches, which notes what is acknowledged."""

    def __init__(self) -> None:
        self.batches: list[list[Delivery]] = []
        self.acked: list[int] = []

    async def next_batch(self, limit: int, wait: float) -> list[Delivery]:
        """Return the next batch, or an empty one after the last."""
        assert (limit, wait) == (100, 0)
        return self.batches.pop(0) if self.batches else []

    async def ack(self, deliveries: list[Delivery]) -> bool:
        """Note the deliveries."""
        self.acked += [delivery.delivery_tag for delivery in deliveries]
        return True


class Runner:
    """A dispatcher of one task."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.claims: list[tuple[int, bool]] = []
        """The build number of each claim, and whether it was that of the only copy of the request."""
        self.claimed = Claim.WON
        self.consumer = Consumer()
        self.task = TaskFolder(root, uuid4())
        self.metrics = Metrics()
        self.workspaces: list[Workspace] = []
        self.dropped: list[Outbox] = []
        self.reports: list[dict[str, Any]] = []
        self.context = RunnerContext(
            name="r", root=root, api_url="", environ=os.environ, metrics=self.metrics, claims=self,  # type: ignore[arg-type]
            budget=Budget(2**30), log_rates=LogRates(2**20, 2**20), now=lambda: datetime.now(UTC),
            schedule_outbox=lambda _: None, drop_outbox=self.dropped.append, failpoint=lambda _: None,
            isolation=Isolation(Sandbox([], None), None, None),
        )  # fmt: skip
        monkeypatch.setattr(supervisor, "TaskWorkspace", self._open)
        self.dispatcher = Dispatcher(self.context, self.consumer)  # type: ignore[arg-type]
        self._tag = 0

    def _open(self, _context: object, _folder: object, journal: Journal, *, outbox: Outbox, **others: Any) -> Workspace:
        self.workspaces.append(Workspace(journal, outbox))
        self.workspace.deliver_once = others["deliver_once"]
        self.workspace.has_ending = others["has_ending"]
        return self.workspaces[-1]

    async def claim(self, request: WorkspaceStart, *, only_copy: bool) -> Claim:
        """Claim a build."""
        self.claims.append((request.build_number, only_copy))
        return self.claimed

    def request(self, kind: str, build_number: int, **fields: Any) -> WorkRequest:
        """Return a request of this kind."""
        common: dict[str, Any] = {
            "request_id": uuid4(), "attempt": 1, "task_id": self.task.task_id, "task_name": f"task of {build_number}",
            "owner": {"id": uuid4(), "username": "u"}, "build_number": build_number, "build_id": uuid4(),
            "template_version_id": uuid4(), "run": {"command": ["agent"]}, **fields,
        }  # fmt: skip
        match kind:
            case "start":
                return WorkspaceStart(**common, prompt="Do it", preset=None, agent_token="t")
            case "stop":
                return WorkspaceStop(**common)
            case "delete":
                return WorkspaceDelete(**common)
            case _:
                return AgentInput(**common, input_id=uuid4(), input="hello")

    def deliver(self, kind: str, build_number: int, *, redelivered: bool = False, **fields: Any) -> bool:
        """Have a request delivered with the next tag."""
        body = self.request(kind, build_number, **fields).model_dump_json().encode()
        return self.deliver_body(body, redelivered=redelivered)

    def deliver_body(self, body: bytes, *, redelivered: bool = False) -> bool:
        """Have a body delivered with the next tag."""
        self._tag += 1
        delivery: Any = SimpleNamespace(
            body=body, delivery_tag=self._tag, epoch=1, redelivered=redelivered, routing_key="k"
        )
        return self.dispatcher._dispatch(delivery)

    async def execute(self, kind: str, build_number: int, **options: Any) -> None:
        """Have a request delivered and wait until it is acknowledged, and executed unless it is not to be."""
        self.deliver(kind, build_number, **options)
        tag = self._tag
        await self.until(lambda: tag in self.consumer.acked)
        await self.until(self.is_idle)

    def is_idle(self) -> bool:
        """Return whether there is nothing more to be done."""
        return all(map(is_idle, self.dispatcher._supervisors.values()))

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition is met."""
        await eventually(condition, 30)

    @property
    def supervisor(self) -> TaskSupervisor:
        """The supervisor of the task."""
        return self.dispatcher._supervisors[self.task.task_id]

    @property
    def workspace(self) -> Workspace:
        """The workspace of the task."""
        return self.workspaces[-1]

    def journal(self) -> Journal:
        """Return the journal on disk."""
        found = journals.load(self.task.journal)
        assert found is not None
        return found

    def builds(self) -> list[tuple[str, int, str, str | None]]:
        """Return transition, number, state and reason of each report about a build."""
        found = reports_of(self.workspace.outbox, "workspace.build")
        return [(each["transition"], each["build_number"], each["job_status"], each.get("reason")) for each in found]

    def counted(self) -> dict[tuple[str, str], float]:
        """Return how many requests were counted, by type and outcome."""
        samples = [each for metric in self.metrics.runner_requests.collect() for each in metric.samples]
        return {
            (each.labels["type"], each.labels["outcome"]): each.value
            for each in samples
            if each.name.endswith("_total") and each.value
        }


@pytest.fixture
async def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runner]:
    """Yield a runner without tasks."""
    started = Runner(tmp_path, monkeypatch)
    yield started
    await started.dispatcher.detach()


async def test_a_task_is_started_stopped_and_started_again(runner: Runner) -> None:
    """Each build is executed and reported once; a copy of its request is acknowledged."""
    await runner.execute("start", 1)
    assert (runner.dispatcher.agents, runner.dispatcher.working, runner.dispatcher.drained) == (1, 1, False)
    assert runner.dispatcher.builds == {runner.task.task_id: 1}
    runner.workspace.works = False
    assert (runner.dispatcher.agents, runner.dispatcher.working) == (1, 0)
    await runner.execute("start", 1)
    await runner.execute("stop", 1)
    await runner.execute("stop", 2)
    await runner.execute("stop", 2)
    await runner.execute("start", 1)
    assert (runner.dispatcher.agents, runner.dispatcher.drained) == (0, True)
    runner.workspace.error = "no disk"
    await runner.execute("start", 3)
    assert (runner.journal().phase, runner.journal().task_name) == (Phase.FAILED, "task of 3")
    assert runner.workspace.executed == [("start", 1), ("stop", 2), ("start", 3)]
    assert runner.claims == [(1, True), (3, True)]
    assert runner.builds() == [
        ("start", 1, "running", None), ("start", 1, "succeeded", None), ("stop", 2, "running", None),
        ("stop", 2, "succeeded", None), ("start", 3, "running", None), ("start", 3, "failed", None),
    ]  # fmt: skip
    assert runner.counted() == {
        ("workspace.start", "done"): 1, ("workspace.start", "repeated"): 1, ("workspace.start", "ignored"): 1,
        ("workspace.start", "failed"): 1, ("workspace.stop", "done"): 1, ("workspace.stop", "repeated"): 1,
        ("workspace.stop", "ignored"): 1,
    }  # fmt: skip
    assert runner.consumer.acked == [*range(1, 8)]
    await runner.until(lambda: runner.supervisor._writer.is_idle and not runner.dispatcher._acks)


async def test_a_text_is_delivered_once(runner: Runner) -> None:
    """The first time says why it was not; that is recorded."""
    await runner.execute("start", 1)
    prompt = uuid4()
    assert await runner.workspace.deliver_once(prompt, "Do it") == "the agent cannot read Do it"
    assert runner.journal().inputs == {prompt: InputDelivery.DELIVERING}
    assert await runner.workspace.deliver_once(prompt, "Do it") is None


async def test_only_a_first_copy_may_be_started_without_an_answer(runner: Runner) -> None:
    """Neither a request that was sent again, nor one that was delivered before."""
    await runner.execute("start", 1, redelivered=True)
    await runner.execute("start", 2, attempt=2)
    await runner.execute("start", 3)
    assert runner.claims == [(1, False), (2, False), (3, True)]


async def test_a_build_of_another_runner_is_left_to_it(runner: Runner) -> None:
    """Nothing is kept of the task; an agent of an earlier build ends if another runner has it now."""
    runner.claimed = Claim.LOST
    await runner.execute("start", 1)
    await runner.until(lambda: not runner.dispatcher._supervisors)
    assert (runner.dispatcher.builds, runner.task.path.exists()) == ({}, False)
    assert runner.workspace.deeds == ["recover", "detach"]
    runner.claimed = Claim.WON
    await runner.execute("start", 2)
    runner.claimed = Claim.SKIPPED
    await runner.execute("start", 3)
    assert (runner.workspace.running, runner.journal().build_number) == (True, 2)
    runner.claimed = Claim.LOST
    await runner.execute("start", 4)
    assert (runner.workspace.running, runner.workspace.deeds) == (False, ["recover", "stop"])
    journal = runner.journal()
    assert (journal.transition, journal.build_number, journal.phase) == ("stop", 4, Phase.DONE)
    assert runner.workspace.executed == [("start", 2)]
    assert runner.counted() == {
        ("workspace.start", "lost"): 2, ("workspace.start", "done"): 1, ("workspace.start", "left"): 1
    }  # fmt: skip


async def test_who_has_the_task_now_is_found_out_later_too(runner: Runner) -> None:
    """It ends what was started before, unless another build was accepted since."""
    await runner.execute("start", 1)
    await runner.execute("start", 2)
    runner.dispatcher.end_taken_over(runner.task.task_id, 1)
    runner.dispatcher.end_taken_over(UUID(int=1), 2)
    await runner.until(runner.is_idle)
    assert runner.workspace.running
    runner.dispatcher.end_taken_over(runner.task.task_id, 2)
    await runner.until(lambda: not runner.workspace.running)
    await runner.until(runner.is_idle)
    assert (runner.journal().transition, runner.journal().phase) == ("stop", Phase.DONE)
    runner.dispatcher.end_taken_over(runner.task.task_id, 2)
    await runner.until(runner.is_idle)
    assert runner.workspace.deeds.count("stop") == 1
    await runner.execute("start", 3)
    runner.workspace.running = False  # its agent has ended; it is told to nobody any more
    runner.dispatcher.end_taken_over(runner.task.task_id, 3)
    await runner.until(lambda: runner.workspace.deeds.count("stop") == 2)


async def test_nothing_is_left_of_a_deleted_task(runner: Runner) -> None:
    """What is asked of it afterwards cannot be executed, and does not come again."""
    await runner.execute("start", 1)
    runner.workspace.may_go_on.clear()
    runner.deliver("delete", 2)
    await runner.until(lambda: len(runner.workspace.executed) == 2)
    runner.deliver("start", 3)
    runner.deliver("stop", 4)
    runner.workspace.may_go_on.set()
    await runner.until(lambda: len(runner.workspace.outbox) and runner.journal().phase is Phase.DONE)
    assert runner.supervisor is not None
    outbox = runner.workspace.outbox
    outbox.confirm(len(outbox))
    await runner.until(lambda: runner.consumer.acked == [1, 2, 3, 4])
    assert not runner.task.path.exists()
    await runner.until(lambda: not runner.dispatcher._supervisors)
    assert runner.workspace.executed == [("start", 1), ("delete", 2)]
    assert runner.workspace.deeds[-1] == "detach"
    assert runner.dropped == [outbox]


async def test_a_folder_that_cannot_be_removed_now_is_removed_later(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next runner finds the journal of a task that was deleted, and ends at once."""
    await runner.execute("start", 1)
    with monkeypatch.context() as patch:
        patch.setattr(TaskFolder, "remove", fail_to_remove)
        runner.deliver("delete", 2)
        await runner.until(lambda: runner.journal().phase is Phase.DONE and runner.journal().transition == "delete")
        runner.workspace.outbox.confirm(len(runner.workspace.outbox))
        await runner.until(lambda: not runner.dispatcher._supervisors)
    assert runner.task.path.exists()
    follower = Dispatcher(runner.context, runner.consumer)  # type: ignore[arg-type]
    assert follower.adopt_tasks() == 1
    runner.workspace.outbox.confirm(len(runner.workspace.outbox))  # they are sent again
    await runner.until(lambda: not follower._supervisors)
    assert not runner.task.path.exists()
    assert runner.workspace.executed == []


def fail_to_remove(_: TaskFolder) -> None:
    """Find that a file is in use."""
    raise OSError(16, "Device or resource busy")


async def test_a_delete_that_fails_is_no_end(runner: Runner) -> None:
    """The worker asks for it again."""
    await runner.execute("start", 1)
    runner.workspace.error = "busy"
    await runner.execute("delete", 2)
    assert runner.journal().phase is Phase.FAILED
    assert runner.supervisor.build_number == 2


async def test_a_task_that_was_deleted_elsewhere_is_discarded(runner: Runner) -> None:
    """Without a report, and not if a later build was accepted before it is."""
    await runner.execute("start", 1)
    runner.workspace.may_go_on.clear()
    runner.deliver("stop", 2)
    await runner.until(lambda: len(runner.workspace.executed) == 2)
    runner.supervisor._journal.build_number = 1  # as it was just before
    assert runner.dispatcher.discard(runner.task.task_id)
    runner.supervisor._journal.build_number = 2
    assert not runner.dispatcher.discard(UUID(int=1))
    runner.workspace.may_go_on.set()
    await runner.until(runner.is_idle)
    assert (runner.journal().transition, runner.task.path.exists()) == ("stop", True)
    assert runner.builds()[-1] == ("stop", 2, "succeeded", None)
    assert runner.dispatcher.discard(runner.task.task_id)
    await runner.until(lambda: not runner.dispatcher._supervisors)
    assert runner.workspace.executed == [("start", 1), ("stop", 2), ("delete", 3)]
    assert (len(runner.workspace.outbox), runner.task.path.exists()) == (0, False)


async def test_a_delete_in_progress_is_reported_although_its_task_is_discarded(runner: Runner) -> None:
    """The worker waits for its report; one that has failed is done again, without another one."""
    await runner.execute("start", 1)
    runner.workspace.may_go_on.clear()
    runner.deliver("stop", 2)
    await runner.until(lambda: len(runner.workspace.executed) == 2)
    runner.deliver("delete", 3)
    await runner.until(lambda: len(runner.supervisor._builds))
    assert runner.dispatcher.discard(runner.task.task_id), "the delete has not begun"
    runner.workspace.error = "busy"
    runner.workspace.may_go_on.set()
    await runner.until(lambda: len(runner.workspace.executed) == 3 and runner.is_idle())
    assert runner.builds()[-1] == ("delete", 3, "failed", None)
    runner.workspace.error = None
    runner.workspace.may_go_on.clear()
    runner.deliver("delete", 4)
    await runner.until(lambda: len(runner.workspace.executed) == 4)
    assert not runner.dispatcher.discard(runner.task.task_id)
    runner.workspace.may_go_on.set()
    await runner.until(lambda: runner.journal().phase is Phase.DONE)
    assert not runner.dispatcher.discard(runner.task.task_id), "its report waits to be confirmed"
    assert runner.builds()[-1] == ("delete", 4, "succeeded", None)
    runner.workspace.outbox.confirm(len(runner.workspace.outbox))
    await runner.until(lambda: not runner.dispatcher._supervisors)
    assert len(runner.workspace.executed) == 4


async def test_a_delete_that_has_failed_is_done_again_by_a_discard(runner: Runner) -> None:
    """Nobody may ask for it any more, as after another runner's report."""
    await runner.execute("start", 1)
    runner.workspace.error = "busy"
    await runner.execute("delete", 2)
    runner.workspace.error = None
    assert runner.dispatcher.discard(runner.task.task_id)
    await runner.until(lambda: not runner.dispatcher._supervisors)
    assert runner.workspace.executed[1:] == [("delete", 2), ("delete", 3)]
    assert not runner.task.path.exists()


async def test_a_draining_runner_has_its_agents_started_again(runner: Runner) -> None:
    """By the next one, which is told why; what comes afterwards is left to it, too."""
    await runner.execute("start", 1)
    runner.dispatcher.drain()
    runner.dispatcher.drain()
    await runner.until(lambda: runner.dispatcher.drained)
    await runner.dispatcher.wait_drained()
    assert runner.workspace.notices == [(1, NOTICE)]
    assert runner.workspace.executed == [("start", 1), ("stop", 2)]
    assert runner.builds()[2:] == [("stop", 2, "running", REASON), ("stop", 2, "succeeded", REASON)]
    journal = runner.journal()
    assert (journal.transition, journal.build_number, journal.restart_reason) == ("stop", 2, REASON)
    assert not runner.supervisor._inputs._accepted.is_set(), "inputs wait for the agent that is started again"
    assert runner.deliver("stop", 3)
    assert runner.deliver("input", 1)
    await runner.until(runner.is_idle)
    assert runner.consumer.acked == [1]
    assert runner.workspace.executed[2:] == []


@pytest.mark.parametrize("ending", ["stop", "delete", "drain", "discard", "taken over"])
async def test_what_ends_an_agent_does_not_wait_for_its_start(runner: Runner, ending: str) -> None:
    """Which may take as long as its template allows; a request that is superseded does not end it."""
    runner.deliver("start", 2)
    await runner.until(lambda: runner.workspaces)
    runner.workspace.may_go_on.clear()
    await runner.until(lambda: runner.workspace.executed)
    runner.deliver("stop", 2)
    runner.supervisor.end_taken_over(1)
    await a_few_steps()
    assert (runner.workspace.executed, runner.workspace.running) == ([("start", 2)], False)
    match ending:
        case "stop" | "delete":
            runner.workspace.has_ending = lambda: runner.supervisor._builds.has_ending(runner.journal())
            runner.deliver(ending, 3)
        case "drain":
            runner.supervisor.drain()
        case "discard":
            runner.supervisor.discard()
        case _:
            runner.supervisor.end_taken_over(2)
    await runner.until(lambda: runner.workspace.has_given_way)
    runner.workspace.may_go_on.set()
    await runner.until(lambda: not runner.workspace.running)
    if ending == "drain":
        await runner.until(runner.is_idle)
        assert runner.workspace.executed == [("start", 2), ("stop", 3)]
        assert runner.journal().restart_reason == REASON
    elif ending == "taken over":
        await runner.until(runner.is_idle)
        assert (runner.workspace.executed, runner.workspace.deeds[-1]) == ([("start", 2)], "stop")
    else:
        kind = "delete" if ending == "discard" else ending
        await runner.until(lambda: runner.workspace.executed[1:] == [(kind, 3)])
    assert ("start", 2, "failed", None) not in runner.builds()


async def test_a_journal_is_written_to_its_end_although_its_caller_is_cancelled(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time would write the same file."""
    await runner.execute("start", 1)
    writing, may_go_on, write = asyncio.Event(), threading.Event(), journals.write
    loop, at_once, most = asyncio.get_running_loop(), 0, 0

    def slowly(path: Path, content: bytes) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        loop.call_soon_threadsafe(writing.set)
        assert may_go_on.wait(30)
        write(path, content)
        at_once -= 1

    monkeypatch.setattr(journals, "write", slowly)
    first = asyncio.create_task(runner.supervisor._writer.save())
    await writing.wait()
    first.cancel()
    await asyncio.wait({first})
    runner.supervisor._journal.port = 7
    second = asyncio.create_task(runner.supervisor._writer.save())
    await a_few_steps()
    may_go_on.set()
    await second
    assert (first.cancelled(), most, runner.journal().port) == (True, 1, 7)
    await runner.until(lambda: runner.supervisor._writer.is_idle)


async def test_a_supervisor_ends_when_its_journal_is_written(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if that begins while it ends: the next supervisor of the task writes the same file."""
    await runner.execute("start", 1)
    supervisor, may_go_on, write = runner.supervisor, threading.Event(), journals.write

    def slowly(path: Path, content: bytes) -> None:
        assert may_go_on.wait(30)
        write(path, content)

    async def detach() -> None:
        supervisor._writer.save_in_background()

    monkeypatch.setattr(journals, "write", slowly)
    monkeypatch.setattr(runner.workspace, "detach", detach)
    detaching = asyncio.create_task(runner.dispatcher.detach())
    await runner.until(lambda: not supervisor._writer.is_idle)
    await a_few_steps()
    assert not detaching.done()
    may_go_on.set()
    await detaching
    assert supervisor._writer.is_idle


async def test_an_agent_that_has_done_its_work_is_not_started_again(runner: Runner) -> None:
    """Whether that was before it was to be stopped, or in the same moment."""
    await runner.execute("start", 1)
    runner.workspace.succeeded = True
    runner.dispatcher.drain()
    await runner.until(runner.is_idle)
    assert (runner.workspace.executed, runner.workspace.notices) == ([("start", 1)], [])


async def test_an_agent_that_ends_well_while_it_is_drained_is_done(runner: Runner) -> None:
    """Its end is what the worker is told."""
    await runner.execute("start", 1)
    runner.workspace.may_go_on.clear()
    runner.dispatcher.drain()
    await runner.until(lambda: len(runner.workspace.executed) == 2)
    assert not runner.dispatcher.drained
    runner.workspace.succeeded = True
    runner.workspace.may_go_on.set()
    await runner.until(lambda: runner.dispatcher.drained)
    await runner.until(runner.is_idle)
    assert runner.builds()[2:] == [("stop", 2, "running", REASON), ("stop", 2, "succeeded", None)]
    assert runner.journal().restart_reason is None


async def test_agents_at_work_may_end_first(runner: Runner) -> None:
    """Only those that wait are drained then."""
    await runner.execute("start", 1)
    runner.dispatcher.drain(idle_only=True)
    await runner.until(runner.is_idle)
    assert runner.workspace.running
    runner.workspace.works = False
    runner.dispatcher.drain(idle_only=True)
    await runner.until(lambda: not runner.workspace.running)
    assert runner.workspace.executed == [("start", 1), ("stop", 2)]


async def test_a_runner_is_drained_when_all_of_its_tasks_are(runner: Runner) -> None:
    """One that was stopped before is left as it is."""
    other = uuid4()
    await runner.execute("start", 1, task_id=other)
    await runner.execute("stop", 2, task_id=other)
    await runner.execute("start", 1)
    assert [runner.dispatcher.drained, runner.dispatcher.agents] == [False, 1]
    runner.workspace.works = False
    runner.dispatcher.drain(idle_only=True)
    await runner.until(lambda: runner.dispatcher.drained)
    assert not runner.dispatcher._supervisors[other]._draining
    assert runner.workspaces[0].executed == [("start", 1), ("stop", 2)]


async def test_a_start_that_was_claimed_before_the_drain_is_told(runner: Runner) -> None:
    """No other runner may start it, so the worker is to ask for the next one; it is not begun here."""
    claimed = asyncio.Event()
    claim = runner.claim

    async def claim_slowly(*arguments: Any, **options: Any) -> Claim:
        result = await claim(*arguments, **options)
        await claimed.wait()
        return result

    runner.claim = claim_slowly  # type: ignore[method-assign]
    runner.deliver("start", 1)
    await runner.until(lambda: runner.claims)
    runner.dispatcher.hold_starts()
    claimed.set()
    await runner.until(lambda: runner.workspace.executed)
    await runner.until(runner.is_idle)
    assert (runner.workspace.executed, runner.workspace.notices) == ([("stop", 2)], [])
    assert runner.builds() == [("stop", 2, "running", REASON), ("stop", 2, "succeeded", REASON)]
    assert runner.consumer.acked == [1]


async def test_a_runner_that_holds_starts_does_the_rest(runner: Runner) -> None:
    """Starts are not acknowledged, so that the next runner has them."""
    await runner.execute("start", 1)
    runner.dispatcher.hold_starts()
    assert runner.deliver("start", 2)
    await runner.execute("stop", 3)
    assert (runner.consumer.acked, runner.claims) == ([1, 3], [(1, True)])
    assert runner.workspace.executed == [("start", 1), ("stop", 3)]
    runner.supervisor.submit(PendingRequest(runner.request("start", 4), lambda: None))
    await runner.until(runner.is_idle)
    assert runner.claims == [(1, True)]


async def test_agents_that_are_being_stopped_can_be_killed(runner: Runner) -> None:
    """Others go on."""
    await runner.execute("start", 1)
    runner.dispatcher.kill_agents()
    assert "kill" not in runner.workspace.deeds
    runner.workspace.may_go_on.clear()
    runner.deliver("stop", 2)
    await runner.until(lambda: len(runner.workspace.executed) == 2)
    runner.dispatcher.kill_agents()
    assert runner.workspace.deeds[-1] == "kill"
    runner.workspace.may_go_on.set()


async def test_a_workspace_that_is_up_has_a_heartbeat(runner: Runner) -> None:
    """Neither one that is being started, nor one that was stopped, nor one whose start has failed."""
    assert [*runner.dispatcher.heartbeats()] == []
    runner.deliver("input", 1)
    assert [*runner.dispatcher.heartbeats()] == []
    await runner.execute("start", 1)
    (heartbeat,) = runner.dispatcher.heartbeats()
    assert b'"agent.heartbeat"' in heartbeat
    assert b'"build_number":1' in heartbeat
    await runner.execute("stop", 2)
    assert [*runner.dispatcher.heartbeats()] == []
    runner.workspace.error = "no disk"
    await runner.execute("start", 3)
    assert [*runner.dispatcher.heartbeats()] == []


async def test_a_start_that_cannot_be_recorded_fails(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would not be known to the next runner; a stop is executed anyway."""
    write = journals.write

    def fail(_path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journals, "write", fail)
    await runner.execute("start", 1)
    assert (runner.workspace.executed, runner.counted()) == ([], {("workspace.start", "failed"): 1})
    (report,) = reports_of(runner.workspace.outbox, "workspace.build")
    assert report["job_status"] == "failed"
    assert "cannot write its journal: [Errno 28] No space left on device. Free disk space" in report["error"]
    await runner.execute("stop", 2)
    assert runner.workspace.executed == [("stop", 2)]
    monkeypatch.setattr(journals, "write", write)
    await runner.execute("stop", 3)
    assert runner.journal().build_number == 3


async def test_the_next_runner_goes_on_with_what_was_accepted(runner: Runner) -> None:
    """A build that was not finished is executed; one that was is not, and a drain is reported again."""
    await runner.execute("start", 1)
    await runner.dispatcher.detach()
    assert runner.workspace.deeds == ["recover", "detach"]
    assert runner.dropped == [runner.workspace.outbox]
    for phase, reason, executed in (
        (Phase.DONE, None, []),
        (Phase.ACCEPTED, None, [("stop", 2)]),
        (Phase.FAILED, None, []),
        (Phase.DONE, REASON, [("stop", 2)]),
    ):
        journal = runner.journal()
        journal.transition, journal.build_number, journal.phase, journal.restart_reason = "stop", 2, phase, reason
        journals.write(runner.task.journal, journal.model_dump_json().encode())
        for name in ("no task", str(uuid4())):  # the latter has no journal
            (runner.context.root / name).mkdir(exist_ok=True)
        follower = Dispatcher(runner.context, runner.consumer)  # type: ignore[arg-type]
        assert follower.adopt_tasks() == 1
        (adopted,) = follower._supervisors.values()
        await runner.until(partial(is_idle, adopted))
        assert runner.workspace.executed == executed
        assert adopted._inputs._accepted.is_set() is (reason is None)
        if reason is not None:  # the task is to stay stopped after all: nobody is to wait for its agent
            adopted.submit(PendingRequest(runner.request("stop", 3), lambda: None))
            await runner.until(adopted._inputs._accepted.is_set)
            assert runner.workspace.executed[1:] == [("stop", 3)]
        await follower.detach()


async def test_a_request_that_cannot_be_read_is_dropped(runner: Runner) -> None:
    """Those beside it are passed on, in their order, until the consumer ends."""
    bodies = [b"no JSON", runner.request("start", 1).model_dump_json().encode(), b"{}"]
    deliveries: list[Any] = [
        SimpleNamespace(body=body, delivery_tag=tag, epoch=1, redelivered=False, routing_key="k")
        for tag, body in enumerate(bodies, 1)
    ]
    runner.consumer.batches = [deliveries[:2], deliveries[2:]]
    await runner.dispatcher.run()
    await runner.until(lambda: sorted(runner.consumer.acked) == [1, 2, 3])
    assert runner.consumer.acked[0] == 1
    assert runner.counted()["unknown", "invalid"] == 2


async def test_a_task_is_counted_while_it_is_here(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is its agent."""
    monkeypatch.setattr(asyncio, "sleep", stop_after_one)
    await runner.execute("start", 1)
    with pytest.raises(StopAsyncIteration):
        await runner.dispatcher.update_gauges()
    metrics = runner.metrics
    assert (metrics.runner_tasks._value.get(), metrics.runner_agents._value.get()) == (1, 1)


sleep = asyncio.sleep


async def stop_after_one(seconds: float) -> None:
    """End a loop that waits so long; let others wait."""
    if seconds >= 1:
        raise StopAsyncIteration
    await sleep(seconds)


async def test_requests_that_follow_an_unfinished_supervisor_are_passed_on(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed one is replaced, however often; no request is lost, and none is accepted twice."""
    monkeypatch.setattr(dispatcher, "RESTART_AFTER", 0.001)
    await runner.execute("start", 1)
    runner.workspace.failure = RuntimeError("unexpected")
    runner.deliver("stop", 2)
    await runner.until(lambda: len(runner.workspaces) == 2)
    await runner.until(runner.is_idle)
    assert runner.workspaces[1].executed == [("stop", 2)]
    await runner.execute("stop", 3)
    assert runner.consumer.acked == [1, 2, 3]
    assert runner.workspaces[0].deeds == ["recover", "detach"]
