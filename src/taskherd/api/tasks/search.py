"""Parse and resolve the parameters of a task list: ``q``, ``limit``, ``after``."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple
from uuid import UUID

from pydantic import Field

from taskherd.api.context import ME
from taskherd.api.http import search_query
from taskherd.api.http.errors import invalid
from taskherd.api.http.ids import is_searchable, parse_uuid
from taskherd.api.http.query_parameters import FLAG, QueryModel, TextParameter, whole_number
from taskherd.api.tasks.documents import IncludeQuery
from taskherd.domain.reports import AgentState
from taskherd.domain.view import Status
from taskherd.messages.listing import UNHEALTHY, ListedHealth, label_term, runner_term
from taskherd.store import task_lists, task_queries
from taskherd.store.pages import MAX_PAGE_BYTES
from taskherd.store.task_index import INDEX_RESOLUTION
from taskherd.store.task_lists import MAX_NAMES, Between, Listed
from taskherd.store.task_queries import TaskFilter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from taskherd.api.context import RequestContext

MESSAGE: Final = "Invalid task search query."
MAX_LIMIT: Final = 500
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_CURSOR: Final = re.compile(r"[A-Za-z0-9_-]{32}", re.ASCII)
_INSTANT_BYTES: Final = 8
_Q: Final = (
    "Search terms, separated by spaces; all must match. `owner:<username, ID or me>`, `organization:<name, ID or"
    " default>`, `template:<name>`, `pool:<name>`, `runner:<name>`, `status:<status>`, `state:<state of the agent>`,"
    f" `health:<{', '.join(ListedHealth)} or unhealthy>`, `waiting:<bool>`: whether the agent has an open request,"
    " `stalled:<bool>`, `failed:<bool>`: whether its status is error or its state is failed,"
    " `name:<beginning of the name>`, `created:>2h`: more than two hours ago, `changed:<7d`: less"
    " than seven days ago, exact to a minute, `label:<key>=<value>`. A word without a colon is an owner."
    " At most 4,096 characters."
)
_SORT: Final = ("created", "changed", "changed-asc")
_RANGES: Final = ("created", "changed")
TERMS: Final = (
    *("owner", "organization", "status", "state", "template", "pool", "health", "waiting", "stalled"),
    *("failed", "runner", "label", "name", *_RANGES),
)
COUNTED: Final = (
    "owner",
    "organization",
    "status",
    "state",
    "template",
    "pool",
    "health",
    "waiting",
    "stalled",
    "failed",
)
"""The terms by which totals are kept."""
OVERVIEW_TERMS: Final = ("owner", "organization", "template", "pool")
"""The terms that an overview narrows all its groups by."""
_STATES: Final = tuple(state for state in AgentState if state is not AgentState.FAILURE)  # that is shown as failed
_HEALTHS: Final = (*ListedHealth, "unhealthy")
_AGE: Final = re.compile(r"([<>])(\d{1,5})([smhdw])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MAX_INSTANT: Final = 253_402_300_799_999_999
"""The last microsecond of the year 9999, since the epoch."""


def _sort(text: str) -> str:
    if text and text not in _SORT:
        message = f"Expected {', '.join(_SORT[:-1])} or {_SORT[-1]}."
        raise ValueError(message)
    return text


def _cursor(text: str) -> tuple[datetime, UUID] | None:
    if not text:
        return None
    raw = urlsafe_b64decode(text) if _CURSOR.fullmatch(text) else b""
    instant = int.from_bytes(raw[:_INSTANT_BYTES], "big")  # a time before the epoch is far beyond the last one
    if not raw or instant > _MAX_INSTANT:
        message = "Expected the value of `next` in the previous response."
        raise ValueError(message)
    return _EPOCH + instant * _MICROSECOND, UUID(bytes=raw[_INSTANT_BYTES:])


PAGE_CURSOR: Final = TextParameter(_cursor, {"type": "string", "pattern": "^(A[A-Za-z0-3][A-Za-z0-9_-]{30})?$"})
"""Annotation of a page's cursor: the time and the id of the last entry of the page before, in the list's order."""


class WatchQuery(IncludeQuery):
    """Query parameters of the stream of all tasks."""

    q: str = Field(
        "",
        description=f"{_Q} `created`, `changed`, `pool` and `runner` are only for lists: changes do not say them.",
    )
    snapshot: Annotated[bool, FLAG] = Field(
        default=True,
        description="`false`: no snapshots; the stream starts with a position, and has the changes after it. A list"
        " that is requested after that is at least as new.",
    )


class TotalsQuery(QueryModel):
    """Query parameters of the totals."""

    q: str = Field(
        "",
        description=f"Search terms as of the list of tasks, of which totals have: {', '.join(COUNTED)}.",
    )


class ListQuery(IncludeQuery):
    """Query parameters of the list of tasks."""

    q: str = Field("", description=_Q)
    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(
        MAX_LIMIT,
        description=f"Maximum number of tasks in the response, 1 to {MAX_LIMIT}. There are fewer, at least one, where "
        f"their documents reach {MAX_PAGE_BYTES >> 20} MiB; `next` or `X-Taskherd-Truncated` tells.",
    )
    after: Annotated[tuple[datetime, UUID] | None, PAGE_CURSOR] = Field(
        None,
        description="Cursor of the page: the value of `next` in the previous response. Empty for the first page.",
    )
    sort: Annotated[str, TextParameter(_sort, {"type": "string", "enum": ["", *_SORT]})] = Field(
        "",
        description="`created`: newest first; `changed`: the last changed first, exact to a minute; `changed-asc`: the"
        " one that has not changed for longest first. Default: `changed` if `q` has that term, else `created`.",
    )

    @property
    def paged(self) -> bool:
        """True if the list is requested in pages."""
        return not self.model_fields_set.isdisjoint({"limit", "after"})


class WatchedTasks(NamedTuple):
    """The tasks whose changes a stream has; ``name`` is the beginning of their names."""

    tasks: TaskFilter
    name: str | None


def terms_of(q: str) -> Mapping[str, str]:
    """Return the terms of a query by name. Raise a 400 if it is malformed or has a term that no list has."""
    return search_query.read(q, bare="owner", allowed=TERMS, message=MESSAGE, repeatable=_RANGES)


async def watched(request: RequestContext, query: WatchQuery) -> WatchedTasks:
    """Return the tasks to watch. Raise a 400 that names an invalid term, or one that changes do not say."""
    terms = terms_of(query.q)
    for term in (*_RANGES, "pool", "runner"):
        if term in terms:
            detail = f"A change does not say it: leave out {term}, or read the list with it."
            raise invalid((term, detail), message=MESSAGE)
    return WatchedTasks(await task_filter(request, query), terms.get("name"))


async def totals_filter(request: RequestContext, query: TotalsQuery) -> TaskFilter:
    """Return the tasks to count. Raise a 400 that names an invalid term, or one that totals are not kept by."""
    terms = terms_of(query.q)
    for term in terms:
        if term not in COUNTED:
            detail = f"Totals are not kept by it: leave out {term}, or count the pages of the list."
            raise invalid((term, detail), message=MESSAGE)
    return await task_filter(request, query)


async def overview_filter(request: RequestContext, q: str) -> TaskFilter:
    """Return the tasks of an overview. Raise a 400 that names an invalid term, or one of its groups' own."""
    for term in terms_of(q):
        if term not in OVERVIEW_TERMS:
            detail = f"An overview has groups of its own: leave out {term}, or read the list with it."
            raise invalid((term, detail), message=MESSAGE)
    return await task_filter(request, TotalsQuery(q=q))


async def task_filter(request: RequestContext, query: ListQuery | WatchQuery | TotalsQuery) -> TaskFilter:
    """Return the filter for a request. Raise a 400 that names an invalid term, or why no index serves the list."""
    terms = terms_of(query.q)
    page = query if isinstance(query, ListQuery) else ListQuery()
    selected = TaskFilter(
        caller=request.caller.user_id,
        limit=page.limit if page.paged else request.api.settings.api_list_most,
        owner=await owner(request, terms["owner"], MESSAGE) if "owner" in terms else None,
        organization=await organization(request, terms["organization"], MESSAGE) if "organization" in terms else None,
        listed=listed(terms),
        created=between(terms, "created", timedelta(0)),
        changed=between(terms, "changed", INDEX_RESOLUTION),
        by_change=page.sort.startswith("changed") or (not page.sort and "changed" in terms),
        oldest_first=page.sort == "changed-asc",
        after=page.after,
        with_state_since=isinstance(query, IncludeQuery) and query.has_state_since,
    )
    _check_served(terms, selected)
    if "name" not in terms:
        return selected
    found = await named(request, selected, searchable(terms, "name"))
    if page.paged and selected.listed == Listed() and not selected.by_change:
        return _page(found, selected)
    return replace(selected, ids=[task_id for _, task_id in found])


def listed(terms: Mapping[str, str]) -> Listed:
    """Return what the terms of a query select by that an index has. Raise a 400 that names an invalid value."""
    _choice(terms, "status", Status)
    _choice(terms, "state", _STATES)
    _choice(terms, "health", _HEALTHS)
    health = terms.get("health")
    for term in ("template", "pool", "runner"):
        if term in terms:
            searchable(terms, term)
    term = label_term(_label(terms)) if "label" in terms else ""
    return Listed(
        template=terms.get("template"),
        pool=terms.get("pool"),
        status=terms.get("status"),
        state=terms.get("state"),
        health=tuple(UNHEALTHY) if health == "unhealthy" else () if health is None else (health,),
        waiting=_flag(terms, "waiting"),
        stalled=_flag(terms, "stalled"),
        failed=_flag(terms, "failed"),
        term=runner_term(terms["runner"]) if "runner" in terms else term,
    )


def _page(found: Sequence[tuple[datetime, UUID]], selected: TaskFilter) -> TaskFilter:
    """Return the filter for those of the sorted tasks that the page may have.

    It has the first of them, so the others are not looked up, unless some are deleted meanwhile or not indexed yet.
    """
    after, before = selected.created.after, selected.created.before
    ids = [
        each[1]
        for each in found
        if (selected.after is None or each < selected.after)
        and (after is None or each[0] > after)
        and (before is None or each[0] < before)
    ]
    first = selected.limit + 1
    return replace(selected, ids=ids[:first], further_ids=ids[first:])


async def named(request: RequestContext, selected: TaskFilter, prefix: str) -> Sequence[tuple[datetime, UUID]]:
    """Return the tasks whose names begin like this, as ``by_name`` does. Raise a 400 if there are too many to sort."""
    reader = request.reader
    found = await task_lists.by_name(reader, selected.caller, prefix, selected.owner, selected.organization)
    if len(found) > MAX_NAMES:
        reason = f"the names of more than {MAX_NAMES:,} tasks begin with it; give more of the name, or an owner"
        raise search_query.invalid_value(MESSAGE, "name", reason)
    return found


def _check_served(terms: Mapping[str, str], selected: TaskFilter) -> None:
    """Raise a 400 for a list that would have to look at every task, with what to do instead."""
    if "label" in terms and "runner" in terms:
        detail = "A list has a label or a runner, not both: leave out one of them, or select by pool."
        raise invalid(("runner", detail), message=MESSAGE)
    if selected.created and selected.by_change:
        detail = "A list by the last change has no condition on the creation: leave out created, or changed and sort."
        raise invalid(("created", detail), message=MESSAGE)
    if selected.changed and not selected.by_change:
        detail = "A list by creation has no condition on the last change: leave out changed, or give sort=changed."
        raise invalid(("changed", detail), message=MESSAGE)


def _choice(terms: Mapping[str, str], term: str, values: Iterable[str]) -> None:
    value = terms.get(term)
    if value is not None and value not in set(values):
        reason = f'"{value}" is not a valid value. Valid values: {", ".join(values)}'
        raise search_query.invalid_value(MESSAGE, term, reason)


def _flag(terms: Mapping[str, str], term: str) -> bool | None:
    _choice(terms, term, ("true", "false"))
    return None if term not in terms else terms[term] == "true"


def searchable(terms: Mapping[str, str], term: str) -> str:
    """Return the value of a term that is searched for. Raise a 400 if no name could contain it."""
    if not is_searchable(terms[term]):
        raise search_query.invalid_value(MESSAGE, term, "expected at most 256 printable characters")
    return terms[term]


def _label(terms: Mapping[str, str]) -> str:
    key, _, value = searchable(terms, "label").partition("=")
    if not (key and value):
        raise search_query.invalid_value(MESSAGE, "label", "expected a key and a value, such as repo=acme/app")
    return terms["label"]


def between(terms: Mapping[str, str], term: str, resolution: timedelta) -> Between:
    """Return the range of times that the ages of a term give; a time is exact to ``resolution``."""
    now = datetime.now(UTC)
    after = before = None
    for age in terms.get(term, "").split():
        found = _AGE.fullmatch(age)
        is_second = found is not None and (after if found[1] == "<" else before) is not None
        if found is None or is_second:
            reason = (
                f'"{age}" is not an age. Expected at most one of each, such as <7d and >2h; the units are s, m, h, d, w'
            )
            raise search_query.invalid_value(MESSAGE, term, reason)
        instant = now - timedelta(**{_UNITS[found[3]]: int(found[2])})
        if found[1] == "<":
            after = instant - resolution
        else:
            before = instant
    return Between(after, before)


def cursor(time: datetime, task_id: UUID) -> str:
    """Return the value of ``after`` for the page that starts after this entry."""
    instant = (time - _EPOCH) // _MICROSECOND
    return urlsafe_b64encode(instant.to_bytes(_INSTANT_BYTES, "big", signed=True) + task_id.bytes).decode()


async def owner(request: RequestContext, text: str, message: str) -> UUID:
    """Return the id of the user that a term names, if the caller knows the user. An id is not looked up.

    Raises:
        HTTPError: a 400 with this ``message``, the same for a name of another tenant and one that does not exist.
    """
    caller = request.caller
    if text in {ME, caller.username.lower()}:
        return caller.user_id
    user_id = parse_uuid(text) or (
        await task_queries.user_id(request.reader, caller.user_id, text) if is_searchable(text) else None
    )
    if user_id is None:
        raise search_query.invalid_value(
            message, "owner", f'user "{text}" either does not exist, or you are unauthorized to view them'
        )
    return user_id


async def organization(request: RequestContext, text: str, message: str) -> UUID:
    """Return the id of the caller's organization that a term names. An id is not looked up.

    Raises:
        HTTPError: a 400 with this ``message``, the same for a name of another tenant and one that does not exist.
    """
    caller = request.caller.user_id
    if text == "default":
        organization_id = await task_queries.default_organization_id(request.reader, caller)
    else:
        organization_id = parse_uuid(text) or (
            await task_queries.organization_id(request.reader, caller, text) if is_searchable(text) else None
        )
    if organization_id is None:
        raise search_query.invalid_value(
            message, "organization", f'organization "{text}" either does not exist, or you are unauthorized to view it'
        )
    return organization_id
