"""What lists, logs and long polls of tasks ask the store for, and what they make of its answers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.context import RequestContext
from taskherd.api.http import etags, query_parameters
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.open_requests import AccessLoss
from taskherd.api.http.query_parameters import MAX_POSITION
from taskherd.api.tasks import deleted, documents, long_poll, overview, queries, search
from taskherd.store import task_lists, task_queries
from taskherd.store.task_index import INDEX_RESOLUTION
from taskherd.store.task_lists import MAX_NAMES, Listed
from taskherd.store.task_queries import TaskFilter, TaskPage, TaskRef
from tests.pure.api.test_changes import change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.changes import Change
    from taskherd.api.context import ApiContext
    from taskherd.api.http.query_parameters import QueryModel
    from taskherd.store.read_pool import Row

ALICE, BOB, ACME, OTHER, TASK = (UUID(int=number) for number in range(1, 6))
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
MOST = 700


def row_of(number: int, **fields: Any) -> Row:
    """Return the row of a task."""
    return cast("Row", {"id": UUID(int=number), "version": number, "revision": 1, "sorted_at": NOON, **fields})


API = SimpleNamespace(
    reader="primary",
    reads=SimpleNamespace(reader=lambda *_: "reader"),
    settings=SimpleNamespace(api_list_most=MOST),
    nullable_ids_as_objects=False,
)


def request_of(model: type[QueryModel], task: str = str(TASK), user: str = "me", **query: str) -> RequestContext:
    """Return a request of Alice."""
    params = {"user": user, "task": task}
    request = RequestContext(cast("ApiContext", API), "GET", params, query, {}, query_model=model)
    request.set_caller(Caller(ALICE, "Alice", "token"))
    return request


async def filter_of(q: str = "", **query: str) -> TaskFilter:
    """Return the filter of a list."""
    parameters = query_parameters.validate(search.ListQuery, {"q": q, **query})
    return await search.task_filter(request_of(search.ListQuery), parameters)


class Names:
    """The tasks whose names begin as a list asks for."""

    def __init__(self) -> None:
        self.found: list[tuple[datetime, UUID]] = []

    async def by_name(self, *arguments: object) -> Sequence[tuple[datetime, UUID]]:
        """Return when they were created, and their ids."""
        assert arguments == ("reader", ALICE, "fix", None, None)
        return self.found


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Return no tasks."""
    names = Names()
    monkeypatch.setattr(task_lists, "by_name", names.by_name)
    return names


class Page:
    """The page of tasks that a list has."""

    def __init__(self) -> None:
        self.page: TaskPage | None = None

    async def tasks(self, reader: object, _: TaskFilter) -> TaskPage:
        """Return the page."""
        assert reader == "reader"
        assert self.page is not None
        return self.page


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Page:
    """Return a page, whose tasks are shown as their numbers."""
    listed = Page()
    monkeypatch.setattr(task_queries, "tasks", listed.tasks)
    monkeypatch.setattr(documents, "render_row", lambda row, **_: b'"%d"' % row["id"].int)
    return listed


async def nothing(*_: object) -> None:
    """Find nothing."""


def problem(error: HTTPError) -> tuple[str, str]:
    """Return the field that an error of a search names, and its detail."""
    body = orjson.loads(error.response.body)
    ((field, detail),) = [(each["field"], each["detail"]) for each in body["validations"]]
    assert (error.response.status, body["message"]) == (400, "Invalid task search query.")
    return field, detail


@pytest.mark.parametrize(
    ("q", "field", "detail"),
    [
        ("owner:nobody", "owner", 'user "nobody" either does not exist, or you are unauthorized to view them'),
        ("owner:bo\0b", "owner", 'user "bo\0b" either does not exist, or you are unauthorized to view them'),
        (
            "organization:none",
            "organization",
            'organization "none" either does not exist, or you are unauthorized to view it',
        ),
        ("name:\0", "name", "expected at most 256 printable characters"),
    ],
)
async def test_what_a_term_names_must_be_there(
    monkeypatch: pytest.MonkeyPatch, q: str, field: str, detail: str
) -> None:
    """A list of nobody's tasks is refused, and so is one of a name that no one can have."""
    monkeypatch.setattr(task_queries, f"{field}_id" if field == "organization" else "user_id", nothing)
    with pytest.raises(HTTPError) as raised:
        await filter_of(q)
    assert problem(raised.value) == (field, f'Query param "{field}" has invalid value: {detail}')


async def test_without_a_default_organization_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, as any other that the caller is not in."""
    monkeypatch.setattr(task_queries, "default_organization_id", nothing)
    with pytest.raises(HTTPError) as raised:
        await filter_of("organization:default")
    assert problem(raised.value)[0] == "organization"


@pytest.mark.parametrize(
    ("query", "limit", "by_change", "oldest_first", "state_since"),
    [
        ({}, MOST, False, False, False),
        ({"limit": "7"}, 7, False, False, False),
        ({"after": ""}, 500, False, False, False),
        ({"sort": "created"}, MOST, False, False, False),
        ({"sort": "changed"}, MOST, True, False, False),
        ({"sort": "changed-asc"}, MOST, True, True, False),
        ({"q": "changed:<7d"}, MOST, True, False, False),
        ({"q": "changed:<7d", "sort": "changed-asc"}, MOST, True, True, False),
        ({"include": "state_since"}, MOST, False, False, True),
    ],
)
async def test_how_a_list_is_sorted_and_how_long_it_is(
    query: dict[str, str], limit: int, *, by_change: bool, oldest_first: bool, state_since: bool
) -> None:
    """By its creation, unless the change is asked for; one that is not paged has all that there may be."""
    found = await filter_of(**{"q": "", **query})
    assert (found.caller, found.limit, found.by_change, found.oldest_first) == (ALICE, limit, by_change, oldest_first)
    assert (found.with_state_since, found.ids, found.after) == (state_since, None, None)


async def test_a_page_goes_on_after_a_cursor() -> None:
    """The cursor is the place of the last task of the page before."""
    assert (await filter_of(after=search.cursor(NOON, TASK))).after == (NOON, TASK)


async def test_an_age_of_a_list_is_exact() -> None:
    """That of the creation is; that of the last change may be a minute more, as the index has it."""
    before = datetime.now(UTC) - timedelta(hours=2)
    made = (await filter_of("created:<2h")).created.after
    changed = (await filter_of("changed:<2h")).changed.after
    now = datetime.now(UTC) - timedelta(hours=2)
    assert made is not None
    assert changed is not None
    assert before <= made <= now
    assert before <= changed + INDEX_RESOLUTION <= now


@pytest.mark.parametrize(
    ("query", "field", "detail"),
    [
        (
            {"q": "label:a=b runner:r1"},
            "runner",
            "A list has a label or a runner, not both: leave out one of them, or select by pool.",
        ),
        (
            {"q": "created:<7d", "sort": "changed"},
            "created",
            "A list by the last change has no condition on the creation: leave out created, or changed and sort.",
        ),
        (
            {"q": "created:<7d changed:<7d"},
            "created",
            "A list by the last change has no condition on the creation: leave out created, or changed and sort.",
        ),
        (
            {"q": "changed:<7d", "sort": "created"},
            "changed",
            "A list by creation has no condition on the last change: leave out changed, or give sort=changed.",
        ),
    ],
)
async def test_a_list_that_no_index_serves_is_refused(query: dict[str, str], field: str, detail: str) -> None:
    """The answer says what to do instead."""
    with pytest.raises(HTTPError) as raised:
        await filter_of(**query)
    assert problem(raised.value) == (field, detail)


async def test_a_page_looks_up_few_of_the_tasks_with_a_name(names: Names) -> None:
    """Those that it can have, and one more; all, if another filter or another order decides which these are."""
    names.found = [(NOON - timedelta(minutes=number), UUID(int=number)) for number in range(5)]

    async def ids(q: str, **query: str) -> list[int]:
        found = (await filter_of(q, **query)).ids
        assert found is not None
        return [each.int for each in found]

    assert await ids("name:Fix") == list(range(5))
    assert await ids("name:fix", limit="2") == list(range(3))
    assert await ids("name:fix", limit="2", after=search.cursor(*names.found[1])) == [2, 3, 4]
    assert await ids("name:fix status:active", limit="2") == list(range(5))
    assert await ids("name:fix", limit="2", sort="changed") == list(range(5))


@pytest.mark.parametrize(("count", "accepted"), [(MAX_NAMES, True), (MAX_NAMES + 1, False)])
async def test_a_name_is_of_a_limited_number_of_tasks(names: Names, count: int, *, accepted: bool) -> None:
    """A list of more is refused: none of them would be the newest for certain."""
    names.found = [(NOON, TASK)] * count
    wanted = TaskFilter(ALICE, limit=7)
    if accepted:
        assert len(await search.named(request_of(search.ListQuery), wanted, "fix")) == count
    else:
        with pytest.raises(HTTPError) as raised:
            await search.named(request_of(search.ListQuery), wanted, "fix")
        assert problem(raised.value)[0] == "name"


@pytest.mark.parametrize("term", ["created:<7d", "changed:<7d", "pool:gpu", "runner:r1"])
async def test_what_changes_do_not_say_cannot_be_watched(term: str) -> None:
    """A stream with a term that changes do not say is refused, and the term named."""
    with pytest.raises(HTTPError) as raised:
        await search.watched(request_of(search.WatchQuery), search.WatchQuery(q=term))
    name = term.partition(":")[0]
    assert problem(raised.value) == (
        name, f"A change does not say it: leave out {name}, or read the list with it.",
    )  # fmt: skip


async def test_what_is_watched(names: Names) -> None:
    """The same tasks as of a list, and the beginning of their names."""
    query = search.WatchQuery(q=f"owner:{BOB} status:active", include="state_since")
    found = await search.watched(request_of(search.WatchQuery), query)
    expected = TaskFilter(ALICE, MOST, BOB, listed=Listed(status="active"), with_state_since=True)
    assert found == search.WatchedTasks(expected, None)
    found = await search.watched(request_of(search.WatchQuery), search.WatchQuery(q="name:fix"))
    assert (found.name, found.tasks.ids, names.found) == ("fix", [], [])


@pytest.mark.parametrize("term", ["runner:r1", "label:a=b", "name:fix", "created:<7d", "changed:<7d"])
async def test_what_totals_are_not_kept_by(term: str) -> None:
    """The term is named; the others are as of a list."""
    with pytest.raises(HTTPError) as raised:
        await search.totals_filter(request_of(search.TotalsQuery), search.TotalsQuery(q=f"owner:me {term}"))
    name = term.partition(":")[0]
    assert problem(raised.value) == (
        name, f"Totals are not kept by it: leave out {name}, or count the pages of the list.",
    )  # fmt: skip
    found = await search.totals_filter(request_of(search.TotalsQuery), search.TotalsQuery(q="failed:true owner:me"))
    assert found == TaskFilter(ALICE, MOST, ALICE, listed=Listed(failed=True))


@pytest.mark.parametrize("term", ["status:active", "runner:r1", "name:fix", "waiting:true"])
async def test_an_overview_has_groups_of_its_own(term: str) -> None:
    """It is narrowed by owner, organization, template and pool only."""
    with pytest.raises(HTTPError) as raised:
        await search.overview_filter(request_of(overview.OverviewQuery), term)
    name = term.partition(":")[0]
    assert problem(raised.value) == (
        name, f"An overview has groups of its own: leave out {name}, or read the list with it.",
    )  # fmt: skip
    request = request_of(overview.OverviewQuery)
    found = await search.overview_filter(request, f"owner:me organization:{OTHER} template:claude pool:gpu")
    assert found == TaskFilter(ALICE, MOST, ALICE, OTHER, listed=Listed(template="claude", pool="gpu"))


COUNTS = {
    "by_state": {"idle": 1, "working": 2, "none": 3, "complete": 4},
    "by_status": {"initializing": 5, "pending": 6},
    "by_health": {"not_running": 7},
    "attention": {"failed": 8, "lost": 9, "stalled": 10},
}


def test_a_group_is_read_if_the_totals_have_any_of_it() -> None:
    """Each has a number of its own."""
    assert {name: group.most(COUNTS) for name, group in overview.GROUPS.items()} == {
        "idle": 1, "working": 2, "active": 3, "complete": 4, "initializing": 5, "pending": 6, "not_running": 7,
        "failed": 8, "lost": 9, "stalled": 10,
    }  # fmt: skip


async def test_a_group_has_its_first_tasks(listed: Page) -> None:
    """It has where its next ones begin, too; one without any is not read."""
    group = overview.GROUPS["complete"]
    request, wanted = request_of(overview.OverviewQuery), TaskFilter(ALICE, MOST)
    nothing = {**COUNTS, "by_state": {"complete": 0}}
    empty: dict[str, Any] = {"q": "state:complete", "sort": "changed", "tasks": [], "next": None}
    assert await overview._group(request, wanted, group, 2, nothing) == empty
    listed.page = TaskPage([row_of(1), row_of(2)], more=True)
    found = await overview._group(request, wanted, group, 2, COUNTS)
    assert orjson.loads(orjson.dumps(found)) == {
        **empty, "tasks": ["1", "2"], "next": search.cursor(NOON, UUID(int=2)),
    }  # fmt: skip
    listed.page = TaskPage([row_of(1)], more=False)
    found = await overview._group(request, wanted, group, 2, COUNTS)
    assert found["next"] is None


async def test_a_list_is_the_same_as_long_as_its_tasks_are(listed: Page) -> None:
    """Its tag tells their versions, the names in them, their order, and whether there is more."""
    tags = set()
    pages = [
        TaskPage([row_of(1), row_of(2)], more=False),
        TaskPage([row_of(1), row_of(2)], more=True),
        TaskPage([row_of(2), row_of(1)], more=False),
        TaskPage([row_of(1), row_of(2, version=9)], more=False),
        TaskPage([row_of(1), row_of(2, revision=9)], more=False),
        TaskPage([row_of(1)], more=False),
    ]
    for page in pages:
        listed.page = page
        request = request_of(search.ListQuery)
        tag = (await queries.list_tasks(request)).headers["ETag"]
        tags.add(tag)
        request.headers = {"if-none-match": tag}
        again = await queries.list_tasks(request)
        assert (again.status, again.body, again.headers) == (304, b"", {"ETag": tag})
    assert len(tags) == len(pages)


def entry(number: int | None, status: str = "active", **fields: Any) -> Row:
    """Return the row of an entry of a log."""
    defaults = {
        "log_id": number, "content": "Reading", "type": "output", "time": NOON, "entry_id": 0, "build_number": 2,
        "first_seq": None, "kind": None, "title": None, "entry_status": None, "data": None, "status": status,
        "logged_at": NOON,
    }  # fmt: skip
    return cast("Row", {**defaults, **fields})


def test_an_entry_has_a_place_in_the_conversation() -> None:
    """After the prompt and what was logged before it; of what programs read it has what it says."""
    common = {"id": 7, "content": "Reading", "type": "output", "time": "2026-11-27T12:00:00.000000Z"}
    assert queries.log_entry(entry(7)) == {**common, "place": [0, 2, 0, 7]}
    assert queries.log_entry(entry(7, entry_id=-1, first_seq=4))["place"] == [1, 2, 4, 7]
    call = entry(7, kind="tool_call", title="List", entry_status="failed", data='{"a":1}', entry_id=1)
    assert orjson.loads(orjson.dumps(queries.log_entry(call))) == {
        **common, "place": [0, 2, 0, 7], "kind": "tool_call", "title": "List", "status": "failed", "data": {"a": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "is_snapshot"),
    [
        ("paused", True), ("pending", True), ("initializing", True), ("active", False), ("error", False),
        ("unknown", False),
    ],
)  # fmt: skip
async def test_a_log_without_an_agent_is_a_snapshot(
    monkeypatch: pytest.MonkeyPatch, status: str, *, is_snapshot: bool
) -> None:
    """Its time is that of its last entry; an empty one has none."""
    rows: list[Row] = []

    async def read(*_: object, **_limits: object) -> list[Row]:
        return rows

    monkeypatch.setattr(task_queries, "logs", read)
    later = NOON + timedelta(minutes=1)
    rows = [entry(7, status, logged_at=later), entry(8, status)]
    body = orjson.loads((await queries.logs(request_of(queries.TaskLogQuery))).body)
    expected = {"snapshot": True, "snapshot_at": "2026-11-27T12:01:00.000000Z"} if is_snapshot else {}
    assert {name: value for name, value in body.items() if name != "logs"} == expected
    rows = [entry(None, status)]
    body = orjson.loads((await queries.logs(request_of(queries.TaskLogQuery))).body)
    assert body == {"logs": [], **({"snapshot": True} if is_snapshot else {})}


@pytest.mark.parametrize(
    ("query", "valid"),
    [
        ({"limit": "1"}, True), ({"limit": "10000"}, True), ({"limit": "0"}, False), ({"limit": "10001"}, False),
        ({"after": "0"}, True), ({"before": "0"}, True), ({"after": "-1"}, False), ({"before": "x"}, False),
        ({"before": str(MAX_POSITION)}, True), ({"before": str(MAX_POSITION + 1)}, False), ({"after": ""}, False),
    ],
)  # fmt: skip
def test_the_part_of_a_log_that_can_be_asked_for(query: dict[str, str], *, valid: bool) -> None:
    """What is outside of the bounds is refused."""
    if valid:
        found = query_parameters.validate(queries.TaskLogQuery, query)
        ((name, text),) = query.items()
        assert getattr(found, name) == int(text)
    else:
        with pytest.raises(HTTPError):
            query_parameters.validate(queries.TaskLogQuery, query)


@pytest.mark.parametrize(("user", "task"), [("a\0b", "fix-it"), ("alice", "a\0b"), ("x" * 257, "y"), ("alice", "")])
def test_a_task_that_cannot_be_is_not_looked_up(user: str, task: str) -> None:
    """No task has a name, or an owner, like this."""
    with pytest.raises(HTTPError) as raised:
        queries.task_ref_of(request_of(queries.TaskLogQuery, task, user))
    assert raised.value.response.status == 404
    assert queries.task_ref_of(request_of(queries.TaskLogQuery, "x" * 256, "alice")).task == "x" * 256


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"q": "status:active"}, "status"),
        ({"q": "name:\0"}, "name"),
    ],
)
async def test_deleted_tasks_that_cannot_be_asked_for(query: dict[str, str], field: str) -> None:
    """Pages have up to 100, which they have by default, and are by owner and name only."""
    assert query_parameters.validate(deleted.DeletedQuery, {}).limit == 100
    with pytest.raises(HTTPError) as raised:
        await deleted.list_deleted(request_of(deleted.DeletedQuery, **query))
    assert orjson.loads(raised.value.response.body)["validations"][0]["field"] == field


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("60", 60), ("60s", 60), ("1.5", 1.5), ("500ms", 0.5), ("60000ms", 60)],
)
def test_how_long_a_poll_waits(text: str, seconds: float) -> None:
    """Up to a minute; without it there is no wait."""
    found = query_parameters.validate(long_poll.TaskQuery, {"wait": text})
    assert (found.wait, set(found.until)) == (seconds, {"idle", "complete", "failed", "ended"})
    assert query_parameters.validate(long_poll.TaskQuery, {}).wait is None


@pytest.mark.parametrize("text", ["", "-1", "60.001", "60001ms", "61s", "x"])
def test_a_poll_that_would_wait_otherwise_is_refused(text: str) -> None:
    """For longer, or for what is no time."""
    with pytest.raises(HTTPError) as raised:
        query_parameters.validate(long_poll.TaskQuery, {"wait": text})
    assert orjson.loads(raised.value.response.body)["validations"] == [
        {"field": "wait", "detail": "Expected a duration such as 30s, at most 60s."}
    ]


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("active", {"active"}),
        (" Idle , PAUSED", {"idle", "paused"}),
        ("ended", {"ended"}),
        ("error,failed", {"error", "failed"}),
    ],
)
def test_what_a_poll_waits_for(text: str, until: set[str]) -> None:
    """A status, the state of an agent, or its end."""
    assert query_parameters.validate(long_poll.TaskQuery, {"until": text}).until == until


@pytest.mark.parametrize("text", ["", "idle,", "failure", "lost", "idle,x"])
def test_what_no_task_can_be_is_not_waited_for(text: str) -> None:
    """Also a state that is shown as another one."""
    with pytest.raises(HTTPError) as raised:
        query_parameters.validate(long_poll.TaskQuery, {"until": text})
    (validation,) = orjson.loads(raised.value.response.body)["validations"]
    assert validation["detail"] == (
        "Expected one or more of these, separated by commas: active, complete, ended, error, failed, idle,"
        " initializing, paused, pending, unknown, working."
    )


@pytest.mark.parametrize(
    ("loss", "status"),
    [(AccessLoss.SIGNED_OUT, 401), (AccessLoss.NOT_VISIBLE, 404), (AccessLoss.UNCHECKED, 503)],
)
def test_a_poll_that_has_lost_its_access_says_why(loss: AccessLoss, status: int) -> None:
    """As a request that begins then would."""
    assert long_poll._error_of(loss).response.status == status


class Poll:
    """A long poll of a task: the rows that it reads, and the changes that it gets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[Row] = []
        self.changes: list[list[Change]] = []
        self.waited: list[float] = []
        self.with_state_since: set[bool] = set()
        self.ended = False
        monkeypatch.setattr(task_queries, "task", self._task)
        monkeypatch.setattr(documents, "render_row", lambda row, **_: b'"row %d"' % row["version"])
        self.api = SimpleNamespace(reader="primary", nullable_ids_as_objects=False)

    async def wait(self, until: str, seconds: float, **query: str) -> Any:
        """Return the response."""
        request = RequestContext(cast("ApiContext", self.api), "GET", {"user": "me", "task": str(TASK)}, {}, {})
        request.set_caller(Caller(ALICE, "alice", "token"))
        request.follows = True
        parameters = query_parameters.validate(long_poll.TaskQuery, {"until": until, **query})
        deadline = asyncio.get_running_loop().time() + seconds
        return await long_poll._wait_for(request, cast("Any", self), parameters, deadline)

    async def next(self, timeout: float) -> list[Change]:  # noqa: ASYNC109 - as of a subscriber
        """Return changes, as a subscriber does."""
        self.waited.append(timeout)
        if not self.changes:
            await asyncio.sleep(timeout)
            return []
        return self.changes.pop(0)

    async def _task(self, reader: object, ref: TaskRef, *, with_state_since: bool) -> Row | None:
        assert (reader, ref) == ("primary", TaskRef(ALICE, ALICE, TASK))
        self.with_state_since.add(with_state_since)
        return self.rows.pop(0) if self.rows else None


@pytest.fixture
def poll(monkeypatch: pytest.MonkeyPatch) -> Poll:
    """Return a poll of a task that is working."""
    poll = Poll(monkeypatch)
    poll.rows = [polled(3, "working")]
    return poll


def polled(version: int, state: str) -> Row:
    """Return the row of a task."""
    core = {"status": "active", "current_state": {"state": state}, "workspace_agent_health": None}
    return row_of(5, version=version, core_document=orjson.dumps(core))


def changed(version: int, state: str, **fields: Any) -> Change:
    """Return a change to a state."""
    return change({"current_state": {"state": state, "message": ""}}, version=version, state_since=None, **fields)


async def test_a_poll_answers_at_once_if_there_is_nothing_to_wait_for(poll: Poll) -> None:
    """What came before it subscribed is in what it reads then."""
    response = await poll.wait("working", 30)
    assert (response.status, response.body, response.headers) == (
        200,
        b'"row 3"',
        {"ETag": etags.of_document(UUID(int=5), 3, 1)},
    )
    assert poll.waited == []


@pytest.mark.parametrize(("include", "has_it"), [("", False), ("state_since", True)])
async def test_a_poll_answers_with_the_change_it_waited_for(poll: Poll, include: str, *, has_it: bool) -> None:
    """Not with one that it has read already, nor with one to another state."""
    poll.changes = [
        [changed(2, "idle"), changed(3, "idle")],
        [],
        [changed(4, "working"), changed(5, "idle", revision=8, task_id=TASK)],
    ]
    response = await poll.wait("idle", 30, include=include)
    body = orjson.loads(response.body)
    assert (response.status, body["current_state"]["state"]) == (200, "idle")
    assert response.headers == {"ETag": etags.of_document(TASK, 5, 8)}
    assert ("state_since" in body, poll.with_state_since) == (has_it, {has_it})
    assert len(poll.waited) == 3
    assert all(0 < each <= 30 for each in poll.waited)


async def test_a_poll_of_a_task_that_is_deleted_ends(poll: Poll) -> None:
    """The answer is the 404 of a task that is not there."""
    poll.changes = [[changed(4, "working", kind="deleted")]]
    with pytest.raises(HTTPError) as raised:
        await poll.wait("idle", 30)
    assert raised.value.response.status == 404


@pytest.mark.parametrize(("state", "timed_out"), [("working", "true"), ("idle", None)])
async def test_a_poll_that_times_out_says_so(poll: Poll, state: str, timed_out: str | None) -> None:
    """Unless the task has just come there; it is read for the last time then."""
    poll.rows.append(polled(9, state))
    response = await poll.wait("idle", 0.001)
    assert (response.status, response.body) == (200, b'"row 9"')
    assert response.headers == {
        "ETag": etags.of_document(UUID(int=5), 9, 1),
        **({"X-Taskherd-Timed-Out": timed_out} if timed_out else {}),
    }


async def test_a_poll_ends_with_its_subscriber(poll: Poll) -> None:
    """The answer is the task as it is then, as when the time of the poll is over."""
    poll.ended = True
    poll.rows.append(polled(9, "working"))
    response = await poll.wait("idle", 30)
    assert (response.headers["X-Taskherd-Timed-Out"], poll.waited) == ("true", [])
