"""Parse and resolve the parameters of a task list: ``q``, ``limit``, ``after``."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

from pydantic import Field

from taskherd.api.context import ME
from taskherd.api.http import search_query
from taskherd.api.http.ids import is_searchable, parse_uuid
from taskherd.api.http.query_parameters import FLAG, QueryModel, TextParameter, whole_number
from taskherd.domain.reports import AgentState
from taskherd.domain.view import Status
from taskherd.store import task_queries
from taskherd.store.task_queries import TaskFilter

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row

MESSAGE: Final = "Invalid task search query."
MAX_LIMIT: Final = 500
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_CURSOR: Final = re.compile(r"[A-Za-z0-9_-]{32}", re.ASCII)
_INSTANT_BYTES: Final = 8
_Q: Final = (
    "Search terms, separated by spaces: `owner:<username, ID or me>`, `organization:<name, ID or default>`,"
    " `status:<status>`, `state:<state of the agent>`, `template:<name>`. A word without a colon is an owner."
    " At most 4,096 characters."
)
_TERMS: Final = ("owner", "organization", "status", "state", "template")
_STATES: Final = tuple(state for state in AgentState if state is not AgentState.FAILURE)  # that is shown as failed
_MAX_INSTANT: Final = 253_402_300_799_999_999
"""The last microsecond of the year 9999, since the epoch."""


def _cursor(text: str) -> tuple[datetime, UUID] | None:
    if not text:
        return None
    raw = urlsafe_b64decode(text) if _CURSOR.fullmatch(text) else b""
    instant = int.from_bytes(raw[:_INSTANT_BYTES], "big", signed=True)
    if not raw or not 0 <= instant <= _MAX_INSTANT:
        message = "Expected the value of `next` in the previous response."
        raise ValueError(message)
    return _EPOCH + instant * _MICROSECOND, UUID(bytes=raw[_INSTANT_BYTES:])


PAGE_CURSOR: Final = TextParameter(_cursor, {"type": "string", "pattern": "^(A[A-Za-z0-3][A-Za-z0-9_-]{30})?$"})
"""Annotation of a page's cursor: the time of creation and the id of the last entry of the page before."""


class WatchQuery(QueryModel):
    """Query parameters of the stream of all tasks."""

    q: str = Field("", description=_Q)
    snapshot: Annotated[bool, FLAG] = Field(
        default=True,
        description="`false`: no snapshots; the stream starts with a position, and has the changes after it. A list"
        " that is requested after that is at least as new.",
    )


class ListQuery(QueryModel):
    """Query parameters of the list of tasks."""

    q: str = Field("", description=_Q)
    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(
        MAX_LIMIT, description=f"Maximum number of tasks in the response, 1 to {MAX_LIMIT}."
    )
    after: Annotated[tuple[datetime, UUID] | None, PAGE_CURSOR] = Field(
        None,
        description="Cursor of the page: the value of `next` in the previous response. Empty for the first page.",
    )

    @property
    def paged(self) -> bool:
        """True if the list is requested in pages."""
        return not self.model_fields_set.isdisjoint({"limit", "after"})


async def task_filter(request: RequestContext, query: ListQuery | WatchQuery) -> TaskFilter:
    """Return the filter for a request. Raise a 400 that names an invalid term."""
    terms = search_query.read(query.q, bare="owner", allowed=_TERMS, message=MESSAGE)
    for term, values in (("status", Status), ("state", _STATES)):
        value = terms.get(term)
        if value is not None and value not in set(values):
            reason = f'"{value}" is not a valid value. Valid values: {", ".join(values)}'
            raise search_query.invalid_value(MESSAGE, term, reason)
    limit = request.api.settings.api_list_most
    page = query if isinstance(query, ListQuery) else ListQuery()
    return TaskFilter(
        caller=request.caller.user_id,
        limit=page.limit if page.paged else limit,
        owner=await owner(request, terms["owner"], MESSAGE) if "owner" in terms else None,
        organization=await organization(request, terms["organization"], MESSAGE) if "organization" in terms else None,
        status=terms.get("status"),
        state=terms.get("state"),
        template=terms.get("template"),
        after=page.after,
    )


def cursor(row: Row) -> str:
    """Return the value of ``after`` for the page that starts after this row, by its creation time and id."""
    instant = (row["created_at"] - _EPOCH) // _MICROSECOND
    return urlsafe_b64encode(instant.to_bytes(_INSTANT_BYTES, "big", signed=True) + row["id"].bytes).decode()


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
    organization_id = parse_uuid(text)
    if organization_id is None and text == "default":
        organization_id = await task_queries.default_organization_id(request.reader, request.caller.user_id)
    elif organization_id is None and is_searchable(text):
        organization_id = await task_queries.organization_id(request.reader, request.caller.user_id, text)
    if organization_id is None:
        raise search_query.invalid_value(
            message, "organization", f'organization "{text}" either does not exist, or you are unauthorized to view it'
        )
    return organization_id
