"""Supervisors of tasks that fail unexpectedly, without worker and broker: what they have left undone is done."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from taskherd.broker.delivery import Delivery
from taskherd.messages.work import AgentInput, WorkspaceStart, WorkspaceStop
from taskherd.observability.metrics import Metrics
from taskherd.runner import dispatcher
from taskherd.runner import journal as journals
from taskherd.runner.agents.log_budget import LogRates
from taskherd.runner.claims import Claim
from taskherd.runner.context import RunnerContext
from taskherd.runner.dispatcher import Dispatcher
from taskherd.runner.drain import REASON
from taskherd.runner.inputs import TaskInputs
from taskherd.runner.journal import Journal
from taskherd.runner.outbox import Budget
from taskherd.runner.workspaces.folders import TaskFolder
from taskherd.runner.workspaces.isolation import Isolation
from taskherd.runner.workspaces.sandbox import Sandbox
from taskherd.runner.workspaces.task_processes import TaskProcesses
from tests.harness.runner import eventually

pytestmark = pytest.mark.timeout(30)


class FakeClaims:
    """Claims with these results, one after the other, and the last one from then on; errors are raised."""

    def __init__(self) -> None:
        self.results: list[Claim | Exception] = [Claim.SKIPPED]

    async def claim(self, *_: object, **__: object) -> Claim:
        """Return or raise the next result."""
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        return result


class FakeConsumer:
    """A consumer that records the tags of what is acknowledged."""

    def __init__(self) -> None:
        self.acked: list[int] = []

    async def ack(self, deliveries: list[Delivery]) -> bool:
        """Record the deliveries."""
        self.acked += [delivery.delivery_tag for delivery in deliveries]
        return True


class Runner:
    """A dispatcher with fake claims and a fake consumer."""

    def __init__(self, root: Path) -> None:
        self.claims = FakeClaims()
        self.consumer = FakeConsumer()
        self.task = TaskFolder(root, uuid4())
        context = RunnerContext(
            name="r", root=root, api_url="", environ=os.environ, metrics=Metrics(), claims=self.claims,  # type: ignore[arg-type]
            budget=Budget(2**30), log_rates=LogRates(2**20, 2**20), now=lambda: datetime.now(UTC),
            schedule_outbox=lambda _: None, drop_outbox=lambda _: None, failpoint=lambda _: None,
            isolation=Isolation(Sandbox([], None), None, None),
        )  # fmt: skip
        self.dispatcher = Dispatcher(context, self.consumer)  # type: ignore[arg-type]

    def deliver(self, *requests: AgentInput | WorkspaceStart | WorkspaceStop) -> None:
        """Have requests delivered with the tags 1, 2, …."""
        for tag, request in enumerate(requests, 1):
            self.deliver_as(tag, request)

    def deliver_as(self, tag: int, request: AgentInput | WorkspaceStart | WorkspaceStop) -> None:
        """Have a request delivered with this tag."""
        body = request.model_dump_json().encode()
        delivery = SimpleNamespace(body=body, delivery_tag=tag, epoch=1, redelivered=False)
        self.dispatcher._dispatch(delivery)  # type: ignore[arg-type]

    def common(self, build_number: int) -> dict[str, Any]:
        """Return the fields that all requests have."""
        owner = {"id": uuid4(), "username": "u"}
        return {
            "request_id": uuid4(), "attempt": 1, "task_id": self.task.task_id, "task_name": "t", "owner": owner,
            "build_number": build_number, "build_id": uuid4(), "template_version_id": uuid4(), "run": {},
        }  # fmt: skip

    def start_request(self, build_number: int, command: str = "true") -> WorkspaceStart:
        """Return a request to start a shell script."""
        run = {"command": ["sh", "-c", command], "grace": 1}
        common = self.common(build_number) | {"run": run}
        return WorkspaceStart(**common, prompt="Do it", preset=None, agent_token="t")

    def stop_request(self, build_number: int) -> WorkspaceStop:
        """Return a request to stop the workspace."""
        return WorkspaceStop(**self.common(build_number))

    def input_request(self, text: str) -> AgentInput:
        """Return an input for the agent of the first build."""
        return AgentInput(**self.common(1), input_id=uuid4(), input=text)

    def journal(self) -> Journal | None:
        """Return the journal on disk, or None if there is none."""
        return journals.load(self.task.journal)

    async def until_acked(self, *tags: int) -> None:
        """Wait until these deliveries are acknowledged, in this order."""
        await eventually(lambda: self.consumer.acked == [*tags], 20)


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EventDict]]:
    """Yield what is logged; supervisors are restarted at once."""
    monkeypatch.setattr(dispatcher, "RESTART_AFTER", 0.01)
    with capture_logs() as entries:
        yield entries


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[Runner]:
    """Yield a runner; its agents end by themselves."""
    started = Runner(tmp_path)
    yield started
    await started.dispatcher.detach()


def failures(logged: list[EventDict]) -> list[str]:
    """Return the errors of supervisors that were logged."""
    return [str(each["exc_info"]) for each in logged if each["event"] == "supervisor failed, restarting it"]


async def test_requests_are_passed_to_the_supervisor_that_follows_a_failed_one(
    runner: Runner, logged: list[EventDict]
) -> None:
    """Neither the request at which it failed nor those behind it stay unacknowledged; they keep their order."""
    runner.claims.results = [RuntimeError("unexpected"), Claim.SKIPPED]
    runner.deliver(runner.start_request(1), runner.stop_request(2))
    await runner.until_acked(1, 2)
    assert failures(logged) == ["unexpected"]
    assert runner.dispatcher.builds == {runner.task.task_id: 2}


async def test_requests_come_before_one_that_replaces_a_failed_supervisor(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that arrives before the restart makes a supervisor at once, which is given the earlier ones first."""
    monkeypatch.setattr(dispatcher, "RESTART_AFTER", 3600)
    runner.claims.results = [RuntimeError("unexpected"), Claim.SKIPPED]
    start, stop = runner.start_request(1), runner.stop_request(2)
    runner.deliver(start)
    await eventually(lambda: not runner.dispatcher._supervisors)
    runner.deliver_as(2, stop)
    await runner.until_acked(1, 2)


async def test_a_start_is_held_also_by_a_supervisor_that_follows_a_failed_one(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that is about to stop leaves starts to the next one, whichever supervisor has them."""
    monkeypatch.setattr(dispatcher, "RESTART_AFTER", 3600)
    runner.claims.results = [RuntimeError("unexpected"), Claim.SKIPPED]
    runner.deliver(runner.start_request(1), runner.stop_request(2))
    await eventually(lambda: not runner.dispatcher._supervisors)
    runner.dispatcher.hold_starts()
    runner.dispatcher._restart(runner.task.task_id)
    await runner.until_acked(2)


async def test_a_journal_that_cannot_be_read_now_is_read_later(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    """A task whose supervisor has failed is not left alone because no file descriptor is left for a moment."""
    runner.deliver(runner.stop_request(1))
    await runner.until_acked(1)
    runner.claims.results = [RuntimeError("unexpected"), Claim.SKIPPED]
    with monkeypatch.context() as patch:
        patch.setattr(journals, "load", lambda _: None)
        runner.deliver(runner.start_request(2))
        await eventually(lambda: "cannot read the files of a task, trying again" in [each["event"] for each in logged])
    await runner.until_acked(1, 1)


@pytest.mark.parametrize("file", ["journal.json", "outbox.jsonl"])
async def test_a_request_waits_for_files_that_cannot_be_read_now(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict], file: str
) -> None:
    """For want of descriptors nothing is known of the task: it is not taken for a new one."""
    runner.claims.results = [Claim.WON, RuntimeError("unexpected"), Claim.SKIPPED]
    runner.deliver(runner.start_request(1, "exit 3"))
    await eventually(lambda: (journal := runner.journal()) is not None and journal.exit_reported)
    monkeypatch.setattr(dispatcher, "RESTART_AFTER", 0.2)
    runner.deliver_as(2, runner.start_request(2))
    await eventually(lambda: not runner.dispatcher._supervisors)
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == file:
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        runner.deliver_as(3, runner.input_request("one"))
        await eventually(lambda: "cannot read the files of a task, trying again" in [each["event"] for each in logged])
        assert not runner.dispatcher._supervisors
    await eventually(lambda: runner.dispatcher._supervisors)
    supervisor = runner.dispatcher._supervisors[runner.task.task_id]
    assert (supervisor.build_number, len(supervisor._outbox) > 0) == (1, True)


async def test_a_drain_waits_for_a_task_whose_supervisor_is_restarted(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent may run; it is stopped by the next supervisor."""
    monkeypatch.setattr(dispatcher, "RESTART_AFTER", 3600)
    runner.claims.results = [Claim.WON, RuntimeError("unexpected"), Claim.SKIPPED]
    runner.deliver(runner.start_request(1, "sleep 1000"))
    await eventually(lambda: (journal := runner.journal()) is not None and journal.workspace_is_up)
    runner.deliver_as(2, runner.start_request(2))
    await eventually(lambda: not runner.dispatcher._supervisors)
    runner.dispatcher.drain()
    assert not runner.dispatcher.drained
    runner.dispatcher._restart(runner.task.task_id)
    await eventually(lambda: runner.dispatcher.drained, 20)
    journal = runner.journal()
    assert journal is not None
    assert (journal.transition, journal.restart_reason) == ("stop", REASON)


async def test_an_unexpected_error_of_the_loop_that_delivers_inputs_is_noticed(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    """The supervisor fails with its loops, and its successor deals with all inputs."""
    report, errors = TaskInputs._report, iter([RuntimeError("unexpected")])

    def fail_first(*arguments: Any) -> None:
        for error in errors:
            raise error
        report(*arguments)

    monkeypatch.setattr(TaskInputs, "_report", fail_first)
    runner.deliver(runner.input_request("one"), runner.input_request("two"))
    await runner.until_acked(1, 2)
    assert failures(logged) == ["unexpected"]


async def test_an_exit_is_recorded_also_if_what_the_agent_left_cannot_be_ended(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    """The journal says that the exit was reported, and the error is logged; the workspace can be stopped later."""
    end_all = TaskProcesses._end_all

    def fail(left: TaskProcesses, build_number: int) -> int:
        if runner.task.run(1).exit.exists():
            raise OSError(errno.EMFILE, "Too many open files")
        return end_all(left, build_number)

    runner.claims.results = [Claim.WON]
    with monkeypatch.context() as patch:
        patch.setattr(TaskProcesses, "_end_all", fail)
        runner.deliver(runner.start_request(1, "exit 3"))
        await eventually(lambda: (journal := runner.journal()) is not None and journal.exit_reported)
    assert [each["event"] for each in logged] == ["cannot end what an agent left"]
    runner.deliver(runner.stop_request(2))
    await runner.until_acked(1, 1)
