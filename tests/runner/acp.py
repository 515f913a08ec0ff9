"""Follow the tests' ACP agent under a real shim, without worker and broker: its reports are read from the outbox."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from taskherd.directory_file.run import RunConfig
from taskherd.domain.reports import AgentRequest, Transition
from taskherd.messages.reports import decode_stored_report
from taskherd.messages.work import WorkspaceStart
from taskherd.observability.metrics import Metrics
from taskherd.runner import journal as journals
from taskherd.runner.activity import ProcessMonitor
from taskherd.runner.agents import output
from taskherd.runner.agents.acp.follower import AcpFollower
from taskherd.runner.agents.context import (
    TAIL_BYTES,
    AgentContext,
    DeliveryUnknown,
    Follower,
    NotDelivered,
    RecordAttempt,
)
from taskherd.runner.agents.kinds import follower_class
from taskherd.runner.agents.log_budget import LogBudget, LogRates
from taskherd.runner.agents.session import AgentSession
from taskherd.runner.inputs import TaskInputs
from taskherd.runner.journal import InputDelivery, Journal
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.reporter import Reporter, SequenceGenerator
from taskherd.runner.workspaces import processes
from taskherd.runner.workspaces.folders import RunFolder, TaskFolder
from taskherd.runner.workspaces.terminals import TerminalCommand, end_all, make_terminal_spec
from tests.harness.runner import eventually, json_lines
from tests.pure.runner.contexts import has_only_the_agent

KILLER = 65_533
"""The user that ends processes of an agent with a user of its own."""
_NO_USAGE = {"type", "task_id", "build_number", "seq", "model"}
AGENT = Path(__file__).parents[1] / "harness" / "acp_agent.py"


class AcpRun:
    """A task's agent that speaks ACP, and the runner's part that follows it."""

    def __init__(self, root: Path, run: dict[str, Any], traits: Sequence[str]) -> None:
        self.task = TaskFolder(root, uuid4())
        self.task.create()
        self.argv = [sys.executable, str(AGENT), *traits]
        self.env = {"PATH": os.environ["PATH"]}
        self.uid: int | None = None
        self.run = RunConfig.model_validate({"command": ["agent"], "agent": "acp", "grace": 1, **run})
        self.session: AgentSession | None = None
        self.exits: list[processes.ExitRecord] = []
        """How the agent of the latest build has ended, once that was reported."""
        self.build = 0
        self.prompt = ""
        self.log_rates = LogRates(2**30, 2**20)
        self.ahead = timedelta()
        """By how much the runner's wall clock is set forward."""
        self.journal = Journal(task_id=self.task.task_id, task_name="t")
        self.outbox = self._open_outbox()

    def _open_outbox(self) -> Outbox:
        return Outbox(self.task.outbox, Budget(2**30), lambda _: None)

    async def start(self, prompt: str) -> None:
        """Start the next build's agent with a prompt."""
        self.build += 1
        self.prompt = prompt
        self.exits.clear()
        request = {
            "type": "workspace.start", "request_id": str(uuid4()), "attempt": 1, "task_id": str(self.task.task_id),
            "task_name": "t", "owner": {"id": str(uuid4()), "username": "u"}, "build_number": self.build,
            "build_id": str(uuid4()), "template_version_id": str(uuid4()), "run": {}, "prompt": prompt,
            "preset": None, "agent_token": "secret",
        }  # fmt: skip
        given = self.journal.was_given(prompt)
        self.journal.accept(WorkspaceStart.model_validate(request))
        self.journal.gives_prompt = not given
        self.task.write_prompt(prompt, self.uid)
        await self._save()
        handle = await processes.start(self.task.run(self.build), self._spec())
        self.follow(handle)

    def follow(self, handle: processes.ShimHandle) -> None:
        """Follow the agent."""
        self.session = AgentSession(handle, self._make_follower, self._context(), self._record_exit)

    async def take_over(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Follow the agent as the next runner does, after this one was killed.

        With ``meanwhile``, which lets the agent end, no runner is up until that has happened.
        """
        assert self.session is not None  # nothing is saved on the way: the follower is cancelled, as by a SIGKILL
        self.session._loop.cancel()
        await asyncio.gather(self.session._loop, return_exceptions=True)
        self.outbox.close()
        self.journal = journals.load(self.task.journal) or self.journal
        self.outbox = self._open_outbox()
        folder = self.task.run(self.build)
        if meanwhile is not None:
            meanwhile()
            await eventually(folder.exit.exists)
            agent_exit = processes.read_exit(folder)
            await self._make_follower().conclude(agent_exit)
            await self._record_exit(agent_exit)
            return
        handle = await processes.adopt(folder)
        assert handle is not None
        self.follow(handle)

    def exits_now(self) -> bool:
        """Return whether the agent has exited, reported or not."""
        return self.task.run(self.build).exit.exists()

    def end(self) -> None:
        """End the agent, unless it has exited."""
        if self.session is not None and not self.exits:
            self.session.end()

    @property
    def follower(self) -> AcpFollower:
        """The follower of the running agent."""
        assert self.session is not None
        assert isinstance(self.session.follower, AcpFollower)
        return self.session.follower

    async def send(self, text: str) -> str | None:
        """Send the agent an input. Return an error message, or None."""
        return await self._deliver_once(uuid4(), text)

    def inputs(self) -> TaskInputs:
        """Return what delivers the inputs, as of a runner that has just started."""
        reporter = self._reporter()
        return TaskInputs(self.journal, start_reporter=lambda _: reporter, save=self._save, count=lambda *_: None)

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> str | None:
        """Deliver an input as ``TaskWorkspace.deliver`` does."""
        assert self.session is not None
        try:
            await self.session.deliver(text, record_attempt)
        except (NotDelivered, DeliveryUnknown) as error:
            return str(error)
        return None

    def reports(self, kind: str) -> list[dict[str, Any]]:
        """Return all reports of a type, in order, of all runners."""
        found: list[dict[str, Any]] = []
        for _, texts in json_lines(self.task.outbox):
            found += [report for report in map(json.loads, texts) if report["type"] == kind]
        return found

    def requests(self) -> dict[str, list[AgentRequest]]:
        """Return what was reported about the agent's requests, by title; each report as the worker decodes it."""
        found: dict[str, list[AgentRequest]] = {}
        for report in self.reports("agent.request"):
            request = decode_stored_report(json.dumps(report), datetime.now(UTC))
            assert isinstance(request, AgentRequest)
            found.setdefault(request.title, []).append(request)
        return found

    def open_requests(self) -> list[AgentRequest]:
        """Return the requests whose latest report says that they are open, the first one first."""
        latest = {each.request_id: each for reported in self.requests().values() for each in reported}
        return [request for request in latest.values() if request.state == "open"]

    def became(self, title: str) -> list[str]:
        """Return the states that were reported of the request with this title, in order."""
        return [str(request.state) for request in self.requests().get(title, ())]

    async def until_became(self, title: str, *states: str) -> None:
        """Wait until these are the states that were reported of the request with this title, in order."""
        await eventually(lambda: self.became(title) == [*states])

    async def opened(self) -> AgentRequest:
        """Wait until a request is open, and return the first one."""
        await eventually(self.open_requests)
        return self.open_requests()[0]

    def answer(self, request: AgentRequest, option_id: str | None, text: str | None = None) -> str:
        """Give the agent an answer, and return the outcome."""
        return str(self.follower.answer(request.request_id, option_id, text))

    def answers(self, number: str) -> list[dict[str, Any]]:
        """Return the results that the agent was given to its request ``ask-`` and this number."""
        return [each["result"] for each in self.received() if "method" not in each and each["id"] == f"ask-{number}"]

    def states(self) -> list[tuple[str, str]]:
        """Return the states that were reported, with their messages."""
        return [(report["state"], report.get("message", "")) for report in self.reports("app.status")]

    @property
    def state(self) -> tuple[str, str]:
        """The state that was reported last, with its message."""
        return (self.states() or [("", "")])[-1]

    def entries(self) -> list[dict[str, Any]]:
        """Return the log as it is shown: the latest version of each entry of each build."""
        latest: dict[tuple[int, int], dict[str, Any]] = {}
        for report in self.reports("task.log"):
            latest |= {(report["build_number"], entry["id"]): entry for entry in report["entries"]}
        return [latest[key] for key in sorted(latest)]

    def texts(self, kind: str = "message") -> list[str]:
        """Return the contents of the entries of a kind."""
        return [entry["content"] for entry in self.entries() if entry.get("kind") == kind]

    def usage(self) -> dict[tuple[int, str], dict[str, Any]]:
        """Return what was reported as used, by build and model: the latest of each number."""
        latest: dict[tuple[int, str], dict[str, Any]] = {}
        for report in self.reports("agent.usage"):
            numbers = {name: number for name, number in report.items() if name not in _NO_USAGE}
            if "cost" in numbers:
                numbers["cost"] = numbers["cost"]["amount"]
            latest.setdefault((report["build_number"], report.get("model", "")), {}).update(numbers)
        return latest

    def received(self) -> list[dict[str, Any]]:
        """Return the messages that the agent has received."""
        return json_lines(self.task.work / "received.jsonl")

    def received_methods(self) -> list[str]:
        """Return the methods that the agent was called with."""
        return [message["method"] for message in self.received() if "method" in message]

    async def until_state(self, state: str, words: str = "") -> None:
        """Wait until this is the state that was reported last; if the agent ends in another one, fail at once."""

        def is_reached() -> bool:
            return self.state[0] == state and words in self.state[1]

        with suppress(TimeoutError):
            await eventually(lambda: self.exits or is_reached(), 60)
        if not is_reached():
            log = output.tail(self.task.run(self.build).log, TAIL_BYTES)
            seen = f"states {self.states()}, received {self.received_methods()}, notices {self.texts('notice')}"
            pytest.fail(f"{self.state} instead of {(state, words)}: {self.exits}\n{seen}\n{log}")

    async def until_ended(self) -> processes.ExitRecord:
        """Wait until the exit was reported."""
        await eventually(lambda: self.exits, 30)
        return self.exits[-1]

    def touch(self, name: str) -> None:
        """Create a file in the agent's working directory."""
        (self.task.work / name).touch()

    def _reporter(self) -> Reporter:
        def now() -> datetime:
            return datetime.now(UTC) + self.ahead

        sequence = SequenceGenerator(self.journal, now, lambda: None, above=self.outbox.last_seq)
        start = Transition.START
        return Reporter(
            self.journal, self.build, transition=start, runner="r", outbox=self.outbox, sequence=sequence, now=now
        )

    def _make_follower(self) -> Follower:
        assert self.journal.start is not None
        return follower_class(self.run)(self._context())

    def _context(self) -> AgentContext:
        return AgentContext(
            run=self.run,
            journal=self.journal,
            folder=self.task.run(self.build),
            reporter=self._reporter(),
            outbox=self.outbox,
            metrics=Metrics(),
            save=self._save,
            deliver_once=self._deliver_once,
            processes=ProcessMonitor(),
            log_budget=LogBudget(self.log_rates),
            work=self.task.work,
            workdir=self.task.work,
            start_command=self._start_command,
            identify_peer=has_only_the_agent,
            interrupt_agent=lambda: None if self.session is None or self.exits else self.session.interrupt(),
            stop_agent=self.end,
        )

    def _spec(self) -> processes.RunSpec:
        stdin = {"pipe": None, "none": Path(os.devnull), "prompt": self.task.prompt}[self.run.stdin_kind]
        return processes.RunSpec(
            argv=self.argv, cwd=self.task.work, env=self.env, uid=self.uid, killer_uid=KILLER, stdin=stdin,
            grace=self.run.grace, timeout=None, memory=None, cpu=None, cgroup=None, protocol=True,
        )  # fmt: skip

    def _start_command(self, folder: RunFolder, command: TerminalCommand) -> processes.ShimHandle:
        return processes.spawn(folder, make_terminal_spec(self._spec(), command, lambda argv, _: argv))

    async def _save(self) -> None:
        journals.write(self.task.journal, self.journal.model_dump_json().encode())

    async def _deliver_once(self, input_id: UUID, text: str) -> str | None:
        return await self.inputs().deliver_once(self, input_id, text)  # type: ignore[arg-type]

    async def _record_exit(self, agent_exit: processes.ExitRecord) -> None:
        self.exits.append(agent_exit)


def hold_prompt(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Hold up each input, so the prompt too, that is just given; return the event that lets it go."""
    save, is_recorded = AcpRun._save, asyncio.Event()

    async def save_slowly(run: AcpRun) -> None:
        if InputDelivery.DELIVERING in run.journal.inputs.values():
            await is_recorded.wait()
        await save(run)

    monkeypatch.setattr(AcpRun, "_save", save_slowly)
    return is_recorded


@asynccontextmanager
async def acp_run(root: Path, *traits: str, **run: Any) -> AsyncIterator[AcpRun]:
    """Open a run; on exit, kill its agents."""
    started = AcpRun(root, run, traits)
    try:
        yield started
    finally:
        if started.session is not None:
            started.session._loop.cancel()
            await asyncio.gather(started.session._loop, return_exceptions=True)
        for folder in started.task.list_runs():
            handle = await processes.adopt(folder)
            if handle is not None:
                handle.stop()
                handle.stop()
                await handle.wait()
                handle.close()
            end_all(folder)
