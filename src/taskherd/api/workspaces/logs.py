"""The logs of builds and agents: what the task's history tells of them, one entry for each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from pydantic import Field

from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.query import MAX_POSITION, QueryModel, whole_number
from taskherd.api.workspaces.builds import ENDED
from taskherd.api.workspaces.queries import BuildLookup, get_or_404
from taskherd.domain.reports import rfc3339
from taskherd.store import builds

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.store.reader import Row

Entries: TypeAlias = "Sequence[tuple[int, dict[str, Any]]]"
MAX_ENTRIES: Final = 1_000
"""Entries that are read at once; a build has a handful."""
_STAGES: Final[Mapping[str, tuple[str, str]]] = {
    "pending": ("Waiting for a runner", "The build was asked for."),
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
    """The parameters of a log, and of the WebSocket that follows it."""

    after: Annotated[int, whole_number(0, MAX_POSITION, expected="The id of an entry was expected.", empty=0)] = Field(
        0, description="The id of the last entry that is known."
    )
    follow: str = Field("", description="Of the WebSocket: entries as they come; it follows in any case.")


@dataclass(frozen=True, slots=True)
class LogKind:
    """A kind of log: how its build is found, which changes make its entries, and when no more of them can come."""

    lookup: BuildLookup
    changes: tuple[str, ...]
    entry: Callable[[Row, Row], dict[str, Any]]
    over: Callable[[Row], bool]
    arrays: bool
    """Whether a frame holds an array of entries, or one."""


async def build_logs(request: RequestContext) -> BufferedResponse:
    """A build's log so far."""
    return await _whole(request, BUILD)


async def agent_logs(request: RequestContext) -> BufferedResponse:
    """An agent's log so far."""
    return await _whole(request, AGENT)


async def _whole(request: RequestContext, log: LogKind) -> BufferedResponse:
    begin = request.parameters(LogQuery).after
    row = await get_or_404(request, log.lookup)
    return json([told for _, told in await entries(request, log, row, begin)])


async def entries(request: RequestContext, log: LogKind, row: Row, begin: int) -> Entries:
    """The entries behind that id, each with its own."""
    steps = await builds.steps(
        request.api.reader, row["task_id"], row["number"], log.changes, after=begin, limit=MAX_ENTRIES
    )
    return [(step["version"], log.entry(row, step)) for step in steps]


def _build_entry(row: Row, step: Row) -> dict[str, Any]:
    status = step["workspace_status"]
    failed = status == "failed"
    stage, output = ("Failed", row["error"] or "The build failed.") if failed else _STAGES.get(status, (status, status))
    return {
        "id": step["version"],
        "created_at": rfc3339(step["occurred_at"]),
        "log_source": "provisioner",
        "log_level": "error" if failed else "info",
        "stage": stage,
        "output": output,
    }


def _agent_entry(row: Row, step: Row) -> dict[str, Any]:
    lifecycle = (step["lifecycle"] or "not there yet").replace("_", " ")
    reason = f" ({step['reason']})" if step["reason"] else ""
    return {
        "id": step["version"],
        "created_at": rfc3339(step["occurred_at"]),
        "output": f"Agent is {lifecycle}{reason}.",
        "level": "info" if step["healthy"] is not False or lifecycle == "created" else "error",
        "source_id": str(row["agent_id"]),
    }


BUILD: Final = LogKind(
    lookup=builds.build,
    changes=("workspace_status", "workspace_build_number"),
    entry=_build_entry,
    over=lambda row: row["job_status"] in ENDED,
    arrays=False,
)
AGENT: Final = LogKind(
    lookup=builds.of_agent,
    changes=("workspace_agent_lifecycle", "workspace_agent_health", "workspace_agent_id"),
    entry=_agent_entry,
    over=lambda row: not row["last"] or row["job_status"] in {"failed", "canceled"},
    arrays=True,
)
