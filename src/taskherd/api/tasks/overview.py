"""What needs a person, what runs and what ended lately, in one answer: totals, open requests, and a few tasks of each.

The position of the change feed in it is read first: a stream that resumes after it has whatever an answer lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import orjson
from pydantic import Field

from taskherd.api.agent_requests import handlers as agent_requests
from taskherd.api.http.query_parameters import QueryModel, whole_number
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.tasks import queries, search, totals
from taskherd.store import feed, task_queries
from taskherd.store.task_index import INDEX_RESOLUTION

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.store.task_queries import TaskFilter

MAX_LIMIT: Final = 50
DEFAULT_LIMIT: Final = 12
MAX_GROUP_BYTES: Final = 1024 * 1024
"""Size of the documents of a group at which it has no further task."""


class TaskGroup(NamedTuple):
    """Tasks that an overview lists."""

    q: str
    """The search terms that select them."""
    most: Callable[[Mapping[str, Any]], int]
    """Returns how many there may be, by the totals; without any, they are not read."""
    sort: str = "created"


GROUPS: Final[Mapping[str, TaskGroup]] = {
    "idle": TaskGroup(
        "status:active state:idle waiting:false", lambda counts: counts["by_state"]["idle"], "changed-asc"
    ),
    "failed": TaskGroup("failed:true changed:<1d", lambda counts: counts["attention"]["failed"], "changed"),
    "not_running": TaskGroup(
        "health:not_running changed:<1d", lambda counts: counts["by_health"]["not_running"], "changed"
    ),
    "lost": TaskGroup("health:lost changed:<1d", lambda counts: counts["attention"]["lost"], "changed"),
    "stalled": TaskGroup("stalled:true", lambda counts: counts["attention"]["stalled"]),
    "working": TaskGroup("status:active state:working", lambda counts: counts["by_state"]["working"]),
    "active": TaskGroup("status:active", lambda counts: counts["by_state"]["none"]),
    "initializing": TaskGroup("status:initializing", lambda counts: counts["by_status"]["initializing"]),
    "pending": TaskGroup("status:pending", lambda counts: counts["by_status"]["pending"]),
    "complete": TaskGroup("state:complete", lambda counts: counts["by_state"]["complete"], "changed"),
}
"""The groups by name. ``active`` is read for agents that have not reported a state yet, which no list selects."""


class OverviewQuery(QueryModel):
    """Query parameters of the overview."""

    q: str = Field(
        "",
        description="Search terms as of the list of tasks, of which an overview has: "
        f"{', '.join(search.OVERVIEW_TERMS)}.",
    )
    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(
        DEFAULT_LIMIT, description=f"Maximum number of tasks in each group, 1 to {MAX_LIMIT}."
    )


async def get(request: RequestContext) -> BufferedResponse:
    """Return the overview of the tasks that the caller may see and that match."""
    request.follows = True
    query = request.parameters(OverviewQuery)
    wanted = await search.overview_filter(request, query.q)
    position = await feed.latest(request.reader)
    counts = await totals.read(request, wanted)
    waiting: dict[str, Any] = {"requests": [], "next": None}
    if counts["attention"]["waiting"]:
        waiting, _ = await agent_requests.waiting(request, wanted, agent_requests.DEFAULT_LIMIT)
    groups = {name: await _group(request, wanted, group, query.limit, counts) for name, group in GROUPS.items()}
    request.mark_seen()
    return json({"position": position, "totals": counts, "requests": waiting, "groups": groups})


async def _group(
    request: RequestContext, wanted: TaskFilter, group: TaskGroup, limit: int, counts: Mapping[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {"q": group.q, "sort": group.sort, "tasks": [], "next": None}
    if not group.most(counts):
        return found
    selected = _selected(wanted, group, limit)
    rows, more = await task_queries.tasks(request.reader, selected)
    if more:
        found["next"] = search.cursor(rows[-1]["sorted_at"], rows[-1]["id"])
    return found | {"tasks": orjson.Fragment(queries.render_rows(request, rows))}


def _selected(wanted: TaskFilter, group: TaskGroup, limit: int) -> TaskFilter:
    terms = search.terms_of(group.q)
    within = wanted.listed
    return replace(
        wanted,
        limit=limit,
        listed=replace(search.listed(terms), template=within.template, pool=within.pool),
        changed=search.between(terms, "changed", INDEX_RESOLUTION),
        by_change=group.sort.startswith("changed"),
        oldest_first=group.sort == "changed-asc",
        with_state_since=True,
        max_bytes=MAX_GROUP_BYTES,
    )
