"""What a workspace decides from what its agent said last, without an agent."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from taskherd.domain.reports import InterruptOutcome
from taskherd.errors import Unavailable
from taskherd.messages.work import AgentAnswer, WorkRequestOwner
from taskherd.observability.metrics import Metrics
from taskherd.runner import template
from taskherd.runner.agents.context import AnswerOutcome, NotDelivered
from taskherd.runner.agents.log_budget import LogRates
from taskherd.runner.context import RunnerContext
from taskherd.runner.journal import Phase
from taskherd.runner.outbox import Budget
from taskherd.runner.workspaces.folders import TaskFolder
from taskherd.runner.workspaces.isolation import Isolation
from taskherd.runner.workspaces.launcher import free_port
from taskherd.runner.workspaces.sandbox import Sandbox
from taskherd.runner.workspaces.workspace import ENDING_TIMEOUT, TaskWorkspace
from tests.pure.runner.contexts import make_context, reports_of
from tests.pure.runner.test_context import given_start

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Session:
    """A session with the agent of a build."""

    def __init__(self, build_number: int = 1) -> None:
        self.reporter = SimpleNamespace(build_number=build_number)
        self.follower = SimpleNamespace(is_at_work=True, answer=lambda *_: AnswerOutcome.DONE)
        self.outcome = InterruptOutcome.STOPPED
        self.exited = False
        self.error: Exception | None = None

    async def interrupt_turn(self) -> InterruptOutcome:
        """Return the outcome."""
        return self.outcome

    def has_exited(self) -> bool:
        """Return whether the agent has exited."""
        return self.exited

    async def deliver(self, *_: object) -> None:
        """Raise the error."""
        if self.error is not None:
            raise self.error


class Place:
    """A workspace in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.agent = make_context(root)
        self.journal = self.agent.journal
        self.now = NOON
        context = RunnerContext(
            name="r", root=root, api_url="", environ=os.environ, metrics=Metrics(), claims=None,  # type: ignore[arg-type]
            budget=Budget(2**30), log_rates=LogRates(2**20, 2**20), now=lambda: self.now,
            schedule_outbox=lambda _: None, drop_outbox=lambda _: None, failpoint=lambda _: None,
            isolation=Isolation(Sandbox([], None), None, None),
        )  # fmt: skip
        self.folder = TaskFolder(root, UUID(int=6))
        self.save = self.agent.save
        self.is_ending = False
        """Whether a request waits that ends the agent."""
        self.workspace = TaskWorkspace(
            context, self.folder, self.journal, outbox=self.agent.outbox, start_reporter=lambda _: self.agent.reporter,
            save=self.save_journal, deliver_once=self.agent.deliver_once, has_ending=lambda: self.is_ending,
        )  # fmt: skip

    async def save_journal(self) -> None:
        """Save the journal, as the test says."""
        await self.save()

    def open(self, build_number: int = 1) -> Session:
        """Open a session with the agent of a build."""
        session = Session(build_number)
        self.workspace._session = session  # type: ignore[assignment]
        return session

    def note(self, **checkpoint: Any) -> None:
        """Note what the follower knew last."""
        self.agent.outbox.append([], {"build": 1, **checkpoint})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a workspace whose agent does not run."""
    return Place(tmp_path)


def test_an_agent_works_unless_it_is_known_to_wait(place: Place) -> None:
    """One that says that it is done has some time to end; one that asks in its turn works."""
    assert not place.workspace.is_working(0)
    place.open()
    assert place.workspace.is_working(0), "nothing is known of it"
    given_start(place.agent)
    assert place.workspace.is_working(0)
    for state, turn, works in (("working", None, True), ("idle", None, False), ("idle", 7, True)):
        place.note(state=state, turn=turn)
        assert place.workspace.is_working(0) is works
    place.agent.outbox.append([], {"build": 2, "state": "idle"})
    assert place.workspace.is_working(0), "that was another build's"
    for state in ("complete", "failed"):
        place.note(state="working")
        assert place.workspace.is_working(100)
        place.note(state=state)
        times = (100, 100 + ENDING_TIMEOUT - 0.1, 100 + ENDING_TIMEOUT)
        assert [place.workspace.is_working(now) for now in times] == [True, True, False]
    place.workspace._session = None
    for state in ("working", "complete"):
        place.note(state=state)
        assert not place.workspace.is_working(0)


def test_an_agent_is_at_work_in_its_own_build(place: Place) -> None:
    """As far as its follower can tell."""
    assert not place.workspace.is_at_work(1)
    session = place.open(2)
    assert [place.workspace.is_at_work(build) for build in (1, 2)] == [False, True]
    session.follower.is_at_work = False
    assert not place.workspace.is_at_work(2)


async def test_an_interrupt_is_for_the_agent_of_its_build(place: Place) -> None:
    """If its turn has ended, the end of the agent is not that of an interrupt any more."""
    assert await place.workspace.interrupt(1) is InterruptOutcome.ENDED
    session = place.open()
    assert await place.workspace.interrupt(2) is InterruptOutcome.ENDED
    for interrupted, exited, after in ((True, False, False), (True, True, True), (False, False, False)):
        place.journal.interrupted, session.exited = interrupted, exited
        assert await place.workspace.interrupt(1) is InterruptOutcome.STOPPED
        assert place.journal.interrupted is after


def answer(build_number: int = 1, request_id: UUID | None = None) -> AgentAnswer:
    """Return an answer to a request of the agent of a build."""
    return AgentAnswer(
        request_id=request_id or uuid4(), attempt=1, task_id=UUID(int=6), task_name="a", build_number=build_number,
        owner=WorkRequestOwner(id=uuid4(), username="u"), build_id=uuid4(), template_version_id=uuid4(), run={},
        option_id="yes", text=None,
    )  # fmt: skip


def test_an_answer_is_for_the_agent_of_its_build(place: Place) -> None:
    """After its end, what became of the request is told again, if that is known."""
    closed = uuid4()
    report = f'{{"type": "agent.request", "request_id": "{closed}", "state": "withdrawn"}}'
    place.note(requests={"closed": [report]})
    assert place.workspace.answer(answer(1, closed)) is AnswerOutcome.REPEATED
    assert [each["request_id"] for each in reports_of(place.agent.outbox, "agent.request")] == [str(closed)]
    assert place.workspace.answer(answer(1)) is AnswerOutcome.IGNORED
    assert place.workspace.answer(answer(2, closed)) is AnswerOutcome.IGNORED
    place.open(2)
    assert place.workspace.answer(answer(2, closed)) is AnswerOutcome.DONE
    assert place.workspace.answer(answer(1, closed)) is AnswerOutcome.IGNORED
    assert len(reports_of(place.agent.outbox)) == 1


async def test_an_input_that_is_not_delivered_says_why(place: Place) -> None:
    """Without an agent, for a reason of the agent's, or for one of the disk's."""

    async def record() -> None:
        """Record nothing."""

    assert await place.workspace.deliver("hello", record) == "The agent is not running."
    session = place.open()

    async def deliver(*_: object) -> None:
        """Deliver nothing."""

    session.follower.deliver = deliver
    assert await place.workspace.deliver("hello", record) is None
    for error, words in (
        (NotDelivered("It is busy."), "It is busy."),
        (OSError("No space"), "The input was not delivered: the runner cannot write its journal (No space)."),
    ):
        session.error = error
        assert await place.workspace.deliver("hello", record) == words


def test_notices_have_ids_of_their_own(place: Place) -> None:
    """By the time, in milliseconds; two at once have different ones, and none is lower than one before it."""
    for delta in (0, 0, -5, 1):
        place.now = NOON + timedelta(seconds=delta)
        place.workspace.append_notice(place.agent.reporter, "Note this")
    ids = [entry["id"] for report in reports_of(place.agent.outbox, "task.log") for entry in report["entries"]]
    first = 2**41 + round(NOON.timestamp() * 1_000)
    assert ids == [first, first + 1, first + 2, first + 1_000]


@pytest.mark.parametrize(
    ("build_number", "phase", "has_none"),
    [
        (1, Phase.FAILED, True),
        (1, Phase.DONE, False),
        (1, Phase.ACCEPTED, False),
        (2, Phase.DONE, True),
        (2, Phase.FAILED, False),
        (2, Phase.ACCEPTED, False),
    ],
)
def test_which_starts_have_left_no_run(place: Place, build_number: int, phase: Phase, *, has_none: bool) -> None:
    """Those that failed, and those before a build that has completed."""
    given_start(place.agent)
    place.journal.build_number, place.journal.phase = build_number, phase
    assert place.journal.start is not None
    assert place.workspace._has_no_run(place.journal.start) is has_none


def test_whether_the_last_agent_had_finished(place: Place) -> None:
    """It waited, or it exited with status 0; one that asks in its turn had not."""
    assert not place.workspace._launcher.has_finished()
    for state, turn, finished in (
        ("idle", None, True), ("complete", None, True), ("failed", None, False), ("working", None, False),
        ("idle", 7, False),
    ):  # fmt: skip
        place.note(state=state, turn=turn)
        assert place.workspace._launcher.has_finished() is finished
    for number, code in ((1, 3), (2, 0)):
        run = place.folder.run(number)
        run.path.mkdir(parents=True)
        run.exit.write_text(f'{{"reason": "exited", "code": {code}}}')
        assert place.workspace._launcher.has_finished() is (code == 0)


@pytest.mark.parametrize(
    ("session", "gives_prompt", "command"),
    [("s-1", False, ("go", "--resume", "{session}")), (None, True, ("begin",))],
)
def test_an_agent_goes_on_in_the_session_that_it_has(
    place: Place, session: str | None, *, gives_prompt: bool, command: tuple[str, ...]
) -> None:
    """One without a session begins again; the plan of a build stands, whatever is known later."""
    given_start(place.agent)
    journal, launcher = place.journal, place.workspace._launcher
    assert journal.start is not None
    journal.record_prompt()
    journal.stream_session = session
    fields = {"command": ["begin"], "resume": "continue", "resume_command": ["go", "--resume", "{session}"]}
    run = template.parse(fields)
    for known in (session, None, "s-2"):
        journal.stream_session = known
        plan = launcher._plan(run, journal.start)
        assert (tuple(plan.command), plan.gives_prompt) == (command, gives_prompt)
    assert (journal.planned_build, journal.gives_prompt, journal.resumes) == (1, gives_prompt, not gives_prompt)


async def test_an_agent_is_isolated_as_its_template_demands(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its working directory is made, and it is not started where its sandbox is missing."""
    launcher = place.workspace._launcher
    place.folder.create()
    assert await launcher._isolate(template.parse({"command": ["true"], "workdir": "src/app"})) is None
    assert (place.folder.work / "src" / "app").is_dir()
    assert place.journal.agent_uid is None
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="bwrap is not installed"):
        await launcher._isolate(template.parse({"command": ["true"], "sandbox": "bwrap"}))


def test_the_success_of_the_latest_start_counts(place: Place) -> None:
    """Not that of another build."""
    assert not place.workspace.has_succeeded()
    given_start(place.agent)
    run = place.folder.run(2)
    run.path.mkdir(parents=True)
    run.exit.write_text('{"reason": "exited", "code": 0}')
    assert not place.workspace.has_succeeded()
    run.path.rename(place.folder.run(1).path)
    assert place.workspace.has_succeeded()


def test_agents_are_given_the_mcp_server_if_their_template_says_so(place: Place) -> None:
    """With the address and token of their own build."""
    run = place.agent.run
    assert place.workspace._mcp_servers(replace_run(run, "taskherd")) == []
    given_start(place.agent)
    assert place.workspace._mcp_servers(replace_run(run, "none")) == []
    (server,) = place.workspace._mcp_servers(replace_run(run, "taskherd"))
    assert {each["name"]: each["value"] for each in server["env"]} == {
        "TASKHERD_API_URL": "", "TASKHERD_AGENT_TOKEN": "t",
    }  # fmt: skip


def replace_run(run: Any, servers: str) -> Any:
    """Return the run of a template that names these MCP servers."""
    return run.model_copy(update={"mcp_servers": servers})


def test_a_free_port_is_one_that_can_be_used() -> None:
    """By any user."""
    assert 1024 <= free_port() <= 65_535
