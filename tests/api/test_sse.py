"""Following tasks: documents first, every change once, nothing missed by who was away, bounded for who is slow."""

from __future__ import annotations

import asyncio
import socket
import uuid
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from taskherd.api import change_feed
from taskherd.api.tasks import sse
from tests.api.conftest import StartApi
from tests.harness.api import TIMEOUT, ApiHarness
from tests.harness.sse import SseClient, sse_client
from tests.harness.worker import ORGANIZATION, build_report, in_status, make_report


def versions(ear: SseClient, task_id: str) -> list[int]:
    """The versions of a task's changes, as they were heard."""
    return [each.version for each in ear.events if each.event != "task.snapshot" and each.task["id"] == task_id]


def names(ear: SseClient) -> set[str]:
    """The tasks that were heard of, by name."""
    return {each.task["name"] for each in ear.events if each.event.startswith("task.")}


async def followers(api_harness: ApiHarness, count: int) -> None:
    """Wait until so many follow."""
    async with asyncio.timeout(TIMEOUT):
        while api_harness.api.metrics.registry.get_sample_value("taskherd_api_followers") != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def state(api_harness: ApiHarness, task_id: str, seq: int, state: str = "working") -> None:
    """Report what a task's agent does."""
    fields = {"state": state, "message": f"step {seq}", "seq": seq, "build_number": 1}
    await api_harness.worker.report(make_report("app.status", uuid.UUID(task_id), **fields))


async def test_documents_then_changes(api_harness: ApiHarness) -> None:
    """A reader gets each task's document, then each change as the CloudEvent with its position, to the task's end."""
    first, second = await api_harness.create(name="one"), await api_harness.create(name="two")
    await api_harness.create(api_harness.bob, name="bobs")
    async with sse_client(api_harness.alice, "/tasks/watch") as ear:
        await ear.ready()
        assert [(each.event, each.task) for each in ear.events] == [
            ("task.snapshot", await api_harness.get(second["id"])),
            ("task.snapshot", await api_harness.get(first["id"])),
        ]
        third = await api_harness.create(name="three")
        await ear.until(lambda: len(ear.events) == 3)
        created = ear.events[-1]
        assert (created.event, created.task, created.version) == ("task.created", third, 1)
        assert created.data["type"] == "dev.taskherd.task.created.v1"
        assert created.data["subject"] == third["id"]
        assert created.id == ear.last
        await api_harness.worker.active(uuid.UUID(third["id"]))
        await ear.until(lambda: ear.events[-1].task["status"] == "active")
        assert ear.events[-1].task == await api_harness.get(third["id"])
        await api_harness.create(api_harness.bob, name="bobs-second")
        await api_harness.alice.delete(f"/tasks/me/{third['id']}")
        await ear.until(lambda: "task.deleted" in ear.names())
        heard = versions(ear, third["id"])
        assert heard == list(range(1, len(heard) + 1))
        assert {each.task["owner_name"] for each in ear.events} == {"alice"}
        positions = [int(each.id) for each in ear.events[2:]]
        assert positions == sorted(set(positions))
    await followers(api_harness, 0)


async def test_no_gap_and_no_double_while_tasks_change(api_harness: ApiHarness) -> None:
    """Whenever a reader comes while reports pour in: the versions behind its snapshot come one by one."""
    task = await api_harness.active()
    reports = 150

    async def pour() -> None:
        for seq in range(1, reports + 1):
            await state(api_harness, task["id"], seq)

    async def hear() -> SseClient:
        async with sse_client(api_harness.alice, "/tasks/watch") as ear:
            await ear.until(lambda: ear.events and _message(ear) == f"step {reports}")
            return ear

    def _message(ear: SseClient) -> str:
        return str((ear.events[-1].task["current_state"] or {}).get("message"))

    pouring = asyncio.create_task(pour())
    async with AsyncExitStack():
        hearing = [asyncio.create_task(hear()) for _ in range(5)]
        for _ in range(5):
            seen = (await api_harness.get(task["id"]))["updated_at"]
            hearing.append(asyncio.create_task(hear()))
            async with asyncio.timeout(TIMEOUT):
                while not pouring.done() and (await api_harness.get(task["id"]))["updated_at"] == seen:
                    continue
        ears = await asyncio.gather(*hearing, pouring)
    rows = await api_harness.worker.database.fetch(
        "SELECT version, occurred_at FROM task_events WHERE task_id = $1", uuid.UUID(task["id"])
    )
    newest = max(row["version"] for row in rows)
    by_time = {row["occurred_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"): row["version"] for row in rows}
    for ear in ears[:-1]:
        assert isinstance(ear, SseClient)
        assert ear.events[0].event == "task.snapshot"
        began = by_time.get(ear.events[0].task["updated_at"], 1)
        assert versions(ear, task["id"]) == list(range(began + 1, newest + 1))


async def test_who_was_away_misses_nothing(api_harness: ApiHarness) -> None:
    """With Last-Event-ID come exactly the changes since, those of deleted tasks too, and no documents."""
    task = await api_harness.create(name="one")
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    async with sse_client(api_harness.alice, "/tasks/watch") as ear:
        await ear.ready()
        last = ear.last
    await api_harness.worker.active(uuid.UUID(task["id"]))
    gone = await api_harness.create(name="gone")
    await api_harness.alice.delete(f"/tasks/me/{gone['id']}")
    await api_harness.create(api_harness.bob, name="bobs")
    await api_harness.worker.until(
        lambda: any(each["type"].endswith("deleted.v1") for each in api_harness.worker.events)
    )
    newest = max(data["version"] for data in api_harness.worker.events_of(uuid.UUID(task["id"])))
    async with sse_client(api_harness.alice, "/tasks/watch", last) as ear:
        await ear.until(lambda: "task.deleted" in ear.names())
        assert versions(ear, task["id"]) == list(range(2, newest + 1))
        assert versions(ear, gone["id"]) == [1, 2]
        assert "task.snapshot" not in ear.names()
        await api_harness.create(name="latest")
        await ear.until(lambda: ear.events[-1].task["name"] == "latest")
    async with sse_client(api_harness.alice, f"/tasks/me/{gone['id']}/watch", last) as ear:
        await ear.until(lambda: ear.over)
        assert ear.names() == ["task.created", "task.deleted"]
    assert (await api_harness.alice.get(f"/tasks/me/{gone['id']}/watch")).status_code == 404
    foreign = await api_harness.bob.get(f"/tasks/me/{gone['id']}/watch", headers={"Last-Event-ID": last})
    assert foreign.status_code == 404


async def test_a_position_that_is_gone(api_harness: ApiHarness) -> None:
    """Who resumes from a pruned position, or one that never was, is told so and gets the current documents."""
    task = await api_harness.active()
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)  # so that all that there is has a position
    async with sse_client(api_harness.alice, "/tasks/watch") as ear:
        await ear.ready()
        last = ear.last
    await api_harness.worker.database.execute("DELETE FROM task_feed")
    for away in (last, "999999"):
        async with sse_client(api_harness.alice, "/tasks/watch", away) as ear:
            await ear.moved_on(away)
            assert ear.names() == ["reset", "task.snapshot"]
            assert ear.events[1].task == await api_harness.get(task["id"])
    async with sse_client(api_harness.alice, f"/tasks/me/{task['id']}/watch", last) as ear:
        await ear.until(lambda: len(ear.events) == 2)
        assert ear.names() == ["reset", "task.snapshot"]
    for wrong in ("x", "-1", "9" * 30):
        refused = await api_harness.alice.get("/tasks/watch", headers={"Last-Event-ID": wrong})
        assert (refused.status_code, refused.json()["validations"][0]["field"]) == (400, "Last-Event-ID")


async def test_a_hole_in_the_history_is_a_reset_too(api_harness: ApiHarness) -> None:
    """Where events were pruned and their positions not yet, a reader who needs them gets documents instead."""
    first = await api_harness.create(name="first")
    async with sse_client(api_harness.alice, "/tasks/watch") as ear:
        await ear.ready()
        last = ear.last
    task = await api_harness.create(name="second")
    await api_harness.worker.until(lambda: api_harness.worker.events_of(uuid.UUID(task["id"])))
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    await api_harness.worker.database.execute("DELETE FROM task_events WHERE task_id = $1", uuid.UUID(task["id"]))
    async with sse_client(api_harness.alice, "/tasks/watch", last) as ear:
        await ear.until(lambda: len(ear.events) == 3)
        assert ear.names() == ["reset", "task.snapshot", "task.snapshot"]
        assert {each.task["id"] for each in ear.events[1:]} == {first["id"], task["id"]}


async def test_a_filter_tells_what_leaves_it(api_harness: ApiHarness) -> None:
    """With a status a reader hears of tasks that have it, and once more of one that leaves it."""
    task = await api_harness.active(name="leaver")
    await api_harness.create(name="other")
    async with sse_client(api_harness.alice, "/tasks/watch", q="owner:me status:active") as ear:
        await ear.ready()
        assert [each.task["name"] for each in ear.events] == ["leaver"]
        await api_harness.alice.post(f"/tasks/me/{task['id']}/pause")
        await api_harness.worker.report(build_report(uuid.UUID(task["id"]), 2, "stop", "succeeded"))
        later = await api_harness.active(name="later")
        await ear.until(lambda: ear.events[-1].task["id"] == later["id"])
        told = [(each.task["name"], each.task["status"]) for each in ear.events[1:]]
        assert told[:2] == [("leaver", "unknown"), ("later", "active")]
    assert (await api_harness.alice.get("/tasks/watch", params={"q": "status:done"})).status_code == 400


async def test_who_hears_what(api_harness: ApiHarness) -> None:
    """An admin hears of the organization's tasks, a member of its own, an admin of another of none of them."""
    async with AsyncExitStack() as stack:
        ears = {
            who: await stack.enter_async_context(sse_client(api_harness.clients[who], "/tasks/watch"))
            for who in ("alice", "bob", "carol", "mallory")
        }
        for ear in ears.values():
            await ear.ready()
        await api_harness.create(name="a")
        await api_harness.create(api_harness.bob, name="b")
        await ears["carol"].until(lambda: len(ears["carol"].events) == 2)
        await ears["bob"].until(lambda: ears["bob"].events)
        assert {who: [each.task["name"] for each in ear.events] for who, ear in ears.items()} == {
            "alice": ["a"],
            "bob": ["b"],
            "carol": ["a", "b"],
            "mallory": [],
        }
        await api_harness.worker.database.execute("UPDATE memberships SET role = 'member' WHERE role = 'admin'")
        await api_harness.create(name="c")
        await ears["alice"].until(lambda: len(ears["alice"].events) == 2)
        assert [each.task["name"] for each in ears["carol"].events] == ["a", "b"]


async def test_comments_and_the_end_of_a_token(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """In silence comments keep the connection; when the token ends, so does the stream."""
    monkeypatch.setattr(sse, "CHECK_INTERVAL", 0.1)
    async with sse_client(api_harness.alice, "/tasks/watch") as ear:
        await ear.ready()
        await ear.until(lambda: ear.comments > 3)
        await api_harness.worker.database.execute("UPDATE api_tokens SET revoked_at = now()")
        await ear.until(lambda: ear.over)
        assert ear.names() == ["resume"]


async def test_a_busy_stream_ends_with_its_token(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is never silent for long checks its token too, and ends when that is revoked."""
    monkeypatch.setattr(sse, "CHECK_INTERVAL", 1.0)
    task = await api_harness.active()
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.ready()
        await api_harness.worker.database.execute("UPDATE api_tokens SET revoked_at = now()")
        seq = 0
        async with asyncio.timeout(TIMEOUT):
            while not stream.over:
                seq += 1
                await state(api_harness, task["id"], seq)
        assert "task.updated" in stream.names()
        assert stream.names()[-1] == "resume"


async def test_a_slow_reader_is_told_to_resume(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads too slowly is not fed from memory: it is told to resume, and by its last id it misses nothing."""
    async with start_api() as api_harness:
        monkeypatch.setattr(change_feed, "MAX_BACKLOG_BYTES", 1_000_000)
        little = httpx.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)])
        prompt = "x" * 200_000
        ear = SseClient()
        async with (
            httpx.AsyncClient(headers=api_harness.alice.headers, transport=little) as client,
            client.stream("GET", f"{api_harness.base}/api/v2/tasks/watch", timeout=TIMEOUT) as response,
        ):
            await followers(api_harness, 1)
            for number in range(40):  # 8 MB, more than sockets and the bound together hold
                await api_harness.create(name=f"t{number}", input=prompt)
            await api_harness.worker.until(lambda: len(api_harness.worker.events) >= 40)
            await ear.listen(response)
        assert ear.names()[-1] == "resume"
        assert len(ear.events) < 90
        async with sse_client(api_harness.alice, "/tasks/watch", ear.last) as again:
            await again.until(lambda: len(names(ear) | names(again)) == 40)
        created = [each.task["name"] for each in (*ear.events, *again.events) if each.event == "task.created"]
        assert len(created) == len(set(created))


async def test_a_reader_that_leaves_frees_everything(api_harness: ApiHarness) -> None:
    """After readers have gone nothing is held for them, and the history is not read any more."""
    for _ in range(2):
        async with AsyncExitStack() as stack:
            for _ in range(20):
                ear = await stack.enter_async_context(sse_client(api_harness.alice, "/tasks/watch"))
                await ear.ready()
            await followers(api_harness, 20)
        await followers(api_harness, 0)
    assert not api_harness.api.change_feed._subscribers
    assert api_harness.api.change_feed._position is None


async def test_it_ends_streams_when_it_leaves(start_api: StartApi) -> None:
    """Told to stop, the process tells every reader to resume, elsewhere or later."""
    async with start_api() as api_harness, sse_client(api_harness.alice, "/tasks/watch") as ear:
        await ear.ready()
        api_harness.api.stop()
        await ear.until(lambda: ear.over)
        assert ear.names() == ["resume"]


async def test_many_readers(api_harness: ApiHarness) -> None:
    """Two hundred readers of one organization hear the same changes."""
    async with AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=300)
        carol = await stack.enter_async_context(
            httpx.AsyncClient(base_url=api_harness.carol.base_url, headers=api_harness.carol.headers, limits=limits)
        )
        ears = [await stack.enter_async_context(sse_client(carol, "/tasks/watch")) for _ in range(200)]
        for ear in ears:
            await ear.ready()
        task = await api_harness.active()
        for ear in ears:
            await ear.status("active")
            assert versions(ear, task["id"]) == versions(ears[0], task["id"])


async def test_the_bound_on_followers(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a follower, and who waits, is refused with 503 and told when to try again."""
    for module in (change_feed, sse):
        monkeypatch.setattr(module, "MAX_SUBSCRIBERS", 1)
    task = await api_harness.create()
    async with sse_client(api_harness.alice, "/tasks/watch") as ear:
        await ear.ready()
        for path in ("/tasks/watch", f"/tasks/me/{task['id']}?wait=1s"):
            refused = await api_harness.alice.get(path)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")


@pytest.mark.parametrize("status", ["active", "error"])
async def test_watching_one(api_harness: ApiHarness, status: str) -> None:
    """One task's reader hears of that task alone."""
    task_id = str(await in_status(api_harness.worker, status))
    other = await api_harness.create(name="other")
    async with sse_client(api_harness.alice, f"/tasks/me/{task_id}/watch") as ear:
        await ear.ready()
        assert [each.task["id"] for each in ear.events] == [task_id]
        await api_harness.worker.active(uuid.UUID(other["id"]))
        await state(api_harness, task_id, 1, "idle")
        await ear.until(lambda: len(ear.events) == 2)
        document: dict[str, Any] = ear.events[1].task
        assert (document["id"], document["status"]) == (task_id, status)
        await api_harness.alice.delete(f"/tasks/me/{task_id}")
        await ear.until(lambda: ear.over)
        assert ear.names() == ["task.snapshot", "task.updated", "task.deleted"]


async def test_somebody_may_be_called_watch(api_harness: ApiHarness) -> None:
    """The path of the watch takes nothing from the user of that name."""
    watch = uuid.uuid4()
    await api_harness.worker.database.execute(f"""
        INSERT INTO users (id, username, name, email, avatar_url) VALUES ('{watch}', 'watch', '', 'w@example.com', '');
        INSERT INTO memberships (user_id, organization_id, role) VALUES ('{watch}', '{ORGANIZATION}', 'member')""")
    task = await api_harness.create(api_harness.carol, user="watch")
    assert task["owner_id"] == str(watch)
    refused = await api_harness.carol.delete("/tasks/watch")
    assert (refused.status_code, refused.json()["message"]) == (405, "Method not allowed.")
