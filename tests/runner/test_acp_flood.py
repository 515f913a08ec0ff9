"""Agents that speak ACP and write without end, under a real shim: they wait, and neither runner nor disk suffers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from taskherd.runner.agents.acp import connection
from taskherd.runner.agents.acp.sizes import MAX_PARTS
from taskherd.runner.agents.log_budget import LogRates
from tests.harness.runner import eventually
from tests.runner.acp import AcpRun, acp_run

pytestmark = pytest.mark.timeout(120)
MAX_GAP = 2.0
"""Seconds for which the runner's event loop may be held, on a busy machine."""
PERMISSION = {
    "toolCall": {"toolCallId": "call", "title": "Run make", "kind": "execute"},
    "options": [{"optionId": "o", "name": "Allow", "kind": "allow_once"}],
}


def steps(*each: str) -> str:
    """Return a prompt that the tests' agent carries out."""
    return "\n".join(each)


@dataclass
class Measured:
    """What was measured while an agent wrote."""

    longest_gap: float = 0.0
    """Seconds for which the event loop was held at most."""
    most_lines: int = 0
    """Number of files in ``stdin/``, at most."""
    most_bytes: int = 0
    """Their size together, at most."""


@asynccontextmanager
async def measured(run: AcpRun) -> AsyncIterator[Measured]:
    """Yield what is measured until the end of the block."""
    found = Measured()

    async def measure() -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.02)
            found.longest_gap = max(found.longest_gap, time.monotonic() - begun)
            sizes = [_size(path) for path in run.task.run(1).stdin.iterdir()]
            found.most_lines = max(found.most_lines, len(sizes))
            found.most_bytes = max(found.most_bytes, sum(sizes))

    measuring = asyncio.create_task(measure())
    try:
        yield found
    finally:
        measuring.cancel()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # renamed or forgotten meanwhile
        return 0


async def until_received(run: AcpRun, count: int) -> None:
    """Wait until the agent has received more than so many messages."""
    await eventually(lambda: len(run.received()) > count)


@pytest.mark.parametrize(
    ("calls", "settings"),
    [
        ("3000 unknown {}", {}),
        ('50 fs/read_text_file {"path": "WORK/zeros"}', {"client_files": "read"}),
        (f"3000 session/request_permission {json.dumps(PERMISSION)}", {"approvals": {"default": "allow"}}),
    ],
)
async def test_an_agent_that_does_not_read_its_answers_waits_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: str, settings: dict[str, Any]
) -> None:
    """No more of its requests are read while many answers wait for it; what else the runner does goes on."""
    monkeypatch.setattr(connection, "WRITE_TIMEOUT", 3.0)
    async with acp_run(tmp_path, "late", **settings) as run:
        (run.task.work / "zeros").write_bytes(bytes(1024 * 1024 - 1))  # 6 MiB as JSON
        await run.start(steps("wait: go", f"calls: {calls.replace('WORK', str(run.task.work))}", "hang"))
        await run.until_state("working")
        async with measured(run) as found:
            run.touch("go")
            await run.until_ended()
        assert "did not read from its stdin" in run.state[1]
        assert found.longest_gap < MAX_GAP
        assert found.most_lines <= connection.MAX_ANSWERS + 2
        assert found.most_bytes < 2 * connection.MAX_ANSWER_BYTES + 6 * 1024 * 1024


async def test_requests_that_waited_are_answered_once_and_in_order(tmp_path: Path) -> None:
    """Those of an agent that begins to read at last are all answered, also over runners that are killed meanwhile."""
    count = 2_000
    async with acp_run(tmp_path, "late") as run:
        await run.start(steps(f"calls: {count} unknown {{}}", f"answer-to: {count - 1}", "line: done"))
        await eventually(lambda: len(run.follower._connection.lines) >= connection.MAX_ANSWERS)
        await run.take_over()
        run.touch("read")
        for number in (count // 3, count // 2):
            await until_received(run, number)
            await run.take_over()
        await run.until_state("idle", "done")
        answers = [each for each in run.received() if "method" not in each]
        assert [each["id"] for each in answers] == list(range(count))
        assert {each["error"]["code"] for each in answers} == {connection.METHOD_NOT_FOUND}


async def test_large_updates_do_not_hold_the_runner(tmp_path: Path) -> None:
    """An update with more parts than anything has is refused before it is validated; the turn goes on."""
    async with acp_run(tmp_path) as run:
        await run.start(steps("wait: go", "plans: 5 1300000", "line: done"))
        await run.until_state("working")
        async with measured(run) as found:
            run.touch("go")
            await run.until_state("idle", "done")
        assert found.longest_gap < MAX_GAP
        assert run.texts("plan") == []


async def test_what_shows_nothing_counts_against_the_logs_budget(tmp_path: Path) -> None:
    """An agent that floods the runner with updates in vain waits, as one does that prints without end."""
    async with acp_run(tmp_path) as run:
        run.log_rates = LogRates(bytes=1_000, entries=1_000)
        await run.start(steps("wait: go", "plans: 1000 20000", "hang"))
        await run.until_state("working")
        run.touch("go")
        budget = run.follower._context.log_budget
        await eventually(lambda: not budget.has_room)
        assert run.follower._connection.reader.position < 20 * 20_000
        assert await run.follower.interrupt() == "stopped"
        await run.until_state("idle", "interrupted")


async def test_a_request_with_too_many_parts_is_refused(tmp_path: Path) -> None:
    """It is answered as one whose parameters do not fit, and the agent goes on."""
    options = json.dumps([0] * MAX_PARTS)
    async with acp_run(tmp_path) as run:
        await run.start(steps(f'request: 1 session/request_permission {{"options": {options}}}', "line: done"))
        await run.until_state("idle", "done")
        (error,) = [each["error"]["code"] for each in run.received() if "method" not in each]
        assert error == connection.INVALID_PARAMS


async def test_a_long_line_before_the_end_is_read(tmp_path: Path) -> None:
    """What an agent wrote last is reported after its end, also a message in several chunks and what follows it."""
    async with acp_run(tmp_path) as run:
        await run.start(steps("wait: go", f"line: {'word ' * 100_000}", "line: the end", "exit: 0"))
        await run.until_state("working")
        await run.take_over(meanwhile=lambda: run.touch("go"))
        await run.until_ended()
        assert run.texts()[-1].endswith("the end\n")
