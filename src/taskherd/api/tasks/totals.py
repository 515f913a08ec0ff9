"""How many tasks the caller may see, by status, state and health, and how many of them need a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from taskherd.api.http import etags
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.tasks import search
from taskherd.domain.reports import AgentState
from taskherd.domain.view import Status
from taskherd.messages.listing import NO_STATE, ListedHealth
from taskherd.store import task_totals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row
    from taskherd.store.task_queries import TaskFilter

_STATES: Final = (*(state for state in AgentState if state is not AgentState.FAILURE), NO_STATE)


async def get(request: RequestContext) -> BufferedResponse:
    """Return the totals of the tasks that the caller may see and that match, whatever their number at the same cost."""
    body = await read(request, await search.totals_filter(request, request.parameters(search.TotalsQuery)))
    tag = etags.of_list([body])
    return etags.unchanged(request.headers, tag) or json(body, 200, {"ETag": tag})


async def read(request: RequestContext, wanted: TaskFilter) -> dict[str, Any]:
    """Return the totals of the tasks that match, as JSON types."""
    rows = await task_totals.totals(
        request.reader, wanted.caller, wanted.listed, owner=wanted.owner, organization=wanted.organization
    )
    return totals_json(rows)


def totals_json(rows: Sequence[Row | Mapping[str, Any]]) -> dict[str, Any]:
    """Return the totals as JSON types, from the number of tasks for each combination of values."""
    up = [row for row in rows if row["status"] == Status.ACTIVE and row["health"] == ListedHealth.HEALTHY]
    attention = {
        "waiting": sum(row["tasks"] for row in rows if row["waiting"]),
        "idle": sum(row["tasks"] for row in up if row["state"] == AgentState.IDLE and not row["waiting"]),
        "failed": sum(
            row["tasks"] for row in rows if row["status"] == Status.ERROR or row["state"] == AgentState.FAILED
        ),
        "lost": sum(row["tasks"] for row in rows if row["health"] == ListedHealth.LOST),
        "stalled": sum(row["tasks"] for row in rows if row["stalled"]),
    }
    return {
        "total": sum(row["tasks"] for row in rows),
        "working": sum(row["tasks"] for row in up if row["state"] == AgentState.WORKING),
        "by_status": _by(rows, "status", Status),
        "by_state": _by(rows, "state", _STATES),
        "by_health": _by(rows, "health", ListedHealth),
        "attention": attention,
    }


def _by(rows: Sequence[Row | Mapping[str, Any]], column: str, values: Iterable[str]) -> dict[str, int]:
    totals = {str(value): 0 for value in values}
    for row in rows:
        totals[row[column]] = totals.get(row[column], 0) + row["tasks"]
    return totals
