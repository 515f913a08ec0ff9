"""Erasure: after its retention time, nothing of a deleted task's contents is in any table; laws and readers hold."""

from __future__ import annotations

import uuid
from io import BytesIO
from typing import Any

import asyncpg
import pytest

from taskherd.worker import maintenance
from tests.api.conftest import StartApi
from tests.harness.api import ApiHarness
from tests.harness.sse import sse_client
from tests.harness.worker import ALICE, VERSION, WorkerHarness, build_report, make_command, make_report

SECRETS = (
    *("xanadu", "kublai", "pleasuredome", "alph", "caverns", "fertile", "incense", "abora", "sunless", "damsel"),
    *("dulcimer", "honeydew", "ancestral", "rivulet", "tumult", "mazy", "symphony", "miracle"),
)
"""A word for each place in which a task keeps texts; none of them occurs anywhere else."""


async def dump(database: asyncpg.Connection) -> str:
    """Return every row of every table, partitions included, as text."""
    tables = await database.fetch(
        "SELECT c.oid::regclass::text AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND n.nspname = 'public'"
    )
    assert len(tables) > 25
    rows = BytesIO()
    for table in tables:
        await database.copy_from_query(f"SELECT * FROM {table['name']}", output=rows)
    return rows.getvalue().decode().lower()


async def found(database: asyncpg.Connection) -> list[str]:
    """Return the secrets that are in the database."""
    text = await dump(database)
    return [secret for secret in SECRETS if secret in text]


async def found_at_last(worker: WorkerHarness) -> list[str]:
    """Return the secrets that are in the database once the index of the tasks, which follows them, is up to date."""
    await worker.until_row("SELECT count(*) FROM task_index_changes", is_=0)
    return await found(worker.database)


async def create_with_secrets(api_harness: ApiHarness, suffix: str = "") -> tuple[uuid.UUID, dict[str, object]]:
    """Create a task with a secret in every place, paused; return its id and its create command."""
    worker, task_id = api_harness.worker, uuid.uuid4()
    create = make_command(
        "task.create",
        task_id,
        owner_id=str(ALICE),
        template_version_id=str(VERSION),
        input=f"Xanadu{suffix} decree",
        name=f"miracle{suffix}",
        display_name="Kublai",
        labels={"ground": "rivulet"},
    )
    assert (await worker.send(create))["ok"]
    same = {**create, "command_id": str(uuid.uuid4()), "task_id": str(uuid.uuid4()), "input": "Another", "labels": {}}
    taken = await worker.send({**same, "display_name": "Another"})
    assert taken["error"]["message"] == f'Workspace "miracle{suffix}" already exists.'
    build = {"workspace": {"id": str(uuid.uuid4()), "name": "pleasuredome"}, "agent_id": str(uuid.uuid4())}
    await worker.report(
        build_report(task_id, 1, "start", "succeeded", runner="r1", **build),
        make_report("agent.lifecycle", task_id, build_number=1, lifecycle="ready"),
        make_report("agent.heartbeat", task_id, build_number=1),
        make_report("app.status", task_id, build_number=1, state="idle", message="Where Alph ran", uri=""),
        make_report(
            "task.log",
            task_id,
            build_number=1,
            entries=[
                {"id": number, "type": "output", "content": f"caverns {number}", "time": "2026-11-26T12:00:00Z"}
                for number in range(3)
            ]
            + [
                {
                    "id": 3,
                    "type": "output",
                    "content": "A motion",
                    "time": "2026-11-26T12:00:00Z",
                    "kind": "tool_call",
                    "title": "Five miles, mazy",
                    "status": "completed",
                    "data": {"input": {"command": "echo symphony"}},
                }
            ],
        ),
    )
    await worker.until(lambda: worker.state(task_id).get("state") == "idle")
    request_id = str(uuid.uuid4())
    asked = {"build_number": 1, "title": "Fertile ground?", "detail": "Many an incense-bearing tree", "state": "open"}
    await worker.report(
        {**make_report("agent.request", task_id, request_id=request_id, **asked), "seq": 1, "kind": "question"}
    )
    await worker.until(lambda: worker.document(task_id).get("requests_open") == 1)
    refused = await worker.refused_command("task.answer", task_id, request_id=request_id, option_id="None")
    assert refused["status"] == 400
    assert (await worker.command("task.answer", task_id, request_id=request_id, text="Singing of Mount Abora"))["ok"]
    too_late = await worker.refused_command("task.answer", task_id, request_id=request_id, text="Of another")
    assert "Mount Abora" in too_late["detail"]
    chosen = {"request_id": str(uuid.uuid4()), "kind": "approval", "title": "Which ground?", "state": "open"}
    options = [{"id": "incense", "label": "Incense", "kind": "other"}]
    await worker.report(make_report("agent.request", task_id, build_number=1, **chosen, options=options))
    await worker.until(lambda: worker.document(task_id).get("requests_open") == 1)
    refused = await worker.refused_command("task.answer", task_id, request_id=chosen["request_id"], option_id="x")
    assert "incense" in refused["validations"][0]["detail"]
    assert (await worker.command("task.send", task_id, input="Down to a sunless sea"))["ok"]
    await worker.report(
        make_report("agent.exit", task_id, build_number=1, why="exited", status=1, words="Ancestral voices")
    )
    await worker.until(lambda: worker.document(task_id).get("agent_exit"))
    assert (await worker.command("task.pause", task_id))["ok"]
    await worker.report(build_report(task_id, 2, "stop", "succeeded"))
    await worker.until(lambda: worker.document(task_id).get("status") == "paused")
    assert (await worker.command("task.update_input", task_id, input="A damsel"))["ok"]
    assert (await worker.command("task.resume", task_id))["ok"]
    await worker.report(build_report(task_id, 3, "start", "failed", error="no dulcimer"))
    await worker.until(lambda: worker.document(task_id).get("status") == "error")
    return task_id, create


async def delete(api_harness: ApiHarness, task_id: uuid.UUID) -> None:
    """Delete the task, and let its runner report an error."""
    assert (await api_harness.worker.command("task.delete", task_id))["ok"]
    await api_harness.worker.report(build_report(task_id, 4, "delete", "running", error="honeydew"))
    await api_harness.worker.until_row(
        "SELECT state::text LIKE '%honeydew%' OR erased_at IS NOT NULL FROM tasks WHERE id = $1", task_id
    )


async def test_nothing_of_an_erased_task_is_left(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a retention of 0, no table has a text of the task soon after its delete; the delete still completes."""
    monkeypatch.setattr(maintenance, "EVERY", 0.0)
    monkeypatch.setattr(maintenance, "MAX_ROWS", 2)
    async with start_api(deleted_retention=0) as api_harness:
        worker, database = api_harness.worker, api_harness.worker.database
        before = await api_harness.create(name="before")
        await worker.until_row("SELECT count(*) FROM task_feed WHERE task_id = $1", uuid.UUID(before["id"]), is_=1)
        async with sse_client(api_harness.alice, "/tasks/watch") as stream:
            await stream.ready()
            last = stream.last
            task_id, create = await create_with_secrets(api_harness)
            assert await found(database) == [secret for secret in SECRETS if secret not in {"honeydew", "tumult"}]
            await delete(api_harness, task_id)
            await worker.until_row("SELECT erased_at IS NOT NULL FROM tasks WHERE id = $1", task_id)
            await stream.until(lambda: stream.events[-1].event == "task.deleted")
            assert "reset" not in stream.types()
        assert await found_at_last(worker) == []
        await worker.until_metric(1, "taskherd_tasks_erased_total")
        letters = len(worker.dead_letters)
        # laws: late reports are acked and counted, with no text; the command replays; the id stays taken
        await worker.report(
            build_report(task_id, 4, "delete", "failed", error="late honeydew"),
            make_report(
                "task.log",
                task_id,
                build_number=3,
                entries=[{"id": 0, "type": "output", "content": "A tumult", "time": "2026-11-26T12:00:00Z"}],
            ),
            make_report("agent.exit", task_id, build_number=3, why="exited", status=1, words="In a tumult"),
        )
        await worker.until_row("SELECT count(*) FROM parked", is_=0)
        await worker.until_row("SELECT state::text LIKE '%failed%' FROM tasks WHERE id = $1", task_id)
        assert await found_at_last(worker) == []
        again = await worker.send(create)
        assert again["ok"]
        assert (again["task"]["id"], again["task"]["initial_prompt"]) == (str(task_id), "")
        taken = await worker.send({**create, "command_id": str(uuid.uuid4())})
        assert taken["error"]["status"] == 409
        assert (await worker.refused_command("task.resume", task_id))["status"] == 404
        assert len(worker.dead_letters) == letters
        # a reader that resumes from before learns of the deletion only, and misses nothing after it
        await api_harness.create(name="after")
        async with sse_client(api_harness.alice, "/tasks/watch", last) as stream:
            await stream.until(lambda: stream.events and stream.events[-1].event == "task.created")
            assert stream.types() == ["task.deleted", "task.created"]
            assert stream.events[0].task["id"] == str(task_id)
            assert stream.events[0].task["initial_prompt"] == ""
            assert not [secret for secret in SECRETS if secret in stream.raw.decode().lower()]


async def test_the_delete_of_an_erased_task_is_requested_without_its_texts(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that has not answered yet is sent the request for the delete again, which has no prompt and no name."""
    monkeypatch.setattr(maintenance, "EVERY", 0.0)
    async with start_api(deleted_retention=0) as api_harness:
        worker = api_harness.worker
        task_id, _ = await create_with_secrets(api_harness)
        assert (await worker.command("task.delete", task_id))["ok"]
        await worker.until_row("SELECT erased_at IS NOT NULL FROM tasks WHERE id = $1", task_id)
        sent = len(worker.requests_of(task_id, "workspace.delete"))
        await worker.until(lambda: len(worker.requests_of(task_id, "workspace.delete")) > sent)
        request = worker.requests_of(task_id, "workspace.delete")[-1]
        assert request["task_name"] == str(task_id)
        assert "prompt" not in request
        await worker.report(build_report(task_id, 4, "delete", "succeeded"))
        await worker.until_row("SELECT count(*) FROM work_requests WHERE task_id = $1", task_id, is_=0)


async def test_the_input_of_an_action_is_erased_with_its_last_task(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text that an action sent to a task is in no table once the task is erased: a finished action keeps none."""
    monkeypatch.setattr(maintenance, "EVERY", 0.0)
    async with start_api(deleted_retention=0, api_action_rate=1) as api_harness:
        worker, client = api_harness.worker, api_harness.alice
        ids = [uuid.UUID((await api_harness.active(input=f"Will be gone {number}"))["id"]) for number in range(3)]
        body: dict[str, Any] = {"action": "send", "q": "owner:me", "input": "To Xanadu"}
        action = (await client.post("/task-actions", json=body)).json()["id"]
        assert (await worker.command("task.delete", ids[0]))["ok"]
        await worker.until_row("SELECT finished_at IS NOT NULL FROM task_actions WHERE id = $1", uuid.UUID(action))
        for task_id in ids[1:]:
            assert (await worker.command("task.delete", task_id))["ok"]
        for task_id in ids:
            await worker.until_row("SELECT erased_at IS NOT NULL FROM tasks WHERE id = $1", task_id)
        assert await found_at_last(worker) == []
        rows = (await client.get(f"/task-actions/{action}/results")).json()["results"]
        assert {uuid.UUID(row["task_id"]) for row in rows} == set(ids)
        assert {row["name"] for row in rows} == {None}
        # a canceled one keeps none either, though it is not finished when its task is deleted
        (kept,) = [(await api_harness.active(input="Cancels it"))["id"]]
        body = {"action": "send", "ids": [kept, *map(str, ids)], "input": "Where Alph ran"}
        action = (await client.post("/task-actions", json=body)).json()["id"]
        assert (await client.post(f"/task-actions/{action}/cancel")).status_code == 202
        await worker.until_row("SELECT finished_at IS NOT NULL FROM task_actions WHERE id = $1", uuid.UUID(action))
        assert (await worker.command("task.delete", uuid.UUID(kept)))["ok"]
        await worker.until_row("SELECT erased_at IS NOT NULL FROM tasks WHERE id = $1", uuid.UUID(kept))
        assert await found_at_last(worker) == []


async def test_the_retention_time(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tasks whose retention time has passed are erased: not live ones, not ones deleted later."""
    monkeypatch.setattr(maintenance, "EVERY", 0.0)
    async with start_api(deleted_retention=3600) as api_harness:
        worker, database = api_harness.worker, api_harness.worker.database
        live = uuid.UUID((await api_harness.create(name="live", input="Live words"))["id"])
        recent = uuid.UUID((await api_harness.create(name="recent", input="Recent words"))["id"])
        old, _ = await create_with_secrets(api_harness)
        for task_id in (recent, old):
            assert (await worker.command("task.delete", task_id))["ok"]
        await worker.until_row("SELECT count(*) FROM outbox", is_=0)
        assert await database.fetchval("SELECT count(*) FROM tasks WHERE erased_at IS NOT NULL") == 0
        await database.execute("UPDATE tasks SET deleted_at = now() - interval '61 min' WHERE id = $1", old)
        await worker.until_row("SELECT erased_at IS NOT NULL FROM tasks WHERE id = $1", old)
        assert await found_at_last(worker) == []
        text = await dump(database)
        assert "live words" in text
        assert "recent words" in text
        assert await database.fetchval("SELECT count(*) FROM tasks WHERE erased_at IS NOT NULL") == 1
        assert (await api_harness.get(str(live)))["initial_prompt"] == "Live words"


async def test_usage_outlives_the_contents(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an erased task used stays, and a late report adds only what is new, because it was used."""
    monkeypatch.setattr(maintenance, "EVERY", 0.0)
    async with start_api(deleted_retention=0) as api_harness:
        worker = api_harness.worker
        task_id = uuid.UUID((await api_harness.active())["id"])
        await worker.report(make_report("agent.usage", task_id, build_number=1, model="opus", input_tokens=3))
        await worker.until(lambda: worker.document(task_id).get("usage"))
        assert (await worker.command("task.delete", task_id))["ok"]
        await worker.until_row("SELECT erased_at IS NOT NULL FROM tasks WHERE id = $1", task_id)
        await worker.report(make_report("agent.usage", task_id, build_number=1, model="opus", input_tokens=5))
        await worker.until_row("SELECT sum(input_tokens)::int FROM daily_usage", is_=5)
        assert await worker.database.fetchval("SELECT input_tokens FROM task_usage") == 5
        assert (await api_harness.alice.get("/usage")).json()["total"]["input_tokens"] == 5
        usage = await worker.database.fetchval("SELECT document #>> '{usage,input_tokens}' FROM tasks")
        assert usage == "5"
