"""A caller who loses its access loses its streams, long polls and sockets within five seconds, while events flow."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
import yaml

from taskherd.api.http import open_requests
from taskherd.api.http.route import Auth
from taskherd.api.routes import ROUTES, SOCKETS
from taskherd.dev.services import Services
from taskherd.directory_file.parse import parse
from taskherd.errors import Unavailable
from taskherd.store import access_queries, directory
from taskherd.store.engine import dispose, open_engine, transaction
from tests.api.conftest import StartApi
from tests.api.test_clients import AGENT, APP, WORKSPACE, expected_build_id, socket
from tests.api.test_outages import rename_database
from tests.api.test_sse import until_subscribers
from tests.harness.api import ALICE, BOB, CAROL, MALLORY, ORGANIZATION, OTHER, TIMEOUT, ApiHarness
from tests.harness.sse import SseClient, sse_client
from tests.harness.worker import build_report, make_report

BOUND = 5.0
"""Maximum time in seconds from the loss of access to the end of a request."""
KINDS = {
    "all tasks": "/tasks/watch",
    "task": "/tasks/{user}/{task}/watch",
    "task and log": "/tasks/{user}/{task}/watch",
    "log": "/tasks/{user}/{task}/logs/watch",
    "long poll": "/tasks/{user}/{task}",
    "workspace": "/workspaces/{id}/watch",
    "workspace socket": "/workspaces/{id}/watch-ws",
    "build log": "/workspacebuilds/{id}/logs",
    "agent log": "/workspaceagents/{id}/logs",
    "action": "/task-actions/{action}/watch",
}
"""The kinds of requests that stay open, each with its route."""
FLOWING = ("all tasks", "task", "task and log", "log")
"""Those that receive something with each event of a task."""
WITHOUT_FEED = {"log", "action"}
"""Those that do not subscribe to the change feed."""
STREAM = "text/event-stream"
OF_NO_TASK = {"all tasks", "action"}
"""Those that are not about one task, and stay open while their caller is signed in."""


async def apply_directory(api_harness: ApiHarness, **alice: Any) -> None:
    """Apply a directory file with these fields of alice, or without her."""
    organizations = [
        {"id": str(ORGANIZATION), "name": "acme", "display_name": "Acme"},
        {"id": str(OTHER), "name": "other", "display_name": "Other"},
    ]
    memberships: dict[str, tuple[uuid.UUID, dict[str, str]]] = {
        "bob": (BOB, {"acme": "member"}),
        "carol": (CAROL, {"acme": "admin"}),
        "mallory": (MALLORY, {"other": "admin"}),
    }
    if alice:
        memberships["alice"] = (ALICE, alice["organizations"])
    users = [
        {"id": str(user), "username": name, "name": name, "email": f"{name}@example.com", "organizations": roles}
        for name, (user, roles) in memberships.items()
    ]
    content = yaml.safe_dump({"organizations": organizations, "users": users, "templates": []})
    engine = open_engine(api_harness.worker.urls[0], size=1, application_name="tests")
    async with transaction(engine) as connection:
        await directory.apply(connection, parse(content.encode()), allow_deactivate=True)
    await dispose(engine)


async def revoke(api_harness: ApiHarness) -> None:
    """Revoke alice's token."""
    statement = "UPDATE api_tokens SET revoked_at = now() WHERE id = $1"
    await api_harness.worker.database.execute(statement, api_harness.tokens["alice"][:10])


async def expire(api_harness: ApiHarness) -> None:
    """Let alice's token expire."""
    statement = "UPDATE api_tokens SET expires_at = now() WHERE id = $1"
    await api_harness.worker.database.execute(statement, api_harness.tokens["alice"][:10])


async def deactivate(api_harness: ApiHarness) -> None:
    """Apply a directory without alice."""
    await apply_directory(api_harness)


async def leave(api_harness: ApiHarness) -> None:
    """Apply a directory in which alice belongs to another organization."""
    await apply_directory(api_harness, organizations={"other": "member"})


async def running_task(api_harness: ApiHarness) -> str:
    """Return a task of alice whose first build is still running, with a connected agent."""
    task = (await api_harness.create(name="watched"))["id"]
    task_id = uuid.UUID(task)
    resources = {"workspace": {"id": WORKSPACE, "name": "w"}, "agent_id": AGENT, "app": {"id": APP, "slug": "claude"}}
    await api_harness.worker.report(
        build_report(task_id, 1, "start", "running", **resources),
        make_report("agent.lifecycle", task_id, build_number=1, lifecycle="ready"),
        make_report("agent.heartbeat", task_id, build_number=1),
    )
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "active")
    return str(task)


async def unfinished_action(api_harness: ApiHarness) -> uuid.UUID:
    """Record an action of alice that is not due for an hour, and return its id."""
    action_id = uuid.uuid4()
    await api_harness.worker.database.execute(
        "INSERT INTO task_actions (id, user_id, token_id, action, query, digest, total, created_at, next_at)"
        " VALUES ($1, $2, $3, 'pause', 'owner:me', '', 1, now(), now() + interval '1 hour')",
        action_id,
        ALICE,
        api_harness.tokens["alice"][:10],
    )
    return action_id


class Watched:
    """Open requests of alice about one task, and when each received its latest data and ended."""

    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time
        self.received_at: dict[str, float] = {}
        self.ended_at: dict[str, float] = {}
        self.codes: dict[str, int | None] = {}

    async def stream(self, kind: str, lines: AsyncIterator[Any]) -> None:
        """Read until the end."""
        async for line in lines:
            if line not in {"", ": keep-alive", "event: ping"}:
                self.received_at[kind] = self.now()
        self.ended_at[kind] = self.now()


@asynccontextmanager
async def open_all(api_harness: ApiHarness, task: str) -> AsyncIterator[Watched]:
    """Open one request of each kind, each of which has received data, and read them while the block runs."""
    watched, alice = Watched(), api_harness.alice
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        reading = []
        for kind, path in (
            ("all tasks", "/tasks/watch"),
            ("task", f"/tasks/me/{task}/watch"),
            ("task and log", f"/tasks/me/{task}/watch?logs=10"),
            ("log", f"/tasks/me/{task}/logs/watch"),
            ("action", f"/task-actions/{await unfinished_action(api_harness)}/watch"),
            ("workspace", f"/workspaces/{WORKSPACE}/watch"),
        ):
            response = await stack.enter_async_context(alice.stream("GET", path, timeout=None))
            assert response.status_code == 200
            reading.append(group.create_task(watched.stream(kind, response.aiter_lines())))
        for kind, path in (
            ("workspace socket", f"/workspaces/{WORKSPACE}/watch-ws"),
            ("build log", f"/workspacebuilds/{expected_build_id(task, 1)}/logs?follow"),
            ("agent log", f"/workspaceagents/{AGENT}/logs?follow"),
        ):
            opened = await stack.enter_async_context(socket(api_harness, path))

            async def read(kind: str = kind, opened: Any = opened) -> None:
                while True:
                    try:
                        await opened.recv()
                    except Exception:  # noqa: BLE001 - closed, with any code
                        watched.ended_at[kind], watched.codes[kind] = watched.now(), opened.close_code
                        return
                    watched.received_at[kind] = watched.now()

            reading.append(group.create_task(read()))

        async def poll() -> None:
            response = await alice.get(f"/tasks/me/{task}", params={"wait": "40s", "until": "failed"}, timeout=None)
            watched.ended_at["long poll"], watched.codes["long poll"] = watched.now(), response.status_code

        reading.append(group.create_task(poll()))
        await until_subscribers(api_harness, len(KINDS.keys() - WITHOUT_FEED))
        async with asyncio.timeout(TIMEOUT):
            while len(watched.received_at) < len(KINDS) - 1:  # noqa: ASYNC110 - the sockets are read elsewhere
                await asyncio.sleep(0.02)
        try:
            yield watched
        finally:
            for each in reading:
                each.cancel()


@asynccontextmanager
async def flowing_events(api_harness: ApiHarness, task: str) -> AsyncIterator[None]:
    """Change the state of the task's agent, and its log, some twenty times a second while the block runs."""

    async def report() -> None:
        for seq in itertools.count(1):
            fields = {"state": "working", "message": f"step {seq}", "seq": seq, "build_number": 1}
            said = {"id": seq, "type": "output", "content": f"step {seq}", "time": "2026-03-01T12:00:00Z"}
            await api_harness.worker.report(
                make_report("app.status", uuid.UUID(task), **fields),
                make_report("task.log", uuid.UUID(task), seq=seq, build_number=1, entries=[said]),
            )
            await asyncio.sleep(0.05)

    reporting = asyncio.create_task(report())
    try:
        yield
    finally:
        reporting.cancel()
        await asyncio.wait({reporting})


@pytest.mark.parametrize(
    ("lose", "status"), [(revoke, 401), (expire, 401), (deactivate, 401), (leave, 404)], ids=lambda each: str(each)[:18]
)
async def test_open_requests_end_with_the_access(
    api_harness: ApiHarness, lose: Callable[[ApiHarness], Awaitable[None]], status: int
) -> None:
    """Streams, long polls and sockets end within five seconds after the caller has lost access, while events flow.

    A stream of all tasks of a caller who is still signed in stays open, without the tasks that are no longer visible.
    """
    task = await running_task(api_harness)
    async with open_all(api_harness, task) as watched, flowing_events(api_harness, task):
        seen = dict(watched.received_at)
        async with asyncio.timeout(TIMEOUT):
            while any(watched.received_at[kind] == seen[kind] for kind in FLOWING):  # noqa: ASYNC110 - events do flow
                await asyncio.sleep(0.02)
        await lose(api_harness)
        lost_at = watched.now()
        ends = set(KINDS) - (OF_NO_TASK if lose is leave else set())
        async with asyncio.timeout(TIMEOUT):
            while not ends <= watched.ended_at.keys():  # noqa: ASYNC110 - the ends are noticed by several readers
                await asyncio.sleep(0.02)
        assert {kind: end - lost_at for kind, end in watched.ended_at.items() if end - lost_at > BOUND} == {}
        if lose is leave:
            steps = api_harness.worker.document(uuid.UUID(task))["current_state"]["message"]
            await api_harness.worker.until(
                lambda: api_harness.worker.document(uuid.UUID(task))["current_state"]["message"] != steps
            )
            assert watched.ended_at.keys().isdisjoint(OF_NO_TASK)
            assert watched.received_at["all tasks"] - lost_at <= BOUND
        assert watched.codes["long poll"] == status
        assert [watched.codes[kind] for kind in ("workspace socket", "build log", "agent log")] == [1008] * 3
    await until_subscribers(api_harness, 0)


def test_every_route_that_stays_open_is_watched() -> None:
    """A new stream, long poll or socket of users is among those that end with the access."""
    stays_open = {
        route.path
        for route in ROUTES
        if route.auth is Auth.USER
        and ("wait" in route.query.model_fields or any(each.media == STREAM for each in route.responses.values()))
    }
    assert stays_open | {socket.path for socket in SOCKETS} == set(KINDS.values())
    assert "/workspaces/{id}/watch" in stays_open


async def test_checks_cost_one_query_for_all_open_requests(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All open requests of a process are checked with one query a second, and without any there is none."""
    queries: list[int] = []
    original = access_queries.lost

    async def counted(pool: Any, keys: Any) -> Any:
        queries.append(len(keys))
        return await original(pool, keys)

    monkeypatch.setattr(access_queries, "lost", counted)
    started = asyncio.get_running_loop().time()
    async with AsyncExitStack() as stack:
        for username in ("alice", "bob", "carol"):
            for _ in range(10):
                await stack.enter_async_context(sse_client(api_harness.clients[username], "/tasks/watch"))
        await until_subscribers(api_harness, 30)
        queries.clear()
        async with asyncio.timeout(TIMEOUT):
            while len(queries) < 2:  # noqa: ASYNC110 - a query sends no event
                await asyncio.sleep(0.02)
        assert queries[1] == 3, "one key for each token"
        assert len(queries) <= asyncio.get_running_loop().time() - started + 1
    await until_subscribers(api_harness, 0)


async def test_a_client_that_does_not_read_loses_its_stream_too(api_harness: ApiHarness) -> None:
    """A stream whose client takes nothing, so that sending to it blocks, ends as well."""
    for number in range(20):
        await api_harness.create(name=f"t{number}", input=f"{number} " * 60_000)
    async with api_harness.alice.stream("GET", "/tasks/watch", timeout=None):
        await until_subscribers(api_harness, 1)
        await revoke(api_harness)
        async with asyncio.timeout(BOUND):
            await until_subscribers(api_harness, 0)


async def test_an_outage_of_the_database(
    start_api: StartApi, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While access cannot be checked, requests stay open for the grace time, and end after it."""
    monkeypatch.setattr(open_requests, "OUTAGE_GRACE", 3.0)
    async with start_api() as api_harness:
        task = await api_harness.active()
        async with sse_client(api_harness.alice, f"/tasks/me/{task['id']}/watch") as stream:
            await stream.ready()
            name = await api_harness.worker.database.fetchval("SELECT current_database()")
            server = await asyncpg.connect(services.database_url, timeout=30, command_timeout=30)
            away_at = asyncio.get_running_loop().time()
            await rename_database(server, name, f"{name}_away")  # may itself take longer than the grace time
            await stream.until(lambda: stream.ended)
            await rename_database(server, f"{name}_away", name)
            await server.close()
            assert asyncio.get_running_loop().time() - away_at >= 1.0
            assert stream.types() == ["task.snapshot", "resume"]


async def test_nothing_is_sent_on_an_old_check(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the checks fail while changes can be read, changes are held back until a check succeeds."""
    task = await running_task(api_harness)
    original = access_queries.lost
    failing = True

    async def lost(pool: Any, keys: Any) -> Any:
        if failing:
            raise Unavailable("stopped by the test")
        return await original(pool, keys)

    monkeypatch.setattr(open_requests, "MAX_CHECK_AGE", 0.0)
    monkeypatch.setattr(access_queries, "lost", lost)
    stream = SseClient()
    async with api_harness.alice.stream("GET", f"/tasks/me/{task}/watch", timeout=None) as response:
        reading = asyncio.create_task(stream.read(response))
        async with flowing_events(api_harness, task):
            await api_harness.worker.until(lambda: len(api_harness.worker.events_of(uuid.UUID(task))) > 5)
        assert stream.events == []
        monkeypatch.setattr(open_requests, "MAX_CHECK_AGE", 4.0)
        failing = False
        await stream.until(lambda: stream.events)
        reading.cancel()
        await asyncio.wait({reading})
