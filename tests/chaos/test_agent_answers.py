"""Laws 8 and 10 while runners die at every instant of a request; the agents write down what they get.

Each agent asks one question after the other, and tells after each answer what it has cost so far. Two people answer
each request differently at the same time. From what the agents have written follows what must show in the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from decimal import Decimal
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from taskherd.observability.failpoints import Failpoint
from tests.chaos.figures import Figures
from tests.harness import fork_server
from tests.harness.runner import RunnerHarness, eventually, json_lines, marked_by, runner_harness
from tests.harness.worker import WorkerHarness, make_command, worker_harness
from tests.runner.acp import AGENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

FAILPOINTS = (
    Failpoint.REQUEST_RECORD,
    Failpoint.ANSWER_RECEIVE,
    Failpoint.LINE_RECORD,
    Failpoint.LINE_SUBMIT,
    Failpoint.LINE_WRITTEN,
)
FULL_SIZE = [pytest.mark.chaos, pytest.mark.timeout(3600)]
AGENTS = 4
DIES_WITHIN = 120.0
SETTLES_WITHIN = 180.0
STEP = 0.2
OPTIONS = ("o-allow_once", "o-reject_once")
OPEN = "SELECT request_id, task_id FROM agent_requests WHERE shown = 'open' AND answered_by IS NULL"


class People:
    """Two people, who answer each request that is open."""

    def __init__(self, worker: WorkerHarness) -> None:
        self._worker = worker
        self.replies: dict[uuid.UUID, list[tuple[str, asyncio.Future[dict[str, Any]]]]] = {}
        """By request: the option that each has chosen, and the reply to come."""

    async def answer(self) -> None:
        """Answer what is open: both at the same time, each with another option."""
        for row in await self._worker.database.fetch(OPEN):
            request_id: uuid.UUID = row["request_id"]
            if request_id not in self.replies:
                self.replies[request_id] = [
                    (option, await self._worker.post(_command(row["task_id"], request_id, option)))
                    for option in OPTIONS
                ]
        await asyncio.sleep(STEP)

    def accepted(self, request_id: uuid.UUID) -> list[str]:
        """Return the options whose answers were accepted."""
        return [option for option, reply in self.replies[request_id] if reply.done() and reply.result()["ok"]]


def _command(task_id: uuid.UUID, request_id: uuid.UUID, option: str) -> dict[str, Any]:
    return make_command("task.answer", task_id, request_id=str(request_id), option_id=option)


async def run_to_failpoint(harness: RunnerHarness, people: People, failpoint: Failpoint) -> None:
    """Run a runner until it kills itself at the failpoint, while people answer."""
    async with fork_server.running("runner", environment(harness, f"{failpoint}:kill")) as runner:
        async with asyncio.timeout(DIES_WITHIN):
            while runner.returncode is None:
                await people.answer()
        assert runner.returncode == -signal.SIGKILL


def environment(harness: RunnerHarness, failpoint: str = "") -> dict[str, str]:
    """Return the environment of a runner."""
    settings = {
        "AMQP_URL": harness.worker.urls[1],
        "AMQP_PREFIX": harness.worker.prefix,
        "RUNNER_NAME": "r1",
        "RUNNER_ROOT": str(harness.root),
        "OPS_PORT": "0",
        "LOG_LEVEL": "error",
        "FAILPOINT": failpoint,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKHERD_")}
    return inherited | {f"TASKHERD_{name}": value for name, value in settings.items() if value}


async def settle(harness: RunnerHarness, people: People, tasks: list[uuid.UUID]) -> None:
    """Let the agents end their turns, with a runner that lives, until all requests are closed."""
    for task_id in tasks:
        (harness.work(task_id) / "stop").touch()
    async with asyncio.timeout(SETTLES_WITHIN):
        while True:
            await people.answer()
            states = [harness.worker.state(task_id) for task_id in tasks]
            query = "SELECT count(*) FROM agent_requests WHERE report->>'state' = 'open'"
            are_open = await harness.worker.database.fetchval(query)
            if not are_open and all(each.get("message") == "That was all." for each in states):
                return


def received(folder: Path) -> dict[str, list[str]]:
    """Return the answers that an agent was given, by its number of the request."""
    answers: dict[str, list[str]] = {}
    for message in json_lines(folder / "received.jsonl"):
        if "method" not in message:
            outcome = message.get("result", {}).get("outcome", {})
            answers.setdefault(message["id"].removeprefix("ask-"), []).append(outcome.get("optionId", "none"))
    return answers


async def check(harness: RunnerHarness, people: People, tasks: list[uuid.UUID]) -> int:
    """Compare what shows with what each agent has written down. Return the number of requests."""
    rows = await harness.worker.database.fetch("SELECT * FROM agent_requests")
    for task_id in tasks:
        answers = received(harness.work(task_id))
        assert all(len(each) == 1 for each in answers.values()), "no answer reached an agent twice"
        known = {}
        for row in (each for each in rows if each["task_id"] == task_id):
            number = json.loads(row["report"])["title"].rpartition(" ")[2]
            assert number not in known, "each request was asked once"
            known[number] = row
        assert known.keys() == answers.keys(), "every request was opened, and closed"
        for number, (given,) in answers.items():
            row = known[number]
            assert row["shown"] == "answered", "what shows is what the agent knows"
            assert people.accepted(row["request_id"]) == [given], "the agent got the answer that was accepted"
            assert row["delivered_at"] is not None
        cost = Decimal(len(answers)) + Decimal("0.5")
        assert await _spent(harness, task_id) == cost, "what was used is what the agent told"
    total = await harness.worker.database.fetchval("SELECT sum(amount) FROM daily_usage")
    assert total == sum([await _spent(harness, task_id) for task_id in tasks]), "usage adds up"
    assert harness.worker.reasons() == []
    return len(rows)


async def _spent(harness: RunnerHarness, task_id: uuid.UUID) -> Decimal:
    query = "SELECT sum(amount) FROM task_usage WHERE task_id = $1"
    spent: Decimal = await harness.worker.database.fetchval(query, task_id)
    return spent


@pytest.fixture
async def harness(database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path) -> AsyncIterator[RunnerHarness]:
    """Yield a worker with its own database and queues, and no runner yet."""
    settings = {"request_backoff_first": 0.3, "request_backoff_most": 1, "log_level": "warning"}
    async with (
        worker_harness(database_url, amqp_url, amqp_prefix, **settings) as worker,
        runner_harness(worker, tmp_path) as harness,
    ):
        harness.names.add("r1")
        yield harness


@pytest.mark.parametrize("kills", [len(FAILPOINTS), pytest.param(60, marks=FULL_SIZE)])
async def test_an_answer_reaches_its_agent_once_whatever_runner_dies(
    harness: RunnerHarness, figures: Figures, kills: int
) -> None:
    """One runner after the other is killed; the agents live on, and each gets each answer once."""
    worker = harness.worker
    await harness.template({"command": [sys.executable, str(AGENT)], "agent": "acp", "grace": 1})
    prompt = "ask-until: stop Question\nline: That was all."
    people, tasks = People(worker), [await worker.create(input=prompt) for _ in range(AGENTS)]
    for _, failpoint in zip(range(kills), cycle(FAILPOINTS), strict=False):
        await run_to_failpoint(harness, people, failpoint)
    async with fork_server.running("runner", environment(harness)):
        await eventually(lambda: all((harness.work(task_id) / "received.jsonl").exists() for task_id in tasks), 120)
        await settle(harness, people, tasks)
        requests = await check(harness, people, tasks)
        assert requests > AGENTS, "some answers were delivered, and more was asked"
        assert len(marked_by(f"{harness.root}/")) == 2 * AGENTS, "each agent lived through it, with its shim"
        if figures.enabled:
            note = f"{AGENTS} agents that lived through it, {requests} requests, each answered once; usage adds up"
            figures.record(
                "runner kill -9 while requests of agents are answered",
                faults=kills, sent=requests, lost=0, duplicated=0, note=note,
            )  # fmt: skip
