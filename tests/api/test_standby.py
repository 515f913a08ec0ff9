"""Reads from a real streaming standby that lags, hangs, is away, or is no standby."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import httpx
import pytest

from taskherd.api.app import ApiProcess
from taskherd.api.read_routing import ReadRouting
from taskherd.cli.diagnostics.database import check_standby
from taskherd.cli.diagnostics.findings import FindingState
from taskherd.client.http import LSN, Client
from taskherd.dev.postgres import PostgresNode
from taskherd.errors import Misconfigured, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.settings import Settings
from taskherd.store import migrate
from taskherd.store.read_pool import ReadPool
from tests.api.test_clients import expected_build_id, frames, socket
from tests.api.test_sse import until_subscribers
from tests.harness.api import TIMEOUT, VERSION, ApiHarness, open_api_harness, running_api
from tests.harness.replication import StandbyNode, execute, running_pair
from tests.harness.sse import sse_client
from tests.harness.worker import build_report

pytestmark = pytest.mark.slow

Pair: TypeAlias = tuple[PostgresNode, StandbyNode]
OpenHarness: TypeAlias = Callable[..., AbstractAsyncContextManager[ApiHarness]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield a primary and a standby for this module."""
    with running_pair(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture
async def opened(pair: Pair, amqp_url: str, amqp_prefix: str) -> AsyncIterator[OpenHarness]:
    """Yield a function that opens a worker and an API on a database of the pair, reading from the standby."""
    primary, standby = pair
    name = f"taskherd_{uuid.uuid4().hex[:8]}"
    await execute(primary.url, f"CREATE DATABASE {name}")
    url, read_url = (urlsplit(node.url)._replace(path=f"/{name}").geturl() for node in pair)
    await asyncio.to_thread(migrate.upgrade, url)

    @asynccontextmanager
    async def open_harness(*, reader: str | None = None, **settings: Any) -> AsyncIterator[ApiHarness]:
        parts = urlsplit(read_url)
        netloc = f"{reader}@{parts.hostname}:{parts.port}" if reader else parts.netloc
        defaults = {"database_read_url": parts._replace(netloc=netloc).geturl()}
        async with open_api_harness(url, amqp_url, amqp_prefix, **{**defaults, **settings}) as api:
            yield api

    yield open_harness
    if standby.pid is None:
        standby.start()
    standby.unfreeze()
    await _replay(standby, paused=False)


async def _replay(standby: StandbyNode, *, paused: bool) -> None:
    await execute(standby.url, f"SELECT pg_wal_replay_{'pause' if paused else 'resume'}()")


async def _caught_up(pair: tuple[PostgresNode, StandbyNode]) -> None:
    """Wait until the standby has replayed all that the primary has written now."""
    written = await execute(pair[0].url, "SELECT CAST(pg_current_wal_lsn() AS text)")
    reached = f"SELECT pg_last_wal_replay_lsn() >= CAST('{written}' AS pg_lsn)"
    async with asyncio.timeout(TIMEOUT):
        while not await execute(pair[1].url, reached):  # noqa: ASYNC110 - the standby sends no notification
            await asyncio.sleep(0.05)


def _reads(api: ApiHarness, server: str) -> float:
    return _reads_of(api.api, server)


def _reads_of(api: ApiProcess, server: str) -> float:
    value = api.metrics.registry.get_sample_value("taskherd_api_reads_total", {"server": server})
    assert value is not None
    return value


async def _until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not await condition():  # noqa: ASYNC110 - a server sends no notification
            await asyncio.sleep(0.05)


async def _standby_serves(api: ApiHarness, client: httpx.AsyncClient, path: str) -> None:
    """Read until the standby serves this client."""

    async def served() -> bool:
        before = _reads(api, "standby")
        assert (await client.get(path)).status_code == 200
        return _reads(api, "standby") > before

    await _until(served)


async def _standby_note(api: ApiHarness) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(f"http://127.0.0.1:{api.api.ops_port}/readyz")
    assert response.status_code == 200, response.text
    note: dict[str, Any] = response.json()["checks"]["standby"]
    return note


async def test_reads_come_from_the_standby(opened: OpenHarness) -> None:
    """A standby that keeps up serves reads, and readiness says that it is used."""
    async with opened() as api:
        task = await api.active()
        await _standby_serves(api, api.alice, f"/tasks/me/{task['id']}")
        await _standby_serves(api, api.bob, "/organizations")
        assert (await _standby_note(api))["ok"]
        lag = api.api.metrics.registry.get_sample_value("taskherd_api_standby_lag_seconds")
        assert lag is not None
        assert 0 <= lag < 5


async def test_callers_read_their_own_writes(opened: OpenHarness, pair: Pair) -> None:
    """While the standby stands still within the bound, whoever wrote reads the primary; others may read the standby."""
    async with opened(read_lag_most=60) as api:
        task = await api.active()
        path = f"/tasks/{task['owner_name']}/{task['id']}"
        await _standby_serves(api, api.alice, path)
        await _standby_serves(api, api.carol, path)
        await _caught_up(pair)
        await _replay(pair[1], paused=True)
        assert (await api.alice.post(f"/tasks/me/{task['id']}/pause")).status_code == 202
        for _ in range(20):
            assert (await api.get(task["id"]))["status"] != "active"
        assert (await api.carol.get(path)).json()["status"] == "active"
        created = await api.create()
        assert (await api.carol.get(f"/tasks/alice/{created['id']}")).status_code == 200, (
            "a miss is read from the primary"
        )
        await _replay(pair[1], paused=False)
        await _standby_serves(api, api.alice, path)
        assert (await api.get(task["id"]))["status"] != "active"


async def test_callers_read_their_own_writes_from_another_process(opened: OpenHarness, pair: Pair) -> None:
    """With the LSN that the response to a write named, no process that knows nothing of the write reads past it."""
    async with opened(read_lag_most=60) as api, running_api(*api.worker.urls, api.worker.prefix) as without_standby:
        read_url = urlsplit(pair[1].url)._replace(path=urlsplit(api.worker.urls[0]).path).geturl()
        settings: dict[str, Any] = {"database_read_url": read_url, "read_lag_most": 60}
        task = await api.active()
        path = ("tasks", "me", task["id"])
        async with running_api(*api.worker.urls, api.worker.prefix, **settings) as other:
            here, there, elsewhere = (
                Client(f"http://127.0.0.1:{each.port}", api.tokens["alice"])
                for each in (api.api, other, without_standby)
            )

            async def status(client: Client, **headers: str) -> Any:
                return (await asyncio.to_thread(client.request, "GET", *path, headers=headers)).body["status"]

            async def served_there() -> bool:
                before = _reads_of(other, "standby")
                await status(there)
                return _reads_of(other, "standby") > before

            await _caught_up(pair)
            await _until(served_there)
            await _replay(pair[1], paused=True)
            paused = await asyncio.to_thread(here.request, "POST", *path, "pause")
            lsn = paused.headers[LSN.lower()]
            assert await status(there) == "active", "it knows nothing of the write"
            assert await status(there, **{LSN: "not an LSN"}) == "active"
            assert await status(there, **{LSN: lsn}) != "active"
            assert await status(here) != "active"
            body = {"template_version_id": str(VERSION), "input": "Without a standby there is nothing to wait for"}
            created = await asyncio.to_thread(elsewhere.request, "POST", "tasks", "me", body=body)
            assert LSN.lower() not in created.headers
            await _replay(pair[1], paused=False)
            await _caught_up(pair)
            before = _reads_of(other, "standby")

            async def served_again() -> bool:
                assert await status(there, **{LSN: lsn}) != "active"
                return _reads_of(other, "standby") > before

            await _until(served_again)


async def test_a_follower_never_reads_an_older_version(opened: OpenHarness, pair: Pair) -> None:
    """Whoever received a change by stream or long poll reads no older state, however far the standby is behind."""
    async with opened(read_lag_most=60) as api:
        task = await api.active()
        path = f"/tasks/alice/{task['id']}"
        await _standby_serves(api, api.carol, path)
        await _standby_serves(api, api.alice, path)
        await _caught_up(pair)
        async with sse_client(api.carol, f"{path}/watch") as stream:
            await stream.ready()
            await _replay(pair[1], paused=True)
            report = {"type": "app.status", "task_id": task["id"], "state": "idle", "message": "Done", "uri": ""}
            await api.worker.report(report)
            await stream.until(lambda: (stream.events[-1].task["current_state"] or {}).get("state") == "idle")
            assert (await api.carol.get(path)).json()["current_state"]["state"] == "idle"
        polled = await api.alice.get(path, params={"until": "idle", "wait": "30s"})
        assert polled.json()["current_state"]["state"] == "idle"
        assert (await api.alice.get(path)).json()["current_state"]["state"] == "idle"


async def test_a_followed_log_has_the_newest_state_of_its_build(opened: OpenHarness, pair: Pair) -> None:
    """The reason of a failure is told with it: entries are sent once, and the standby may lack it then."""
    async with opened(read_lag_most=60) as api:
        task = await api.create(api.alice)
        await _standby_serves(api, api.carol, f"/tasks/alice/{task['id']}")
        await _caught_up(pair)
        path = f"/workspacebuilds/{expected_build_id(task['id'], 1)}/logs?follow"
        async with socket(api, path, "carol") as following:
            await until_subscribers(api, 1)
            await _replay(pair[1], paused=True)
            await api.worker.report(
                build_report(uuid.UUID(task["id"]), 1, "start", "failed", error="No space left on the standby's watch")
            )
            last = (await frames(following))[-1]
        assert (last["log_level"], last["output"]) == ("error", "No space left on the standby's watch")


async def test_a_lagging_standby_is_not_read(opened: OpenHarness, pair: Pair) -> None:
    """Beyond the bound all reads go to the primary, readiness says why, and the API stays ready."""
    async with opened(read_lag_most=0.5) as api:
        task = await api.active()
        path = f"/tasks/alice/{task['id']}"
        await _standby_serves(api, api.carol, path)
        await _replay(pair[1], paused=True)
        assert (await api.alice.post(f"/tasks/me/{task['id']}/pause")).status_code == 202

        async def current() -> bool:
            return bool((await api.carol.get(path)).json()["status"] != "active")

        async def noted() -> bool:
            return "lags more than 0.5 s" in (await _standby_note(api)).get("reason", "")

        await _until(current)
        await _until(noted)
        await _replay(pair[1], paused=False)
        await _standby_serves(api, api.carol, path)


@pytest.mark.parametrize("fault", ["frozen", "killed"])
async def test_without_the_standby_reads_go_to_the_primary(opened: OpenHarness, pair: Pair, fault: str) -> None:
    """A standby that hangs or is gone fails no read; when it is back, it is used again."""
    standby = pair[1]
    async with opened() as api:
        task = await api.active()
        path = f"/tasks/me/{task['id']}"
        await _standby_serves(api, api.alice, path)
        standby.freeze() if fault == "frozen" else standby.kill()
        for _ in range(30):
            started = asyncio.get_running_loop().time()
            assert (await api.alice.get(path)).status_code == 200
            assert asyncio.get_running_loop().time() - started < 10
        assert not (await _standby_note(api))["ok"]
        standby.unfreeze() if fault == "frozen" else standby.restart()
        await _standby_serves(api, api.alice, path)


async def test_a_standby_of_another_database_is_not_read(opened: OpenHarness, pair: Pair) -> None:
    """With the URL of another database nothing is read there, not even once, and readiness and doctor say why."""
    async with opened(database_read_url=pair[1].url) as api:
        await api.get((await api.create())["id"])

        async def noted() -> bool:
            return "another database" in (await _standby_note(api)).get("reason", "")

        await _until(noted)
        await api.get((await api.create())["id"])
        assert _reads(api, "standby") == 0
        settings = Settings(database_url=api.worker.urls[0], database_read_url=pair[1].url)
        findings = [each async for each in check_standby(settings)]
    assert [each.state for each in findings] == [FindingState.ERROR]


async def test_a_standby_that_rejects_reads_fails_none(opened: OpenHarness, pair: Pair) -> None:
    """If the user of the read URL lacks a privilege, reads go to the primary, and readiness names the setting."""
    await execute(pair[0].url, "DROP ROLE IF EXISTS stranger")
    await execute(pair[0].url, "CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
    async with opened(reader="stranger:stranger") as api:
        task = await api.create()

        async def noted() -> bool:
            await api.get(task["id"])
            return "permission denied" in (await _standby_note(api)).get("reason", "")

        await _until(noted)
        assert "database_read_url" in (await _standby_note(api))["reason"]
        for _ in range(10):
            await api.get(task["id"])
            assert not (await _standby_note(api))["ok"]
        assert _reads(api, "standby") == 0


async def test_a_comparison_begun_before_a_rejection_ends_no_suspension(pair: Pair) -> None:
    """If the standby rejects a read while it is compared, what the comparison finds does not bring it back."""
    primary, standby = (
        ReadPool(node.url, size=1, application_name="taskherd-tests", of_standby=node is pair[1]) for node in pair
    )
    routing = ReadRouting(primary, standby, 60.0, Metrics(), asyncio.get_running_loop().time)
    caller = uuid.uuid4()
    try:
        async with asyncio.timeout(TIMEOUT):
            while not routing.allows_standby(caller):
                await routing.sample_once(standby)
        for error in (Unavailable("the standby is gone"), Misconfigured("database_read_url", "privileges")):
            comparison = asyncio.create_task(routing.sample_once(standby))
            await asyncio.sleep(0)
            assert not comparison.done()
            routing.suspend(error)
            await comparison
            assert routing.problem == str(error)
            assert not routing.allows_standby(caller)
    finally:
        await primary.close()
        await standby.close()


@dataclass(frozen=True, slots=True)
class Failover:
    """The primary before and after, a standby that goes on to follow the former one, and one that follows the new."""

    former: PostgresNode
    primary: StandbyNode
    stale: StandbyNode
    follower: StandbyNode

    async def change(self) -> None:
        """Lose the former primary, and promote the new one, which lacks its last changes."""
        address = urlsplit(self.primary.url)
        conninfo = f"host={address.hostname} port={address.port} user={address.username} password={address.password}"
        await execute(self.follower.url, f"ALTER SYSTEM SET primary_conninfo = '{conninfo}'")
        self.primary.kill()
        self.follower.kill()
        await execute(self.former.url, "CREATE TABLE lost AS SELECT * FROM generate_series(1, 100000)")
        await _caught_up((self.former, self.stale))
        self.former.kill()
        await asyncio.to_thread(self.primary.start)
        await asyncio.to_thread(self.primary.promote)
        await asyncio.to_thread(self.follower.start)


@pytest.fixture
async def failover(tmp_path: Path) -> AsyncIterator[Failover]:
    """Yield servers of their own, before the failover."""
    with running_pair(tmp_path / "pair") as (former, stale), ExitStack() as others:
        nodes = [StandbyNode(former, tmp_path / name, name) for name in ("new", "follower")]
        for node in nodes:
            await asyncio.to_thread(node.start)
            others.callback(node.stop)
        yield Failover(former, nodes[0], stale, nodes[1])


async def test_only_a_standby_of_the_new_primary_is_read_after_a_failover(failover: Failover) -> None:
    """One that still follows the former primary shows what is lost, and its position may be beyond the new one's."""
    await execute(failover.former.url, "CREATE ROLE reader LOGIN PASSWORD 'reader'")
    hosts = [urlsplit(each.url) for each in (failover.former, failover.primary)]
    netloc = f"{hosts[0].username}:{hosts[0].password}@{hosts[0].hostname}:{hosts[0].port},"
    url = hosts[0]._replace(netloc=f"{netloc}{hosts[1].hostname}:{hosts[1].port}").geturl()
    async with AsyncExitStack() as pools:

        def open_routing(standby: StandbyNode, user: str) -> Callable[[], Awaitable[ReadRouting]]:
            parts = urlsplit(standby.url)
            if user:
                parts = parts._replace(netloc=f"{user}:{user}@{parts.hostname}:{parts.port}")
            primary = ReadPool(url, size=1, application_name="test")
            reads = ReadPool(parts.geturl(), size=1, application_name="test", of_standby=True)
            pools.push_async_callback(primary.close)
            pools.push_async_callback(reads.close)
            routing = ReadRouting(primary, reads, 3_600, Metrics(), asyncio.get_running_loop().time)

            async def sample() -> ReadRouting:
                await routing.sample_once(reads)
                return routing

            return sample

        stale = [open_routing(failover.stale, user) for user in ("", "reader")]
        follower = [open_routing(failover.follower, user) for user in ("", "reader")]
        for sample in (*stale, *follower):
            await _until(partial(_allows, sample))
        await failover.change()
        for sample in stale:
            await _until(partial(_has_problem, sample, "it shows timeline 1, and the primary writes timeline 2"))
            assert not await _allows(sample)
        await _until(partial(_allows, follower[0]))
        for standby, state in ((failover.stale, FindingState.ERROR), (failover.follower, FindingState.OK)):
            findings = [each async for each in check_standby(Settings(database_url=url, database_read_url=standby.url))]
            assert [each.state for each in findings] == [state]
        await execute(failover.primary.url, "CHECKPOINT")
        await _caught_up((failover.primary, failover.follower))
        await execute(failover.follower.url, "CHECKPOINT")
        await _until(partial(_allows, follower[1]))
        for sample in stale:
            assert not await _allows(sample)


async def _allows(sample: Callable[[], Awaitable[ReadRouting]]) -> bool:
    return (await sample()).allows_standby(uuid.uuid4())


async def _has_problem(sample: Callable[[], Awaitable[ReadRouting]], problem: str) -> bool:
    return (await sample()).problem == problem


async def test_a_primary_is_no_standby(opened: OpenHarness, pair: Pair) -> None:
    """With the URL of a primary where a standby belongs, everything is read from the primary, and readiness says so."""
    name = await execute(pair[0].url, "SELECT max(datname) FROM pg_database WHERE datname LIKE 'taskherd_%'")
    wrong = urlsplit(pair[0].url)._replace(path=f"/{name}").geturl()
    async with opened(database_read_url=wrong) as api:
        await api.get((await api.create())["id"])

        async def noted() -> bool:
            return "is not a standby" in (await _standby_note(api)).get("reason", "")

        await _until(noted)
        assert _reads(api, "standby") == 0
    findings = [each async for each in check_standby(Settings(database_read_url=wrong))]
    assert [each.state for each in findings] == [FindingState.ERROR]
    findings = [each async for each in check_standby(Settings(database_read_url=pair[1].url))]
    assert [each.state for each in findings] == [FindingState.OK]
