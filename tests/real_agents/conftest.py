"""Claude Code, AgentAPI, the scripted model, and a runner whose user may run them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import uuid
from asyncio import create_subprocess_exec
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx
import pytest

from tests.harness.runner import RunnerHarness, RunnerSubprocess, eventually, eventually_async, runner_harness
from tests.harness.templates import shipped_run
from tests.harness.worker import worker_harness
from tests.real_agents.environment import environment
from tests.real_agents.protocol import ProtocolRecord

MODEL = "tests.real_agents.model"
NOBODY = 65_534
NOT_TRIED: Final = "not tried"
START_TIMEOUT = 150.0
"""Seconds within which an agent must open its session, also on a busy machine."""


@dataclass(frozen=True, slots=True)
class ModelServer:
    """The running model server."""

    url: str

    async def request_counts(self) -> dict[str, int]:
        """Return how often each route was called; empty until the server listens."""
        async with httpx.AsyncClient() as client:
            with suppress(httpx.ConnectError):
                counts: dict[str, int] = (await client.get(f"{self.url}/requests")).json()
                return counts
        return {}

    async def spans(self) -> list[tuple[float, float]]:
        """Return when each request of an agent's turns began and ended, in seconds since the epoch, in order."""
        async with httpx.AsyncClient() as client:
            return sorted((begin, end) for begin, end in (await client.get(f"{self.url}/spans")).json())


def not_tried(agent: str, why: str) -> NoReturn:
    """Leave out a test of an agent that is not installed; the summary of the run says which, and why."""
    pytest.skip(f"{NOT_TRIED}: {agent}: {why}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the agents that were not installed, each with the number of tests that were left out."""
    reasons = Counter(str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    left_out = {reason: count for reason, count in reasons.items() if NOT_TRIED in reason}
    if left_out:
        terminalreporter.section("agents that are not installed, and were not tried")
    for reason, count in sorted(left_out.items()):
        terminalreporter.line(f"{reason.partition(f'{NOT_TRIED}: ')[2]} ({count} tests)")


@pytest.fixture
def agentapi_path(acp_path: str) -> str:
    """Return that PATH with ``agentapi`` before it, named by the variable that ``make agents`` sets."""
    program = shutil.which(os.environ.get("AGENTAPI") or "agentapi")
    if program is None:
        not_tried("AgentAPI", "it is neither on npm nor on PyPI: install it as its project describes, and set AGENTAPI")
    return os.pathsep.join([str(Path(program).absolute().parent), acp_path])


@pytest.fixture
def acp_path() -> str:
    """Return a PATH with the agents from npm, named by the variable that ``make agents`` sets."""
    program = shutil.which("claude-agent-acp", path=os.environ.get("CLAUDE") or os.environ["PATH"])
    assert program, "claude-agent-acp is not installed: run `make agents`."
    return os.pathsep.join([str(Path(program).absolute().parent), os.environ["PATH"]])


@pytest.fixture
async def model(unused_tcp_port: int) -> AsyncIterator[ModelServer]:
    """Run the scripted model server."""
    process = await create_subprocess_exec(sys.executable, "-m", MODEL, str(unused_tcp_port))
    try:
        server = ModelServer(f"http://127.0.0.1:{unused_tcp_port}")
        await eventually_async(server.request_counts, bool)
        yield server
    finally:
        process.kill()
        await process.wait()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder that belongs to the agents' user; pytest's own ones are closed to others."""
    with tempfile.TemporaryDirectory(prefix="real-agents-") as name:
        path = Path(name)
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        path.chmod(0o755)
        yield path


@pytest.fixture
def record(folder: Path) -> ProtocolRecord:
    """Return a record of what passes between the test's runner and its agent, for a PATH wrapped with it."""
    written = folder / "record"
    written.mkdir()
    written.chmod(0o777)
    return ProtocolRecord(written)


@pytest.fixture
async def harness(database_url: str, amqp_url: str, amqp_prefix: str, folder: Path) -> AsyncIterator[RunnerHarness]:
    """Yield a worker with its own database and queues, and no runner yet."""
    async with (
        worker_harness(database_url, amqp_url, amqp_prefix, log_level="warning") as worker,
        runner_harness(worker, folder) as harness,
    ):
        yield harness


@pytest.fixture
async def runner(
    harness: RunnerHarness, model: ModelServer, acp_path: str, monkeypatch: pytest.MonkeyPatch
) -> RunnerHarness:
    """Return a harness with a runner that is not root, with the environment that the templates inherit."""
    await start_runner(harness, model, acp_path, monkeypatch)
    return harness


@pytest.fixture
async def agentapi_runner(
    harness: RunnerHarness, model: ModelServer, agentapi_path: str, monkeypatch: pytest.MonkeyPatch
) -> RunnerHarness:
    """Return such a harness whose agents may be behind AgentAPI."""
    await start_runner(harness, model, agentapi_path, monkeypatch)
    return harness


@pytest.fixture
async def recorded_runner(
    harness: RunnerHarness, model: ModelServer, acp_path: str, record: ProtocolRecord, monkeypatch: pytest.MonkeyPatch
) -> RunnerHarness:
    """Return such a harness whose agent is recorded."""
    await start_runner(harness, model, record.wrap(acp_path), monkeypatch)
    return harness


async def start_runner(
    harness: RunnerHarness, model: ModelServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> RunnerSubprocess:
    """Start a runner that is not root."""
    monkeypatch.setenv("PATH", path)
    for name, value in environment(model.url).items():
        monkeypatch.setenv(name, value)
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups") if os.geteuid() == 0 else ()
    (harness.folder / f"runner-{len(harness.runners)}.log").touch()
    return await harness.start(prefix=user)


async def create_task(harness: RunnerHarness, template: str, prompt: str, **changed: Any) -> uuid.UUID:
    """Create a task of a shipped template that allows everything unless ``changed`` says otherwise; await its start."""
    await harness.template({**shipped_run(f"{template}.yaml"), "approvals": {"default": "allow"}, **changed})
    task_id = await harness.worker.create(input=prompt)
    await until_started(harness, task_id)
    return task_id


async def until_started(harness: RunnerHarness, task_id: uuid.UUID) -> None:
    """Wait until the agent's session is open, for which OpenCode computes for several seconds on an idle machine."""
    starting = {None, "pending", "initializing", "paused"}
    await eventually(lambda: harness.worker.document(task_id).get("status") not in starting, START_TIMEOUT)


async def answer(harness: RunnerHarness, task_id: uuid.UUID, kind: str) -> None:
    """Answer the task's open request as a person does, with its option of a kind."""
    (request,) = harness.worker.document(task_id)["requests"]
    query = "SELECT report::text FROM agent_requests WHERE request_id = $1"
    options = json.loads(await harness.worker.database.fetchval(query, request["id"]))["options"]
    (option_id,) = [option["id"] for option in options if option["kind"] == kind]
    given = {"request_id": request["id"], "option_id": option_id}
    assert (await harness.worker.command("task.answer", task_id, **given))["ok"]


async def pause_and_resume(harness: RunnerHarness, task_id: uuid.UUID) -> None:
    """Pause a task, and resume it."""
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await until_started(harness, task_id)
