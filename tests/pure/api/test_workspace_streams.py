"""Streams of a workspace and of the logs of its builds, without servers: what is sent, and when they end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.context import RequestContext
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.sse import PING
from taskherd.api.http.websocket import NORMAL, POLICY_VIOLATION, TRY_AGAIN_LATER
from taskherd.api.workspaces import log_stream, logs, watch
from taskherd.errors import Unavailable
from taskherd.store import builds
from tests.pure.api.test_build_documents import BUILD, MADE, TASK, row
from tests.pure.api.test_subscribers import at, new_feed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from taskherd.api.change_feed import ChangeFeed
    from taskherd.store.read_pool import Row

ALICE = UUID(int=1)


class Store:
    """A workspace and the steps of its build, as they are read one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[Row | Exception | None] = []
        self.steps: list[Row] = []
        self.reads: list[int] = []
        self.feed: ChangeFeed = new_feed()
        self.feed._positioned.set()
        self.stopping = asyncio.Event()
        self.seen = 0
        self.sent: list[Any] = []
        self.api = SimpleNamespace(reader="reader", change_feed=self.feed, reads=self, stopping=self.stopping)
        monkeypatch.setattr(builds, "of_task", self._of_task)
        monkeypatch.setattr(builds, "latest_of_workspace", self._of_task)
        monkeypatch.setattr(builds, "app_statuses", self._app_statuses)
        monkeypatch.setattr(builds, "history", self._history)

    def mark(self, caller: UUID) -> None:
        """Count what the caller has seen."""
        assert caller == ALICE
        self.seen += 1

    def request(self) -> RequestContext:
        """Return a request of Alice."""
        request = RequestContext(cast("Any", self.api), "GET", {"id": str(BUILD)}, {}, {}, query_model=logs.LogQuery)
        request.set_caller(Caller(ALICE, "alice", "token"))
        request.follows = True
        return request

    def workspaces(self) -> AsyncGenerator[bytes | None]:
        """Return the stream of a workspace."""
        return watch._workspaces(self.request(), row(task_id=TASK))

    async def send_text(self, text: str) -> None:
        """Take a frame."""
        self.sent.append(orjson.loads(text))

    async def _of_task(self, reader: object, caller: UUID, _id: UUID) -> Row | None:
        assert (reader, caller) == ("reader", ALICE)
        found = self.rows.pop(0) if len(self.rows) > 1 else self.rows[0]
        if isinstance(found, Exception):
            raise found
        return found

    async def _app_statuses(self, *_: object) -> list[Row]:
        return []

    async def _history(
        self, reader: object, task_id: UUID, number: int, changes: Any, *, after: int, limit: int
    ) -> list[Row]:
        assert (reader, task_id, number) == ("reader", TASK, 3)
        assert changes in {logs.BUILD.changes, logs.AGENT.changes}
        self.reads.append(after)
        return [step for step in self.steps if step["version"] > after][:limit]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a store."""
    return Store(monkeypatch)


def name_of(workspace: bytes | None) -> str | None:
    """Return the name of a workspace."""
    return None if workspace is None else str(orjson.loads(workspace)["name"])


async def test_a_workspace_is_sent_whenever_it_has_changed(store: Store) -> None:
    """First a sign of life, then the workspace; a change of the task that leaves it as it is is another sign."""
    store.rows = [row(), row(), row(workspace_name="renamed"), None]
    async with asyncio.timeout(30), aclosing(store.workspaces()) as workspaces:
        assert await anext(workspaces) is None
        assert name_of(await anext(workspaces)) == "fix-it"
        for expected in (None, "renamed"):
            waiting = asyncio.ensure_future(anext(workspaces))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not waiting.done()
            store.feed._distribute(at(6 if expected is None else 7, viewer=ALICE, task_id=TASK))
            assert name_of(await waiting) == expected
        waiting = asyncio.ensure_future(anext(workspaces))
        await asyncio.sleep(0)
        store.feed._distribute(at(8, viewer=ALICE, task_id=TASK))
        with pytest.raises(StopAsyncIteration):
            await waiting
    assert store.seen == 3
    assert (store.feed._subscriber_count, len(store.feed._subscribers)) == (0, 0)


async def test_a_workspace_is_read_again_after_an_outage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile nothing is sent; and nothing more once the process stops."""
    monkeypatch.setattr(watch, "PING_INTERVAL", 0.001)
    store.rows = [Unavailable("no database"), Unavailable("no database"), row()]
    async with asyncio.timeout(30), aclosing(store.workspaces()) as workspaces:
        assert await anext(workspaces) is None
        assert name_of(await anext(workspaces)) == "fix-it"
        assert await anext(workspaces) is None
        store.stopping.set()
        assert [each async for each in workspaces] == []


async def test_a_workspace_is_polled_without_a_subscriber(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after too many changes at once."""
    monkeypatch.setattr(watch, "OUTAGE_INTERVAL", 0.001)
    store.rows = [row(), row(workspace_name="renamed")]
    async with asyncio.timeout(30), aclosing(store.workspaces()) as workspaces:
        await anext(workspaces)
        await anext(workspaces)
        store.feed._end_all()
        assert name_of(await anext(workspaces)) == "renamed"


async def test_the_events_of_a_workspace(store: Store) -> None:
    """With the same content as the frames of a socket."""
    store.rows = [row(), None]
    store.feed._distribute(at(6, viewer=ALICE, task_id=TASK))
    request = store.request()
    async with asyncio.timeout(30), aclosing(watch._frames(request, row(task_id=TASK))) as frames:
        assert await anext(frames) == PING
        event = await anext(frames)
    head, _, data = event.partition(b"data: ")
    assert (head, name_of(data.strip()), event[-2:]) == (b"event: data\n", "fix-it", b"\n\n")
    store.feed._position = 5
    store.feed._positioned.set()
    store.rows = [row(), None]
    sending = asyncio.create_task(watch._send(request, store.send_text, row(task_id=TASK)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert [each["type"] for each in store.sent] == ["ping", "data"]
    assert (store.sent[0]["data"], store.sent[1]["data"]["name"]) == (None, "fix-it")
    store.feed._distribute(at(6, viewer=ALICE, task_id=TASK))
    async with asyncio.timeout(30):
        assert await sending == NORMAL


async def test_a_feed_that_cannot_be_read_ends_a_workspaces_stream(store: Store) -> None:
    """The client connects again."""
    store.feed.stop()
    request = store.request()
    assert [frame async for frame in watch._frames(request, row())] == []
    assert await watch._send(request, store.send_text, row()) == TRY_AGAIN_LATER


def step(version: int) -> Row:
    """Return a step of a build."""
    fields = {"workspace_status": "running", "lifecycle": "ready", "healthy": True, "reason": ""}
    return cast("Row", {**fields, "version": version, "occurred_at": MADE})


def stream_of(store: Store, kind: logs.LogSpec) -> log_stream._LogStream:
    """Return a stream that reads again at once."""
    return log_stream._LogStream(store.request(), kind, None)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have streams read again at once."""
    monkeypatch.setattr(log_stream, "OUTAGE_POLL_INTERVAL", 0)
    monkeypatch.setattr(log_stream, "POLL_INTERVAL", 0.001)


async def test_a_log_is_sent_until_it_is_complete(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry once, in as many reads as it needs; what came with the end is sent, too."""
    monkeypatch.setattr(logs, "MAX_ENTRIES", 2)
    store.steps = [step(number) for number in (3, 5, 6)]
    looked: list[UUID] = []

    async def build(_reader: object, _caller: UUID, build_id: UUID) -> Row:
        looked.append(build_id)
        if len(looked) == 1:
            raise Unavailable("no database")
        store.steps.append(step(9))
        return row(job_status="succeeded", task_id=TASK)

    kind = logs.LogSpec(build, logs.BUILD.changes, logs.BUILD.entry, logs.BUILD.complete, arrays=False)
    first = row(job_status="running", task_id=TASK)
    async with asyncio.timeout(30):
        assert await stream_of(store, kind).stream(first, 3, store.send_text) == NORMAL
    assert [each["id"] for each in store.sent] == [5, 6, 9]
    assert store.reads == [3, 6, 6]
    assert looked == [BUILD, BUILD]


async def test_a_log_of_an_agent_has_frames_of_several_entries(store: Store) -> None:
    """As Coder's clients expect; it is complete with a later build."""
    store.steps = [step(3), step(5)]
    async with asyncio.timeout(30):
        later = row(is_latest=False, task_id=TASK)
        assert await stream_of(store, logs.AGENT).stream(later, 0, store.send_text) == NORMAL
    assert [[each["id"] for each in frame] for frame in store.sent] == [[3, 5]]
    assert store.reads == [0]


async def test_a_log_that_may_be_seen_no_more_ends(store: Store) -> None:
    """With a code that says so."""

    async def gone(*_: object) -> None:
        return None

    kind = logs.LogSpec(gone, logs.BUILD.changes, logs.BUILD.entry, logs.BUILD.complete, arrays=False)
    async with asyncio.timeout(30):
        first = row(job_status="running", task_id=TASK)
        assert await stream_of(store, kind).stream(first, 0, store.send_text) == POLICY_VIOLATION
    request = store.request()
    with pytest.raises(HTTPError) as raised:
        await log_stream._follow(request, cast("Any", None), kind)
    assert raised.value.response.status == 404


async def test_a_log_waits_for_a_change_of_its_task(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or reads again after some seconds, if there is none."""
    subscriber = SimpleNamespace(ended=False, waited=[])

    async def wait(seconds: float) -> list[object]:
        subscriber.waited.append(seconds)
        return []

    subscriber.next = wait
    stream = log_stream._LogStream(store.request(), logs.BUILD, cast("Any", subscriber))
    monkeypatch.setattr(log_stream, "OUTAGE_POLL_INTERVAL", 3_600)
    async with asyncio.timeout(30):
        await stream._wait_change()
    assert subscriber.waited == [0.001]
    subscriber.ended = True
    waiting = asyncio.create_task(stream._wait_change())
    for _ in range(5):
        await asyncio.sleep(0)
    assert (waiting.done(), subscriber.waited) == (False, [0.001])
    waiting.cancel()


@pytest.mark.parametrize(("text", "after"), [(None, 0), ("", 0), ("0", 0), ("7", 7)])
async def test_the_entries_after_one(store: Store, text: str | None, after: int) -> None:
    """All of them by default."""
    store.steps = [step(7), step(8)]
    request = store.request()
    request.query = {} if text is None else {"after": text}
    request.follows = True
    store.rows = [row(task_id=TASK)]
    kind = logs.LogSpec(builds.of_task, logs.BUILD.changes, logs.BUILD.entry, logs.BUILD.complete, arrays=False)
    response = await logs._log_response(request, kind)
    assert [each["id"] for each in orjson.loads(response.body)] == [number for number in (7, 8) if number > after]
    assert store.reads == [after]
