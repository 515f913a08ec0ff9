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
from tests.api.conftest import Staging
from tests.harness.api import PATIENCE, Stage
from tests.harness.sse import Ear, listening
from tests.harness.worker import ORGANIZATION, build, in_status, said


def versions(ear: Ear, task_id: str) -> list[int]:
    """The versions of a task's changes, as they were heard."""
    return [each.version for each in ear.heard if each.event != "task.snapshot" and each.task["id"] == task_id]


def names(ear: Ear) -> set[str]:
    """The tasks that were heard of, by name."""
    return {each.task["name"] for each in ear.heard if each.event.startswith("task.")}


async def followers(house: Stage, count: int) -> None:
    """Wait until so many follow."""
    async with asyncio.timeout(PATIENCE):
        while house.api.metrics.registry.get_sample_value("taskherd_api_followers") != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def state(house: Stage, task_id: str, seq: int, state: str = "working") -> None:
    """Report what a task's agent does."""
    fields = {"state": state, "message": f"step {seq}", "seq": seq, "build_number": 1}
    await house.herd.report(said("app.status", uuid.UUID(task_id), **fields))


async def test_documents_then_changes(house: Stage) -> None:
    """A reader gets each task's document, then each change as the CloudEvent with its position, to the task's end."""
    first, second = await house.create(name="one"), await house.create(name="two")
    await house.create(house.bob, name="bobs")
    async with listening(house.alice, "/tasks/watch") as ear:
        await ear.ready()
        assert [(each.event, each.task) for each in ear.heard] == [
            ("task.snapshot", await house.get(second["id"])),
            ("task.snapshot", await house.get(first["id"])),
        ]
        third = await house.create(name="three")
        await ear.until(lambda: len(ear.heard) == 3)
        created = ear.heard[-1]
        assert (created.event, created.task, created.version) == ("task.created", third, 1)
        assert created.data["type"] == "dev.taskherd.task.created.v1"
        assert created.data["subject"] == third["id"]
        assert created.id == ear.last
        await house.herd.active(uuid.UUID(third["id"]))
        await ear.until(lambda: ear.heard[-1].task["status"] == "active")
        assert ear.heard[-1].task == await house.get(third["id"])
        await house.create(house.bob, name="bobs-second")
        await house.alice.delete(f"/tasks/me/{third['id']}")
        await ear.until(lambda: "task.deleted" in ear.names())
        heard = versions(ear, third["id"])
        assert heard == list(range(1, len(heard) + 1))
        assert {each.task["owner_name"] for each in ear.heard} == {"alice"}
        positions = [int(each.id) for each in ear.heard[2:]]
        assert positions == sorted(set(positions))
    await followers(house, 0)


async def test_no_gap_and_no_double_while_tasks_change(house: Stage) -> None:
    """Whenever a reader comes while reports pour in: the versions behind its snapshot come one by one."""
    task = await house.active()
    reports = 150

    async def pour() -> None:
        for seq in range(1, reports + 1):
            await state(house, task["id"], seq)

    async def hear() -> Ear:
        async with listening(house.alice, "/tasks/watch") as ear:
            await ear.until(lambda: ear.heard and _message(ear) == f"step {reports}")
            return ear

    def _message(ear: Ear) -> str:
        return str((ear.heard[-1].task["current_state"] or {}).get("message"))

    pouring = asyncio.create_task(pour())
    async with AsyncExitStack():
        hearing = [asyncio.create_task(hear()) for _ in range(5)]
        for _ in range(5):
            seen = (await house.get(task["id"]))["updated_at"]
            hearing.append(asyncio.create_task(hear()))
            async with asyncio.timeout(PATIENCE):
                while not pouring.done() and (await house.get(task["id"]))["updated_at"] == seen:
                    continue
        ears = await asyncio.gather(*hearing, pouring)
    rows = await house.herd.database.fetch(
        "SELECT version, occurred_at FROM task_events WHERE task_id = $1", uuid.UUID(task["id"])
    )
    newest = max(row["version"] for row in rows)
    by_time = {row["occurred_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"): row["version"] for row in rows}
    for ear in ears[:-1]:
        assert isinstance(ear, Ear)
        assert ear.heard[0].event == "task.snapshot"
        began = by_time.get(ear.heard[0].task["updated_at"], 1)
        assert versions(ear, task["id"]) == list(range(began + 1, newest + 1))


async def test_who_was_away_misses_nothing(house: Stage) -> None:
    """With Last-Event-ID come exactly the changes since, those of deleted tasks too, and no documents."""
    task = await house.create(name="one")
    await house.herd.until_row("SELECT count(*) FROM outbox", is_=0)
    async with listening(house.alice, "/tasks/watch") as ear:
        await ear.ready()
        last = ear.last
    await house.herd.active(uuid.UUID(task["id"]))
    gone = await house.create(name="gone")
    await house.alice.delete(f"/tasks/me/{gone['id']}")
    await house.create(house.bob, name="bobs")
    await house.herd.until(lambda: any(each["type"].endswith("deleted.v1") for each in house.herd.events))
    newest = max(data["version"] for data in house.herd.told(uuid.UUID(task["id"])))
    async with listening(house.alice, "/tasks/watch", last) as ear:
        await ear.until(lambda: "task.deleted" in ear.names())
        assert versions(ear, task["id"]) == list(range(2, newest + 1))
        assert versions(ear, gone["id"]) == [1, 2]
        assert "task.snapshot" not in ear.names()
        await house.create(name="latest")
        await ear.until(lambda: ear.heard[-1].task["name"] == "latest")
    async with listening(house.alice, f"/tasks/me/{gone['id']}/watch", last) as ear:
        await ear.until(lambda: ear.over)
        assert ear.names() == ["task.created", "task.deleted"]
    assert (await house.alice.get(f"/tasks/me/{gone['id']}/watch")).status_code == 404
    foreign = await house.bob.get(f"/tasks/me/{gone['id']}/watch", headers={"Last-Event-ID": last})
    assert foreign.status_code == 404


async def test_a_position_that_is_gone(house: Stage) -> None:
    """Who resumes from a pruned position, or one that never was, is told so and gets the current documents."""
    task = await house.active()
    await house.herd.until_row("SELECT count(*) FROM outbox", is_=0)  # so that all that there is has a position
    async with listening(house.alice, "/tasks/watch") as ear:
        await ear.ready()
        last = ear.last
    await house.herd.database.execute("DELETE FROM task_feed")
    for away in (last, "999999"):
        async with listening(house.alice, "/tasks/watch", away) as ear:
            await ear.moved_on(away)
            assert ear.names() == ["reset", "task.snapshot"]
            assert ear.heard[1].task == await house.get(task["id"])
    async with listening(house.alice, f"/tasks/me/{task['id']}/watch", last) as ear:
        await ear.until(lambda: len(ear.heard) == 2)
        assert ear.names() == ["reset", "task.snapshot"]
    for wrong in ("x", "-1", "9" * 30):
        refused = await house.alice.get("/tasks/watch", headers={"Last-Event-ID": wrong})
        assert (refused.status_code, refused.json()["validations"][0]["field"]) == (400, "Last-Event-ID")


async def test_a_hole_in_the_history_is_a_reset_too(house: Stage) -> None:
    """Where events were pruned and their positions not yet, a reader who needs them gets documents instead."""
    first = await house.create(name="first")
    async with listening(house.alice, "/tasks/watch") as ear:
        await ear.ready()
        last = ear.last
    task = await house.create(name="second")
    await house.herd.until(lambda: house.herd.told(uuid.UUID(task["id"])))
    await house.herd.until_row("SELECT count(*) FROM outbox", is_=0)
    await house.herd.database.execute("DELETE FROM task_events WHERE task_id = $1", uuid.UUID(task["id"]))
    async with listening(house.alice, "/tasks/watch", last) as ear:
        await ear.until(lambda: len(ear.heard) == 3)
        assert ear.names() == ["reset", "task.snapshot", "task.snapshot"]
        assert {each.task["id"] for each in ear.heard[1:]} == {first["id"], task["id"]}


async def test_a_filter_tells_what_leaves_it(house: Stage) -> None:
    """With a status a reader hears of tasks that have it, and once more of one that leaves it."""
    task = await house.active(name="leaver")
    await house.create(name="other")
    async with listening(house.alice, "/tasks/watch", q="owner:me status:active") as ear:
        await ear.ready()
        assert [each.task["name"] for each in ear.heard] == ["leaver"]
        await house.alice.post(f"/tasks/me/{task['id']}/pause")
        await house.herd.report(build(uuid.UUID(task["id"]), 2, "stop", "succeeded"))
        later = await house.active(name="later")
        await ear.until(lambda: ear.heard[-1].task["id"] == later["id"])
        told = [(each.task["name"], each.task["status"]) for each in ear.heard[1:]]
        assert told[:2] == [("leaver", "unknown"), ("later", "active")]
    assert (await house.alice.get("/tasks/watch", params={"q": "status:done"})).status_code == 400


async def test_who_hears_what(house: Stage) -> None:
    """An admin hears of the organization's tasks, a member of its own, an admin of another of none of them."""
    async with AsyncExitStack() as stack:
        ears = {
            who: await stack.enter_async_context(listening(house.clients[who], "/tasks/watch"))
            for who in ("alice", "bob", "carol", "mallory")
        }
        for ear in ears.values():
            await ear.ready()
        await house.create(name="a")
        await house.create(house.bob, name="b")
        await ears["carol"].until(lambda: len(ears["carol"].heard) == 2)
        await ears["bob"].until(lambda: ears["bob"].heard)
        assert {who: [each.task["name"] for each in ear.heard] for who, ear in ears.items()} == {
            "alice": ["a"],
            "bob": ["b"],
            "carol": ["a", "b"],
            "mallory": [],
        }
        await house.herd.database.execute("UPDATE memberships SET role = 'member' WHERE role = 'admin'")
        await house.create(name="c")
        await ears["alice"].until(lambda: len(ears["alice"].heard) == 2)
        assert [each.task["name"] for each in ears["carol"].heard] == ["a", "b"]


async def test_comments_and_the_end_of_a_token(house: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """In silence comments keep the connection; when the token ends, so does the stream."""
    monkeypatch.setattr(sse, "COMMENT_EVERY", 0.1)
    async with listening(house.alice, "/tasks/watch") as ear:
        await ear.ready()
        await ear.until(lambda: ear.comments > 3)
        await house.herd.database.execute("UPDATE api_tokens SET revoked_at = now()")
        await ear.until(lambda: ear.over)
        assert ear.names() == ["resume"]


async def test_a_slow_reader_is_told_to_resume(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads too slowly is not fed from memory: it is told to resume, and by its last id it misses nothing."""
    async with staging() as house:
        monkeypatch.setattr(change_feed, "BACKLOG_BYTES_MOST", 1_000_000)
        little = httpx.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)])
        prompt = "x" * 200_000
        ear = Ear()
        async with (
            httpx.AsyncClient(headers=house.alice.headers, transport=little) as client,
            client.stream("GET", f"{house.base}/api/v2/tasks/watch", timeout=PATIENCE) as response,
        ):
            await followers(house, 1)
            for number in range(40):  # 8 MB, more than sockets and the bound together hold
                await house.create(name=f"t{number}", input=prompt)
            await house.herd.until(lambda: len(house.herd.events) >= 40)
            await ear.listen(response)
        assert ear.names()[-1] == "resume"
        assert len(ear.heard) < 90
        async with listening(house.alice, "/tasks/watch", ear.last) as again:
            await again.until(lambda: len(names(ear) | names(again)) == 40)
        created = [each.task["name"] for each in (*ear.heard, *again.heard) if each.event == "task.created"]
        assert len(created) == len(set(created))


async def test_a_reader_that_leaves_frees_everything(house: Stage) -> None:
    """After readers have gone nothing is held for them, and the history is not read any more."""
    for _ in range(2):
        async with AsyncExitStack() as stack:
            for _ in range(20):
                ear = await stack.enter_async_context(listening(house.alice, "/tasks/watch"))
                await ear.ready()
            await followers(house, 20)
        await followers(house, 0)
    assert not house.api.tail._followers
    assert house.api.tail._position is None


async def test_it_ends_streams_when_it_leaves(staging: Staging) -> None:
    """Told to stop, the process tells every reader to resume, elsewhere or later."""
    async with staging() as house, listening(house.alice, "/tasks/watch") as ear:
        await ear.ready()
        house.api.stop()
        await ear.until(lambda: ear.over)
        assert ear.names() == ["resume"]


async def test_many_readers(house: Stage) -> None:
    """Two hundred readers of one organization hear the same changes."""
    async with AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=300)
        carol = await stack.enter_async_context(
            httpx.AsyncClient(base_url=house.carol.base_url, headers=house.carol.headers, limits=limits)
        )
        ears = [await stack.enter_async_context(listening(carol, "/tasks/watch")) for _ in range(200)]
        for ear in ears:
            await ear.ready()
        task = await house.active()
        for ear in ears:
            await ear.status("active")
            assert versions(ear, task["id"]) == versions(ears[0], task["id"])


async def test_the_bound_on_followers(house: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a follower, and who waits, is refused with 503 and told when to try again."""
    for module in (change_feed, sse):
        monkeypatch.setattr(module, "FOLLOWERS_MOST", 1)
    task = await house.create()
    async with listening(house.alice, "/tasks/watch") as ear:
        await ear.ready()
        for path in ("/tasks/watch", f"/tasks/me/{task['id']}?wait=1s"):
            refused = await house.alice.get(path)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")


@pytest.mark.parametrize("status", ["active", "error"])
async def test_watching_one(house: Stage, status: str) -> None:
    """One task's reader hears of that task alone."""
    task_id = str(await in_status(house.herd, status))
    other = await house.create(name="other")
    async with listening(house.alice, f"/tasks/me/{task_id}/watch") as ear:
        await ear.ready()
        assert [each.task["id"] for each in ear.heard] == [task_id]
        await house.herd.active(uuid.UUID(other["id"]))
        await state(house, task_id, 1, "idle")
        await ear.until(lambda: len(ear.heard) == 2)
        document: dict[str, Any] = ear.heard[1].task
        assert (document["id"], document["status"]) == (task_id, status)
        await house.alice.delete(f"/tasks/me/{task_id}")
        await ear.until(lambda: ear.over)
        assert ear.names() == ["task.snapshot", "task.updated", "task.deleted"]


async def test_somebody_may_be_called_watch(house: Stage) -> None:
    """The path of the watch takes nothing from the user of that name."""
    watch = uuid.uuid4()
    await house.herd.database.execute(f"""
        INSERT INTO users (id, username, name, email, avatar_url) VALUES ('{watch}', 'watch', '', 'w@example.com', '');
        INSERT INTO memberships (user_id, organization_id, role) VALUES ('{watch}', '{ORGANIZATION}', 'member')""")
    task = await house.create(house.carol, user="watch")
    assert task["owner_id"] == str(watch)
    refused = await house.carol.delete("/tasks/watch")
    assert (refused.status_code, refused.json()["message"]) == (405, "Method not allowed.")
