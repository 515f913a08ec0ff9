"""List workspaces: those of the tasks that the caller may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from taskherd.api.http import search_query
from taskherd.api.http.query_parameters import QueryModel, whole_number
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.tasks import search
from taskherd.api.workspaces.queries import workspace_json
from taskherd.store import builds, task_queries
from taskherd.store.task_lists import Listed
from taskherd.store.task_queries import MAX_SEARCHED, TaskFilter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.api.context import RequestContext

MESSAGE: Final = "Invalid workspace search query."
_TERMS: Final = ("owner", "organization", "name", "template", "status", "has-ai-task", "has_ai_task")
_MAX: Final = 100_000


class WorkspacesQuery(QueryModel):
    """Query parameters of the list of workspaces."""

    q: str = Field(
        "",
        description=(
            "Search terms, separated by spaces: `owner:<username, ID or me>`, `organization:<name, ID or default>`,"
            " `name:<part of the name>`, `template:<name>`, `status:<status of the latest build>`,"
            " `has-ai-task:<bool>`. A word without a colon is a part of the name, or `<owner>/<part of the name>`."
            " At most 4,096 characters. A part of a name or a status is looked for among the newest"
            f" {MAX_SEARCHED:,} tasks of the owner, or of the caller and each organization whose admin the caller is."
        ),
    )
    limit: Annotated[int, whole_number(0, _MAX, empty=0)] = Field(
        0, description="Maximum number of workspaces. Empty or 0: all."
    )
    offset: Annotated[int, whole_number(0, _MAX, empty=0)] = Field(0, description="Number of workspaces to skip.")


async def list_workspaces(request: RequestContext) -> BufferedResponse:
    """Return the workspaces of the tasks that the caller may see, the newest task first."""
    query = request.parameters(WorkspacesQuery)
    terms = search_query.read(query.q, bare="name", allowed=_TERMS, message=MESSAGE)
    most = request.api.settings.api_list_most
    ids = []
    if _has_ai_task(terms):
        ids = list(await task_queries.task_ids(request.reader, await _filter(request, terms, most)))[:most]
    end = query.offset + query.limit if query.limit else most
    page = ids[query.offset : end]
    rows = await builds.of_tasks(request.reader, request.caller.user_id, page) if page else ()
    return json({"workspaces": [workspace_json(row) for row in rows], "count": len(ids)})


async def _filter(request: RequestContext, terms: Mapping[str, str], most: int) -> TaskFilter:
    owner, slash, name = terms.get("name", "").rpartition("/")
    if slash and "owner" not in terms:
        terms = {**terms, "owner": owner}
    return TaskFilter(
        caller=request.caller.user_id,
        limit=most,
        owner=await search.owner(request, terms["owner"], MESSAGE) if "owner" in terms else None,
        organization=(
            await search.organization(request, terms["organization"], MESSAGE) if "organization" in terms else None
        ),
        name=_printable(name, "name") or None,
        listed=Listed(template=_printable(terms["template"], "template") if "template" in terms else None),
        workspace_status=_printable(terms["status"], "status") if "status" in terms else None,
    )


def _has_ai_task(terms: Mapping[str, str]) -> bool:
    """Return whether workspaces of tasks are wanted; there are no others."""
    return terms.get("has-ai-task", terms.get("has_ai_task", "true")) in {"true", "1", "t"}


def _printable(text: str, key: str) -> str:
    if not text.isprintable():
        raise search_query.invalid_value(MESSAGE, key, "expected printable characters")
    return text
