"""Law 8 while workers die at every instant of a request: asked once, answered once, in the document and for the agent.

The agents, their runner and the people are part of the test. What each agent got is in a ledger of its own, from which
alone follows what must show in the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import cycle
from random import Random
from typing import Any

import pytest

from taskherd.observability.failpoints import Failpoint
from tests.chaos.figures import Figures
from tests.harness import fork_server
from tests.harness.chaos import SETTINGS
from tests.harness.worker import SECRET, WorkerHarness, external_harness, make_command, make_report, running_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FAILPOINTS = (
    Failpoint.AGENT_REQUESTS_SAVED,
    Failpoint.ANSWER_COMMITTED,
    Failpoint.ANSWER_SEND,
    Failpoint.ANSWER_SENT,
    Failpoint.WRITE,
    Failpoint.PRE_COMMIT,
    Failpoint.POST_COMMIT,
)
FULL_SIZE = [pytest.mark.chaos, pytest.mark.timeout(3600)]
TASKS = 6
DIES_WITHIN = 60.0
STEP = 0.2
REPEAT_AFTER = 20
"""Steps without any reply after which those that are missing count as lost."""
SETTLES_WITHIN = 300.0


@dataclass
class AskedRequest:
    """A request of an agent, as the agent knows it: ``got`` is the answer it got, "" after it gave up waiting."""

    task_id: uuid.UUID
    request_id: str
    title: str
    seq: int = 1
    got: str | None = None

    def report(self, **fields: Any) -> dict[str, Any]:
        """Return the report of the request as it is now."""
        state = {None: "open", "": "withdrawn"}.get(self.got, "answered")
        given = {"request_id": self.request_id, "title": self.title, "build_number": 1, "seq": self.seq}
        answer = {"text": self.got} if self.got else {}
        kind = {"kind": "question", "state": state}
        return make_report("agent.request", self.task_id, **given, **answer, **kind, **fields)


@dataclass
class SentAnswer:
    """An answer that a person sent: the command, and the reply to come."""

    command: dict[str, Any]
    replies: list[asyncio.Future[dict[str, Any]]]
    """One for each time that it was sent; a reply is lost with a worker that dies before it is sent."""

    @property
    def reply(self) -> dict[str, Any] | None:
        """The first reply that has come."""
        return next((reply.result() for reply in self.replies if reply.done()), None)

    @property
    def text(self) -> str:
        """The text of the answer."""
        return str(self.command["text"])

    @property
    def is_unknown(self) -> bool:
        """True if the request was not known yet."""
        return self.reply is not None and not self.reply["ok"] and self.reply["error"]["status"] == 404


@dataclass
class World:
    """The agents that ask, their runner, and the people who answer; ``violations`` are what must never happen."""

    harness: WorkerHarness
    rng: Random
    tasks: list[uuid.UUID] = field(default_factory=list)
    asked: dict[str, AskedRequest] = field(default_factory=dict)
    answers: dict[str, list[SentAnswer]] = field(default_factory=lambda: defaultdict(list))
    """By request: what people sent."""
    delivered: int = 0
    violations: list[str] = field(default_factory=list)

    async def ask(self) -> None:
        """Let an agent ask something new."""
        request = AskedRequest(self.rng.choice(self.tasks), str(uuid.uuid4()), f"Question {len(self.asked)}?")
        self.asked[request.request_id] = request
        await self.harness.report(*[request.report()] * self.rng.choice((1, 2)))

    async def answer(self) -> None:
        """Let two people answer each request that nobody has answered so far, both at the same time."""
        for request_id, request in self.asked.items():
            if all(each.is_unknown for each in self.answers[request_id]):
                for _ in range(2):
                    text = f"answer {uuid.uuid4()}"
                    command = make_command("task.answer", request.task_id, request_id=request_id, text=text)
                    self.answers[request_id].append(SentAnswer(command, [await self.harness.post(command)]))

    async def repeat(self) -> None:
        """Send the answers again whose replies were lost with their worker: with the same ids, as clients do."""
        for sent in self.answers.values():
            for each in sent:
                if each.reply is None:
                    each.replies.append(await self.harness.post(each.command))

    async def give_up(self) -> None:
        """Let some agents stop waiting, as when their turn is cancelled."""
        for request in self.asked.values():
            if request.got is None and self.rng.random() < 0.01:
                await self._close(request, "")

    async def deliver(self) -> None:
        """Carry out what the runner is asked for: an answer reaches the agent once, and the report may be repeated."""
        new, self.delivered = self.harness.requests[self.delivered :], len(self.harness.requests)
        for work in new:
            if work["type"] != "agent.answer":
                continue
            request = self.asked[work["request_id"]]
            if str(request.task_id) != work["task_id"]:
                self.violations.append(f"{request.request_id} was answered in another task")
            if request.got is None:
                await self._close(request, work["text"])
            elif request.got not in {"", work["text"]}:
                self.violations.append(f"{request.request_id} got {request.got}, then {work['text']}")
            else:
                await self.harness.report(request.report())

    async def _close(self, request: AskedRequest, got: str) -> None:
        request.got, request.seq = got, request.seq + 1
        await self.harness.report(*[request.report()] * self.rng.choice((1, 2)))

    async def step(self) -> None:
        """Let everybody do something."""
        undecided = sum(request.got is None for request in self.asked.values())
        if undecided < 2 * TASKS:
            await self.ask()
        await self.answer()
        await self.deliver()
        await self.give_up()
        await asyncio.sleep(STEP)

    def accepted(self, request_id: str) -> list[str]:
        """Return the texts of the answers that were accepted."""
        return [each.text for each in self.answers[request_id] if each.reply is not None and each.reply["ok"]]


async def run_to_failpoint(world: World, failpoint: Failpoint) -> None:
    """Run a worker process until it kills itself at the failpoint, while everybody does something."""
    database_url, amqp_url = world.harness.urls
    settings = {
        "TASKHERD_DATABASE_URL": database_url,
        "TASKHERD_AMQP_URL": amqp_url,
        "TASKHERD_AMQP_PREFIX": world.harness.prefix,
        "TASKHERD_FAILPOINT": f"{failpoint}:kill",
        "TASKHERD_REQUEST_BACKOFF_FIRST": "300ms",
        "TASKHERD_REQUEST_BACKOFF_MOST": "1s",
        "TASKHERD_RELAY_EVERY": "100ms",
    }
    environment = {**os.environ, **SETTINGS, **settings, "TASKHERD_SECRET_KEY": SECRET}
    async with fork_server.running("worker", environment) as worker:
        async with asyncio.timeout(DIES_WITHIN):
            while worker.returncode is None:
                await world.step()
        assert worker.returncode == -signal.SIGKILL


async def settle(world: World) -> None:
    """Let everybody finish, with a worker that lives, until every request is closed and every command has a reply."""
    async with asyncio.timeout(SETTLES_WITHIN):
        quiet = before = 0
        while True:
            await world.answer()
            await world.deliver()
            replies = sum(each.reply is not None for sent in world.answers.values() for each in sent)
            quiet, before = (quiet + 1 if replies == before else 0), replies
            if quiet == REPEAT_AFTER:  # what was sent before is handled; what has no reply yet has lost it
                quiet = 0
                await world.repeat()
            replied = replies == sum(map(len, world.answers.values()))
            query = "SELECT count(*) FROM agent_requests WHERE report->>'state' <> 'open'"
            closed = await world.harness.database.fetchval(query)
            if replied and closed == len(world.asked) and all(each.got is not None for each in world.asked.values()):
                return
            await asyncio.sleep(STEP)


async def check(world: World) -> None:
    """Compare what shows, in the rows and the documents, with what the agents know."""
    rows = await world.harness.database.fetch("SELECT * FROM agent_requests")
    by_id = {str(row["request_id"]): row for row in rows}
    assert by_id.keys() == world.asked.keys(), "every request that was opened is known, and no other"
    for request_id, request in world.asked.items():
        row, accepted = by_id[request_id], world.accepted(request_id)
        assert row["shown"] == ("answered" if request.got else "withdrawn"), "what shows is what the agent knows"
        assert len(accepted) <= 1, "the first accepted answer stands"
        assert row["answer_text"] == (accepted[0] if accepted else None)
        assert request.got in {"", *accepted}, "the agent got the answer that was accepted, or none"
        assert (row["delivered_at"] is not None) == bool(request.got)
    for row in await world.harness.database.fetch("SELECT document FROM tasks"):
        document = json.loads(row["document"])
        assert (document["requests"], document["requests_open"]) == ([], 0)
    assert world.violations == []
    assert await world.harness.database.fetchval("SELECT count(*) FROM work_requests WHERE type = 'agent.answer'") == 0
    assert world.harness.reasons() == []


@pytest.mark.parametrize("kills", [len(FAILPOINTS), pytest.param(210, marks=FULL_SIZE)])
async def test_a_request_is_asked_once_and_answered_once_whatever_dies(
    database_url: str, amqp_url: str, amqp_prefix: str, figures: Figures, kills: int
) -> None:
    """Two people answer each request, agents give up at any time, and one worker after the other is killed."""
    async with external_harness(database_url, amqp_url, amqp_prefix) as harness:
        world = World(harness, Random(kills))
        async with running_worker(harness):
            world.tasks = [await harness.make_active() for _ in range(TASKS)]
        for _, failpoint in zip(range(kills), cycle(FAILPOINTS), strict=False):
            await run_to_failpoint(world, failpoint)
        async with running_worker(harness, request_backoff_first=0.3, request_backoff_most=1):
            await settle(world)
        await check(world)
        got = sum(bool(request.got) for request in world.asked.values())
        assert got, "some answers were delivered"
        if figures.enabled:
            note = f"{got} of {len(world.asked)} requests answered, the others given up by their agents"
            figures.record(
                "worker kill -9 while requests of agents are answered",
                faults=kills, sent=len(world.asked), lost=0, duplicated=0, note=note,
            )  # fmt: skip
