"""The list of deleted tasks, which says who deleted each."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

from pydantic import Field

from taskherd.api.http import search_query
from taskherd.api.http.query_parameters import QueryModel, whole_number
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.tasks import search
from taskherd.api.tasks.schemas import DeletedTask
from taskherd.domain.reports import format_rfc3339
from taskherd.store import deleted_tasks

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row

MAX_LIMIT: Final = 100
_TERMS: Final = ("owner", "name")


class DeletedQuery(QueryModel):
    """Query parameters of the list of deleted tasks."""

    q: str = Field(
        "",
        description="Search terms: `owner:<username, ID or me>`, `name:<beginning of the name>`. A word without a"
        " colon is an owner.",
    )
    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(
        MAX_LIMIT, description=f"Maximum number of tasks in the response, 1 to {MAX_LIMIT}."
    )
    after: Annotated[tuple[datetime, UUID] | None, search.PAGE_CURSOR] = Field(
        None,
        description="Cursor of the page: the value of `next` in the previous response. Empty for the first page.",
    )


async def list_deleted(request: RequestContext) -> BufferedResponse:
    """Return the deleted tasks that the caller may see and that match, last deleted first."""
    query = request.parameters(DeletedQuery)
    terms = search_query.read(query.q, bare="owner", allowed=_TERMS, message=search.MESSAGE)
    owner = await search.owner(request, terms["owner"], search.MESSAGE) if "owner" in terms else None
    prefix = search.searchable(terms, "name") if "name" in terms else ""
    rows, place = await deleted_tasks.deleted_tasks(
        request.reader, request.caller.user_id, query.limit + 1, owner=owner, prefix=prefix, after=query.after
    )
    if len(rows) > query.limit:
        place = rows[query.limit - 1]["deleted_at"], rows[query.limit - 1]["id"]
    following = None if place is None else search.cursor(*place)
    return json({"tasks": [_task_json(row) for row in rows[: query.limit]], "next": following})


def _task_json(row: Row) -> dict[str, Any]:
    times = {name: format_rfc3339(row[name]) for name in ("created_at", "deleted_at")}
    return {name: times.get(name, row[name]) for name in DeletedTask.model_fields}
