"""The state of each real agent that speaks ACP, sampled four times a second through the whole product."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import pytest

from tests.harness.runner import RunnerHarness, eventually
from tests.real_agents.conftest import ModelServer, answer, create_task
from tests.real_agents.protocol import PROGRAMS, ProtocolRecord
from tests.real_agents.states import LONGEST_LAG, Sample, judge, sampled

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]

AFTERWARDS = 12
"""Number of samples of a state that lasts."""


@dataclass(frozen=True)
class Sampling:
    """A runner whose agents are recorded, and what prints the figures."""

    harness: RunnerHarness
    model: ModelServer
    record: ProtocolRecord
    capsys: pytest.CaptureFixture[str]

    @asynccontextmanager
    async def judged(self, task_id: UUID, name: str) -> AsyncIterator[list[Sample]]:
        """Sample a task's state until the end of the block, then print the figures; none may be wrong for long."""
        async with sampled(lambda: self.harness.worker.state(task_id).get("state", "")) as samples:
            yield samples
        verdict = judge(samples, self.record.changes(), await self.model.spans())
        with self.capsys.disabled():
            sys.stdout.write(f"\n{name}: {verdict.describe()}\n")
        assert verdict.judged
        assert not verdict.wrong(LONGEST_LAG)


async def passed(samples: list[Sample]) -> None:
    """Wait until some more samples were taken."""
    count = len(samples)
    await eventually(lambda: len(samples) > count + AFTERWARDS)


@pytest.fixture
async def sampling(
    recorded_runner: RunnerHarness, model: ModelServer, record: ProtocolRecord, capsys: pytest.CaptureFixture[str]
) -> Sampling:
    """Return what samples the state of a recorded agent."""
    return Sampling(recorded_runner, model, record, capsys)


@pytest.mark.parametrize("template", PROGRAMS)
async def test_the_state_is_that_of_the_turn(sampling: Sampling, template: str) -> None:
    """It is ``working`` exactly while a turn runs: with a tool, without one, and one that is steered."""
    harness = sampling.harness
    task_id = await create_task(harness, template, "run: sleep 3; echo it is done > result; cat result")
    async with sampling.judged(task_id, f"{template}, turns") as samples:
        await harness.until_state(task_id, "idle", "The command printed: it is done")
        await passed(samples)
        assert (await harness.worker.command("task.send", task_id, input="Thank you"))["ok"]
        await harness.until_state(task_id, "idle", "You said: Thank you")
        await passed(samples)
        assert (await harness.worker.command("task.send", task_id, input="run: tail -f /dev/null"))["ok"]
        await harness.until_state(task_id, "working", "tail -f")
        await passed(samples)
        assert (await harness.worker.command("task.send", task_id, input="Good night", interrupt=True))["ok"]
        await harness.until_state(task_id, "idle", "You said: Good night")
        await passed(samples)


@pytest.mark.parametrize("template", PROGRAMS)
async def test_the_state_is_idle_while_a_person_is_asked(sampling: Sampling, template: str) -> None:
    """It is ``idle`` while a request is open; one is allowed, and one rejected."""
    harness = sampling.harness
    prompt = "run: sleep 3; echo it is done > result; cat result"
    task_id = await create_task(harness, template, prompt, approvals={"default": "ask"})
    async with sampling.judged(task_id, f"{template}, requests") as samples:
        await eventually(lambda: harness.worker.document(task_id).get("requests_open"), 120)
        await passed(samples)
        await answer(harness, task_id, "allow_once")
        await harness.until_state(task_id, "idle", "The command printed: it is done")
        await passed(samples)
        assert (await harness.worker.command("task.send", task_id, input="run: echo never > never"))["ok"]
        await eventually(lambda: harness.worker.document(task_id).get("requests_open"), 120)
        await passed(samples)
        await answer(harness, task_id, "reject_once")
        await eventually(lambda: not harness.worker.document(task_id).get("requests_open"))
        await passed(samples)
    assert (harness.work(task_id) / "project/result").read_text() == "it is done\n"
    assert not (harness.work(task_id) / "project/never").exists()
