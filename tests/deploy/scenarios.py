"""What each alert is about, made to happen to real processes, which are scraped before and after."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import httpx

from taskherd.dev import ports
from taskherd.store import partitions
from taskherd.store.tables import PARTITIONED
from tests.harness.runner import RunnerHarness, runner_harness
from tests.harness.scrapes import Scrape, ScrapedProcess, parse, series
from tests.harness.tcp_proxy import TcpProxy
from tests.harness.worker import WorkerHarness, build_report, make_report

CLAUDE: Final = {"template": "claude", "pool": "default"}
"""The labels of the harness's template."""
HASTY: Final = {"request_backoff_first": "100ms", "request_backoff_most": "300ms"}
FIVE: Final = 5
GUESSES: Final = 100
"""Guesses in a minute, which are fewer than an address may make at once."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A process's scrapes before and after something happened to it."""

    role: str
    before: Scrape
    after: Scrape


@dataclass
class Stage:
    """Where a scenario happens: the surroundings of a worker, and the processes started so far."""

    worker_harness: WorkerHarness
    folder: Path
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self, role: str, **settings: str) -> ScrapedProcess:
        """Start a process; a worker knows the directory's templates when this returns."""
        process = await ScrapedProcess.start(role, self.folder, self.worker_harness, **settings)
        self.stack.push_async_callback(process.stop)
        if role == "worker":
            await process.until_value(0, "taskherd_agent_events_total", type="lost", **CLAUDE)
        return process

    async def runner(self) -> RunnerHarness:
        """Return the harness of runners; it has none yet."""
        return await self.stack.enter_async_context(runner_harness(self.worker_harness, self.folder))

    async def proxy(self, url: str) -> tuple[TcpProxy, str]:
        """Return a proxy of the server of this URL, and the URL through it."""
        parts = urlsplit(url)
        proxy = TcpProxy(parts.hostname or ports.HOST, parts.port or 0)
        port = await proxy.start()
        self.stack.push_async_callback(proxy.stop)
        return proxy, parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{ports.HOST}:{port}").geturl()


Happen: TypeAlias = Callable[[Stage], Awaitable[list[Recording]]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Something that happens, the alerts that must fire for it, and the process whose series each of them reads.

    ``repeats``: it goes on, so what it added to counters is added every minute; otherwise it happens once.
    """

    title: str
    happen: Happen
    alerts: Mapping[str, str]
    repeats: bool = False


async def agent_falls_silent(stage: Stage) -> list[Recording]:
    """Let the first agent of a worker send no more heartbeats."""
    worker = await stage.start("worker", agent_lost_after="1s")
    before = await worker.until(bool)
    await stage.worker_harness.make_active()
    return [
        Recording("worker", before, await worker.until_value(1, "taskherd_agent_events_total", type="lost", **CLAUDE))
    ]


async def end_is_not_recorded(stage: Stage) -> list[Recording]:
    """Kill the first agent with its shim and its runner, as when a machine restarts, and start the runner again."""
    worker, runners = await stage.start("worker"), await stage.runner()
    first = await runners.start()
    before = await worker.until(bool)
    task_id = await runners.task("say:up", "sleep")
    await runners.until_output(task_id, "up")
    await first.kill()
    runners.kill_all(task_id)
    await runners.start()
    return [
        Recording("worker", before, await worker.until_value(1, "taskherd_agent_exits_total", why="lost", **CLAUDE))
    ]


async def starts_fail(stage: Stage) -> list[Recording]:
    """Let all of five tasks fail to start, since their template is invalid."""
    worker, runners = await stage.start("worker"), await stage.runner()
    runner = await runners.start()
    before, runner_before = await worker.until(bool), parse_response(await runner.metrics())
    await runners.template({"command": []})
    for _ in range(FIVE):
        await runners.worker.create()
    after = await worker.until_value(FIVE, "taskherd_tasks", status="error", **CLAUDE)
    failed = series("taskherd_runner_requests_total", type="workspace.start", outcome="failed")
    runner_after = parse_response(await runner.metrics())
    assert runner_after[failed] == FIVE
    return [Recording("worker", before, after), Recording("runner", runner_before, runner_after)]


async def agents_fail(stage: Stage) -> list[Recording]:
    """Let the agents of all of five tasks exit with status 3."""
    worker, runners = await stage.start("worker"), await stage.runner()
    await runners.start()
    before = await worker.until(bool)
    for _ in range(FIVE):
        await runners.task("exit:3")
    return [Recording("worker", before, await worker.until_value(FIVE, "taskherd_tasks", status="error", **CLAUDE))]


async def agents_crash(stage: Stage) -> list[Recording]:
    """Let three agents end by a signal."""
    worker, runners = await stage.start("worker"), await stage.runner()
    await runners.start()
    before = await worker.until(bool)
    for _ in range(3):
        await runners.task("crash")
    after = await worker.until_value(3, "taskherd_agent_exits_total", why="signalled", **CLAUDE)
    return [Recording("worker", before, after)]


async def agent_stalls(stage: Stage) -> list[Recording]:
    """Let an agent that is working say nothing."""
    worker = await stage.start("worker", stalled_after="1s")
    before = await worker.until(bool)
    task_id = await stage.worker_harness.make_active()
    await stage.worker_harness.report(make_report("app.status", task_id, state="working", message="Reading"))
    return [Recording("worker", before, await worker.until_value(1, "taskherd_agents_stalled", **CLAUDE))]


async def agents_disconnect(stage: Stage) -> list[Recording]:
    """Let three of ten agents disconnect, while twenty tasks have no agent yet."""
    worker = await stage.start("worker")
    before = await worker.until(bool)
    tasks = [await stage.worker_harness.make_active() for _ in range(10)]
    for _ in range(20):
        await stage.worker_harness.create()
    await stage.worker_harness.report(*(make_report("agent.disconnected", task_id) for task_id in tasks[:3]))
    lost = {"health": "agent has lost connection", **CLAUDE}
    return [Recording("worker", before, await worker.until_value(3, "taskherd_agents", **lost))]


async def report_is_unknown(stage: Stage) -> list[Recording]:
    """Send a report of an unknown type."""
    worker = await stage.start("worker")
    before = await worker.until(bool)
    await stage.worker_harness.report({"type": "nonsense"})
    after = await worker.until_value(1, "taskherd_dead_lettered_total", reason="unknown_type")
    return [Recording("worker", before, after)]


async def start_is_not_answered(stage: Stage) -> list[Recording]:
    """Create a task for a pool without a runner."""
    worker = await stage.start("worker", request_ttl="1s", **HASTY)
    before = await worker.until(bool)
    await stage.worker_harness.create()
    given_up = {"type": "workspace.start", **CLAUDE}
    return [Recording("worker", before, await worker.until_value(1, "taskherd_requests_given_up_total", **given_up))]


async def deletes_fail(stage: Stage) -> list[Recording]:
    """Let a delete fail four times."""
    worker = await stage.start("worker", delete_backoff_most="1s")
    before = await worker.until(bool)
    task_id = await stage.worker_harness.make_active()
    assert (await stage.worker_harness.command("task.delete", task_id))["ok"]
    after = before
    for number in range(2, 6):
        failed = build_report(task_id, number, "delete", "failed", error="The disk is busy")
        await stage.worker_harness.report(failed)
        after = await worker.until_value(number - 1, "taskherd_deletes_retried_total")
    return [Recording("worker", before, after)]


async def partition_is_locked(stage: Stage) -> list[Recording]:
    """Keep a worker from dropping an expired partition, as `pg_dump` does."""
    harness = stage.worker_harness
    worker = await stage.start("worker")
    before = await worker.until(bool)
    backup = await asyncpg.connect(harness.urls[0], timeout=30, command_timeout=10)
    try:
        last = f"{partitions.monday(datetime.now(UTC)) + timedelta(weeks=partitions.AHEAD):%Y%m%d}"
        is_ahead = "SELECT bool_and(to_regclass(parent || '_p' || $2) IS NOT NULL) FROM unnest($1::text[]) AS parent"
        while not await backup.fetchval(is_ahead, [*PARTITIONED], last):
            continue  # until the worker has created its partitions: that would fail, too
        is_there = False
        while not is_there:  # unless the worker has dropped it in between
            await backup.execute("SELECT taskherd_add_partition('task_events', '2020-01-06')")
            await backup.execute("BEGIN; LOCK TABLE task_events IN ACCESS SHARE MODE")
            is_there = await backup.fetchval("SELECT to_regclass('task_events_p20200106') IS NOT NULL")
        after = await worker.until_value(1, "taskherd_maintenance_failures_total", step="drop_partitions")
    finally:
        await backup.close(timeout=30)
    return [Recording("worker", before, after)]


async def database_goes_away(stage: Stage) -> list[Recording]:
    """Cut a worker from its database while a report waits."""
    proxy, url = await stage.proxy(stage.worker_harness.urls[0])
    worker = await stage.start("worker", database_url=url)
    before = await worker.until(bool)
    task_id = await stage.worker_harness.create()
    await proxy.stop()
    await stage.worker_harness.report(make_report("app.status", task_id, state="working", message="Reading"))
    failures = series("taskherd_batch_failures_total", reason="database")
    return [Recording("worker", before, await worker.until(lambda scrape: scrape[failures] >= 3))]


async def connections_break(stage: Stage) -> list[Recording]:
    """Cut a worker's connections to the broker six times."""
    proxy, url = await stage.proxy(stage.worker_harness.urls[1])
    worker = await stage.start("worker", amqp_url=url)
    before = after = await worker.until_value(1, "taskherd_broker_up")
    for times in range(1, 7):
        proxy.cut()
        for connection in ("consume", "publish", "reports", "unconfirmed", "work", "dead", "declare"):
            await worker.until_value(times, "taskherd_reconnects_total", connection=connection)
        after = await worker.until_value(1, "taskherd_broker_up")
    return [Recording("worker", before, after)]


async def api_has_no_database(stage: Stage) -> list[Recording]:
    """Ask an API for tasks while its database is away."""
    (port,) = ports.find_free([None])
    api = await stage.start("api", database_url=f"postgresql://nobody@{ports.HOST}:1/none", api_port=str(port))
    before = await api.until(bool)
    async with httpx.AsyncClient(base_url=f"http://{ports.HOST}:{port}/api/v2", timeout=30, trust_env=False) as client:
        for _ in range(3):
            assert (await client.get("/buildinfo")).status_code == httpx.codes.OK
            response = await client.get("/tasks", headers={"Coder-Session-Token": "a" * 10 + "-" + "b" * 22})
            assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE
    labels = {"route": "/api/v2/tasks", "method": "GET", "status": "503"}
    return [Recording("api", before, await api.until_value(3, "taskherd_api_requests_total", **labels))]


async def tokens_are_guessed(stage: Stage) -> list[Recording]:
    """Ask an API for tasks with tokens that do not exist."""
    (port,) = ports.find_free([None])
    api = await stage.start("api", api_port=str(port))
    before = await api.until(bool)
    url, guess = f"http://{ports.HOST}:{port}/api/v2/tasks", {"Coder-Session-Token": "a" * 10 + "-" + "b" * 22}
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        for _ in range(GUESSES):
            assert (await client.get(url, headers=guess)).status_code == httpx.codes.UNAUTHORIZED
    after = await api.until_value(GUESSES, "taskherd_api_sign_in_failures_total", reason="unknown")
    return [Recording("api", before, after)]


SCENARIOS: Final = (
    Scenario("an agent falls silent", agent_falls_silent, {"TaskherdAgentsLost": "worker"}),
    Scenario("nothing records the end of an agent", end_is_not_recorded, {"TaskherdAgentsLost": "worker"}),
    Scenario(
        "5 of 5 tasks fail to start", starts_fail, {"TaskherdTasksFail": "worker", "TaskherdRunnerFails": "runner"}
    ),
    Scenario("the agents of 5 of 5 tasks fail", agents_fail, {"TaskherdTasksFail": "worker"}),
    Scenario("three agents end by a signal", agents_crash, {"TaskherdAgentsKilled": "worker"}),
    Scenario("an agent stalls", agent_stalls, {"TaskherdAgentsStalled": "worker"}),
    Scenario("3 of 10 agents disconnect", agents_disconnect, {"TaskherdAgentsUnhealthy": "worker"}),
    Scenario("a report is unknown", report_is_unknown, {"TaskherdDeadLetters": "worker"}),
    Scenario("no runner answers a start", start_is_not_answered, {"TaskherdRequestsGivenUp": "worker"}),
    Scenario("deletes fail", deletes_fail, {"TaskherdDeletesFail": "worker"}),
    Scenario("a partition is locked", partition_is_locked, {"TaskherdMaintenanceFails": "worker"}, repeats=True),
    Scenario("the database is away", database_goes_away, {"TaskherdBatchesFail": "worker"}, repeats=True),
    Scenario("connections break", connections_break, {"TaskherdReconnecting": "worker"}),
    Scenario("the API has no database", api_has_no_database, {"TaskherdApiErrors": "api"}, repeats=True),
    Scenario("tokens are guessed", tokens_are_guessed, {"TaskherdSignInsFail": "api"}, repeats=True),
)


def parse_response(response: str) -> Scrape:
    """Parse the scrape in an HTTP response."""
    return parse(response.partition("\r\n\r\n")[2].replace("\r\n", "\n"))


@asynccontextmanager
async def stage_of(worker_harness: WorkerHarness, folder: Path) -> AsyncIterator[Stage]:
    """Yield a stage; on exit, stop its processes."""
    stage = Stage(worker_harness, folder)
    async with stage.stack:
        yield stage
