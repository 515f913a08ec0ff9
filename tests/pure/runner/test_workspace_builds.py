"""How a workspace is started, stopped, deleted and found again, with shims that do what a test says."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.reports import Health, Transition
from taskherd.errors import Unavailable
from taskherd.runner import listeners
from taskherd.runner.agents import final_room
from taskherd.runner.agents.acp.follower import AcpFollower
from taskherd.runner.journal import Journal, Phase
from taskherd.runner.listeners import Peer
from taskherd.runner.outbox import MAX_TASK_BYTES, Outbox
from taskherd.runner.reporter import Reporter, SequenceGenerator
from taskherd.runner.workspaces import processes, removal
from taskherd.runner.workspaces.background import raise_if_cancelled
from taskherd.runner.workspaces.folders import RunFolder, TaskFolder
from taskherd.runner.workspaces.isolation import Isolation
from taskherd.runner.workspaces.processes import ExitRecord, RunSpec
from taskherd.runner.workspaces.workspace import StartEnded
from tests.harness.runner import eventually
from tests.pure.runner.contexts import reports_of
from tests.pure.runner.test_context import given_start, said
from tests.pure.runner.test_workspace import Place

STOPPED = ExitRecord("stopped", signal=15)


class Shim:
    """A shim whose agent runs until it is stopped, or a test says so."""

    def __init__(self) -> None:
        self.stops = 0
        self.ends_at = 1
        self.exit = STOPPED
        self.has_exited = False
        self.exits = asyncio.Event()

    def stop(self) -> None:
        """End the agent, once this was asked often enough."""
        self.stops += 1
        if self.stops == self.ends_at:
            self.exits.set()

    def interrupt(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    async def wait(self) -> ExitRecord:
        """Wait for the exit."""
        await self.exits.wait()
        return self.exit


class Builds(Place):
    """A workspace whose agents have shims of a test."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root / "root")
        self.folder.create()
        self.specs: list[RunSpec] = []
        self.shims: list[Shim] = []
        self.failure: Exception | None = None
        self.saves = 0
        self.saved = ""
        """The journal on disk."""
        self.left = 0
        self.ended: list[int] = []
        """The build of each end of all processes."""
        sequence = SequenceGenerator(self.journal, lambda: self.now, lambda: None)

        def reporter(build_number: int) -> Reporter:
            return Reporter(
                self.journal, build_number, transition=Transition.START, runner="r", outbox=self.agent.outbox,
                sequence=sequence, now=lambda: self.now,
            )  # fmt: skip

        self.reporter = reporter
        self.workspace._start_reporter = reporter
        self.save = self._save
        monkeypatch.setattr(processes, "start", self._start)
        monkeypatch.setattr(Isolation, "end", self._end)

    def _end(self, _task_id: UUID, build_number: int) -> int:
        self.ended.append(build_number)
        return self.left

    async def _save(self) -> None:
        self.saves += 1
        self.saved = self.journal.model_dump_json()

    async def _start(self, folder: RunFolder, spec: RunSpec) -> Shim:
        if self.failure is not None:
            raise self.failure
        folder.recreate()
        folder.output.mkdir()
        folder.started.write_text("{}")
        self.specs.append(spec)
        self.shims.append(Shim())
        return self.shims[-1]

    async def start(self, build_number: int, **run: Any) -> str | None:
        """Execute a start, and return its error."""
        if build_number > self.journal.build_number:
            given_start(self.agent)
            assert self.journal.start is not None
            fields = {"run": {"command": ["agent"], **run}, "build_number": build_number}
            self.journal.accept(self.journal.start.model_copy(update=fields))
        return await self.workspace.execute(self.reporter(build_number))

    async def execute(self, transition: Any) -> str | None:
        """Execute a stop or a delete, and return its error."""
        self.journal.accept_build(transition, self.journal.build_number + 1)
        return await self.workspace.execute(self.reporter(self.journal.build_number))

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition is met."""
        await eventually(condition, 30)

    def counted(self, metric: Any) -> dict[str, float]:
        """Return a counter by its label, without what is 0."""
        samples = [each for family in metric.collect() for each in family.samples]
        return {
            next(iter(each.labels.values())): each.value
            for each in samples
            if each.name.endswith("_total") and each.value
        }


@pytest.fixture
async def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Builds]:
    """Yield a workspace that was not started."""
    (tmp_path / "root").mkdir()
    place = Builds(tmp_path, monkeypatch)
    yield place
    await place.workspace.detach()


async def test_a_start_is_executed_once(builds: Builds) -> None:
    """The agent is given its prompt; it is not started again when it runs, or has ended."""
    assert await builds.start(1) is None
    (spec,) = builds.specs
    assert (spec.argv[0], builds.folder.prompt.read_text()) == ("agent", "Do it")
    assert (builds.workspace.health, builds.workspace.running) == (Health.HEALTHY, True)
    assert said(builds.agent)[0] == ("starting",)
    assert (builds.journal.port, builds.saves > 0, builds.ended) == (None, True, [1])
    assert builds.journal.was_given("Do it")
    assert await builds.start(1) is None
    assert len(builds.specs) == 1
    builds.shims[0].exit = ExitRecord("exited", code=0)
    builds.shims[0].exits.set()
    await builds.until(lambda: not builds.workspace.running)
    await builds.until(lambda: builds.counted(builds.workspace._context.metrics.runner_endings))
    assert builds.journal.exit_reported
    assert builds.counted(builds.workspace._context.metrics.runner_endings) == {"exited": 1}
    await builds.until(lambda: builds.ended == [1, 1])
    told = said(builds.agent)
    assert await builds.start(1) is None
    assert len(builds.specs) == 1
    assert said(builds.agent) == told


async def test_an_agent_that_ended_before_it_was_ready_is_not_starting(builds: Builds) -> None:
    """A runner that resumes the start finds its exit reported, which is the last that is said of its start."""
    starting = asyncio.create_task(builds.start(1, agent="acp"))
    await builds.until(lambda: ("starting",) in said(builds.agent))
    starting.cancel()
    await asyncio.wait({starting})
    builds.shims[0].exit = ExitRecord("exited", code=3)
    builds.shims[0].exits.set()
    await builds.until(lambda: builds.journal.exit_reported)
    assert (builds.journal.ready_reported, builds.workspace.running) == (False, False)
    assert await builds.start(1) is None
    said_of_start = [each for each in said(builds.agent) if each in {("starting",), ("start_error",)}]
    assert said_of_start == [("starting",), ("start_error",)]


async def test_the_next_start_ends_the_agent_of_the_one_before(builds: Builds) -> None:
    """Its folder is removed, with a notice if this runner has none of them."""
    assert await builds.start(2) is None
    notice = "taskherd: the workspace starts with an empty folder: this runner has no files of its earlier builds."
    contents = [
        entry["content"] for report in reports_of(builds.agent.outbox, "task.log") for entry in report["entries"]
    ]
    assert contents[0] == notice
    assert await builds.start(3) is None
    assert [shim.stops for shim in builds.shims] == [1, 0]
    assert not builds.journal.exit_reported
    assert [each.path.name for each in builds.folder.list_runs()] == ["run-3"]
    contents = [
        entry["content"] for report in reports_of(builds.agent.outbox, "task.log") for entry in report["entries"]
    ]
    assert contents.count(notice) == 1


@pytest.mark.parametrize(
    ("run", "failure", "error", "is_exit"),
    [
        ({"command": 7}, None, "command", False),
        ({}, Unavailable("no shim"), "The agent could not be started: no shim", True),
        ({}, OSError(28, "No space"), "The agent could not be started: [Errno 28] No space", True),
        ({}, ValueError("a NUL"), "The agent could not be started: a NUL", True),
    ],
)
async def test_an_agent_that_cannot_be_started(
    builds: Builds, run: dict[str, Any], failure: Exception | None, error: str, *, is_exit: bool
) -> None:
    """It says why; a template that is none is not the agent's fault."""
    builds.failure = failure
    assert error in str(await builds.start(1, **run))
    exits = [(report["why"], report["words"]) for report in reports_of(builds.agent.outbox, "agent.exit")]
    assert exits == ([("not_started", str(failure))] if is_exit else [])
    assert not builds.workspace.running
    assert ("starting",) not in said(builds.agent)


@pytest.mark.parametrize(("code", "prompt", "command"), [(0, "", "agent"), (3, "Do it", "agent"), (0, "", "go-on")])
async def test_a_launch_that_is_resumed_keeps_its_plan(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, code: int, prompt: str, command: str
) -> None:
    """If a runner dies after it has removed the earlier runs, the next one still knows what their agent had done."""
    run: dict[str, Any] = {} if command == "agent" else {"resume": "continue", "resume_command": [command]}
    assert await builds.start(1, **run) is None
    builds.folder.run(1).exit.write_text(f'{{"reason": "exited", "code": {code}}}')
    builds.shims[0].exit = ExitRecord("exited", code=code)
    builds.shims[0].exits.set()
    await builds.until(lambda: builds.journal.exit_reported and not builds.workspace.running)
    with monkeypatch.context() as patch:
        patch.setattr(builds.folder.__class__, "write_prompt", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await builds.start(2, **run)
    assert builds.folder.list_runs() == []
    for name, kept in Journal.model_validate_json(builds.saved):
        setattr(builds.journal, name, kept)
    assert await builds.start(2, **run) is None
    assert (builds.folder.prompt.read_text(), builds.specs[-1].argv[0]) == (prompt, command)


async def test_an_agent_whose_start_fails_later_is_ended(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that does not speak the protocol."""
    starting = asyncio.create_task(builds.start(1, agent="acp"))
    await builds.until(lambda: builds.workspace._session is not None and builds.shims)
    assert not builds.journal.was_given("Do it"), "it is given its prompt as an input"
    builds.ended.clear()
    monkeypatch.setattr(AcpFollower, "start_outcome", property(lambda _: "It is too old."))
    assert await asyncio.wait_for(starting, 30) == "It is too old."
    assert (builds.workspace.running, builds.shims[0].stops) == (False, 1)
    assert builds.ended == [1, 1]


async def test_a_start_does_not_wait_for_the_files_of_deleted_tasks(builds: Builds) -> None:
    """However many are being removed."""
    may_go_on = threading.Event()

    def remove_much() -> None:
        may_go_on.wait(60)

    removals = [asyncio.create_task(removal.in_background(remove_much)) for _ in range(9)]
    try:
        assert await asyncio.wait_for(builds.start(1), 30) is None
        assert not any(each.done() for each in removals)
    finally:
        may_go_on.set()
    await asyncio.gather(*removals)


@pytest.mark.parametrize(("owner", "name"), [(Isolation, "prepare"), (TaskFolder, "remove_runs")])
async def test_what_a_start_removes_ends_with_its_supervisor(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """The runner is being stopped; no agent is started any more."""
    removes, may_go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def remove_much(*_: object) -> None:
        removes.set()
        try:
            while not may_go_on.wait(0.001):
                raise_if_cancelled()
        finally:
            ended.set()

    monkeypatch.setattr(owner, name, remove_much)
    starting = asyncio.create_task(builds.start(1))
    try:
        await builds.until(removes.is_set)
        starting.cancel()
        await asyncio.wait({starting}, timeout=30)
        assert (starting.cancelled(), ended.is_set(), builds.shims) == (True, True, [])
    finally:
        may_go_on.set()


@pytest.mark.parametrize(("owner", "name"), [(Isolation, "prepare"), (TaskFolder, "remove_runs")])
async def test_nothing_else_waits_for_the_files_that_a_start_removes(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """However many an agent has left: journals are written meanwhile, and exits noticed."""
    loop, alone = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    loop.set_default_executor(alone)
    removes, may_go_on = threading.Event(), threading.Event()

    def remove_much(*_: object) -> None:
        removes.set()
        may_go_on.wait(60)

    monkeypatch.setattr(owner, name, remove_much)
    starting = asyncio.create_task(builds.start(1))
    try:
        await builds.until(removes.is_set)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 30) == 7
        assert not starting.done()
    finally:
        may_go_on.set()
        loop.set_default_executor(ThreadPoolExecutor())  # the loop is that of other tests, too
    assert await starting is None
    alone.shutdown()


async def test_a_start_gives_way_to_what_ends_its_agent(builds: Builds) -> None:
    """However long the agent takes; it is left to that request, and to the next runner until then."""
    starting = asyncio.create_task(builds.start(1, agent="acp"))
    await builds.until(lambda: builds.workspace._session is not None and builds.shims)
    builds.is_ending = True
    with pytest.raises(StartEnded):
        await asyncio.wait_for(starting, 30)
    assert (builds.workspace.running, builds.shims[0].stops, builds.journal.exit_reported) == (True, 0, False)
    assert await builds.execute("stop") is None
    assert (builds.workspace.running, builds.shims[0].stops) == (False, 1)


async def test_a_stop_ends_what_runs_without_a_journal(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as of one that was damaged: all runs whose exit is not recorded."""
    killed: list[Path] = []
    monkeypatch.setattr(processes, "kill_marked", lambda run: killed.append(run.path))
    for number in (1, 2):
        builds.folder.run(number).recreate()
    builds.folder.run(1).exit.write_text("{}")
    assert await builds.execute("stop") is None
    assert killed == [builds.folder.run(2).path]


@pytest.mark.parametrize("again", ["stop", "start"])
async def test_an_agent_that_deleted_the_folder_of_its_run_is_ended(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """By a stop, and before the next runner repeats its start; nothing is looked for before the first one."""
    killed: list[Path] = []
    monkeypatch.setattr(processes, "kill_marked", lambda run: killed.append(run.path))
    assert (await builds.start(1), killed) == (None, [])
    builds.folder.run(1).remove()
    builds.workspace._session = None
    assert await (builds.execute("stop") if again == "stop" else builds.start(1)) is None
    assert killed == [builds.folder.run(1).path]


@pytest.mark.parametrize(
    ("run", "exit_record", "given", "ready"),
    [
        ({}, '{"reason": "exited", "code": 0}', True, True),
        ({"agent": "self"}, '{"reason": "exited", "code": 0}', True, True),
        ({"output": "claude-stream-json", "stdin": "pipe"}, '{"reason": "exited", "code": 0}', False, True),
        ({"agent": "acp"}, '{"reason": "exited", "code": 0}', False, False),
        ({}, '{"reason": "not started", "detail": "no such file"}', False, False),
    ],
)
async def test_an_agent_that_ran_between_two_runners_was_started(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, run: dict[str, Any], exit_record: str, *, given: bool, ready: bool
) -> None:
    """It was given its prompt if that was not an input, and was ready unless its kind says when it is."""

    async def adopt(_: RunFolder) -> None:
        return None

    monkeypatch.setattr(processes, "adopt", adopt)
    given_start(builds.agent)
    assert builds.journal.start is not None
    builds.journal.accept(builds.journal.start.model_copy(update={"run": {"command": ["agent"], **run}}))
    folder = builds.folder.run(1)
    folder.recreate()
    for each in (folder.output, folder.stdin, folder.log):
        each.mkdir(exist_ok=True)
    folder.started.write_text("{}")
    folder.exit.write_text(exit_record)
    await builds.workspace.recover()
    assert builds.journal.was_given("Do it") is given
    found = [report["lifecycle"] for report in reports_of(builds.agent.outbox, "agent.lifecycle")]
    assert found == (["ready"] if ready else ["start_error"])
    assert builds.journal.exit_reported
    logged = [entry["content"] for log in reports_of(builds.agent.outbox, "task.log") for entry in log["entries"]]
    assert ("Do it" in logged) is given


async def test_an_exit_between_two_runners_is_told_although_the_disk_is_full(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nothing that is asked of the task, such as its deletion, would be done until the disk has room."""

    async def adopt(_: RunFolder) -> None:
        return None

    async def save() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processes, "adopt", adopt)
    builds.save = save
    given_start(builds.agent)
    assert builds.journal.start is not None
    builds.journal.accept(builds.journal.start.model_copy(update={"run": {"command": ["agent"]}}))
    folder = builds.folder.run(1)
    folder.recreate()
    folder.output.mkdir()
    folder.started.write_text("{}")
    folder.exit.write_text('{"reason": "exited", "code": 0}')
    await builds.workspace.recover()
    assert [report["why"] for report in reports_of(builds.agent.outbox, "agent.exit")] == ["exited"]


async def test_an_exit_between_two_runners_waits_for_room_until_a_request_ends_the_agent(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker may take no reports, and still deliver requests."""

    async def adopt(_: RunFolder) -> None:
        return None

    monkeypatch.setattr(processes, "adopt", adopt)
    monkeypatch.setattr(final_room, "STOP_WAIT", 0)
    given_start(builds.agent)
    assert builds.journal.start is not None
    builds.journal.accept(builds.journal.start.model_copy(update={"run": {"command": ["agent"]}}))
    folder = builds.folder.run(1)
    folder.recreate()
    folder.output.mkdir()
    (folder.output / f"{0:020d}").write_text("the end\n")
    folder.started.write_text("{}")
    folder.exit.write_text('{"reason": "exited", "code": 0}')
    builds.agent.outbox.append([json.dumps({"type": "filler", "filler": "x" * MAX_TASK_BYTES})])
    waits, wait_room = asyncio.Event(), Outbox.wait_room

    async def note(outbox: Outbox) -> None:
        waits.set()
        await wait_room(outbox)

    monkeypatch.setattr(Outbox, "wait_room", note)
    recovering = asyncio.create_task(builds.workspace.recover())
    await asyncio.wait_for(waits.wait(), 30)
    assert not recovering.done()
    builds.is_ending = True
    await asyncio.wait_for(recovering, 30)
    assert [report["why"] for report in reports_of(builds.agent.outbox, "agent.exit")] == ["exited"]
    logged = [entry["content"] for log in reports_of(builds.agent.outbox, "task.log") for entry in log["entries"]]
    assert logged[-1] == "the end"


async def test_a_stop_ends_the_agent(builds: Builds) -> None:
    """It says so, before and after; what is left is an error. Without an agent there is less to say."""
    await builds.start(1)
    assert await builds.execute("stop") is None
    assert [each for each in said(builds.agent) if each in {("shutting_down",), ("off",)}] == [
        ("shutting_down",), ("off",)
    ]  # fmt: skip
    assert len(reports_of(builds.agent.outbox, "agent.disconnected")) == 1
    assert builds.shims[0].stops == 1
    builds.left = 2
    left = "2 processes of the agent could not be killed; check the runner's machine."
    assert await builds.execute("stop") == left
    assert len(reports_of(builds.agent.outbox, "agent.disconnected")) == 1
    builds.left = 0
    await builds.start(4)
    builds.shims[-1].exit = ExitRecord("stopped", leftover=3)
    builds.left = 1
    assert await builds.execute("stop") == left.replace("2", "3")


async def test_a_kill_ends_the_grace_time(builds: Builds) -> None:
    """Of an agent that is being stopped; without one it does nothing."""
    builds.workspace.kill()
    await builds.start(1)
    builds.shims[0].ends_at = 2
    stopping = asyncio.create_task(builds.execute("stop"))
    await builds.until(lambda: builds.shims[0].stops)
    builds.workspace.kill()
    assert await asyncio.wait_for(stopping, 30) is None


async def test_a_delete_removes_the_files(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once nothing runs any more; what cannot be removed is an error."""
    (builds.folder.work / "file").write_text("")
    assert (await builds.execute("stop"), builds.ended) == (None, [1])
    builds.left = 1
    assert "1 processes of the agent could not be killed" in str(await builds.execute("delete"))
    assert builds.folder.work.exists()
    builds.left = 0
    with monkeypatch.context() as patch:
        patch.setattr(builds.folder.__class__, "remove_work", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await builds.execute("delete")
        patch.setattr(builds.folder.__class__, "remove_work", fail_to_remove)
        error = "The workspace could not be removed: [Errno 1] Not permitted. The runner's user must be able to delete"
        assert error in str(await builds.execute("delete"))
    assert await builds.execute("delete") is None
    assert not builds.folder.work.exists()


def fail_to_remove(_: object) -> None:
    """Find a file of another user."""
    raise OSError(1, "Not permitted")


async def test_the_next_runner_adopts_a_running_agent(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless its exit was reported, or no run of that start can be left."""
    shim = Shim()

    async def adopt(_: RunFolder) -> Shim:
        return shim

    monkeypatch.setattr(processes, "adopt", adopt)
    await builds.workspace.recover()
    given_start(builds.agent)
    assert builds.journal.start is not None
    builds.journal.start = builds.journal.start.model_copy(update={"run": {"command": ["agent"]}})
    builds.journal.build_number, builds.journal.transition = 1, "start"
    for exit_reported, phase, running in (
        (True, Phase.DONE, False),
        (False, Phase.FAILED, False),
        (False, Phase.DONE, True),
    ):
        builds.journal.exit_reported, builds.journal.phase = exit_reported, phase
        await builds.workspace.recover()
        assert builds.workspace.running is running
    assert builds.counted(builds.workspace._context.metrics.runner_adopted) == {"running": 1}


@pytest.mark.parametrize(
    ("record", "transition", "found"),
    [
        ('{"reason": "exited", "code": 3}', "start", ("ended", "exited")),
        ("", "start", ("lost", "lost")),
        ("", "stop", ("ended", "stopped")),
        ("", "delete", ("ended", "stopped")),
        (None, "start", None),
    ],
)
async def test_the_next_runner_reports_an_exit(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, record: str | None, transition: Any, found: tuple[str, str] | None
) -> None:
    """One without a record is that of a stop if there was one; an agent that was not started has none."""

    async def adopt(_: RunFolder) -> None:
        return None

    monkeypatch.setattr(processes, "adopt", adopt)
    given_start(builds.agent)
    assert builds.journal.start is not None
    builds.journal.start = builds.journal.start.model_copy(update={"run": {"command": ["agent"]}})
    builds.journal.build_number = 1 if transition == "start" else 2
    builds.journal.transition, builds.journal.phase = transition, Phase.ACCEPTED
    folder = builds.folder.run(1)
    folder.recreate()
    folder.output.mkdir()
    if record is not None:
        folder.started.write_text("{}")
    if record:
        folder.exit.write_text(record)
    await builds.workspace.recover()
    metrics = builds.workspace._context.metrics
    assert builds.counted(metrics.runner_adopted) == ({found[0]: 1} if found else {})
    assert [report["why"] for report in reports_of(builds.agent.outbox, "agent.exit")] == ([found[1]] if found else [])
    assert builds.journal.exit_reported is (found is not None)
    assert not builds.workspace.running


@pytest.mark.parametrize("deleted", ["folder", "record"])
async def test_an_agent_that_was_up_and_deleted_what_its_shim_wrote_is_lost(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, deleted: str
) -> None:
    """The next runner knows from its journal that it ran, and ends what is left of it."""
    killed: list[RunFolder] = []

    def kill_marked(run: RunFolder) -> int:
        killed.append(run)
        return 0

    monkeypatch.setattr(processes, "kill_marked", kill_marked)
    given_start(builds.agent)
    assert builds.journal.start is not None
    builds.journal.start = builds.journal.start.model_copy(update={"run": {"command": ["agent"]}})
    builds.journal.build_number, builds.journal.transition, builds.journal.phase = 1, "start", Phase.DONE
    if deleted == "record":
        builds.folder.run(1).recreate()
    await builds.workspace.recover()
    assert [report["why"] for report in reports_of(builds.agent.outbox, "agent.exit")] == ["lost"]
    assert reports_of(builds.agent.outbox, "app.status")[-1]["message"] == processes.FOLDER_DELETED
    assert (builds.journal.exit_reported, killed) == (True, [builds.folder.run(1)])
    assert builds.counted(builds.workspace._context.metrics.runner_adopted) == {"lost": 1}


async def test_an_agents_port_is_its_own(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shim and its user say which ends of connections are the agent's."""
    asked: list[tuple[Any, ...]] = []

    async def identify_peer(*given: Any) -> Peer:
        asked.append(given)
        return Peer.STRANGER

    monkeypatch.setattr(listeners, "identify_peer", identify_peer)
    builds.journal.port, builds.journal.agent_uid = 7, 9
    folder = builds.folder.run(1)
    folder.recreate()
    folder.started.write_text('{"pid": 5}')
    assert await builds.workspace._identify_peer(folder, 8) is Peer.STRANGER
    assert asked == [(8, 7, 5, 9)]
