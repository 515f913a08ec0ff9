"""The logs of builds and agents, derived from the task's history: one entry for each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from taskherd.api.http.query_parameters import MAX_POSITION, QueryModel, whole_number
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.workspaces.builds import ENDED
from taskherd.api.workspaces.queries import BuildLookup, get_or_404
from taskherd.domain.reports import format_rfc3339
from taskherd.store import builds

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row

MAX_ENTRIES: Final = 1_000
"""Maximum number of entries that one statement reads; a build has a few."""
_STAGES: Final[Mapping[str, tuple[str, str]]] = {
    "pending": ("Waiting for a runner", "The build was requested."),
    "starting": ("Starting workspace", "The workspace is starting."),
    "running": ("Starting workspace", "The workspace is running."),
    "stopping": ("Stopping workspace", "The workspace is stopping."),
    "stopped": ("Stopping workspace", "The workspace is stopped."),
    "deleting": ("Deleting workspace", "The workspace is being deleted."),
    "deleted": ("Deleting workspace", "The workspace is deleted."),
    "canceling": ("Canceling", "The build is being canceled."),
    "canceled": ("Canceling", "The build was canceled."),
}


class LogQuery(QueryModel):
    """Query parameters of a log, and of the WebSocket that follows it."""

    after: Annotated[int, whole_number(0, MAX_POSITION, expected="Expected the id of an entry.", empty=0)] = Field(
        0, description="ID of an entry; only entries after it are returned. Empty or 0: all entries."
    )
    follow: str = Field("", description="Ignored: a WebSocket always follows the log.")


@dataclass(frozen=True, slots=True)
class LogPage:
    """Entries of a log, and the id after which the next ones follow."""

    entries: Sequence[dict[str, Any]]
    until: int
    more: bool
    """Whether there may be further entries now."""


@dataclass(frozen=True, slots=True)
class LogSpec:
    """The definition of a log: how to find its build, which changes are entries, and when it is complete."""

    lookup: BuildLookup
    changes: tuple[str, ...]
    entry: Callable[[Row, Row], dict[str, Any]]
    complete: Callable[[Row], bool]
    arrays: bool
    """True if a WebSocket frame contains an array of entries instead of one."""


async def build_logs(request: RequestContext) -> BufferedResponse:
    """Return the log of a build so far."""
    return await _log_response(request, BUILD)


async def agent_logs(request: RequestContext) -> BufferedResponse:
    """Return the log of an agent so far."""
    return await _log_response(request, AGENT)


async def _log_response(request: RequestContext, log: LogSpec) -> BufferedResponse:
    after = request.parameters(LogQuery).after
    row = await get_or_404(request, log.lookup)
    return json((await read_page(request, log, row, after)).entries)


async def read_page(request: RequestContext, log: LogSpec, row: Row, after: int) -> LogPage:
    """Return up to ``MAX_ENTRIES`` entries after the id ``after``."""
    page = await builds.history(
        request.reader, row["task_id"], row["number"], log.changes, after=after, limit=MAX_ENTRIES
    )
    more = len(page.rows) == MAX_ENTRIES
    entries = [log.entry(row, step) for step in page.rows]
    return LogPage(entries, page.rows[-1]["version"] if more else max(after, page.until), more)


def _build_entry(row: Row, step: Row) -> dict[str, Any]:
    status = step["workspace_status"]
    failed = status == "failed"
    stage, output = ("Failed", row["error"] or "The build failed.") if failed else _STAGES.get(status, (status, status))
    return {
        "id": step["version"],
        "created_at": format_rfc3339(step["occurred_at"]),
        "log_source": "provisioner",
        "log_level": "error" if failed else "info",
        "stage": stage,
        "output": output,
    }


def _agent_entry(row: Row, step: Row) -> dict[str, Any]:
    lifecycle = (step["lifecycle"] or "not started yet").replace("_", " ")
    reason = f" ({step['reason']})" if step["reason"] else ""
    return {
        "id": step["version"],
        "created_at": format_rfc3339(step["occurred_at"]),
        "output": f"Agent is {lifecycle}{reason}.",
        "level": "info" if step["healthy"] is not False or lifecycle == "created" else "error",
        "source_id": str(row["agent_id"]),
    }


BUILD: Final = LogSpec(
    lookup=builds.build,
    changes=("workspace_status", "workspace_build_number"),
    entry=_build_entry,
    complete=lambda row: row["job_status"] in ENDED,
    arrays=False,
)
AGENT: Final = LogSpec(
    lookup=builds.of_agent,
    changes=("workspace_agent_lifecycle", "workspace_agent_health", "workspace_agent_id"),
    entry=_agent_entry,
    complete=lambda row: not row["is_latest"] or row["job_status"] in {"failed", "canceled"},
    arrays=True,
)
