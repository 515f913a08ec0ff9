"""The history: every change once, with its cause, in the table and in the events."""

from __future__ import annotations

import json
import uuid
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from taskherd.worker import relay
from tests.harness.worker import ALICE, WorkerHarness, build_report, make_report

CREATED = [
    "agent_exit", "created_at", "current_state", "display_name", "id", "initial_prompt", "interrupt", "name",
    "owner_id", "requests", "requests_open",
    "stalled_since", "status",
    "template_version_id", "usage", "workspace_agent_health", "workspace_agent_id", "workspace_agent_lifecycle",
    "workspace_app_id", "workspace_build_number", "workspace_id", "workspace_name", "workspace_status",
]  # fmt: skip


async def full_life(harness: WorkerHarness) -> uuid.UUID:
    """Take a task through every kind of change, one after the other."""
    task_id = await harness.create(name="one")

    async def report_and_wait(*reports: dict[str, Any]) -> None:
        version = len(harness.events_of(task_id)) + 1
        await harness.report(*reports)
        await harness.until(lambda: len(harness.events_of(task_id)) == version)

    await harness.until(lambda: harness.events_of(task_id))
    agent, workspace, app = (str(uuid.uuid4()) for _ in range(3))
    await report_and_wait(build_report(task_id, 1, "start", "running"))
    await report_and_wait(
        build_report(task_id, 1, "start", "succeeded", agent_id=agent, workspace={"id": workspace, "name": "alice-one"},
              app={"id": app, "slug": "web", "health": "initializing"})
    )  # fmt: skip
    await report_and_wait(make_report("agent.lifecycle", task_id, lifecycle="ready"))
    await report_and_wait(make_report("agent.heartbeat", task_id, agent_id=agent))
    await report_and_wait(make_report("app.health", task_id, health="healthy"))
    await report_and_wait(
        make_report("app.status", task_id, state="working", message="Reading"),
        make_report("task.log", task_id, entries=[]),
        make_report("agent.heartbeat", task_id, agent_id=agent),
    )
    await report_and_wait(make_report("agent.disconnected", task_id, agent_id=agent))
    assert (await harness.command("task.pause", task_id))["ok"]
    await harness.until(lambda: len(harness.events_of(task_id)) == 9)
    await report_and_wait(build_report(task_id, 2, "stop", "succeeded"))
    assert (await harness.command("task.update_input", task_id, input="Again"))["ok"]
    await harness.until(lambda: len(harness.events_of(task_id)) == 11)
    assert (await harness.command("task.delete", task_id))["ok"]
    await harness.until(lambda: len(harness.events_of(task_id)) == 12)
    return task_id


async def test_every_event_names_the_changed_fields_and_the_cause(harness: WorkerHarness) -> None:
    """Each step raises the version by one, and its event names exactly the changed fields and the cause."""
    task_id = await full_life(harness)
    events = harness.events_of(task_id)
    assert [each["version"] for each in events] == list(range(1, 13))
    agent = ["workspace_agent_health", "workspace_agent_id", "workspace_agent_lifecycle"]
    stopped = ["status", *agent, "workspace_app_id", "workspace_build_number", "workspace_status"]
    assert [each["changes"] for each in events] == [
        CREATED,
        ["current_state", "status", "workspace_status"],
        ["current_state", *agent, "workspace_app_id", "workspace_id", "workspace_name", "workspace_status"],
        ["current_state", "workspace_agent_lifecycle"],
        ["workspace_agent_health"],
        ["current_state", "status"],
        ["current_state"],
        ["workspace_agent_health"],
        stopped,
        ["status", "workspace_status"],
        ["initial_prompt"],
        [],
    ]
    causes = [(each["cause"]["kind"], each["cause"]["type"]) for each in events]
    assert causes == [
        ("command", "task.create"),
        ("report", "workspace.build"),
        ("report", "workspace.build"),
        ("report", "agent.lifecycle"),
        ("report", "agent.heartbeat"),
        ("report", "app.health"),
        ("report", "app.status"),
        ("report", "agent.disconnected"),
        ("command", "task.pause"),
        ("report", "workspace.build"),
        ("command", "task.update_input"),
        ("command", "task.delete"),
    ]
    commands = [each["cause"] for each in events if each["cause"]["kind"] == "command"]
    assert all(cause["actor_id"] == str(ALICE) and uuid.UUID(cause["id"]) for cause in commands)
    for before, after in pairwise(events):
        names = before["task"].keys() | after["task"].keys()
        changed = {name for name in names if before["task"].get(name) != after["task"].get(name)}
        assert changed - {"updated_at"} == set(after["changes"])


async def test_events_are_cloud_events_by_kind(harness: WorkerHarness) -> None:
    """Events are CloudEvents 1.0 in JSON batches, routed by kind; id and time depend on task and version alone."""
    task_id = await full_life(harness)
    keys = {"created": "task.created", "updated": "task.updated", "deleted": "task.deleted"}
    for message in harness.messages:
        assert message.content_type == "application/cloudevents-batch+json"
        for event in json.loads(message.body):
            version = event["data"]["version"]
            kind = event["type"].removeprefix("dev.taskherd.task.").removesuffix(".v1")
            assert message.routing_key == keys[kind]
            assert kind == {1: "created", 12: "deleted"}.get(version, "updated")
            assert event["id"] == str(uuid.uuid5(task_id, str(version)))
            assert event["time"] == event["data"]["task"]["updated_at"]
            assert event.keys() == {
                "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"
            }  # fmt: skip
            assert event["data"].keys() == {"task", "version", "changes", "cause"}


async def test_the_history_equals_the_published_events(harness: WorkerHarness) -> None:
    """The history has every version with cause and changes, the outbox empties, and positions rise with versions."""
    ids = [await full_life(harness), await harness.make_active(), await harness.create()]
    await harness.until_row("SELECT count(*) FROM outbox", is_=0)
    for task_id in ids:
        events = harness.events_of(task_id)
        rows = await harness.database.fetch(
            "SELECT e.version, e.kind, e.changes, e.cause::text, e.document::text, p.prompt, f.position"
            " FROM task_events e JOIN task_prompts p ON p.task_id = e.task_id AND p.version = e.prompt_version"
            " JOIN task_feed f ON f.task_id = e.task_id AND f.version = e.version"
            " WHERE e.task_id = $1 ORDER BY e.version",
            task_id,
        )
        assert [row["version"] for row in rows] == [each["version"] for each in events] == list(range(1, len(rows) + 1))
        positions = [row["position"] for row in rows]
        assert positions == sorted(set(positions))
        for row, each in zip(rows, events, strict=True):
            assert (row["changes"], json.loads(row["cause"])) == (each["changes"], each["cause"])
            assert {**each["task"], **json.loads(row["document"])} == each["task"]
            assert row["prompt"] == each["task"]["initial_prompt"]
    version, updated = await harness.database.fetchrow("SELECT version, updated_at FROM tasks WHERE id = $1", ids[1])
    assert version == harness.events_of(ids[1])[-1]["version"]
    assert updated == await harness.database.fetchval(
        "SELECT max(occurred_at) FROM task_events WHERE task_id = $1", ids[1]
    )
    total = await harness.database.fetchrow("SELECT count(*), count(DISTINCT (task_id, version)) FROM task_feed")
    assert total[0] == total[1] == await harness.database.fetchval("SELECT count(*) FROM task_events")


async def test_a_republished_event_is_identical(harness: WorkerHarness) -> None:
    """An unconfirmed event is published again from the outbox, equal in every field."""
    await full_life(harness)
    await harness.until_row("SELECT count(*) FROM outbox", is_=0)
    first = {event["id"]: event for event in harness.events}
    harness.events.clear()
    await harness.database.execute("DELETE FROM task_feed")
    await harness.database.execute("INSERT INTO outbox SELECT task_id, version, occurred_at FROM task_events")
    await harness.until_row("SELECT count(*) FROM outbox", is_=0)
    await harness.until(lambda: len(harness.events) == len(first))
    assert {event["id"]: event for event in harness.events} == first


def has_more_events(harness: WorkerHarness, task_id: uuid.UUID, count: int) -> bool:
    """Return whether more than ``count`` changes of the task were published."""
    return len(harness.events_of(task_id)) > count


async def test_traffic_does_not_starve_stale_events(harness: WorkerHarness) -> None:
    """A stale event in the outbox is published while other tasks change without a pause."""
    task_id, other = await harness.make_active(), await harness.make_active()
    await harness.until_row("SELECT count(*) FROM outbox", is_=0)
    harness.events.clear()
    await harness.database.execute("DELETE FROM task_feed WHERE task_id = $1", task_id)
    await harness.database.execute(
        "INSERT INTO outbox SELECT task_id, version, occurred_at FROM task_events WHERE task_id = $1", task_id
    )
    steps = 0
    while 1 not in harness.versions(task_id):
        steps += 1
        count = len(harness.events_of(other))
        await harness.report(make_report("app.status", other, state="working", message=f"step {steps}"))
        await harness.until(partial(has_more_events, harness, other, count))
        assert steps < 2_000


async def test_an_event_from_before_the_clock_was_set_back_holds_up_nothing(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unpublished event whose time is in the future is published, and so are the later versions of its task.

    Work requests are sent meanwhile, however many events there are.
    """
    task_id, other = await harness.make_active(), await harness.make_active()
    await harness.until_row("SELECT count(*) FROM outbox", is_=0)
    harness.events.clear()
    monkeypatch.setattr(relay, "MAX_EVENTS_PER_ROUND", 1)
    version = await harness.database.fetchval("SELECT version FROM tasks WHERE id = $1", task_id)
    async with harness.database.transaction():
        await harness.database.execute(
            "UPDATE task_events SET occurred_at = occurred_at + interval '1 hour' WHERE task_id = $1 AND version = $2",
            task_id,
            version,
        )
        await harness.database.execute("DELETE FROM task_feed WHERE task_id = $1 AND version = $2", task_id, version)
        await harness.database.execute(
            "INSERT INTO outbox SELECT task_id, version, occurred_at FROM task_events"
            " WHERE task_id = $1 AND version = $2",
            task_id,
            version,
        )
    await harness.report(make_report("app.status", task_id, state="working", message="after the clock was set back"))
    await harness.until(lambda: version + 1 in harness.versions(task_id))
    assert (await harness.command("task.pause", other))["ok"]
    await harness.until(lambda: harness.requests_of(other, "workspace.stop"))
    await harness.until_row("SELECT count(*) FROM outbox", is_=0)
    feed = await harness.database.fetch("SELECT version FROM task_feed WHERE task_id = $1 ORDER BY position", task_id)
    assert [row["version"] for row in feed] == list(range(1, version + 2))
    assert version in harness.versions(task_id)
