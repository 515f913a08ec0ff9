"""The handler that tells how long a task was in each state, from its history."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from taskherd.api.http.errors import not_found
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.tasks import queries
from taskherd.domain.reports import format_rfc3339
from taskherd.messages.shown_state import ShownState, shown_state
from taskherd.store import feed, task_queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row

MAX_CHANGES: Final = 10_000
"""Maximum number of changes that are read, the newest."""
MAX_SPANS: Final = 200
"""Maximum number of spans in a response, the newest."""


async def durations(request: RequestContext) -> BufferedResponse:
    """Return how long the task was in each state, and its newest spans."""
    task_id = await task_queries.find_id(request.reader, queries.task_ref_of(request))
    rows = await feed.states(request.reader, request.caller.user_id, task_id, MAX_CHANGES) if task_id else ()
    if not rows:
        raise not_found()
    now = max(datetime.now(UTC), rows[-1]["occurred_at"])
    spans = spans_of(rows, now)
    totals: defaultdict[str, float] = defaultdict(float)
    for state, since, until in spans:
        totals[state] += (until - since).total_seconds()
    return json(
        {
            "since": format_rfc3339(rows[0]["occurred_at"]),
            "now": format_rfc3339(now),
            "totals": [{"state": state, "seconds": round(seconds, 3)} for state, seconds in totals.items()],
            "spans": [_span_json(*span, is_last=span is spans[-1]) for span in spans[-MAX_SPANS:]],
        }
    )


def spans_of(rows: Sequence[Row], now: datetime) -> list[tuple[str, datetime, datetime]]:
    """Return the times in each state, oldest first; changes that leave the state as it is are one span."""
    spans: list[tuple[str, datetime, datetime]] = []
    for index, row in enumerate(rows):
        state = state_of(row)
        until = rows[index + 1]["occurred_at"] if index + 1 < len(rows) else now
        until = max(until, row["occurred_at"])
        if spans and spans[-1][0] == state:
            spans[-1] = (state, spans[-1][1], until)
        else:
            spans.append((state, row["occurred_at"], until))
    return spans


def _span_json(state: str, since: datetime, until: datetime, *, is_last: bool) -> dict[str, Any]:
    return {"state": state, "since": format_rfc3339(since), "until": None if is_last else format_rfc3339(until)}


def state_of(row: Row) -> ShownState:
    """Return in one word what a task was doing after a change."""
    return shown_state(row["status"], row["state"], row["health"], row["exit"], is_asking=bool(row["requests_open"]))
