"""Streams of one task's changes and of its log, without servers: which frames come, in which order, with which ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api import changes
from taskherd.api.change_feed import ChangeFeed
from taskherd.api.changes import Change, ChangeFilter
from taskherd.api.context import ApiContext, RequestContext
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.concurrency import ConcurrencyLimit
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.event_ids import last_event_id
from taskherd.api.http.query_parameters import MAX_POSITION
from taskherd.api.http.sse import COMMENT
from taskherd.api.log_revisions import InboxSummary, LogRevisions
from taskherd.api.tasks import log_follow, sse, task_follow
from taskherd.errors import Unavailable
from taskherd.store import feed, task_queries
from taskherd.store.read_pool import ReadPool, Row
from tests.pure.api.test_changes import ALICE, TASK
from tests.pure.api.test_subscribers import at, new_feed

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def request_with(headers: dict[str, str], api: object = None) -> RequestContext:
    """Return a request of Alice."""
    request = RequestContext(cast("ApiContext", api), "GET", {"user": "me", "task": str(TASK)}, {}, headers)
    request.set_caller(Caller(ALICE, "alice", "token"))
    return request


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("", None), ("0", 0), ("7", 7), (str(MAX_POSITION), MAX_POSITION)],
)
def test_a_client_resumes_after_an_event(text: str | None, expected: int | None) -> None:
    """Without an id, or with an empty one, it begins anew."""
    assert last_event_id(request_with({} if text is None else {"last-event-id": text})) == expected


@pytest.mark.parametrize("text", ["x", "-1", "1.2", " 1", str(MAX_POSITION + 1)])
def test_what_is_no_id_of_an_event(text: str) -> None:
    """It is refused, since the client would miss what it does not say."""
    with pytest.raises(HTTPError) as raised:
        last_event_id(request_with({"last-event-id": text}))
    assert orjson.loads(raised.value.response.body)["validations"] == [
        {"field": "Last-Event-ID", "detail": "Expected the id of an event."}
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (None, None)),
        ("", (None, None)),
        ("7.3", (7, 3)),
        ("0.0", (0, 0)),
        ("7.", (7, None)),
        (".3", (None, 3)),
        (".", (None, None)),
        (f"{MAX_POSITION}.{MAX_POSITION}", (MAX_POSITION, MAX_POSITION)),
    ],
)
def test_a_client_of_two_streams_resumes_after_an_event_of_each(
    text: str | None, expected: tuple[int | None, int | None]
) -> None:
    """Of one it may not have had any."""
    headers = {} if text is None else {"last-event-id": text}
    assert task_follow._last_event_ids(request_with(headers)) == expected


@pytest.mark.parametrize("text", ["7", "x.3", "7.x", "7.3.1", "-7.3", f"{MAX_POSITION + 1}.0", f"0.{MAX_POSITION + 1}"])
def test_what_is_no_id_of_two_streams(text: str) -> None:
    """One with another number of parts, or with a number that no stream has."""
    with pytest.raises(HTTPError) as raised:
        task_follow._last_event_ids(request_with({"last-event-id": text}))
    assert orjson.loads(raised.value.response.body)["validations"] == [
        {"field": "Last-Event-ID", "detail": "Expected the id of an event of a stream with a log."}
    ]


async def generate(frames: Iterable[bytes | Exception], gate: asyncio.Event | None = None) -> AsyncGenerator[bytes]:
    """Generate frames and raise errors; before the last frame wait for the gate."""
    listed = list(frames)
    for index, frame in enumerate(listed):
        if gate is not None and index == len(listed) - 1:
            await gate.wait()
        if isinstance(frame, Exception):
            raise frame
        yield frame


TASK_1, TASK_2 = (changes.make_frame("task.updated", b"{}", position) for position in (10, 11))
LOG_1, LOG_2 = (changes.make_frame("task.logs", b"{}", revision) for revision in (3, 4))


async def collect(frames: AsyncGenerator[bytes], most: int = 100) -> list[bytes]:
    """Return the frames, not more than these, and close their generator."""
    found: list[bytes] = []
    async with asyncio.timeout(30), aclosing(frames) as each:
        async for frame in each:
            found.append(frame)
            if len(found) == most:
                break
    return found


async def test_each_event_of_two_streams_says_where_both_are() -> None:
    """A client that has seen neither is told of the task first; frames without an id stay as they are."""
    gate = asyncio.Event()
    both = task_follow._TaskAndLog(None, None).frames(
        generate([COMMENT, TASK_1, TASK_2], gate), generate([LOG_1, COMMENT, LOG_2])
    )
    found = await collect(both, 5)
    assert found == [
        COMMENT,
        b"id: 10.\nevent: task.updated\ndata: {}\n\n",
        b"id: 10.3\nevent: task.logs\ndata: {}\n\n",
        COMMENT,
        b"id: 10.4\nevent: task.logs\ndata: {}\n\n",
    ]


async def test_two_streams_begin_where_the_client_was() -> None:
    """One that resumes the task has its document, so the log does not wait for it."""
    never = asyncio.Event()
    both = task_follow._TaskAndLog(9, 2).frames(generate([TASK_1], never), generate([LOG_1]))
    assert await collect(both, 1) == [b"id: 9.3\nevent: task.logs\ndata: {}\n\n"]
    both = task_follow._TaskAndLog(None, 2).frames(generate([TASK_1]), generate([LOG_1], never))
    assert await collect(both) == [b"id: 10.2\nevent: task.updated\ndata: {}\n\n"]


async def test_the_end_of_a_log_does_not_end_the_task() -> None:
    """But the other way round; and if either must be resumed, both are."""
    never, later = asyncio.Event(), asyncio.Event()
    both = task_follow._TaskAndLog(9, 2).frames(generate([TASK_1], later), generate([LOG_1]))
    async with asyncio.timeout(30):
        assert await anext(both) == b"id: 9.3\nevent: task.logs\ndata: {}\n\n"
        await asyncio.sleep(0)
        later.set()
        assert await anext(both) == b"id: 10.3\nevent: task.updated\ndata: {}\n\n"
        assert [frame async for frame in both] == []
    both = task_follow._TaskAndLog(9, 2).frames(generate([TASK_1], never), generate([changes.RESUME]))
    assert await collect(both) == [changes.RESUME]
    both = task_follow._TaskAndLog(9, 2).frames(generate([changes.RESUME]), generate([LOG_1], never))
    assert await collect(both) == [changes.RESUME]


@pytest.mark.parametrize("failing", ["task", "log"])
async def test_an_error_of_either_stream_is_one_of_both(failing: str) -> None:
    """After what it had sent; the other one is closed."""
    never = asyncio.Event()
    closed: list[str] = []

    async def other() -> AsyncGenerator[bytes]:
        try:
            await never.wait()
            yield b""
        finally:
            closed.append("other")

    broken = generate([TASK_1 if failing == "task" else LOG_1, KeyError("broken")])
    streams = (broken, other()) if failing == "task" else (other(), broken)
    both = task_follow._TaskAndLog(9, 2).frames(*streams)
    async with asyncio.timeout(30):
        assert (await anext(both)).startswith(b"id: 10.2" if failing == "task" else b"id: 9.3")
        with pytest.raises(KeyError):
            await anext(both)
    assert closed == ["other"]


async def test_eight_frames_wait_for_a_slow_client() -> None:
    """The streams make no more until it has taken one."""
    made: list[int] = []

    async def source() -> AsyncGenerator[bytes]:
        for number in range(100):
            made.append(number)
            yield COMMENT

    never = asyncio.Event()
    both = task_follow._TaskAndLog(9, 2).frames(source(), generate([LOG_1], never))
    async with asyncio.timeout(30), aclosing(both) as frames:
        assert await anext(frames) == COMMENT
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(made) == 1 + 8 + 1  # taken, in the queue, and one that waits for room in it


def entry(number: int | None, *, revision: int = 3, found: int = 1, content: str = "Reading") -> Row:
    """Return the row of an entry of a log, or of a log without one."""
    fields = {"log_id": number, "content": content, "type": "output", "time": NOON, "log_revision": revision}
    place = {"entry_id": 0, "build_number": 1, "first_seq": None}
    empty = dict.fromkeys(("kind", "title", "entry_status", "data"))
    return cast("Row", {**fields, **place, **empty, "found": found})


def data_of(frame: bytes) -> Any:
    """Return the data of a frame."""
    return orjson.loads(frame.partition(b"data: ")[2])


@pytest.mark.parametrize(
    ("rows", "is_first", "ids", "truncated"),
    [
        ([entry(None)], True, [], False),
        ([entry(0), entry(1)], True, [0, 1], False),
        ([entry(1), entry(2)], True, [1, 2], True),
        ([entry(2), entry(0)], True, [2, 0], False),
        ([entry(None, found=0)], False, [], False),
        ([entry(5, found=2), entry(6, found=2)], False, [5, 6], False),
        ([entry(5, found=3), entry(6, found=3)], False, [5, 6], True),
    ],
)
def test_an_event_of_a_log_says_if_it_lacks_entries(
    rows: list[Row], ids: list[int], *, is_first: bool, truncated: bool
) -> None:
    """The first one if there are earlier entries, a later one if not all that have changed are in it."""
    frame = log_follow._frame(rows, 3, is_first=is_first)
    assert frame.startswith(b"id: 3\nevent: task.logs\n")
    data = data_of(frame)
    assert [each["id"] for each in data["logs"]] == ids
    assert (data["revision"], data["truncated"]) == (3, truncated)


class Log:
    """A log that a stream follows, and what the stream has read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[Row] = [entry(0)]
        self.read: list[tuple[Any, ...]] = []
        self.revisions = LogRevisions(cast("ReadPool", None))
        self.streams = ConcurrencyLimit(2, 1, "Too many.")
        self.outage: Exception | None = None
        self.api = SimpleNamespace(
            reader="reader", log_streams=self.streams, log_revisions=self.revisions, stopping=asyncio.Event()
        )
        monkeypatch.setattr(task_queries, "logs", self._logs)
        monkeypatch.setattr(task_queries, "changed_logs", self._changed_logs)

    def frames(self, after: int | None = None, *, with_inbox: bool = False) -> AsyncGenerator[bytes]:
        """Return the frames of a stream of Alice."""
        return log_follow.changes_of_log(request_with({}, self.api), TASK, after, 200, with_inbox=with_inbox)

    def update(self, revision: int, inbox: tuple[int, int] = (0, 0), *, ended: bool = False) -> None:
        """Tell the followers."""
        with self.revisions.follow(TASK) as followed:
            followed.update(revision, InboxSummary(*inbox), ended=ended)

    async def _logs(self, *arguments: Any, **limits: Any) -> list[Row]:
        return self._answer(("all", *arguments, limits))

    async def _changed_logs(self, *arguments: Any, **limits: Any) -> list[Row]:
        return self._answer(("changed", *arguments, limits))

    def _answer(self, read: tuple[Any, ...]) -> list[Row]:
        self.read.append(read)
        if self.outage is not None:
            raise self.outage
        return self.rows


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Return a log with one entry."""
    return Log(monkeypatch)


async def test_a_stream_of_a_log_begins_with_its_end(log: Log) -> None:
    """Of as many entries as are asked for; then it has what has changed, each time from where it was."""
    async with asyncio.timeout(30), aclosing(log.frames()) as frames:
        assert data_of(await anext(frames))["logs"][0]["id"] == 0
        assert log.streams.is_full(ALICE)
        waiting = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        log.rows = [entry(1, revision=5), entry(2, revision=5)]
        log.update(5)
        frame = await waiting
        assert (frame.splitlines()[0], len(data_of(frame)["logs"])) == (b"id: 5", 2)
    assert log.read == [
        ("all", "reader", ALICE, TASK, {"after": -1, "before": MAX_POSITION, "entries": 200, "content_bytes": 4 << 20}),
        ("changed", "reader", ALICE, TASK, {"after": 3, "entries": 1_000, "content_bytes": 4 << 20}),
    ]
    assert not log.streams.is_full(ALICE)


async def test_a_stream_of_a_log_resumes_with_what_has_changed(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, if nothing has; a comment keeps the connection open meanwhile."""
    monkeypatch.setattr(log_follow, "COMMENT_INTERVAL", 0.001)
    log.rows = [entry(None)]
    assert await collect(log.frames(3), 2) == [COMMENT, COMMENT]
    assert [each[:4] for each in log.read] == [("changed", "reader", ALICE, TASK)]


async def test_a_stream_of_a_log_that_is_behind_its_client_begins_anew(log: Log) -> None:
    """With its end: the client resumes the log of another task, or one that was restored."""
    log.rows = [entry(1), entry(2)]
    async with asyncio.timeout(30), aclosing(log.frames(4)) as frames:
        frame = await anext(frames)
        assert [each["id"] for each in data_of(frame)["logs"]] == [1, 2]
        assert (frame.splitlines()[0], data_of(frame)["truncated"]) == (b"id: 3", True)
        waiting = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        log.rows = [entry(3, revision=4)]
        log.update(4)
        assert [each["id"] for each in data_of(await waiting)["logs"]] == [3]
    assert [(each[0], each[-1]["after"]) for each in log.read] == [("changed", 4), ("all", -1), ("changed", 3)]


async def test_a_stream_of_a_log_ends(log: Log) -> None:
    """With its task without a word; in an outage, or when the process stops, with one that asks to resume."""
    log.rows = []
    assert await collect(log.frames()) == []
    log.outage = Unavailable("no database")
    assert await collect(log.frames()) == [changes.RESUME]
    log.outage, log.rows = None, [entry(0)]
    log.api.stopping.set()
    assert await collect(log.frames()) == [changes.RESUME]
    log.api.stopping.clear()
    async with asyncio.timeout(30), aclosing(log.frames()) as frames:
        await anext(frames)
        waiting = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        log.api.stopping.set()
        log.revisions.stop()
        log.update(3, ended=True)
        assert await waiting == changes.RESUME


async def test_a_user_has_so_many_streams_of_logs(log: Log) -> None:
    """The next one is refused before anything is sent."""
    with log.streams.enter(ALICE), pytest.raises(HTTPError) as raised:
        log.frames()
    message = orjson.loads(raised.value.response.body)["message"]
    assert (raised.value.response.status, message) == (503, "Too many streams of logs are open.")


@pytest.mark.parametrize(
    ("after", "updates"),
    [
        (None, [((1, 0), None), ((2, 1), 1), ((3, 1), 1), ((3, 0), 0)]),
        (None, [((1, 2), 2), ((1, 0), 0)]),
        (3, [((1, 0), 0), ((1, 1), 1)]),
    ],
)
async def test_a_stream_tells_how_many_inputs_wait(
    log: Log, after: int | None, updates: list[tuple[tuple[int, int], int | None]]
) -> None:
    """When that has changed, or an input was sent; at first only if any waits, or if the client may not know it."""
    log.rows = [entry(None)]
    told: list[bytes] = []
    with log.revisions.follow(TASK):
        async with asyncio.timeout(30), aclosing(log.frames(after, with_inbox=True)) as frames:
            if after is None:
                assert b"event: task.logs" in await anext(frames)
            waiting = asyncio.ensure_future(anext(frames))
            for update, waits in updates:
                log.update(3, update)
                log.update(3, update)  # which is no change
                if waits is None:
                    for _ in range(5):
                        await asyncio.sleep(0)  # if it told anything, that would come before what is awaited next
                else:
                    told.append(await waiting)
                    waiting = asyncio.ensure_future(anext(frames))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    expected = [waits for _, waits in updates if waits is not None]
    assert told == [changes.make_frame("task.inbox", b'{"waiting":%d}' % waits) for waits in expected]


async def test_a_stream_does_not_repeat_how_many_inputs_wait(log: Log) -> None:
    """A change of the log alone does not tell it again."""
    log.rows = [entry(None)]
    with log.revisions.follow(TASK):
        async with asyncio.timeout(30), aclosing(log.frames(3, with_inbox=True)) as frames:
            log.update(3, (1, 0))
            assert data_of(await anext(frames)) == {"waiting": 0}
            log.rows = [entry(5, revision=4)]
            log.update(4, (1, 0))
            assert data_of(await anext(frames))["revision"] == 4
            waiting = asyncio.ensure_future(anext(frames))
            for _ in range(5):
                await asyncio.sleep(0)  # if it told it again, that would come before what is awaited next
            log.update(4, (2, 1))
            assert data_of(await waiting) == {"waiting": 1}


class Follower:
    """Alice, who follows the feed from its position on, so that nothing is read before that."""

    def __init__(self) -> None:
        self.feed: ChangeFeed = new_feed()
        self.seen: list[UUID] = []
        reads = SimpleNamespace(mark=self.seen.append)
        self.api = SimpleNamespace(reader="reader", change_feed=self.feed, reads=reads, nullable_ids_as_objects=False)

    def stream(self, task: UUID | None = None, **options: Any) -> AsyncGenerator[bytes]:
        """Return the frames of a stream of a task, or of all."""
        self.feed._position = 5  # it has none after its last subscriber has left
        self.feed._positioned.set()
        return sse._TaskStream(request_with({}, self.api), ChangeFilter(ALICE, task=task, **options), 5).frames()

    async def next(self, frames: AsyncGenerator[bytes], *given: Change) -> bytes:
        """Return the frame with which a stream answers that the feed distributes these changes."""
        waiting = asyncio.ensure_future(anext(frames))
        while not self.feed._subscribers:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        for each in given:
            self.feed._distribute(each)
        return await waiting


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> Follower:
    """Return a follower."""

    async def exists(_reader: object, position: int) -> bool:
        return position == 5

    monkeypatch.setattr(feed, "position_exists", exists)
    return Follower()


def ids(frames: bytes) -> list[int]:
    """Return the ids of frames."""
    return [int(line[4:]) for line in frames.splitlines() if line.startswith(b"id: ")]


async def test_the_stream_of_a_task_ends_when_it_is_deleted(follower: Follower) -> None:
    """Nothing has to be resumed then. Before that it has the task's changes, and since when it is in its state."""
    async with asyncio.timeout(30), aclosing(follower.stream(TASK, with_state_since=True)) as frames:
        since = "2026-11-27T10:00:00Z"
        frame = await follower.next(frames, at(6, task_id=UUID(int=99)), at(7, state_since=since))
        assert (ids(frame), data_of(frame)["data"]["task"]["state_since"]) == ([7], since)
        assert ids(await follower.next(frames, at(8, kind="deleted", state_since=None))) == [8]
        assert [frame async for frame in frames] == []
    assert follower.seen == [ALICE, ALICE]
    assert (follower.feed._subscriber_count, len(follower.feed._subscribers)) == (0, 0)


async def test_the_stream_of_all_tasks_goes_on_when_one_is_deleted(follower: Follower) -> None:
    """It ends, to be resumed, when its subscriber does."""
    async with asyncio.timeout(30), aclosing(follower.stream()) as frames:
        for position in (6, 7):
            assert ids(await follower.next(frames, at(position, kind="deleted"))) == [position]
        follower.feed._end_all()
        assert [frame async for frame in frames] == [changes.RESUME]


async def test_a_stream_without_a_change_sends_comments(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep the connection open."""
    monkeypatch.setattr(sse, "COMMENT_INTERVAL", 0.001)
    assert await collect(follower.stream(), 2) == [COMMENT, COMMENT]


def test_what_the_snapshot_has_is_not_sent_again(follower: Follower) -> None:
    """Of a task whose snapshot was taken before the feed had its event, only later versions are new."""
    stream = sse._TaskStream(request_with({}, follower.api), ChangeFilter(ALICE), None)
    stream._sent_versions = {TASK: 3}
    given = [at(6, version=2), at(7, task_id=UUID(int=99), version=1), at(8, version=3)]
    assert [stream._is_new(each) for each in given] == [False, True, False]
    assert stream._sent_versions == {}  # all that come now are later
    assert stream._is_new(at(9, version=4))
    stream._sent_versions = {TASK: 3}
    assert (stream._is_new(at(9, version=4)), stream._sent_versions) == (True, {})


async def test_an_outage_ends_a_stream_to_be_resumed(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client reconnects, and does not miss what could not be read."""

    async def fail(*_: object) -> bool:
        raise Unavailable("no database")

    monkeypatch.setattr(feed, "position_exists", fail)
    assert await collect(follower.stream()) == [changes.RESUME]
    assert follower.feed._subscriber_count == 0
