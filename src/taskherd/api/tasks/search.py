"""Which tasks a list is asked for: `q`, `limit` and `after`, judged and looked up."""

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
from taskherd.api.query import QueryModel, Text, whole_number
from taskherd.domain.view import Status
from taskherd.store import task_queries
from taskherd.store.task_queries import TaskFilter

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.store.reader import Row

MESSAGE: Final = "Invalid task search query."
MAX_LIMIT: Final = 500
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_CURSOR: Final = re.compile(r"[A-Za-z0-9_-]{32}", re.ASCII)
_INSTANT_BYTES: Final = 8
_LATEST: Final = 253_402_300_799_999_999
"""The last microsecond of the year 9999, since the epoch."""


def _cursor(text: str) -> tuple[datetime, UUID] | None:
    if not text:
        return None
    raw = urlsafe_b64decode(text) if _CURSOR.fullmatch(text) else b""
    instant = int.from_bytes(raw[:_INSTANT_BYTES], "big", signed=True)
    if not raw or not 0 <= instant <= _LATEST:
        message = "What `next` of an earlier answer was, was expected."
        raise ValueError(message)
    return _EPOCH + instant * _MICROSECOND, UUID(bytes=raw[_INSTANT_BYTES:])


class WatchQuery(QueryModel):
    """The parameters of the stream of all tasks."""

    q: str = Field("", description="As for the list.")


class ListQuery(QueryModel):
    """The parameters of the list of tasks."""

    q: str = Field(
        "", description="Terms owner:<username, UUID or me>, organization:<name, UUID or default>, status:<status>."
    )
    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(MAX_LIMIT, description="Tasks in one answer.")
    after: Annotated[
        tuple[datetime, UUID] | None,
        Text(_cursor, {"type": "string", "pattern": "^(A[A-Za-z0-3][A-Za-z0-9_-]{30})?$"}),
    ] = Field(None, description="What `next` of the answer before was.")

    @property
    def paged(self) -> bool:
        """Whether the list is requested in pages."""
        return not self.model_fields_set.isdisjoint({"limit", "after"})


async def task_filter(request: RequestContext, query: ListQuery | WatchQuery) -> TaskFilter:
    """What the request asks for. Raises a 400 that says what is wrong with it."""
    text = search_query.read(query.q, bare="owner", known=("owner", "organization", "status"), message=MESSAGE)
    status = text.get("status")
    if status is not None and status not in set(Status):
        known = ", ".join(Status)
        raise search_query.bad_value(MESSAGE, "status", f'"{status}" is not a valid value. Valid values: {known}')
    limit = request.api.settings.api_list_most
    page = query if isinstance(query, ListQuery) else ListQuery()
    return TaskFilter(
        caller=request.caller.user_id,
        limit=page.limit if page.paged else limit,
        owner=await _owner(request, text["owner"]) if "owner" in text else None,
        organization=await organization(request, text["organization"], MESSAGE) if "organization" in text else None,
        status=status,
        after=page.after,
    )


def cursor(row: Row) -> str:
    """What `after` must be to go on behind this task."""
    instant = (row["created_at"] - _EPOCH) // _MICROSECOND
    return urlsafe_b64encode(instant.to_bytes(_INSTANT_BYTES, "big", signed=True) + row["id"].bytes).decode()


async def _owner(request: RequestContext, text: str) -> UUID:
    caller = request.caller
    if text in {ME, caller.username.lower()}:
        return caller.user_id
    found = parse_uuid(text) or (await task_queries.person(request.api.reader, text) if is_searchable(text) else None)
    if found is None:
        raise search_query.bad_value(
            MESSAGE, "owner", f'user "{text}" either does not exist, or you are unauthorized to view them'
        )
    return found


async def organization(request: RequestContext, text: str, message: str) -> UUID:
    """The organization that a term names, or any id. Raises a 400 that begins with `message`."""
    found = parse_uuid(text)
    if found is None and text == "default":
        found = await task_queries.default_organization(request.api.reader, request.caller.user_id)
    elif found is None and is_searchable(text):
        found = await task_queries.organization(request.api.reader, text)
    if found is None:
        raise search_query.bad_value(
            message, "organization", f'organization "{text}" either does not exist, or you are unauthorized to view it'
        )
    return found
