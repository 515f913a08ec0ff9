"""Requests for actions, without servers: which tasks they select, what they store, and how their progress is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid5

import orjson
import pytest

from taskherd.api import changes
from taskherd.api.actions import handlers, progress
from taskherd.api.actions.schemas import MAX_TASKS, CreateAction
from taskherd.api.context import RequestContext
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.concurrency import ConcurrencyLimit
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.query_parameters import NoQuery
from taskherd.api.http.sse import COMMENT
from taskherd.api.tasks import search
from taskherd.errors import Unavailable
from taskherd.store import task_actions, task_queries
from taskherd.store.task_queries import TaskFilter
from tests.pure.api.test_action_documents import FINISHED, MADE, STARTED, action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.http.query_parameters import QueryModel
    from taskherd.store.read_pool import Row
    from taskherd.store.task_actions import NewAction

ALICE, ONE, TWO, THREE = (UUID(int=number) for number in range(10, 14))
KEY = "nightly"
ACTION = uuid5(ALICE, KEY)


class Store:
    """Actions, and tasks of which Alice sees some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[Row | None] = []
        self.seen = {ONE, TWO}
        self.matching: list[UUID] = [THREE, TWO, ONE]
        self.filters: list[TaskFilter] = []
        self.added: list[NewAction] = []
        self.has_room = True
        self.canceled: list[UUID] = []
        self.woken = 0
        self.fetched: list[tuple[Any, ...]] = []
        self.rows: list[dict[str, Any]] = []
        self.outage: Exception | None = None
        self.stopping = asyncio.Event()
        self.streams = ConcurrencyLimit(10, 1, "Too many.")
        self.api = SimpleNamespace(
            reader=self,
            reads=SimpleNamespace(reader=lambda *_: self),
            engine="engine",
            settings=SimpleNamespace(api_list_most=7),
            action_executor=self,
            action_streams=self.streams,
            stopping=self.stopping,
        )
        monkeypatch.setattr(task_actions, "find", self._find)
        monkeypatch.setattr(task_actions, "visible", self._visible)
        monkeypatch.setattr(task_actions, "add", self._add)
        monkeypatch.setattr(task_actions, "cancel", self._cancel)
        monkeypatch.setattr(task_queries, "task_ids", self._task_ids)
        monkeypatch.setattr(handlers, "transaction", self._transaction)

    def wake(self) -> None:
        """Count the calls that have an action executed."""
        self.woken += 1

    async def fetch(self, statement: str, *values: Any) -> Sequence[dict[str, Any]]:
        """Return rows, and remember what was asked for."""
        self.fetched.append((statement, *values))
        return self.rows

    def request(
        self, body: Any = None, *, model: type[QueryModel] = NoQuery, path: str = str(ACTION), **query: str
    ) -> RequestContext:
        """Return a request of Alice."""
        headers = {"idempotency-key": KEY}
        request = RequestContext(cast("Any", self.api), "POST", {"action": path}, query, headers, body, model)
        request.set_caller(Caller(ALICE, "alice", "token"))
        return request

    async def create(self, **fields: Any) -> tuple[int, Any]:
        """Request an action, and return the status and the body of the answer."""
        body = CreateAction.model_validate({"action": "pause", **fields})
        response = await handlers.create(self.request(body))
        return response.status, orjson.loads(response.body)

    @asynccontextmanager
    async def _transaction(self, engine: object) -> AsyncIterator[str]:
        assert engine == "engine"
        yield "connection"

    async def _find(self, reader: object, user_id: UUID, action_id: UUID) -> Row | None:
        assert (reader, user_id, action_id) == (self, ALICE, ACTION)
        if self.outage is not None:
            raise self.outage
        if self.found:
            return self.found.pop(0)
        return action(digest=self.added[-1].digest) if self.added else None

    async def _visible(self, reader: object, user_id: UUID, task_ids: Sequence[UUID]) -> frozenset[UUID]:
        assert (reader, user_id) == (self, ALICE)
        return frozenset(self.seen & set(task_ids))

    async def _task_ids(self, reader: object, wanted: TaskFilter) -> Sequence[UUID]:
        assert reader is self
        self.filters.append(wanted)
        return self.matching

    async def _add(self, connection: object, new: NewAction, message: str, most: int) -> bool:
        assert (connection, message, most) == (
            "connection", "Resource not found or you do not have access to this resource", 10,
        )  # fmt: skip
        self.added.append(new)
        return self.has_room

    async def _cancel(self, connection: object, user_id: UUID, action_id: UUID) -> None:
        assert (connection, user_id) == ("connection", ALICE)
        self.canceled.append(action_id)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a store without actions."""
    return Store(monkeypatch)


async def test_an_action_is_for_the_tasks_that_match(store: Store) -> None:
    """As many as an action may have, whatever a list may; it is executed at once."""
    status, body = await store.create(q="owner:me status:active")
    assert (status, body["id"], store.woken) == (202, str(action()["id"]), 1)
    (wanted,) = store.filters
    assert (wanted.owner, wanted.listed.status, wanted.limit) == (ALICE, "active", MAX_TASKS)
    (new,) = store.added
    assert (new.id, new.user_id, new.token_id, new.action, new.query) == (
        ACTION, ALICE, "token", "pause", "owner:me status:active",
    )  # fmt: skip
    assert (new.task_ids, new.missing, new.input) == ([THREE, TWO, ONE], frozenset(), None)


async def test_an_action_is_for_the_tasks_that_are_named(store: Store) -> None:
    """Each once, and those that are not there are told; an input has no control characters."""
    await store.create(action="send", ids=[THREE, ONE, THREE], input="Go\0 on")
    (new,) = store.added
    assert (new.task_ids, new.missing, new.input, new.query) == ([THREE, ONE], frozenset({THREE}), "Go on", None)
    assert store.filters == []


async def test_an_action_is_for_those_named_that_still_match(store: Store) -> None:
    """In the order of the list."""
    await store.create(q="owner:me", ids=[ONE, UUID(int=99), THREE])
    assert (store.added[0].task_ids, store.added[0].missing) == ([THREE, ONE], frozenset())
    store.added.clear()
    await store.create(q="owner:me", ids=[])
    assert store.added[0].task_ids == []


async def test_an_action_has_a_limited_number_of_tasks(store: Store) -> None:
    """One more is refused, with what to do."""
    store.matching = [ONE] * (MAX_TASKS + 1)
    with pytest.raises(HTTPError) as raised:
        await store.create(q="owner:me")
    assert orjson.loads(raised.value.response.body) == {
        "message": "More than 10,000 tasks match.",
        "detail": "Narrow the search, for example by owner, status, state or template, and repeat it for the rest.",
    }
    store.matching = [ONE] * MAX_TASKS
    assert (await store.create(q="owner:me"))[0] == 202


async def test_a_dry_run_shows_the_first_tasks(store: Store) -> None:
    """All that match by their ids, and of those that are named how many are missing; it stores nothing."""
    store.found = [action()]
    store.rows = [{"id": ONE, "username": "alice", "name": "fix-it", "status": "active", "other": 1}]
    tasks = [{"task_id": str(ONE), "owner_name": "alice", "name": "fix-it", "status": "active"}]
    assert await store.create(q="owner:me", dry_run=True) == (
        200,
        {"action": "pause", "total": 3, "missing": 0, "tasks": tasks, "ids": [str(THREE), str(TWO), str(ONE)]},
    )
    assert await store.create(ids=[THREE, ONE, TWO], dry_run=True) == (
        200, {"action": "pause", "total": 3, "missing": 1, "tasks": tasks},
    )  # fmt: skip
    store.matching = [UUID(int=number) for number in range(101)]
    await store.create(q="owner:me", dry_run=True)
    assert store.fetched == [
        (task_actions.PREVIEW, ALICE, [THREE, TWO, ONE]),
        (task_actions.PREVIEW, ALICE, [ONE, TWO]),
        (task_actions.PREVIEW, ALICE, store.matching[:100]),
    ]
    assert (store.added, store.woken, len(store.found)) == ([], 0, 1)


async def test_a_repeated_request_for_an_action_selects_nothing(store: Store) -> None:
    """It has the same action; another request with the key, or one that was faster, is refused."""
    await store.create(q="owner:me")
    first = store.added[0]
    store.found = [action(digest=first.digest)]
    assert (await store.create(q="owner:me"))[0] == 200
    assert (len(store.filters), len(store.added)) == (1, 1)
    for store.found in ([action(digest=b"other")], [None, action(digest=b"other")]):
        with pytest.raises(HTTPError) as raised:
            await store.create(q="owner:me")
        assert raised.value.response.status == 409
    store.found = [None, action(digest=first.digest)]
    assert (await store.create(q="owner:me"))[0] == 202


async def test_a_user_has_so_many_unfinished_actions(store: Store) -> None:
    """The next one is refused, with what to do, and nothing is executed."""
    store.has_room = False
    with pytest.raises(HTTPError) as raised:
        await store.create(q="owner:me")
    response = raised.value.response
    assert (response.status, orjson.loads(response.body)) == (
        409,
        {
            "message": "Too many actions are unfinished.",
            "detail": "You may have 10. Cancel one, or wait until one is finished, then try again.",
        },
    )
    assert store.woken == 0


async def test_a_new_action_is_logged(store: Store) -> None:
    """With its id and the number of its tasks."""
    request = store.request(CreateAction.model_validate({"action": "pause", "q": "owner:me"}))
    await handlers.create(request)
    assert request.log_fields == {"action_id": str(ACTION), "action": "pause", "tasks": 3}


async def test_a_canceled_action_is_looked_at_at_once(store: Store) -> None:
    """One that is not there, or not an id, is a 404, and cancels nothing."""
    store.found = [action(), action(canceled_at=MADE)]
    response = await handlers.cancel(store.request())
    assert (response.status, orjson.loads(response.body)["state"]) == (202, "canceling")
    assert (store.canceled, store.woken) == ([ACTION], 1)
    for path in (str(ACTION), "x"):
        for handler in (handlers.cancel, handlers.get):
            with pytest.raises(HTTPError) as raised:
                await handler(store.request(path=path))
            assert raised.value.response.status == 404
    assert (store.canceled, store.woken) == ([ACTION], 1)
    store.found = [action()]
    assert (await handlers.get(store.request())).status == 200


async def test_actions_have_pages(store: Store) -> None:
    """A further one begins after the last that is shown."""
    store.rows = [dict(action(id=each, created_at=MADE + timedelta(seconds=each.int))) for each in (THREE, TWO, ONE)]
    model = handlers.ActionListQuery
    body = orjson.loads((await handlers.list_actions(store.request(model=model, limit="2"))).body)
    assert [each["id"] for each in body["actions"]] == [str(THREE), str(TWO)]
    assert body["next"] == search.cursor(MADE + timedelta(seconds=TWO.int), TWO)
    statement, user_id, before, before_id, limit = store.fetched[0]
    assert (statement, user_id, before.year, before_id, limit) == (task_actions.LIST, ALICE, 9999, UUID(int=0), 3)
    body = orjson.loads((await handlers.list_actions(store.request(model=model, limit="3", after=body["next"]))).body)
    assert (len(body["actions"]), body["next"]) == (3, None)
    assert store.fetched[1] == (task_actions.LIST, ALICE, MADE + timedelta(seconds=TWO.int), TWO, 4)


async def test_the_results_of_an_action_have_pages(store: Store) -> None:
    """A further one begins after the position of the last that is shown."""
    fields = {"task_id": ONE, "username": "a", "name": "b", "status": None, "decided_at": None, "message": None}
    store.rows = [{**fields, "ordinal": number} for number in range(3)]
    store.found = [action(id=TWO), action(id=TWO), action(id=TWO)]

    async def page(**query: str) -> tuple[list[int], int | None]:
        response = await handlers.results(store.request(model=handlers.ResultQuery, **query))
        body = orjson.loads(response.body)
        return [each["position"] for each in body["results"]], body["next"]

    assert await page(limit="2") == ([0, 1], 1)
    assert await page(limit="3", after="0", refused="true") == ([0, 1, 2], None)
    assert store.fetched == [
        (task_actions.RESULTS, ALICE, TWO, -1, False, 3),
        (task_actions.RESULTS, ALICE, TWO, 0, True, 4),
    ]
    store.rows = []
    assert await page() == ([], None)


def progress_of(**fields: Any) -> bytes:
    """Return the frame of an action."""
    return changes.make_frame("action.progress", orjson.dumps(handlers.action_json(action(**fields)), default=str))


async def frames_of(store: Store, *rows: Row | None) -> list[bytes]:
    """Return the frames of a stream that reads these rows after the first one."""
    store.found = list(rows)
    first = action(id=ACTION)
    return [frame async for frame in progress._frames(store.request(), first)]


async def test_the_progress_of_an_action_is_told_until_it_is_finished(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that it has changed; a comment keeps the connection open while it has not."""
    monkeypatch.setattr(progress, "INTERVAL", 0.001)
    monkeypatch.setattr(progress, "COMMENT_EVERY", 2)
    same = action(id=ACTION)
    started = action(id=ACTION, started_at=STARTED, succeeded=1)
    done = {"started_at": STARTED, "succeeded": 7, "finished_at": FINISHED}
    assert await frames_of(store, same, same, same, started, started, action(id=ACTION, **done)) == [
        progress_of(id=ACTION),
        COMMENT,
        progress_of(id=ACTION, started_at=STARTED, succeeded=1),
        progress_of(id=ACTION, **done),
    ]
    assert not store.streams.is_full(ALICE)


async def test_a_stream_of_progress_is_to_be_resumed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage, when the process stops, or if the action was deleted."""
    monkeypatch.setattr(progress, "INTERVAL", 0.001)
    assert await frames_of(store, None) == [progress_of(id=ACTION), changes.RESUME]
    store.outage = Unavailable("no database")
    assert await frames_of(store) == [progress_of(id=ACTION), changes.RESUME]
    store.outage = None
    store.stopping.set()
    assert await frames_of(store) == [changes.RESUME]


async def test_a_stream_of_progress_needs_an_action_and_room(store: Store) -> None:
    """The next stream of the user is refused."""
    with pytest.raises(HTTPError) as raised:
        await progress.watch(store.request())
    assert raised.value.response.status == 404
    store.found = [action()]
    with store.streams.enter(ALICE), pytest.raises(HTTPError) as raised:
        await progress.watch(store.request())
    message = orjson.loads(raised.value.response.body)["message"]
    assert (raised.value.response.status, message) == (503, "Too many streams are open.")
    store.found = [action()]
    stream = await progress.watch(store.request())
    assert (vars(stream)["_task_id"], vars(stream)["_last"]) == (None, changes.RESUME)
