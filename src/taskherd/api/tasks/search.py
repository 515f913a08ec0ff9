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
from taskherd.api.http.ids import findable, uuid_of
from taskherd.api.query import QueryModel, Text, whole_number
from taskherd.domain.view import Status
from taskherd.store import task_queries
from taskherd.store.task_queries import Wanted

if TYPE_CHECKING:
    from taskherd.api.context import Ask
    from taskherd.store.reader import Row

MESSAGE: Final = "Invalid task search query."
LIMIT_MOST: Final = 500
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
    limit: Annotated[int, whole_number(1, LIMIT_MOST)] = Field(LIMIT_MOST, description="Tasks in one answer.")
    after: Annotated[
        tuple[datetime, UUID] | None,
        Text(_cursor, {"type": "string", "pattern": "^(A[A-Za-z0-3][A-Za-z0-9_-]{30})?$"}),
    ] = Field(None, description="What `next` of the answer before was.")

    @property
    def paged(self) -> bool:
        """Whether the list is requested in pages."""
        return not self.model_fields_set.isdisjoint({"limit", "after"})


async def wanted(ask: Ask, query: ListQuery | WatchQuery) -> Wanted:
    """What the request asks for. Raises a 400 that says what is wrong with it."""
    said = search_query.read(query.q, bare="owner", known=("owner", "organization", "status"), message=MESSAGE)
    status = said.get("status")
    if status is not None and status not in set(Status):
        known = ", ".join(Status)
        raise search_query.bad_value(MESSAGE, "status", f'"{status}" is not a valid value. Valid values: {known}')
    most = ask.house.settings.api_list_most
    page = query if isinstance(query, ListQuery) else ListQuery()
    return Wanted(
        caller=ask.caller.user_id,
        limit=page.limit if page.paged else most,
        owner=await _owner(ask, said["owner"]) if "owner" in said else None,
        organization=await organization(ask, said["organization"], MESSAGE) if "organization" in said else None,
        status=status,
        after=page.after,
    )


def cursor(row: Row) -> str:
    """What `after` must be to go on behind this task."""
    instant = (row["created_at"] - _EPOCH) // _MICROSECOND
    return urlsafe_b64encode(instant.to_bytes(_INSTANT_BYTES, "big", signed=True) + row["id"].bytes).decode()


async def _owner(ask: Ask, said: str) -> UUID:
    caller = ask.caller
    if said in {ME, caller.username.lower()}:
        return caller.user_id
    found = uuid_of(said) or (await task_queries.person(ask.house.reader, said) if findable(said) else None)
    if found is None:
        raise search_query.bad_value(
            MESSAGE, "owner", f'user "{said}" either does not exist, or you are unauthorized to view them'
        )
    return found


async def organization(ask: Ask, said: str, message: str) -> UUID:
    """The organization that a term names, or any id. Raises a 400 that begins with `message`."""
    found = uuid_of(said)
    if found is None and said == "default":
        found = await task_queries.default_organization(ask.house.reader, ask.caller.user_id)
    elif found is None and findable(said):
        found = await task_queries.organization(ask.house.reader, said)
    if found is None:
        raise search_query.bad_value(
            message, "organization", f'organization "{said}" either does not exist, or you are unauthorized to view it'
        )
    return found
