"""Streams of task logs: the newest entries, then each that is added or replaced, bounded, and resumable."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from taskherd.api.http.query_parameters import MAX_POSITION
from taskherd.api.tasks import log_follow
from tests.api.conftest import StartApi
from tests.harness.api import TIMEOUT, ApiHarness
from tests.harness.sse import SseClient, sse_client
from tests.harness.worker import build_report, make_report

TIME = "2026-03-01T12:00:00Z"


def logged(task: str, seq: int, *entries: tuple[int, str]) -> dict[str, Any]:
    """Return a report of entries, each an id and a content."""
    fields = [{"id": number, "type": "output", "content": content, "time": TIME} for number, content in entries]
    return make_report("task.log", uuid.UUID(task), build_number=1, seq=seq, entries=fields)


def contents(stream: SseClient) -> list[list[str]]:
    """Return the contents of the entries of each event."""
    return [[entry["content"] for entry in event.data["logs"]] for event in stream.events]


def contents_of_logs(stream: SseClient) -> list[list[str]]:
    """Return the contents of the entries of each event that has some."""
    logs = (event.data["logs"] for event in stream.events if event.event == log_follow.EVENT)
    return [[entry["content"] for entry in entries] for entries in logs]


async def until_said(api_harness: ApiHarness, task_id: uuid.UUID, message: str) -> None:
    """Wait until an event with this message of the agent was published."""
    await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("message") == message)


async def test_a_follower_learns_of_new_and_of_replaced_entries(api_harness: ApiHarness) -> None:
    """An entry that is replaced comes again under its id, and one that came late with its place among earlier ones."""
    task = (await api_harness.create(name="followed-log"))["id"]
    other = (await api_harness.create(name="log-of-another"))["id"]
    await api_harness.worker.report(logged(task, 1, (0, "Reading"), (1, "make")))
    await api_harness.worker.until_processed(1)
    async with sse_client(api_harness.alice, f"/tasks/me/{task}/logs/watch") as stream:
        await stream.until(lambda: len(stream.events) == 1)
        assert contents(stream) == [["Reading", "make"]]
        assert stream.events[0].event == log_follow.EVENT
        await api_harness.worker.report(logged(other, 1, (0, "Elsewhere")))
        await api_harness.worker.report(logged(task, 4, (1, "make: 14 passed")))
        await stream.until(lambda: len(stream.events) == 2)
        await api_harness.worker.report(logged(task, 3, (2, "Before that")), logged(task, 5, (3, "Done")))
        await stream.until(lambda: sum(map(len, contents(stream))) == 5)
        assert contents(stream)[1] == ["make: 14 passed"]
        assert [event.data["truncated"] for event in stream.events] == [False] * len(stream.events)
        newest = {entry["id"]: entry for event in stream.events for entry in event.data["logs"]}
        in_place = sorted(newest.values(), key=lambda entry: entry["place"])
        everything = (await api_harness.alice.get(f"/tasks/me/{task}/logs")).json()["logs"]
        assert in_place == everything
        last = stream.last
    await api_harness.worker.report(logged(task, 6, (0, "Read")))
    await api_harness.worker.until_processed(6)
    async with sse_client(api_harness.alice, f"/tasks/me/{task}/logs/watch", last) as stream:
        await stream.until(lambda: stream.events)
        assert contents(stream) == [["Read"]]


@pytest.mark.parametrize("changes", [1, 4], ids=["fewer changes", "more changes"])
@pytest.mark.parametrize("path", ["logs/watch", "watch"])
async def test_who_resumes_by_name_gets_the_whole_log_of_a_new_task(
    api_harness: ApiHarness, path: str, changes: int
) -> None:
    """A client of the deleted task that had the name knows nothing of its log, however long either is."""
    path = f"/tasks/me/reused/{path}"
    old = (await api_harness.create(name="reused"))["id"]
    await api_harness.worker.report(logged(old, 1, (0, "Before")))
    await api_harness.worker.report(logged(old, 2, (0, "Replaced"), (1, "Last")))
    await api_harness.worker.until_processed(2)
    async with sse_client(api_harness.alice, path, logs="10") as stream:
        await stream.until(lambda: [entries for entries in contents_of_logs(stream) if "Last" in entries])
        last = stream.last
    assert (await api_harness.alice.delete("/tasks/me/reused")).status_code == 202
    new = (await api_harness.create(name="reused"))["id"]
    for number in range(changes):
        await api_harness.worker.report(logged(new, number + 1, (number, f"After {number}")))
    await api_harness.worker.until_processed(2 + changes)
    async with sse_client(api_harness.alice, path, last, logs="10") as stream:
        await stream.until(lambda: any(contents_of_logs(stream)))
        assert contents_of_logs(stream) == [[f"After {number}" for number in range(changes)]]


async def test_a_stream_that_resumes_after_what_its_log_has_begins_anew(api_harness: ApiHarness) -> None:
    """As after the restore of a backup: with the newest entries, and not with nothing until it is as far again."""
    task = (await api_harness.create(name="restored"))["id"]
    await api_harness.worker.report(logged(task, 1, (0, "Kept")))
    await api_harness.worker.until_processed(1)
    async with sse_client(api_harness.alice, f"/tasks/me/{task}/logs/watch", str(MAX_POSITION)) as stream:
        await stream.until(lambda: stream.events)
        assert contents(stream) == [["Kept"]]
        await api_harness.worker.report(logged(task, 2, (1, "New")))
        await stream.until(lambda: len(stream.events) == 2)
        assert contents(stream)[1] == ["New"]


async def test_a_long_log_is_followed_from_its_end_and_read_backwards(start_api: StartApi) -> None:
    """The first event has the newest entries and says that there are older ones, which pages before an id give."""
    async with start_api() as harness:
        task = (await harness.create(name="long-log"))["id"]
        await harness.worker.report(logged(task, 1, *((number, f"line {number}") for number in range(30))))
        await harness.worker.until_processed(1)
        path = f"/tasks/me/{task}/logs"
        async with sse_client(harness.alice, f"{path}/watch", limit="10") as stream:
            await stream.until(lambda: stream.events)
            assert contents(stream) == [[f"line {number}" for number in range(20, 30)]]
            assert stream.events[0].data["truncated"] is True
        page = (await harness.alice.get(path, params={"before": 20, "limit": 15})).json()["logs"]
        assert [entry["content"] for entry in page] == [f"line {number}" for number in range(5, 20)]
        page = (await harness.alice.get(path, params={"before": 5, "limit": 15})).json()["logs"]
        assert [entry["content"] for entry in page] == [f"line {number}" for number in range(5)]
        assert (await harness.alice.get(path, params={"limit": 0})).status_code == 400
        for limit in (0, 1_001):
            assert (await harness.alice.get(f"{path}/watch", params={"limit": limit})).status_code == 400
        assert (await harness.alice.get(f"{path}/watch", headers={"Last-Event-ID": "x"})).status_code == 400


async def test_more_changes_than_one_event_holds_are_said_to_be_missing(
    api_harness: ApiHarness, monkeypatch: Any
) -> None:
    """Of more changes than fit, an event has the newest, and says that some are missing."""
    monkeypatch.setattr(log_follow, "MAX_ENTRIES", 3)
    task = (await api_harness.create(name="fast-log"))["id"]
    await api_harness.worker.report(logged(task, 1, (0, "one")))
    await api_harness.worker.until_processed(1)
    for seq in range(2, 8):
        await api_harness.worker.report(logged(task, seq, (seq, f"entry {seq}")))
    await api_harness.worker.until_processed(7)
    async with sse_client(api_harness.alice, f"/tasks/me/{task}/logs/watch", "1") as stream:
        await stream.until(lambda: stream.events)
        assert stream.events[0].data["truncated"] is True
        assert contents(stream) == [["entry 5", "entry 6", "entry 7"]]


async def test_an_answer_has_a_bounded_part_of_a_long_log(api_harness: ApiHarness) -> None:
    """The newest entries: 8 MiB of them in a response, and 4 MiB in an event."""
    fill = """
        INSERT INTO task_logs (task_id, log_id, logged_at, build_number, entry_id, seq, type, content, time, revision)
        SELECT $1, n, now(), 1, n, n, 'output', CASE n WHEN 1 THEN repeat('x', $2) ELSE 'older' END, now(), 1
        FROM generate_series(0, 1) AS n"""
    read, watched = [(await api_harness.create(name=name))["id"] for name in ("read-log", "watched-log")]
    for task, mebibytes in ((read, 8), (watched, 4)):
        await api_harness.worker.database.execute(fill, uuid.UUID(task), mebibytes * 1024 * 1024)
    logs = (await api_harness.alice.get(f"/tasks/me/{read}/logs")).json()["logs"]
    assert [len(entry["content"]) for entry in logs] == [8 * 1024 * 1024]
    async with sse_client(api_harness.alice, f"/tasks/me/{watched}/logs/watch") as stream:
        await stream.until(lambda: stream.events)
        assert [len(entry["content"]) for entry in stream.events[0].data["logs"]] == [4 * 1024 * 1024]
        assert stream.events[0].data["truncated"] is True


async def test_a_stream_of_a_log_is_only_for_those_who_may_see_the_task_and_ends_with_it(
    api_harness: ApiHarness,
) -> None:
    """Others get the 404 of a task that does not exist; the deletion of the task ends the stream."""
    task = (await api_harness.create(name="private-log"))["id"]
    for client in (api_harness.bob, api_harness.mallory):
        assert (await client.get(f"/tasks/alice/{task}/logs/watch")).status_code == 404
    async with sse_client(api_harness.carol, f"/tasks/alice/{task}/logs/watch") as stream:
        await stream.until(lambda: stream.events)
        assert stream.events[0].data == {"logs": [], "revision": 0, "truncated": False}
        await api_harness.alice.delete(f"/tasks/me/{task}")
        await stream.until(lambda: stream.ended)


async def test_the_streams_end_when_the_api_stops(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream does not hold up the end of the process, also one without news; its client is told to resume."""
    monkeypatch.setattr(log_follow, "COMMENT_INTERVAL", 600)
    task = (await api_harness.create(name="log-at-the-end"))["id"]
    async with sse_client(api_harness.alice, f"/tasks/me/{task}/logs/watch") as stream:
        await stream.until(lambda: stream.events)
        api_harness.api.stop()
        async with asyncio.timeout(TIMEOUT):
            await stream.until(lambda: stream.ended)
        assert stream.events[-1].event == "resume"


async def test_one_stream_has_the_changes_of_a_task_and_its_log(api_harness: ApiHarness) -> None:
    """The task's document comes first, then both as they happen; the id of an event resumes both where they were."""
    document = await api_harness.active(name="both-in-one")
    task = document["id"]
    await api_harness.worker.report(logged(task, 1, (0, "Said before")))
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs WHERE task_id = $1", uuid.UUID(task), is_=1)
    path = f"/tasks/me/{task}/watch"
    async with sse_client(api_harness.alice, path, logs="10") as stream:
        await stream.until(lambda: len(stream.events) == 2)
        assert [event.event for event in stream.events] == ["task.snapshot", log_follow.EVENT]
        await api_harness.worker.report(make_report("app.status", uuid.UUID(task), state="working", message="At it"))
        await stream.until(lambda: "task.updated" in stream.types())
        await api_harness.worker.report(logged(task, 2, (1, "Said while working")))
        await stream.until(lambda: len(stream.events) == 4)
        last = stream.last
    assert int(last.partition(".")[0]) > 0
    assert last.partition(".")[2] == str(stream.events[-1].data["revision"])
    await api_harness.worker.report(logged(task, 3, (2, "Said meanwhile")))
    await api_harness.worker.report(make_report("app.status", uuid.UUID(task), state="idle", message="Waiting"))
    await until_said(api_harness, uuid.UUID(task), "Waiting")
    async with sse_client(api_harness.alice, path, last, logs="10") as stream:
        await stream.until(lambda: {log_follow.EVENT, "task.updated", log_follow.INBOX_EVENT} == set(stream.types()))
        assert [each for each in contents_of_logs(stream) if each] == [["Said meanwhile"]]
        await api_harness.alice.delete(f"/tasks/me/{task}")
        await stream.until(lambda: stream.ended)
        assert stream.types()[-1] == "task.deleted"
    for wrong in ("12", "x.y", "1.2.3", f"{2**63}.1", f"1.{2**63}", f".{2**63}"):
        answer = await api_harness.alice.get(f"{path}?logs=10", headers={"Last-Event-ID": wrong})
        assert answer.status_code == 400, wrong


async def test_a_stream_with_the_log_tells_of_inputs_that_wait(api_harness: ApiHarness) -> None:
    """An input that waits for its agent changes nothing in the task's document; whoever looks at the task sees it."""
    task = (await api_harness.active(name="talked-to"))["id"]
    await api_harness.worker.report(make_report("app.status", uuid.UUID(task), state="working", message="At it"))
    path = f"/tasks/me/{task}/watch"
    async with sse_client(api_harness.alice, path, logs="10") as stream, sse_client(api_harness.alice, path) as other:
        await stream.until(lambda: log_follow.EVENT in stream.types())
        for number in (1, 2):
            assert (await api_harness.alice.post(f"/tasks/me/{task}/send", json={"input": "Faster"})).status_code == 204
            await stream.until(lambda: stream.types().count(log_follow.INBOX_EVENT) == number)  # noqa: B023 - awaited here
            assert stream.events[-1].data == {"waiting": number}
        async with sse_client(api_harness.alice, path, logs="10") as late:
            await late.until(lambda: log_follow.INBOX_EVENT in late.types())
            assert late.events[-1].data == {"waiting": 2}
            last = late.last
        await api_harness.worker.report(make_report("app.status", uuid.UUID(task), state="idle", message="Done"))
        await api_harness.worker.until_row("SELECT bool_or(state = 'sent') FROM inputs")
        async with sse_client(api_harness.alice, path, last, logs="10") as back:
            await back.until(lambda: log_follow.INBOX_EVENT in back.types())
        assert log_follow.INBOX_EVENT not in other.types()


async def test_the_builds_of_a_task_are_listed_the_newest_first(api_harness: ApiHarness) -> None:
    """Each start and stop is a build with a log of its own, which only those who may see the task can read."""
    task = (await api_harness.active(name="built-twice"))["id"]
    await api_harness.alice.post(f"/tasks/me/{task}/pause")
    await api_harness.worker.report(build_report(uuid.UUID(task), 2, "stop", "failed", error="disk is full"))
    await api_harness.worker.until(lambda: api_harness.worker.document(uuid.UUID(task)).get("status") == "error")
    path = f"/workspaces/{task}/builds"
    builds = (await api_harness.alice.get(path)).json()
    assert [(each["build_number"], each["transition"], each["job"]["status"]) for each in builds] == [
        (2, "stop", "failed"), (1, "start", "succeeded"),
    ]  # fmt: skip
    assert (await api_harness.alice.get(path, params={"limit": 1, "offset": 1})).json() == builds[1:]
    assert (await api_harness.alice.get(path, params={"limit": 101})).status_code == 400
    logs = (await api_harness.alice.get(f"/workspacebuilds/{builds[0]['id']}/logs")).json()
    assert logs[-1]["output"] == "disk is full"
    for client in (api_harness.bob, api_harness.mallory):
        assert (await client.get(path)).status_code == 404


async def test_the_durations_of_a_task_add_up_to_its_life(api_harness: ApiHarness) -> None:
    """Each moment since the create is in one state; changes of the message alone begin no new span."""
    task = await api_harness.active(name="long-lived")
    task_id = uuid.UUID(task["id"])
    for seq, (state, message) in enumerate(
        [("working", "Reading"), ("working", "Writing"), ("idle", "Which one?"), ("working", "Again")], start=1
    ):
        await api_harness.worker.report(make_report("app.status", task_id, state=state, message=message, seq=seq))
        await until_said(api_harness, task_id, message)
    body = (await api_harness.alice.get(f"/tasks/me/{task_id}/durations")).json()
    assert [span["state"] for span in body["spans"]][-3:] == ["working", "idle", "working"]
    assert body["spans"][0]["state"] == "starting"
    assert body["spans"][-1]["until"] is None
    for before, after in zip(body["spans"], body["spans"][1:], strict=False):
        assert before["until"] == after["since"]
    assert {total["state"] for total in body["totals"]} == {"starting", "working", "idle"}
    assert all(total["seconds"] >= 0 for total in body["totals"])
    assert (await api_harness.bob.get(f"/tasks/alice/{task_id}/durations")).status_code == 404
