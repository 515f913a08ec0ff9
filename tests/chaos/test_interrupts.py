"""Law 9 while runners and workers die at every instant of an interrupt: it always ends, and says what really happened.

Each agent works until its turn is cancelled, and writes down every line that it gets. A person interrupts each turn,
and gives the agent the next one. One of the agents ignores that it is cancelled, so it has to be ended, and is resumed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from taskherd.observability.failpoints import Failpoint
from tests.chaos.figures import Figures
from tests.harness import fork_server
from tests.harness.chaos import SETTINGS
from tests.harness.fork_server import RunningProcess
from tests.harness.runner import RunnerHarness, eventually, is_alive, json_lines, marked_by, runner_harness
from tests.harness.worker import SECRET, WorkerHarness, external_harness, make_command
from tests.runner.acp import AGENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OF_RUNNERS = (
    Failpoint.INTERRUPT_RECORD,
    Failpoint.LINE_RECORD,
    Failpoint.LINE_SUBMIT,
    Failpoint.INTERRUPT_SIGNAL,
    Failpoint.INTERRUPT_OUTCOME,
    Failpoint.INTERRUPT_REPORT,
)
OF_WORKERS = (
    Failpoint.INTERRUPT_SAVED,
    Failpoint.INTERRUPT_COMMITTED,
    Failpoint.REQUEST_SEND,
    Failpoint.POST_COMMIT,
)
FULL_SIZE = [pytest.mark.chaos, pytest.mark.timeout(3600)]
AGENTS = 4
"""The last one is the one that ignores it when it is cancelled."""
DIES_WITHIN = 180.0
ENDS_WITHIN = 240.0
"""Seconds within which an interrupt must have ended, although runners and workers are killed meanwhile."""
REPEAT_AFTER = 3.0
"""Seconds after which a command without a reply is sent again, with the same id: the reply may be lost."""
STEP = 0.1


class Processes:
    """Workers, or runners, of which one runs at a time."""

    def __init__(self, command: str, environment: dict[str, str]) -> None:
        self._command = command
        self._environment = environment
        self._process: RunningProcess | None = None
        self._failpoint = ""

    async def run_to_failpoint(self, failpoint: Failpoint) -> None:
        """Replace the process by one that kills itself at the failpoint, and wait until it has."""
        await self._replace(failpoint)
        assert self._process is not None
        async with asyncio.timeout(DIES_WITHIN):
            assert await self._process.wait() == -signal.SIGKILL

    async def keep_running(self) -> None:
        """Replace a process that has killed itself by one that lives."""
        if self._failpoint or self._process is None:
            await self._replace("")

    async def kill(self) -> None:
        """Kill the process that runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _replace(self, failpoint: str) -> None:
        await self.kill()
        armed = {"TASKHERD_FAILPOINT": f"{failpoint}:kill"} if failpoint else {}
        self._process = await fork_server.start(self._command, self._environment | armed)
        self._failpoint = failpoint


@dataclass
class Person:
    """Who interrupts one agent, and what became of that."""

    harness: RunnerHarness
    task_id: uuid.UUID
    reading: asyncio.Lock
    is_stubborn: bool
    seen: tuple[int, int] = (0, -1)
    """The build and the turn that were interrupted last."""
    turns: int = 1
    outcomes: dict[str, str] = field(default_factory=dict)
    """Of the interrupts that were accepted, by id."""
    inputs: dict[str, str] = field(default_factory=dict)
    """What was accepted to be sent to the agent, by id."""

    @property
    def _worker(self) -> WorkerHarness:
        return self.harness.worker

    async def run(self, is_over: asyncio.Event) -> None:
        """Interrupt one turn after the other until it is over."""
        while not is_over.is_set():
            turn = await self.until_working()
            steers = self.turns % 2 == 0 and not self.is_stubborn
            reply = await self.send(interrupt=True) if steers else await self.command("task.interrupt")
            if not reply["ok"]:
                assert reply["error"]["message"] == "The agent is not working.", reply
                continue
            assert reply["interrupt_id"] not in self.outcomes, "the one before had ended"
            self.seen = turn
            if not steers and not self.is_stubborn:
                await self.send()
            self.outcomes[reply["interrupt_id"]] = await self._outcome(reply["interrupt_id"])
            if self.is_stubborn:
                await self._resume()

    def is_done(self) -> bool:
        """Return whether the agent has carried out its last turn."""
        state = self._worker.state(self.task_id)
        return (state.get("state"), state.get("message")) == ("idle", "That was all.")

    async def send(self, text: str = "", **fields: Any) -> dict[str, Any]:
        """Send the agent its next turn, or this text, and return the reply."""
        text = text or f"line: turn {self.turns}\nwait: stop"
        reply = await self.command("task.send", input=text, **fields)
        assert reply["ok"], reply
        self.turns += 1
        self.inputs[reply["input_id"]] = text
        return reply

    async def command(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a command until there is a reply, and return that."""
        command = make_command(kind, self.task_id, **fields)
        async with asyncio.timeout(ENDS_WITHIN):
            while True:
                reply = await self._worker.post(command)
                await asyncio.wait({reply}, timeout=REPEAT_AFTER)
                if reply.done():
                    return reply.result()

    async def read(self, query: str, *values: Any) -> Any:
        """Return a value from the database, whose connection all people share."""
        async with self.reading:
            return await self._worker.database.fetchval(query, *values)

    async def until_working(self) -> tuple[int, int]:
        """Wait until the agent shows that it works on another turn than the one that was interrupted last.

        If a runner was killed while it delivered the input, that one may have failed: then send the next.
        """
        async with asyncio.timeout(ENDS_WITHIN):
            while (turn := self._shown()) <= self.seen:
                latest = next(reversed(self.inputs), None)
                query = "SELECT state FROM inputs WHERE input_id = $1"
                if latest and await self.read(query, uuid.UUID(latest)) == "failed":
                    await self.send()
                await asyncio.sleep(STEP)
        return turn

    def _shown(self) -> tuple[int, int]:
        """Return the build and the turn that the task's document shows the agent to work on, or (0, -1)."""
        state = self._worker.state(self.task_id)
        shown = re.fullmatch(r"turn (\d+)", state.get("message") or "")
        if state.get("state") != "working" or shown is None:
            return 0, -1
        return self._worker.document(self.task_id)["workspace_build_number"], int(shown[1])

    async def _outcome(self, interrupt_id: str) -> str:
        """Wait until this interrupt has ended, and return its outcome."""
        async with asyncio.timeout(ENDS_WITHIN):
            while True:
                state = json.loads(await self.read("SELECT state FROM tasks WHERE id = $1", self.task_id))
                ended = state.get("last_interrupt", [""])
                if ended[0] == interrupt_id:
                    assert "interrupt" not in state
                    return str(ended[1])
                await asyncio.sleep(STEP)

    async def _resume(self) -> None:
        """Check that the agent had to be ended, and have it started again, with its prompt."""
        assert not is_alive(self.harness.agent(self.task_id, self.seen[0])["agent"])
        await eventually(lambda: self._worker.document(self.task_id)["agent_exit"], ENDS_WITHIN)
        assert self._worker.document(self.task_id)["agent_exit"]["why"] == "interrupted"
        reply = await self.command("task.resume")
        assert reply["ok"], reply


def worker_environment(worker: WorkerHarness) -> dict[str, str]:
    """Return the environment of a worker, before whose end of patience every interrupt must have its outcome."""
    database_url, amqp_url = worker.urls
    settings = {
        "TASKHERD_DATABASE_URL": database_url,
        "TASKHERD_AMQP_URL": amqp_url,
        "TASKHERD_AMQP_PREFIX": worker.prefix,
        "TASKHERD_SECRET_KEY": SECRET,
        "TASKHERD_INTERRUPT_TIMEOUT": "1h",
        "TASKHERD_REQUEST_BACKOFF_FIRST": "300ms",
        "TASKHERD_REQUEST_BACKOFF_MOST": "1s",
        "TASKHERD_RELAY_EVERY": "100ms",
    }
    return {**os.environ, **SETTINGS, **settings}


def runner_environment(harness: RunnerHarness) -> dict[str, str]:
    """Return the environment of a runner."""
    settings = {
        "TASKHERD_AMQP_URL": harness.worker.urls[1],
        "TASKHERD_AMQP_PREFIX": harness.worker.prefix,
        "TASKHERD_RUNNER_NAME": "r1",
        "TASKHERD_RUNNER_ROOT": str(harness.root),
        "TASKHERD_OPS_PORT": "0",
        "TASKHERD_LOG_LEVEL": "error",
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("TASKHERD_")} | settings


async def create_task(harness: RunnerHarness, *, is_stubborn: bool) -> Person:
    """Create a task, and return the person who interrupts its agent."""
    prompt = "trait: ignore-cancel\n" * is_stubborn + "line: turn 0\nwait: stop"
    return Person(harness, await harness.worker.create(input=prompt), asyncio.Lock(), is_stubborn)


async def settle(people: Sequence[Person]) -> None:
    """Let the agents end their turns, and give each a last one."""
    for person in people:
        if person.is_stubborn:  # its agent may be about to start, when nothing can be sent to it
            await person.until_working()
        (person.harness.work(person.task_id) / "stop").touch()
        await person.send("line: That was all.")
    for person in people:
        await eventually(person.is_done, ENDS_WITHIN)
    await people[0].harness.worker.until_row("SELECT count(*) FROM work_requests", is_=0)


def received(folder: Path) -> tuple[list[str], list[int]]:
    """Return the prompts that an agent was given, and how often it was asked to end each."""
    prompts: list[str] = []
    cancellations: list[int] = []
    for message in json_lines(folder / "received.jsonl"):
        if message.get("method") == "session/prompt":
            prompts.append("".join(block["text"] for block in message["params"]["prompt"]))
            cancellations.append(0)
        elif message.get("method") == "session/cancel":
            cancellations[-1] += 1
    return prompts, cancellations


async def check(person: Person) -> None:
    """Compare what shows with what the agent has written down."""
    worker, task_id, interrupts = person.harness.worker, person.task_id, len(person.outcomes)
    assert set(person.outcomes.values()) <= {"stopped"}, "each has stopped a turn, and says so"
    shown = [event["task"]["interrupt"] for event in worker.events_of(task_id)]
    begun = [after for before, after in zip([None, *shown], shown, strict=False) if after and after != before]
    assert (len(begun), shown[-1]) == (interrupts, None), "each was opened once, and none is open"
    prompts, cancellations = received(person.harness.work(task_id))
    assert max(cancellations) <= 1, "no turn was cancelled twice"
    assert sum(cancellations) == interrupts, "only what was to be interrupted was cancelled"
    rows = await worker.database.fetch("SELECT input_id, content, state FROM inputs WHERE task_id = $1", task_id)
    assert {str(row["input_id"]): row["content"] for row in rows} == person.inputs
    for row in rows:
        given = prompts.count(row["content"])
        assert row["state"] in {"delivered", "failed"}
        assert given == 1 if row["state"] == "delivered" else given <= 1, "each input was given once"
    if person.is_stubborn:
        assert worker.document(task_id)["workspace_build_number"] == interrupts + 1, "each has ended an agent"
    else:
        assert worker.document(task_id)["workspace_build_number"] == 1, "the agent lived through it"


@pytest.fixture
async def harness(database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path) -> AsyncIterator[RunnerHarness]:
    """Yield a harness with its own database and queues, and no worker and runner yet."""
    async with (
        external_harness(database_url, amqp_url, amqp_prefix) as worker,
        runner_harness(worker, tmp_path) as harness,
    ):
        harness.names.add("r1")
        yield harness


@pytest.mark.parametrize("kills", [len(OF_RUNNERS) + len(OF_WORKERS), pytest.param(60, marks=FULL_SIZE)])
async def test_an_interrupt_ends_once_whatever_dies(harness: RunnerHarness, figures: Figures, kills: int) -> None:
    """One runner or worker after the other is killed; each interrupt ends one turn, and the next one is given."""
    worker = harness.worker
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        await harness.template({"command": [sys.executable, str(AGENT)], "agent": "acp", "grace": 1})
        workers = Processes("worker", worker_environment(worker))
        runners = Processes("runner", runner_environment(harness))
        stack.push_async_callback(workers.kill)
        stack.push_async_callback(runners.kill)
        await workers.keep_running()
        await runners.keep_running()
        people = [await create_task(harness, is_stubborn=number == AGENTS - 1) for number in range(AGENTS)]
        for person in people:
            person.reading = people[0].reading
        is_over = asyncio.Event()
        interrupting = [group.create_task(person.run(is_over)) for person in people]
        killed = 0
        for _, failpoint in zip(range(kills), cycle(OF_RUNNERS + OF_WORKERS), strict=False):
            victims, others = (runners, workers) if failpoint in OF_RUNNERS else (workers, runners)
            await others.keep_running()
            await victims.run_to_failpoint(failpoint)
            killed += 1
        assert killed == kills
        await runners.keep_running()
        await workers.keep_running()
        is_over.set()
        await asyncio.gather(*interrupting)
        await settle(people)
        for person in people:
            await check(person)
        dead = [(letter.headers, letter.body) for letter in worker.dead_letters]
        kept = [headers for headers, _ in dead if headers.get("x-first-death-reason") != "expired"]
        assert not kept, "a question of a runner expires while no worker answers; nothing else is dead-lettered"
        assert len(marked_by(f"{harness.root}/")) == 2 * AGENTS, "nothing is left of the agents that were ended"
        if figures.enabled:
            interrupts = sum(len(person.outcomes) for person in people)
            ended = len(people[-1].outcomes)
            note = (
                f"{AGENTS} agents; each interrupt stopped one turn, {ended} of them by ending an agent that ignored it"
            )
            figures.record(
                "runner or worker kill -9 while agents are interrupted",
                faults=kills, sent=interrupts, lost=0, duplicated=0, note=note,
            )  # fmt: skip
