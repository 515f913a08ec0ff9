"""Streams of task changes: snapshots first, every change once, no gaps after a disconnect, limits for slow clients."""

from __future__ import annotations

import asyncio
import itertools
import socket
import uuid
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from taskherd.api import change_feed
from taskherd.api.tasks import sse
from taskherd.store import task_queries
from taskherd.store.task_queries import TaskPage
from tests.api.conftest import StartApi
from tests.harness.api import CAROL, TIMEOUT, ApiHarness
from tests.harness.sse import SseClient, sse_client
from tests.harness.worker import ORGANIZATION, bring_to_status, build_report, make_report


def versions(stream: SseClient, task_id: str) -> list[int]:
    """Return the versions of a task's changes, in the order received."""
    return [each.version for each in stream.events if each.event != "task.snapshot" and each.task["id"] == task_id]


def names(stream: SseClient) -> set[str]:
    """Return the names of all tasks received."""
    return {each.task["name"] for each in stream.events if each.event.startswith("task.")}


async def until_subscribers(api_harness: ApiHarness, count: int) -> None:
    """Wait until the API has ``count`` subscribers."""
    async with asyncio.timeout(TIMEOUT):
        while api_harness.api.metrics.registry.get_sample_value("taskherd_api_followers") != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def report_state(api_harness: ApiHarness, task_id: str, seq: int, state: str = "working") -> None:
    """Report the state of a task's agent."""
    fields = {"state": state, "message": f"step {seq}", "seq": seq, "build_number": 1}
    await api_harness.worker.report(make_report("app.status", uuid.UUID(task_id), **fields))


async def test_without_a_snapshot_the_stream_starts_with_a_position(api_harness: ApiHarness) -> None:
    """A client that reads lists itself gets a position at once, the changes after it, and the same after a reset."""
    first = await api_harness.create(name="listed")
    async with sse_client(api_harness.alice, "/tasks/watch", snapshot="false") as stream:
        await stream.ready()
        listed = (await api_harness.alice.get("/tasks")).json()["tasks"]
        assert [each["id"] for each in listed] == [first["id"]]
        second = await api_harness.create(name="changed")
        await stream.until(lambda: "changed" in names(stream))
        assert set(stream.types()) == {"task.created"}  # the first one too, if its event was not yet published
        assert stream.events[-1].task["id"] == second["id"]
    unknown = "9000000000000000000"
    async with sse_client(api_harness.alice, "/tasks/watch", unknown, snapshot="false") as stream:
        await stream.ready()
        assert stream.types() == ["reset"]
    invalid = await api_harness.alice.get("/tasks/watch?snapshot=no")
    assert (invalid.status_code, invalid.json()["validations"][0]["field"]) == (400, "snapshot")


async def test_a_snapshot_then_changes(api_harness: ApiHarness) -> None:
    """A client receives each task's document, then each change as a CloudEvent with its position, until the delete."""
    first, second = await api_harness.create(name="one"), await api_harness.create(name="two")
    await api_harness.create(api_harness.bob, name="bobs")
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        assert [(each.event, each.task) for each in stream.events] == [
            ("task.snapshot", await api_harness.get(second["id"])),
            ("task.snapshot", await api_harness.get(first["id"])),
        ]
        third = await api_harness.create(name="three")
        await stream.until(lambda: len(stream.events) == 3)
        created = stream.events[-1]
        assert (created.event, created.task, created.version) == ("task.created", third, 1)
        assert created.data["type"] == "dev.taskherd.task.created.v1"
        assert created.data["subject"] == third["id"]
        assert created.id == stream.last
        await api_harness.worker.make_active(uuid.UUID(third["id"]))
        await stream.until(lambda: stream.events[-1].task["status"] == "active")
        assert stream.events[-1].task == await api_harness.get(third["id"])
        await api_harness.create(api_harness.bob, name="bobs-second")
        await api_harness.alice.delete(f"/tasks/me/{third['id']}")
        await stream.until(lambda: "task.deleted" in stream.types())
        received = versions(stream, third["id"])
        assert received == list(range(1, len(received) + 1))
        assert {each.task["owner_name"] for each in stream.events} == {"alice"}
        positions = [int(each.id) for each in stream.events[2:]]
        assert positions == sorted(set(positions))
    await until_subscribers(api_harness, 0)


async def test_no_change_is_lost_or_repeated_while_clients_join(api_harness: ApiHarness) -> None:
    """Whenever a client joins while reports arrive, it receives each version after its snapshot once."""
    task = await api_harness.active()
    reports = 150

    async def send_reports() -> None:
        for seq in range(1, reports + 1):
            await report_state(api_harness, task["id"], seq)

    async def read() -> SseClient:
        async with sse_client(api_harness.alice, "/tasks/watch") as stream:
            await stream.until(lambda: stream.events and _message(stream) == f"step {reports}")
            return stream

    def _message(stream: SseClient) -> str:
        return str((stream.events[-1].task["current_state"] or {}).get("message"))

    sending = asyncio.create_task(send_reports())
    async with AsyncExitStack():
        reading = [asyncio.create_task(read()) for _ in range(5)]
        for _ in range(5):
            before = (await api_harness.get(task["id"]))["updated_at"]
            reading.append(asyncio.create_task(read()))
            async with asyncio.timeout(TIMEOUT):
                while not sending.done() and (await api_harness.get(task["id"]))["updated_at"] == before:
                    continue
        streams = await asyncio.gather(*reading, sending)
    rows = await api_harness.worker.database.fetch(
        "SELECT version, occurred_at FROM task_events WHERE task_id = $1", uuid.UUID(task["id"])
    )
    newest = max(row["version"] for row in rows)
    by_time = {row["occurred_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"): row["version"] for row in rows}
    for stream in streams[:-1]:
        assert isinstance(stream, SseClient)
        assert stream.events[0].event == "task.snapshot"
        snapshot = by_time.get(stream.events[0].task["updated_at"], 1)
        assert versions(stream, task["id"]) == list(range(snapshot + 1, newest + 1))


async def test_a_client_that_reconnects_misses_nothing(api_harness: ApiHarness) -> None:
    """With Last-Event-ID a client receives exactly the changes since, also of deleted tasks, and no snapshot."""
    task = await api_harness.create(name="one")
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        last = stream.last
    await api_harness.worker.make_active(uuid.UUID(task["id"]))
    deleted = await api_harness.create(name="deleted")
    await api_harness.alice.delete(f"/tasks/me/{deleted['id']}")
    await api_harness.create(api_harness.bob, name="bobs")
    await api_harness.worker.until(
        lambda: any(each["type"].endswith("deleted.v1") for each in api_harness.worker.events)
    )
    newest = max(data["version"] for data in api_harness.worker.events_of(uuid.UUID(task["id"])))
    async with sse_client(api_harness.alice, "/tasks/watch", last) as stream:
        await stream.until(lambda: "task.deleted" in stream.types())
        assert versions(stream, task["id"]) == list(range(2, newest + 1))
        assert versions(stream, deleted["id"]) == [1, 2]
        assert "task.snapshot" not in stream.types()
        await api_harness.create(name="latest")
        await stream.until(lambda: stream.events[-1].task["name"] == "latest")
    async with sse_client(api_harness.alice, f"/tasks/me/{deleted['id']}/watch", last) as stream:
        await stream.until(lambda: stream.ended)
        assert stream.types() == ["task.created", "task.deleted"]
    assert (await api_harness.alice.get(f"/tasks/me/{deleted['id']}/watch")).status_code == 404
    for client, path in (
        (api_harness.bob, f"/tasks/me/{deleted['id']}/watch"),
        (api_harness.alice, "/tasks/me/deleted/watch"),  # a name may be that of another task by now
    ):
        assert (await client.get(path, headers={"Last-Event-ID": last})).status_code == 404


async def test_a_stream_that_needs_many_reads(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client gets each task, and each change that it has missed, once and in order; what is erased is left out."""
    monkeypatch.setattr(sse, "PAGE_SIZE", 2)
    created = [(await api_harness.create(name=f"one-of-{number}"))["id"] for number in range(5)]
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)  # every change has a position then
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        assert [each.task["id"] for each in stream.events] == created[::-1]
    for path, expected in (("/tasks/watch", created), (f"/tasks/me/{created[3]}/watch", created[3:4])):
        async with sse_client(api_harness.alice, path, "0") as resumed:
            await resumed.until(lambda: len(resumed.events) == len(expected))  # noqa: B023 - awaited in this iteration
            assert [each.task["id"] for each in resumed.events] == expected
    for task_id in created[2:4]:
        assert (await api_harness.alice.delete(f"/tasks/me/{task_id}")).status_code == 202
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    erased = uuid.UUID(created[2])
    for statement in ("UPDATE tasks SET erased_at = now() WHERE id = $1", "DELETE FROM task_events WHERE task_id = $1"):
        await api_harness.worker.database.execute(statement, erased)
    async with sse_client(api_harness.alice, f"/tasks/me/{created[3]}/watch", "0") as stream:
        await stream.until(lambda: stream.ended)
        assert stream.types() == ["task.created", "task.deleted"]
    async with sse_client(api_harness.alice, "/tasks/watch", "0") as stream:
        await stream.until(lambda: "task.deleted" in stream.types())
        seen = [each.task["id"] for each in stream.events]
        assert seen == [created[0], created[1], created[3], created[4], created[3]]


async def test_a_change_has_the_prompt_of_its_own_task_and_version(api_harness: ApiHarness) -> None:
    """In a live stream, in what a client catches up with, of all tasks or of one, and in the timeline."""
    prompts: dict[str, list[str]] = {}
    async with sse_client(api_harness.alice, "/tasks/watch") as live:
        await live.ready()
        for number in range(3):
            task_id = (await api_harness.create(input=f"First prompt of task {number}"))["id"]
            await bring_to_status(api_harness.worker, "paused", uuid.UUID(task_id))
            prompts[task_id] = [f"First prompt of task {number}", f"Second prompt of task {number}"]
            path = f"/tasks/me/{task_id}/input"
            assert (await api_harness.alice.patch(path, json={"input": prompts[task_id][1]})).status_code == 204
        await live.until(lambda: _prompts_by_task(live) == prompts)
    async with sse_client(api_harness.alice, "/tasks/watch", "0") as resumed:
        await resumed.until(lambda: _prompts_by_task(resumed) == prompts)
    for task_id, own in prompts.items():
        async with sse_client(api_harness.alice, f"/tasks/me/{task_id}/watch", "0") as one:
            await one.until(lambda: _prompts_by_task(one) == {task_id: own})  # noqa: B023 - awaited in this iteration
        events = (await api_harness.alice.get(f"/tasks/me/{task_id}/events")).json()["events"]
        edits = [each["changes"]["initial_prompt"] for each in events if "initial_prompt" in each["changes"]]
        assert edits == [{"from": None, "to": own[0]}, {"from": own[0], "to": own[1]}]


def _prompts_by_task(stream: SseClient) -> dict[str, list[str]]:
    """Return the prompts of each task's changes, in order and each once in a row."""
    prompts: dict[str, list[str]] = {}
    for each in stream.events:
        own = prompts.setdefault(each.task["id"], [])
        if each.task["initial_prompt"] not in own[-1:]:
            own.append(each.task["initial_prompt"])
    return prompts


async def test_a_pruned_position_resets_the_client(api_harness: ApiHarness) -> None:
    """A client that resumes from a pruned or unknown position receives ``reset`` and the current documents."""
    task = await api_harness.active()
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)  # every change has a position then
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        last = stream.last
    await api_harness.worker.database.execute("DELETE FROM task_feed")
    for missing in (last, "999999"):
        async with sse_client(api_harness.alice, "/tasks/watch", missing) as stream:
            await stream.until_position_changes(missing)
            assert stream.types() == ["reset", "task.snapshot"]
            assert stream.events[1].task == await api_harness.get(task["id"])
    async with sse_client(api_harness.alice, f"/tasks/me/{task['id']}/watch", last) as stream:
        await stream.until(lambda: len(stream.events) == 2)
        assert stream.types() == ["reset", "task.snapshot"]
    for invalid in ("x", "-1", str(2**63)):
        refused = await api_harness.alice.get("/tasks/watch", headers={"Last-Event-ID": invalid})
        assert (refused.status_code, refused.json()["validations"][0]["field"]) == (400, "Last-Event-ID")


async def test_a_gap_in_the_history_resets_the_client(api_harness: ApiHarness) -> None:
    """If events were pruned but their positions were not yet, a client that needs them receives documents instead."""
    first = await api_harness.create(name="first")
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        last = stream.last
    task = await api_harness.create(name="second")
    await api_harness.worker.until(lambda: api_harness.worker.events_of(uuid.UUID(task["id"])))
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    await api_harness.worker.database.execute("DELETE FROM task_events WHERE task_id = $1", uuid.UUID(task["id"]))
    async with sse_client(api_harness.alice, "/tasks/watch", last) as stream:
        await stream.until(lambda: len(stream.events) == 3)
        assert stream.types() == ["reset", "task.snapshot", "task.snapshot"]
        assert {each.task["id"] for each in stream.events[1:]} == {first["id"], task["id"]}


async def test_a_status_filter_sends_tasks_that_leave_it(api_harness: ApiHarness) -> None:
    """With a status filter a client receives tasks with that status, and once more a task that leaves it."""
    task = await api_harness.active(name="leaver")
    await api_harness.create(name="other")
    async with sse_client(api_harness.alice, "/tasks/watch", q="owner:me status:active") as stream:
        await stream.ready()
        assert [each.task["name"] for each in stream.events] == ["leaver"]
        await api_harness.alice.post(f"/tasks/me/{task['id']}/pause")
        await api_harness.worker.report(build_report(uuid.UUID(task["id"]), 2, "stop", "succeeded"))
        later = await api_harness.active(name="later")
        await stream.until(lambda: stream.events[-1].task["id"] == later["id"])
        changes = [(each.task["name"], each.task["status"]) for each in stream.events[1:]]
        assert changes[:2] == [("leaver", "unknown"), ("later", "active")]
    assert (await api_harness.alice.get("/tasks/watch", params={"q": "status:done"})).status_code == 400


async def test_a_state_filter_sends_tasks_that_enter_and_leave_it(api_harness: ApiHarness) -> None:
    """Changes between other states, and tasks of other templates, are not sent; live and when catching up alike."""
    task = await api_harness.active(name="worker")
    query = "owner:me state:idle template:CLAUDE"
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        last = stream.last
    async with sse_client(api_harness.alice, "/tasks/watch", q=query) as live:
        await live.ready()
        assert live.events == []
        async with sse_client(api_harness.alice, "/tasks/watch", q="template:other") as other:
            for seq, state in enumerate(("working", "working", "idle", "idle", "working", "working", "idle"), 1):
                await report_state(api_harness, task["id"], seq, state)
                await api_harness.worker.until(
                    lambda seq=seq: api_harness.worker.state(uuid.UUID(task["id"])).get("message") == f"step {seq}"  # type: ignore[misc]
                )
            await live.until(lambda: live.events and _message_of(live) == "step 7")
            await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
            assert other.events == []
        steps = [each.task["current_state"]["message"] for each in live.events]
        assert steps == ["step 3", "step 4", "step 5", "step 7"]
    async with sse_client(api_harness.alice, "/tasks/watch", last, q=query) as resumed:
        await resumed.until(lambda: resumed.events and _message_of(resumed) == "step 7")
        assert [each.task["current_state"]["message"] for each in resumed.events] == steps
    for wrong in ("state:failure", "colour:red"):
        assert (await api_harness.alice.get("/tasks/watch", params={"q": wrong})).status_code == 400


def _message_of(stream: SseClient) -> str:
    return str((stream.events[-1].task["current_state"] or {}).get("message"))


async def test_clients_receive_only_the_tasks_they_may_see(api_harness: ApiHarness) -> None:
    """An admin receives all tasks of the organization, a member its own, an admin of another organization none."""
    async with AsyncExitStack() as stack:
        streams = {
            username: await stack.enter_async_context(sse_client(api_harness.clients[username], "/tasks/watch"))
            for username in ("alice", "bob", "carol", "mallory")
        }
        for stream in streams.values():
            await stream.ready()
        await api_harness.create(name="a")
        await api_harness.create(api_harness.bob, name="b")
        await streams["carol"].until(lambda: len(streams["carol"].events) == 2)
        await streams["bob"].until(lambda: streams["bob"].events)
        assert {username: [each.task["name"] for each in stream.events] for username, stream in streams.items()} == {
            "alice": ["a"],
            "bob": ["b"],
            "carol": ["a", "b"],
            "mallory": [],
        }
        await api_harness.worker.database.execute("UPDATE memberships SET role = 'member' WHERE role = 'admin'")
        await api_harness.create(name="c")
        await streams["alice"].until(lambda: len(streams["alice"].events) == 2)
        assert [each.task["name"] for each in streams["carol"].events] == ["a", "b"]


@pytest.mark.parametrize("lost", ["role = 'member'", "active = false"])
async def test_a_stream_by_name_gives_no_documents_after_the_access_is_lost(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Its tasks are found once, and each page of their documents is read for who the caller is by then."""
    for number in range(4):
        await api_harness.create(name=f"a{number}")
    await api_harness.create(api_harness.carol, name="a-of-carol")
    await api_harness.worker.until_row("SELECT count(*) FROM task_index_changes", is_=0)
    monkeypatch.setattr(sse, "PAGE_SIZE", 2)
    original, pages = task_queries.tasks, 0

    async def tasks(*arguments: Any) -> TaskPage:
        nonlocal pages
        page = await original(*arguments)
        pages += 1
        if pages == 1:
            statement = f"UPDATE memberships SET {lost} WHERE user_id = $1"
            await api_harness.worker.database.execute(statement, CAROL)
        return page

    monkeypatch.setattr(task_queries, "tasks", tasks)
    async with sse_client(api_harness.carol, "/tasks/watch", q="name:a") as stream:
        await stream.ready()
        assert [each.task["name"] for each in stream.events] == ["a-of-carol", "a3"]
    assert pages == 2


async def test_an_idle_stream_sends_comments_and_ends_with_its_token(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments keep an idle connection open; the stream ends when its token is revoked."""
    monkeypatch.setattr(sse, "COMMENT_INTERVAL", 0.1)
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        await stream.until(lambda: stream.comments > 3)
        await api_harness.worker.database.execute("UPDATE api_tokens SET revoked_at = now()")
        await stream.until(lambda: stream.ended)
        assert stream.types() == ["resume"]


async def test_a_busy_stream_ends_with_its_token(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is never idle checks its token too, and ends when it is revoked."""
    monkeypatch.setattr(sse, "COMMENT_INTERVAL", 1.0)
    task = await api_harness.active()
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        seqs = itertools.count(1)
        async with asyncio.timeout(TIMEOUT):
            while "task.updated" not in stream.types():
                await report_state(api_harness, task["id"], next(seqs))
            await api_harness.worker.database.execute("UPDATE api_tokens SET revoked_at = now()")
            while not stream.ended:
                await report_state(api_harness, task["id"], next(seqs))
        assert stream.types()[-1] == "resume"


async def test_a_slow_client_must_resume(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is too slow is sent ``resume``; reconnecting with its last event id misses nothing."""
    async with start_api() as api_harness:
        monkeypatch.setattr(change_feed, "MAX_BACKLOG_BYTES", 1_000_000)
        small_buffer = httpx.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)])
        prompt = "x" * 200_000
        stream = SseClient()
        async with (
            httpx.AsyncClient(headers=api_harness.alice.headers, transport=small_buffer) as client,
            client.stream("GET", f"{api_harness.base}/api/v2/tasks/watch", timeout=TIMEOUT) as response,
        ):
            await until_subscribers(api_harness, 1)
            for number in range(40):  # 8 MB, more than the sockets and the backlog can hold
                await api_harness.create(name=f"t{number}", input=prompt)
            await api_harness.worker.until(lambda: len(api_harness.worker.events) >= 40)
            await stream.read(response)
        assert stream.types()[-1] == "resume"
        assert len(stream.events) < 90
        async with sse_client(api_harness.alice, "/tasks/watch", stream.last) as again:
            await again.until(lambda: len(names(stream) | names(again)) == 40)
        created = [each.task["name"] for each in (*stream.events, *again.events) if each.event == "task.created"]
        assert len(created) == len(set(created))


async def test_a_disconnected_client_frees_its_resources(api_harness: ApiHarness) -> None:
    """After all clients have disconnected, no subscriber is left and the feed is no longer read."""
    for _ in range(2):
        async with AsyncExitStack() as stack:
            for _ in range(20):
                stream = await stack.enter_async_context(sse_client(api_harness.alice, "/tasks/watch"))
                await stream.ready()
            await until_subscribers(api_harness, 20)
        await until_subscribers(api_harness, 0)
    assert not api_harness.api.change_feed._subscribers
    assert api_harness.api.change_feed._position is None


async def test_streams_end_when_the_process_stops(start_api: StartApi) -> None:
    """When the process stops, it sends ``resume`` to every client."""
    async with start_api() as api_harness, sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        api_harness.api.stop()
        await stream.until(lambda: stream.ended)
        assert stream.types() == ["resume"]


async def test_many_clients(api_harness: ApiHarness) -> None:
    """Two hundred clients of one organization receive the same changes."""
    async with AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=300)
        carol = await stack.enter_async_context(
            httpx.AsyncClient(base_url=api_harness.carol.base_url, headers=api_harness.carol.headers, limits=limits)
        )
        streams = [await stack.enter_async_context(sse_client(carol, "/tasks/watch")) for _ in range(200)]
        for stream in streams:
            await stream.ready()
        task = await api_harness.active()
        for stream in streams:
            await stream.status("active")
            assert versions(stream, task["id"]) == versions(streams[0], task["id"])


async def test_the_limit_of_subscribers(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit a stream and a long poll get a 503 with Retry-After."""
    monkeypatch.setattr(change_feed, "MAX_SUBSCRIBERS", 1)
    task = await api_harness.create()
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        for path in ("/tasks/watch", f"/tasks/me/{task['id']}?wait=1s"):
            refused = await api_harness.alice.get(path)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")


@pytest.mark.parametrize("status", ["active", "error"])
async def test_the_stream_of_one_task(api_harness: ApiHarness, status: str) -> None:
    """A client of one task receives only that task, and the stream ends when it is deleted."""
    task_id = str(await bring_to_status(api_harness.worker, status))
    other = await api_harness.create(name="other")
    async with sse_client(api_harness.alice, f"/tasks/me/{task_id}/watch") as stream:
        await stream.ready()
        assert [each.task["id"] for each in stream.events] == [task_id]
        await api_harness.worker.make_active(uuid.UUID(other["id"]))
        await report_state(api_harness, task_id, 1, "idle")
        await stream.until(lambda: len(stream.events) == 2)
        document: dict[str, Any] = stream.events[1].task
        assert (document["id"], document["status"]) == (task_id, status)
        await api_harness.alice.delete(f"/tasks/me/{task_id}")
        await stream.until(lambda: stream.ended)
        assert stream.types() == ["task.snapshot", "task.updated", "task.deleted"]


async def test_a_user_may_be_called_watch(api_harness: ApiHarness) -> None:
    """The path ``/tasks/watch`` does not hide the other methods of the user with that name."""
    watch = uuid.uuid4()
    await api_harness.worker.database.execute(f"""
        INSERT INTO users (id, username, name, email, avatar_url) VALUES ('{watch}', 'watch', '', 'w@example.com', '');
        INSERT INTO memberships (user_id, organization_id, role) VALUES ('{watch}', '{ORGANIZATION}', 'member')""")
    task = await api_harness.create(api_harness.carol, user="watch")
    assert task["owner_id"] == str(watch)
    refused = await api_harness.carol.delete("/tasks/watch")
    assert (refused.status_code, refused.json()["message"]) == (405, "Method not allowed.")
