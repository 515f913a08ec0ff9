"""Streams of one task's changes and of its log, without servers: which frames come, in which order, with which ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
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
from taskherd.api.tasks import documents, log_follow, search, sse, task_follow
from taskherd.errors import Unavailable
from taskherd.store import feed, task_queries
from taskherd.store.feed import FeedPage
from taskherd.store.read_pool import ReadPool, Row
from taskherd.store.task_lists import Listed
from taskherd.store.task_queries import TaskFilter, TaskPage, TaskRef
from tests.pure.api.test_changes import ALICE, TASK, change
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


async def inbox_frames(log: Log, after: int | None, updates: list[tuple[int, int]]) -> list[int]:
    """Return what a stream says of its inbox during these updates."""
    log.rows = [entry(None)]
    told: list[int] = []
    with log.revisions.follow(TASK):
        async with asyncio.timeout(30), aclosing(log.frames(after, with_inbox=True)) as frames:

            async def read() -> None:
                async for frame in frames:
                    told.extend([data_of(frame)["waiting"]] if b"event: task.inbox" in frame else [])

            reading = asyncio.create_task(read())
            for update in updates:
                for _ in range(5):
                    await asyncio.sleep(0)
                log.update(3, update)
            for _ in range(5):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    return told


async def test_a_stream_tells_how_many_inputs_wait(log: Log) -> None:
    """When that has changed, or an input was sent; at first only if any waits, or if the client may not know it."""
    assert await inbox_frames(log, None, [(1, 0), (2, 1), (3, 1), (3, 1), (3, 0)]) == [1, 1, 0]
    assert await inbox_frames(log, None, [(1, 2), (1, 0)]) == [2, 0]
    assert await inbox_frames(log, 3, [(1, 0), (1, 0)]) == [0]


class Store:
    """What a stream of changes reads: documents, and the pages of the feed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.documents: list[dict[str, Any]] = []
        self.pages: list[FeedPage] = []
        self.replayed: dict[UUID, int] = {}
        self.first = 1
        self.calls: list[tuple[Any, ...]] = []
        self.feed: ChangeFeed = new_feed()
        self.position = 5
        self.seen = 0
        self.api = SimpleNamespace(
            reader="reader", change_feed=self.feed, reads=self, nullable_ids_as_objects=False, stopping=asyncio.Event()
        )
        monkeypatch.setattr(feed, "position_exists", self._position_exists)
        monkeypatch.setattr(feed, "will_replay", self._will_replay)
        monkeypatch.setattr(feed, "catch_up", self._catch_up)
        monkeypatch.setattr(feed, "catch_up_task", self._catch_up_task)
        monkeypatch.setattr(task_queries, "task", self._task)
        monkeypatch.setattr(task_queries, "tasks", self._tasks)
        monkeypatch.setattr(documents, "render_row", lambda row, **_: orjson.dumps(row["name"]))
        monkeypatch.setattr(self.feed, "changes_of", lambda rows: rows)

    def mark(self, caller: UUID) -> None:
        """Count what the caller has seen."""
        assert caller == ALICE
        self.seen += 1

    def stream(self, last: int | None = None, *, of_all: bool = False, **options: Any) -> AsyncGenerator[bytes]:
        """Return the frames of a stream of Alice's."""
        self.feed._position = self.position  # it has none after its last subscriber has left
        self.feed._positioned.set()
        wanted = ChangeFilter(ALICE, task=None if of_all else TASK)
        tasks = TaskFilter(ALICE, limit=7) if of_all else None
        return sse._TaskStream(request_with({}, self.api), wanted, last, tasks, **options).frames()

    def distribute(self, *given: Change) -> None:
        """Have the feed distribute changes."""
        for each in given:
            self.feed._distribute(each)

    async def _position_exists(self, reader: object, position: int) -> bool:
        assert reader == "reader"
        return self.first <= position

    async def _will_replay(self, reader: object, after: int, versions: list[tuple[UUID, int]]) -> dict[UUID, int]:
        self.calls.append(("will replay", reader, after, versions))
        return self.replayed

    async def _catch_up(self, *arguments: Any, **options: Any) -> FeedPage:
        self.calls.append(("catch up", *arguments, options))
        return self.pages.pop(0)

    async def _catch_up_task(self, *arguments: Any) -> FeedPage:
        self.calls.append(("catch up task", *arguments))
        return self.pages.pop(0)

    async def _task(self, reader: object, ref: TaskRef, *, with_state_since: bool) -> Row | None:
        assert (reader, ref, with_state_since) == ("reader", TaskRef(ALICE, ALICE, TASK), False)
        return cast("Row", self.documents[0]) if self.documents else None

    async def _tasks(self, reader: object, wanted: TaskFilter) -> TaskPage:
        self.calls.append(("tasks", reader, wanted.limit, wanted.after))
        found = [cast("Row", each) for each in self.documents[:2]]
        del self.documents[:2]
        return TaskPage(found, more=bool(self.documents))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a store with a task whose version 3 the feed has at position 5."""
    store = Store(monkeypatch)
    store.documents = [{"id": TASK, "version": 3, "created_at": NOON, "name": "fix-it"}]
    return store


def page(*given: Change, until: int, more: bool = False) -> FeedPage:
    """Return a page of the feed."""
    return FeedPage(until, given, more=more)


SNAPSHOT = b'event: task.snapshot\ndata: "fix-it"\n\n'


def ids(frames: bytes) -> list[int]:
    """Return the ids of frames."""
    return [int(line[4:]) for line in frames.splitlines() if line.startswith(b"id: ")]


async def test_a_stream_begins_with_the_task_and_a_position(store: Store) -> None:
    """Then it has the changes after that, but none that the snapshot contains already."""
    store.replayed = {TASK: 3}
    async with asyncio.timeout(30), aclosing(store.stream()) as frames:
        assert await anext(frames) == SNAPSHOT
        assert await anext(frames) == changes.position_frame(5)
        waiting = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        store.distribute(at(6, version=2), at(7, version=3), at(8, version=4), at(9, version=5))
        assert ids(await waiting) == [8, 9]
        assert store.feed._subscriber_count == 1
    assert store.calls == [("will replay", "reader", 5, [(TASK, 3)])]
    assert (store.feed._subscriber_count, store.seen) == (0, 3)
    assert not store.feed._subscribers


async def test_a_snapshot_may_be_left_out(store: Store) -> None:
    """The position says where the stream begins; a task that is gone has no snapshot either."""
    assert await collect(store.stream(snapshot=False), 1) == [changes.position_frame(5)]
    assert store.calls == []
    store.documents.clear()
    assert await collect(store.stream(), 1) == [changes.position_frame(5)]


async def test_a_snapshot_of_many_tasks_has_pages(store: Store) -> None:
    """Each goes on where the one before it ended."""
    names = ["one", "two", "three"]
    store.documents = [
        {"id": UUID(int=number), "version": number, "created_at": NOON, "name": name}
        for number, name in enumerate(names)
    ]
    found = await collect(store.stream(of_all=True), 3)
    frames = [changes.make_frame("task.snapshot", orjson.dumps(name)) for name in names]
    assert found == [frames[0] + frames[1], frames[2], changes.position_frame(5)]
    assert store.calls == [
        ("tasks", "reader", 200, None),
        ("will replay", "reader", 5, [(UUID(int=0), 0), (UUID(int=1), 1)]),
        ("tasks", "reader", 200, (NOON, UUID(int=1))),
        ("will replay", "reader", 5, [(UUID(int=2), 2)]),
    ]


async def test_a_client_that_resumes_gets_what_it_has_missed(store: Store) -> None:
    """Page by page, without a snapshot, until it has caught up with the feed."""
    store.position = 9
    store.pages = [page(at(5), at(6), until=6, more=True), page(at(7), until=7)]
    async with asyncio.timeout(30), aclosing(store.stream(4)) as frames:
        assert ids(await anext(frames)) == [5, 6]
        assert ids(await anext(frames)) == [7]
        waiting = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        store.distribute(at(9), at(10))
        assert ids(await waiting) == [10]
    assert store.calls == [
        ("catch up task", "reader", ALICE, 4, 200, TASK), ("catch up task", "reader", ALICE, 6, 200, TASK),
    ]  # fmt: skip


async def test_a_client_of_all_tasks_misses_what_matches(store: Store) -> None:
    """What does not match, or was erased, is left out; a page may have nothing for it."""
    store.position = 9
    erased = change({}, kind=None, erased=True, position=7)
    store.pages = [page(erased, until=7, more=True), page(at(8), until=8)]
    assert [ids(frame) for frame in await collect(store.stream(4, of_all=True), 1)] == [[8]]
    assert store.calls == [
        ("catch up", "reader", ALICE, after, 200, {"owner": None, "organization": None}) for after in (4, 7)
    ]


async def test_a_client_whose_position_is_gone_begins_anew(store: Store) -> None:
    """Also if what it has missed was pruned while it caught up."""
    store.first = 3
    assert await collect(store.stream(2), 3) == [changes.RESET, SNAPSHOT, changes.position_frame(5)]
    store.position = 9
    store.pages = [page(change({}, kind=None, position=5), until=5)]
    assert await collect(store.stream(4), 3) == [changes.RESET, SNAPSHOT, changes.position_frame(9)]


async def test_the_stream_of_a_task_ends_when_it_is_deleted(store: Store) -> None:
    """Nothing has to be resumed then: whether the client has missed it, or sees it live."""
    store.position = 9
    store.pages = [page(at(6), at(7, kind="deleted"), until=7, more=True)]
    found = await collect(store.stream(4))
    assert [ids(frame) for frame in found] == [[6, 7]]
    assert b"event: task.deleted" in found[0]
    async with asyncio.timeout(30), aclosing(store.stream(snapshot=False)) as frames:
        await anext(frames)
        waiting = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        store.distribute(at(10, kind="deleted"))
        assert ids(await waiting) == [10]
        assert [frame async for frame in frames] == []


async def test_the_stream_of_all_tasks_goes_on_when_one_is_deleted(store: Store) -> None:
    """It ends, to be resumed, when its subscriber does."""
    async with asyncio.timeout(30), aclosing(store.stream(of_all=True)) as frames:
        await anext(frames)
        await anext(frames)
        for position in (6, 7):
            waiting = asyncio.ensure_future(anext(frames))
            await asyncio.sleep(0)
            store.distribute(at(position, kind="deleted"))
            assert ids(await waiting) == [position]
        waiting = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        store.feed._end_all()
        assert await waiting == changes.RESUME


async def test_a_stream_without_a_change_sends_comments(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when all that came was in the snapshot already."""
    store.replayed = {TASK: 3}
    async with asyncio.timeout(30), aclosing(store.stream()) as frames:
        await anext(frames)
        await anext(frames)
        waiting = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        store.distribute(at(6, version=3))
        assert await waiting == COMMENT
        monkeypatch.setattr(sse, "COMMENT_INTERVAL", 0.001)
        assert await anext(frames) == COMMENT


async def test_the_stream_of_all_tasks_that_match(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins with those whose names begin like this, and has the changes of those that match."""
    asked: list[Any] = []

    async def named(*arguments: Any) -> list[tuple[datetime, UUID]]:
        asked.append(arguments)
        return [(NOON, TASK)]

    async def watched(request: RequestContext, query: search.WatchQuery) -> search.WatchedTasks:
        assert (request.follows, query.q) == (True, "name:fix status:active")
        return search.WatchedTasks(TaskFilter(ALICE, limit=7, listed=Listed(status="active")), "fix")

    monkeypatch.setattr(search, "named", named)
    monkeypatch.setattr(search, "watched", watched)
    store.feed._position = 5
    store.feed._positioned.set()
    request = request_with({}, store.api)
    request.query, request.query_model = {"q": "name:fix status:active"}, search.WatchQuery
    stream = await sse.watch_all(request)
    assert (vars(stream)["_task_id"], vars(stream)["_last"]) == (None, changes.RESUME)
    async with asyncio.timeout(30), aclosing(vars(stream)["_frames"]) as frames:
        assert await anext(frames) == SNAPSHOT
        assert await anext(frames) == changes.position_frame(5)
        waiting = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        store.distribute(change_of({"status": "paused"}, 6), change_of({"name": "other"}, 7), change_of({}, 8))
        assert ids(await waiting) == [8]
    assert asked == [(request, TaskFilter(ALICE, limit=7, listed=Listed(status="active")), "fix")]


def change_of(core: dict[str, Any], position: int) -> Change:
    """Return a change of Alice's task."""
    found = change(core, position=position)
    found.viewers = {ALICE}
    return found


async def test_the_stream_of_one_task_is_of_that_task(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """From where the client was."""

    async def find_id(*_: object) -> UUID:
        return TASK

    monkeypatch.setattr(task_queries, "find_id", find_id)
    store.feed._position = 5
    store.feed._positioned.set()
    request = request_with({"last-event-id": "5"}, store.api)
    stream = await sse.watch_one(request, with_state_since=True)
    assert (vars(stream)["_task_id"], vars(stream)["_last"], request.follows) == (TASK, changes.RESUME, True)
    async with asyncio.timeout(30), aclosing(vars(stream)["_frames"]) as frames:
        waiting = asyncio.ensure_future(anext(frames))
        for _ in range(5):
            await asyncio.sleep(0)
        store.distribute(at(6, task_id=UUID(int=99)), at(7, state_since="2026-11-27T10:00:00Z"))
        frame = await waiting
    assert ids(frame) == [7]
    assert data_of(frame)["data"]["task"]["state_since"] == "2026-11-27T10:00:00Z"


async def test_an_outage_ends_a_stream_to_be_resumed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its subscriber is gone then, if it had one."""

    async def fail(*_: Any) -> bool:
        raise Unavailable("no database")

    monkeypatch.setattr(feed, "position_exists", fail)
    assert await collect(store.stream(4)) == [changes.RESUME]
    assert store.feed._subscriber_count == 0


@pytest.mark.parametrize(
    ("found", "last", "task", "visible", "expected"),
    [
        (TASK, None, str(TASK), False, TASK),
        (TASK, 7, "fix-it", False, TASK),
        (None, 7, str(TASK), True, TASK),
        (None, 0, str(TASK), True, TASK),
        (None, 7, str(TASK), False, None),
        (None, None, str(TASK), True, None),
        (None, 7, "fix-it", True, None),
    ],
)
async def test_who_resumes_may_follow_a_deleted_task(
    monkeypatch: pytest.MonkeyPatch,
    found: UUID | None,
    last: int | None,
    task: str,
    expected: UUID | None,
    *,
    visible: bool,
) -> None:
    """By its id, if it was a task that the caller could see; all others are not there."""

    async def find_id(reader: object, _ref: TaskRef) -> UUID | None:
        assert reader == "reader"
        return found

    async def visible_even_deleted(*arguments: Any) -> bool:
        assert arguments == ("reader", ALICE, TASK)
        return visible

    monkeypatch.setattr(task_queries, "find_id", find_id)
    monkeypatch.setattr(feed, "visible_even_deleted", visible_even_deleted)
    request = replace(request_with({}, SimpleNamespace(reader="reader")), params={"user": "me", "task": task})
    if expected is not None:
        assert await sse.find_watched(request, last) == expected
    else:
        with pytest.raises(HTTPError) as raised:
            await sse.find_watched(request, last)
        assert raised.value.response.status == 404
