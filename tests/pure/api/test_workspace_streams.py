"""Streams of a workspace and of the logs of its builds, without servers: what is sent, and when they end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd import retry
from taskherd.api.changes import ChangeFilter
from taskherd.api.context import RequestContext
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.sse import PING
from taskherd.api.http.websocket import NORMAL, POLICY_VIOLATION, TRY_AGAIN_LATER
from taskherd.api.workspaces import log_stream, logs, watch
from taskherd.errors import Retry, Unavailable
from taskherd.store import builds
from taskherd.store.builds import HistoryPage
from tests.pure.api.test_build_documents import BUILD, MADE, TASK, row
from tests.pure.api.test_subscribers import at, new_feed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from taskherd.api.change_feed import ChangeFeed
    from taskherd.api.workspaces.queries import BuildLookup
    from taskherd.store.read_pool import Row

ALICE = UUID(int=1)


class Workspace:
    """A workspace as it is read one time after the other, and the feed of its changes."""

    def __init__(self) -> None:
        self.rows: list[Row | Exception | None] = []
        self.feed: ChangeFeed = new_feed()
        self.feed._positioned.set()
        self.stopping = asyncio.Event()
        self.seen: list[UUID] = []
        reads = SimpleNamespace(mark=self.seen.append)
        self.api = SimpleNamespace(reader="reader", change_feed=self.feed, reads=reads, stopping=self.stopping)

    def request(self, **query: str) -> RequestContext:
        """Return a request of Alice."""
        request = RequestContext(cast("Any", self.api), "GET", {"id": str(BUILD)}, query, {}, query_model=logs.LogQuery)
        request.set_caller(Caller(ALICE, "alice", "token"))
        request.follows = True
        return request

    def stream(self) -> AsyncGenerator[bytes | None]:
        """Return the stream of the workspace."""
        return watch._workspaces(self.request(), row(task_id=TASK))

    async def of_task(self, reader: object, caller: UUID, _id: UUID) -> Row | None:
        """Return the workspace as it is now."""
        assert (reader, caller) == ("reader", ALICE)
        found = self.rows.pop(0) if len(self.rows) > 1 else self.rows[0]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Return a workspace."""
    workspace = Workspace()
    monkeypatch.setattr(builds, "of_task", workspace.of_task)
    return workspace


def shown(**fields: Any) -> Row:
    """Return the row of a workspace without an agent, of which no statuses are read."""
    return row(agent_id=None, **fields)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the failures in a row after each of which a stream waits; the wait is left out."""
    waits: list[int] = []

    def delay(failures: int) -> float:
        waits.append(failures)
        return 0.0

    monkeypatch.setattr(retry, "delay", delay)
    return waits


def name_of(workspace: bytes | None) -> str | None:
    """Return the name of a workspace."""
    return None if workspace is None else str(orjson.loads(workspace)["name"])


async def test_a_workspace_is_read_again_after_an_outage(
    workspace: Workspace, waits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile nothing is sent, and nothing but signs of life while it is the same; the end of the process ends it.

    Each read that fails is followed by a longer wait, whatever changes meanwhile.
    """
    monkeypatch.setattr(watch, "PING_INTERVAL", 0.001)
    outage = Unavailable("no database")
    workspace.rows = [outage, Retry("the plan is stale"), shown(), outage, shown()]
    async with asyncio.timeout(30), aclosing(workspace.stream()) as workspaces:
        assert await anext(workspaces) is None
        assert name_of(await anext(workspaces)) == "fix-it"
        assert await anext(workspaces) is None
        workspace.stopping.set()
        assert [each async for each in workspaces] == []
    assert workspace.seen == [ALICE, ALICE]
    assert waits == [1, 2, 1]
    assert (workspace.feed._subscriber_count, len(workspace.feed._subscribers)) == (0, 0)


async def test_a_workspace_is_polled_without_a_subscriber(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many changes at once end the subscriber, and the workspace is read again all the same, until it is gone."""
    monkeypatch.setattr(watch, "OUTAGE_INTERVAL", 0.001)
    workspace.rows = [shown(), shown(workspace_name="renamed"), None]
    async with asyncio.timeout(30), aclosing(workspace.stream()) as workspaces:
        await anext(workspaces)
        await anext(workspaces)
        workspace.feed._end_all()
        assert name_of(await anext(workspaces)) == "renamed"
        assert [each async for each in workspaces] == []
    assert (workspace.feed._subscriber_count, len(workspace.feed._subscribers)) == (0, 0)


async def test_all_statuses_are_read_again_when_a_failover_has_lost_some(
    workspace: Workspace, waits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage, and when the feed of changes has gone back: others may have the same versions now."""
    monkeypatch.setattr(watch, "OUTAGE_INTERVAL", 0.001)
    monkeypatch.setattr(watch, "PING_INTERVAL", 0.001)
    reads: list[int] = []

    async def app_statuses(*_: object, after: int) -> HistoryPage:
        reads.append(after)
        return HistoryPage([], 6)

    monkeypatch.setattr(builds, "app_statuses", app_statuses)
    running = row(task_id=TASK)
    workspace.rows = [running, running, Unavailable("no database"), running, running]
    async with asyncio.timeout(30), aclosing(workspace.stream()) as workspaces:
        for _ in range(5):
            await anext(workspaces)
        workspace.feed._end_all()
        await anext(workspaces)
        await anext(workspaces)
    assert reads == [0, 6, 0, 6, 0, 6]
    assert waits == [1]


async def test_the_events_of_a_workspace(workspace: Workspace) -> None:
    """They have the same content as the frames of a socket."""
    workspace.rows = [shown()]
    request = workspace.request()
    async with asyncio.timeout(30), aclosing(watch._frames(request, shown(task_id=TASK))) as frames:
        assert await anext(frames) == PING
        event = await anext(frames)
    head, _, data = event.partition(b"data: ")
    assert (head, name_of(data.strip()), event[-2:]) == (b"event: data\n", "fix-it", b"\n\n")
    workspace.feed._position = 5  # it has none after its last subscriber has left
    workspace.feed._positioned.set()
    sent: asyncio.Queue[Any] = asyncio.Queue()

    async def send_text(text: str) -> None:
        sent.put_nowait(orjson.loads(text))

    async with asyncio.timeout(30):
        sending = asyncio.create_task(watch._send(request, send_text, shown(task_id=TASK)))
        assert await sent.get() == {"type": "ping", "data": None}
        assert await sent.get() == {"type": "data", "data": orjson.loads(data)}
        workspace.rows = [None]
        workspace.feed._distribute(at(6, viewer=ALICE, task_id=TASK))
        assert await sending == NORMAL


async def test_a_feed_that_stops_ends_a_workspaces_stream(workspace: Workspace) -> None:
    """Nothing is sent then; the client connects again."""
    workspace.feed.stop()
    request = workspace.request()
    assert [frame async for frame in watch._frames(request, row())] == []
    assert await watch._send(request, nothing_sent, row()) == TRY_AGAIN_LATER


async def nothing_sent(text: str) -> None:
    """Fail, since nothing may be sent."""
    raise AssertionError(text)


def step(version: int) -> Row:
    """Return a step of a build."""
    fields = {"workspace_status": "running", "lifecycle": "ready", "healthy": True, "reason": ""}
    return cast("Row", {**fields, "version": version, "occurred_at": MADE})


class Steps:
    """The steps of a build, and what of them was read."""

    def __init__(self) -> None:
        self.reads: list[int] = []

    async def history(
        self, reader: object, task_id: UUID, number: int, *_: object, after: int, limit: int
    ) -> HistoryPage:
        """Return the steps after one, and that version 9 is the last."""
        assert (reader, task_id, number, limit) == ("reader", TASK, 3, 1_000)
        self.reads.append(after)
        return HistoryPage([step(version) for version in (7, 8) if version > after], until=9)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Return two steps."""
    steps = Steps()
    monkeypatch.setattr(builds, "history", steps.history)
    return steps


async def test_a_log_of_an_agent_has_frames_of_several_entries(workspace: Workspace, steps: Steps) -> None:
    """Coder's clients expect that; it is complete with a later build."""
    sent: list[Any] = []

    async def send_text(text: str) -> None:
        sent.append(orjson.loads(text))

    stream = log_stream._LogStream(workspace.request(), logs.AGENT, None, 0)
    assert await stream.stream(row(is_latest=False, task_id=TASK), send_text) == NORMAL
    assert [[each["id"] for each in frame] for frame in sent] == [[7, 8]]
    assert steps.reads == [0]


def kind_of(lookup: BuildLookup) -> logs.LogSpec:
    """Return the log of a build that is looked up like this."""
    return logs.LogSpec(lookup, logs.BUILD.changes, logs.BUILD.entry, logs.BUILD.complete, arrays=False)


async def test_a_log_waits_longer_after_each_failed_read(
    workspace: Workspace, steps: Steps, waits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that takes too long is not repeated at once by each change; a success ends the row of failures.

    What was looked at is looked at again then, as another server may answer.
    """
    monkeypatch.setattr(log_stream, "OUTAGE_POLL_INTERVAL", 0)
    running, timeout = row(job_status="running", task_id=TASK), Unavailable("the statement took too long")
    workspace.rows = [timeout, timeout, running, running, timeout, row(task_id=TASK)]
    stream = log_stream._LogStream(workspace.request(), kind_of(builds.of_task), None, 8)
    async with asyncio.timeout(30):
        assert await stream.stream(running, nothing_sent) == NORMAL
    assert waits == [1, 2, 1]
    assert steps.reads == [8, 8, 9, 8]


async def test_a_log_is_looked_at_again_when_a_failover_has_lost_its_end(
    workspace: Workspace, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other changes have the versions now that were looked at before; what was sent is not sent again."""
    monkeypatch.setattr(log_stream, "OUTAGE_POLL_INTERVAL", 0)
    running, sent = row(job_status="running", task_id=TASK), []

    async def send_text(text: str) -> None:
        sent.append(orjson.loads(text)["id"])
        if len(sent) == 2:
            workspace.feed._end_all()

    workspace.rows = [running, running, row(task_id=TASK)]
    subscriber = workspace.feed.subscribe(ChangeFilter(ALICE, task=TASK), 5)
    stream = log_stream._LogStream(workspace.request(), kind_of(builds.of_task), subscriber, 6)
    async with asyncio.timeout(30):
        assert await stream.stream(running, send_text) == NORMAL
    assert sent == [7, 8]
    assert steps.reads == [6, 8, 9, 9]


async def test_only_new_statuses_of_a_workspace_are_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last version that was looked at, until another build begins or a failover has lost it."""
    pages: dict[tuple[int, int], list[HistoryPage]] = {
        (3, 0): [HistoryPage([status(5), status(4)], 6), HistoryPage([status(4)], 5)],
        (3, 6): [HistoryPage([status(8)], 8)],
        (3, 8): [HistoryPage([], 9)],
        (3, 9): [HistoryPage([], 5)],
        (4, 0): [HistoryPage([status(9)], 9)],
    }

    async def app_statuses(reader: object, task_id: UUID, number: int, limit: int, *, after: int) -> HistoryPage:
        assert (reader, task_id, limit) == ("reader", TASK, 100)
        return pages[number, after].pop(0)

    monkeypatch.setattr(builds, "app_statuses", app_statuses)
    statuses, request = watch._Statuses(), workspace.request()

    async def read(**fields: Any) -> list[int]:
        return [each["version"] for each in await statuses.read(request, row(task_id=TASK, **fields))]

    assert [await read() for _ in range(4)] == [[5, 4], [8, 5, 4], [8, 5, 4], [4]]
    assert await read(agent_id=None) == []
    assert await read(number=4) == [9]
    assert [len(each) for each in pages.values()] == [0] * 5


def status(version: int) -> Row:
    """Return what the app reported in a version."""
    return cast("Row", {"version": version})


async def test_a_log_that_may_be_seen_no_more_ends(
    workspace: Workspace, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code says so; a client that may not see it at first gets a 404."""
    monkeypatch.setattr(log_stream, "OUTAGE_POLL_INTERVAL", 0)

    async def gone(*_: object) -> None:
        return None

    kind = kind_of(gone)
    stream = log_stream._LogStream(workspace.request(), kind, None, 8)
    assert await stream.stream(row(job_status="running", task_id=TASK), nothing_sent) == POLICY_VIOLATION
    assert steps.reads == [8]
    with pytest.raises(HTTPError) as raised:
        await log_stream._follow(workspace.request(), cast("Any", None), kind)
    assert raised.value.response.status == 404


async def test_a_log_waits_for_a_change_of_its_task(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read again after five seconds without one, and after one without a subscriber."""
    waited: list[float] = []
    slept: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    subscriber = SimpleNamespace(ended=False, next=wait)
    stream = log_stream._LogStream(workspace.request(), logs.BUILD, cast("Any", subscriber), 0)
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", sleep)
        assert not await stream._wait_change()
        subscriber.ended = True
        assert await stream._wait_change()
        assert (waited, slept) == ([5, 5], [])
        assert not await stream._wait_change()
        assert not await log_stream._LogStream(workspace.request(), logs.BUILD, None, 0)._wait_change()
    assert (waited, slept) == ([5, 5], [1, 1])


@pytest.mark.parametrize(("text", "after"), [(None, 0), ("", 0), ("0", 0), ("7", 7)])
async def test_the_entries_after_one(workspace: Workspace, steps: Steps, text: str | None, after: int) -> None:
    """A request has all of them unless it names one."""
    workspace.rows = [row(task_id=TASK)]
    request = workspace.request(**({} if text is None else {"after": text}))
    response = await logs._log_response(request, kind_of(builds.of_task))
    assert [each["id"] for each in orjson.loads(response.body)] == [number for number in (7, 8) if number > after]
    assert steps.reads == [after]
