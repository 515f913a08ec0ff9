"""Run the demo's scenarios; each waits for its effect and records what it observed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, assert_never

from examples import acp_agent
from examples.demo.client import DemoClient
from examples.demo.processes import DemoProcesses
from examples.demo.scenarios import (
    ENDLESS,
    LATER,
    NAME,
    PERMITTED,
    QUESTION,
    REJECTED,
    STEER,
    Role,
    Scenario,
)
from examples.demo.screen import Screen
from examples.demo.task_table import DemoTask, TaskTable
from taskherd.broker.publisher import Publisher
from taskherd.broker.topology import TopologyNames
from taskherd.dev.agents import answers
from taskherd.domain.reports import AgentHeartbeat, AgentState, AppStatus
from taskherd.messages.reports import encode_report, join_reports

WORK_TIMEOUT: Final = 60.0
"""Maximum duration of an agent's job, in seconds."""
EFFECT_TIMEOUT: Final = 30.0
"""Maximum wait for the effect of a step, in seconds."""
STAGGER: Final = 0.5
"""Seconds between two creates, so that the agents do not start at the same time."""
_LOG_INTERVAL: Final = 0.1
"""Seconds between two looks at a log."""
QUESTIONS: Final = ("domain", "store", answers.LAST_INPUT)
NEW_PROMPT: Final = "Count the functions, and continue where you stopped"
GARBAGE: Final = b"\x89PNG\r\n\x1a\n is the beginning of a picture"
_MIN_MESSAGES: Final = 3
"""Messages that an agent must have reported before its scenario continues."""
_MIN_WORKING: Final = 3
"""Undisturbed agents that must be working before the runner is killed."""
_UNDISTURBED: Final = frozenset({Role.PLAIN, Role.SELF_REPORTING, Role.GARBAGE})
ENDED: Final = frozenset({"complete", "failed"})


@dataclass(slots=True)
class Observations:
    """Observations during the scenarios that the final tasks do not show."""

    created: set[str] = field(default_factory=set)
    queued: int = 0
    adopted: int = 0
    alive_before: set[int] = field(default_factory=set)
    alive_after: set[int] = field(default_factory=set)
    processes: dict[str, int] = field(default_factory=dict)
    """Number of processes left after a scenario, by job."""
    done_before_resume: list[str] = field(default_factory=list)
    folder_gone: bool = False
    open_at_kill: set[str] = field(default_factory=set)
    """Ids of the requests that waited for a person when the runner was killed."""
    replied: str = ""
    """Id of the question that an input answered."""
    queued_before_steer: bool = False
    agent_before_interrupt: int | None = None
    agent_after_interrupt: int | None = None
    """Pid of the interrupted agent, before and after."""


@dataclass(frozen=True, slots=True)
class ScenarioRunner:
    """A runner of all scenarios of a demo, concurrently."""

    client: DemoClient
    table: TaskTable
    processes: DemoProcesses
    publisher: Publisher
    names: TopologyNames
    screen: Screen
    observations: Observations
    replaced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the runner was replaced, or was not killed."""

    async def run(self, scenarios: Sequence[Scenario]) -> None:
        """Create the tasks one after the other, and run each scenario to its end; every wait has a timeout."""
        async with asyncio.TaskGroup() as group:
            for number, scenario in enumerate(scenarios):
                group.create_task(self._run_one(scenario, number * STAGGER), name=scenario.job)
            group.create_task(self._replace_runner(), name="runner")

    async def _run_one(self, scenario: Scenario, delay: float) -> None:
        await asyncio.sleep(delay)
        await self.client.create(scenario)
        self.observations.created.add(scenario.job)
        match scenario.role:
            case Role.PLAIN | Role.FAILS | Role.FIXES | Role.SELF_REPORTING | Role.CRASHES:
                await self._await_end(scenario)
            case Role.ANSWERS:
                await self._send_inputs(scenario)
            case Role.PAUSED:
                await self._pause_and_resume(scenario)
            case Role.HANGS:
                await self._await_timeout(scenario)
            case Role.DELETED:
                await self._delete_while_working(scenario)
            case Role.GARBAGE:
                await self._send_garbage(scenario)
            case Role.ASKS:
                await self._answer_requests(scenario)
            case Role.INTERRUPTED:
                await self._steer(scenario)
            case _:
                assert_never(scenario.role)

    async def _replace_runner(self) -> None:
        """Kill the runner while agents are working, one is running a command, and one waits for permission."""
        try:
            if await self.table.until(self._is_time_to_kill, EFFECT_TIMEOUT):
                await self._until_inputs_are_logged()
                await self._kill_and_start_runner()
        finally:
            self.replaced.set()

    async def _until_inputs_are_logged(self) -> None:
        """Wait until the runner has told that the last input arrived: if it is killed before, nobody knows that."""
        until = asyncio.get_running_loop().time() + EFFECT_TIMEOUT
        for row in self.table.rows.values():
            if row.scenario.role is Role.ANSWERS:
                while not await self._has_input(row.scenario, QUESTIONS[-1]):
                    if asyncio.get_running_loop().time() > until:
                        return
                    await asyncio.sleep(_LOG_INTERVAL)

    async def _has_input(self, scenario: Scenario, text: str) -> bool:
        return any((each["type"], each["content"]) == ("input", text) for each in await self.client.logs(scenario))

    def _is_time_to_kill(self) -> bool:
        rows = self.table.rows.values()
        return (
            len(self._undisturbed()) >= _MIN_WORKING
            and all(row.state == "complete" for row in rows if row.scenario.role is Role.ANSWERS)
            and any(_open_request(row, PERMITTED) for row in rows)
            and any(_is_watching(row) for row in rows)
        )

    async def _kill_and_start_runner(self) -> None:
        waiting = (_open_request(row, PERMITTED) for row in self.table.rows.values())
        self.observations.open_at_kill = {request_id for request_id in waiting if request_id}
        self.observations.alive_before = self._undisturbed_pids()
        self.screen.say("kill -9 of the runner while agents are working")
        await asyncio.to_thread(self.processes.kill, "runner")
        self.observations.alive_after = self._undisturbed_pids()
        (meter,) = await asyncio.to_thread(self.processes.start, "runner")
        started_at = monotonic()
        while not self.observations.adopted and monotonic() - started_at < EFFECT_TIMEOUT:
            self.observations.adopted = int((await meter.read()).adopted)
            await asyncio.sleep(0.1)
        self.screen.say(f"a new runner is ready and has adopted {self.observations.adopted} running agents")

    def _undisturbed_pids(self) -> set[int]:
        """Return the pids of the working agents that their scenarios do not disturb, as recorded by their shims."""
        pids = (self.processes.agent(row.task_id) for row in self._undisturbed() if row.task_id is not None)
        return {pid for pid in pids if pid is not None}

    def _undisturbed(self) -> list[DemoTask]:
        rows = self.table.rows.values()
        return [
            row for row in rows if row.scenario.role in _UNDISTURBED and row.state == "working" and row.messages > 1
        ]

    async def _await_end(self, scenario: Scenario) -> None:
        row = self.table.of(scenario)
        await self.table.until(lambda: row.state in ENDED, WORK_TIMEOUT)

    async def _send_inputs(self, scenario: Scenario) -> None:
        row = self.table.of(scenario)
        await self.table.until(lambda: row.state == "idle" and row.status == "active", EFFECT_TIMEOUT)
        self.screen.say(f"sending three inputs to {scenario.name} at once")
        for question in QUESTIONS:
            self.observations.queued += await self.client.send(scenario, question)
        await self._await_end(scenario)

    async def _pause_and_resume(self, scenario: Scenario) -> None:
        row = self.table.of(scenario)
        await self._await_working(row)
        self.screen.say(f"pausing {scenario.name} while it works")
        await self.client.pause(scenario)
        await self.table.until(lambda: row.status == "paused", EFFECT_TIMEOUT)
        assert row.task_id is not None
        self.observations.processes[scenario.job] = len(self.processes.agents(row.task_id))
        self.observations.done_before_resume = (
            (self.processes.folder(row.task_id).work / "done.txt").read_text().splitlines()
        )
        await self.client.change_input(scenario, NEW_PROMPT)
        self.screen.say(f"resuming {scenario.name} with another prompt")
        await self.client.resume(scenario)
        await self._await_end(scenario)

    async def _await_timeout(self, scenario: Scenario) -> None:
        row = self.table.of(scenario)
        await self._await_end(scenario)
        if row.task_id is not None:
            self.observations.processes[scenario.job] = len(self.processes.agents(row.task_id))

    async def _delete_while_working(self, scenario: Scenario) -> None:
        row = self.table.of(scenario)
        await self._await_working(row)
        self.screen.say(f"deleting {scenario.name} while it works")
        await self.client.delete(scenario.owner, scenario.name)
        await self.table.until(lambda: row.deleted, EFFECT_TIMEOUT)
        assert row.task_id is not None
        folder, task_id = self.processes.folder(row.task_id).work, row.task_id
        self.observations.folder_gone = await _poll_until(lambda: not folder.exists())
        await _poll_until(lambda: not self.processes.agents(task_id))
        self.observations.processes[scenario.job] = len(self.processes.agents(task_id))

    async def _send_garbage(self, scenario: Scenario) -> None:
        """Send a message that is not JSON, and an array with an invalid report between two valid ones."""
        row = self.table.of(scenario)
        await self._await_working(row)
        self.screen.say(f"sending invalid messages about {scenario.name}")
        assert row.task_id is not None
        heartbeat = encode_report(AgentHeartbeat(task_id=row.task_id, build_number=1, seq=0), with_seq=False)
        status = encode_report(
            AppStatus(task_id=row.task_id, build_number=1, seq=0, state=AgentState.WORKING), with_seq=False
        )
        invalid = status.replace(b'"working"', b'"dancing"')
        for body in (GARBAGE, join_reports([heartbeat, invalid, heartbeat])):
            await self.publisher.publish(self.names.reports, str(row.task_id), body)
        await self._await_end(scenario)

    async def _answer_requests(self, scenario: Scenario) -> None:
        """Allow the first command, which the agent has asked for before its runner was replaced, reject the second one.

        The question is answered as people do in Coder's clients, by sending a text.
        """
        row = self.table.of(scenario)
        await self.replaced.wait()
        for command, option in ((PERMITTED, acp_agent.ALLOW), (REJECTED, acp_agent.REJECT)):
            if (request_id := await self._await_request(row, command)) is None:
                return
            self.screen.say(f"{scenario.name} asks whether it may run `{command}`: {option}")
            await self.client.answer(scenario, request_id, option)
        if await self._await_request(row, QUESTION) is not None:
            self.screen.say(f"{scenario.name} asks a question, which is answered by sending {NAME!r}")
            self.observations.replied = await self.client.reply(scenario, NAME)
            await self._await_end(scenario)

    async def _await_request(self, row: DemoTask, title: str) -> str | None:
        """Wait until the agent asks this, and return the id of the request, or None if it does not ask."""
        await self.table.until(lambda: _open_request(row, title) is not None, EFFECT_TIMEOUT)
        return _open_request(row, title)

    async def _steer(self, scenario: Scenario) -> None:
        """Interrupt the agent in its turn, while an input waits for the end of it, and send another input with that."""
        row = self.table.of(scenario)
        await self.replaced.wait()
        if not await self.table.until(lambda: _is_watching(row), EFFECT_TIMEOUT):
            return
        assert row.task_id is not None
        self.observations.agent_before_interrupt = self.processes.agent(row.task_id)
        self.observations.queued_before_steer = await self.client.send(scenario, LATER)
        self.screen.say(f"interrupting {scenario.name} in its turn, with an input that goes before the one that waits")
        await self.client.steer(scenario, STEER)
        await self.table.until(lambda: row.state == "idle" and "goodbye" in row.message, EFFECT_TIMEOUT)
        self.observations.agent_after_interrupt = self.processes.agent(row.task_id)

    async def _await_working(self, row: DemoTask) -> None:
        await self.table.until(lambda: row.messages >= _MIN_MESSAGES and row.health == "healthy", EFFECT_TIMEOUT)


def _open_request(row: DemoTask, title: str) -> str | None:
    """Return the id of the task's open request with this title."""
    requests = row.document.get("requests") or ()
    return next((each["id"] for each in requests if each["title"] == title), None)


def _is_watching(row: DemoTask) -> bool:
    """Return whether the task's agent runs the command that does not end."""
    return row.state == "working" and row.message == ENDLESS


async def _poll_until(holds: Callable[[], bool]) -> bool:
    """Poll until a condition on this machine holds or the timeout expires; return whether it holds."""
    deadline = monotonic() + EFFECT_TIMEOUT
    while not holds() and monotonic() < deadline:  # noqa: ASYNC110 - no event announces changes of files and processes
        await asyncio.sleep(0.1)
    return holds()
