"""Routes for agents."""

from __future__ import annotations

from typing import Final

from taskherd.api.agents import handlers
from taskherd.api.agents.schemas import AppStatusPatch, LogSnapshot, UsageReport
from taskherd.api.http.route import Auth, ResponseSpec, Route

MAX_SNAPSHOT_BYTES: Final = 64 * 1024
"""Maximum size of a log snapshot, in bytes."""

ROUTES: Final = (
    Route(
        method="PATCH",
        path="/workspaceagents/me/app-status",
        handler=handlers.app_status,
        summary="Update the status of a workspace agent's app",
        description="Reports what the agent is doing.",
        auth=Auth.AGENT,
        body=AppStatusPatch,
        responses={200: ResponseSpec("The status was accepted; the body is null.", type(None))},
        tag="agents",
    ),
    Route(
        method="POST",
        path="/workspaceagents/me/tasks/{id}/log-snapshot",
        handler=handlers.log_snapshot,
        summary="Upload a snapshot of the task log",
        description="Stores the end of the conversation, so that it can be read while no agent is running. A user's"
        " message is an input only if the agent was given it, else output.",
        auth=Auth.AGENT,
        body=LogSnapshot,
        max_body=MAX_SNAPSHOT_BYTES,
        query=handlers.SnapshotQuery,
        responses={204: ResponseSpec("The snapshot was accepted.")},
        tag="agents",
    ),
    Route(
        method="POST",
        path="/workspaceagents/me/usage",
        handler=handlers.usage,
        summary="Send usage of a workspace agent",
        description="Reports what the agent used a model for since its build began, as the report `agent.usage` does."
        " Of several reports, the greatest number of each counter counts, and the greatest cost in each currency.",
        auth=Auth.AGENT,
        body=UsageReport,
        responses={204: ResponseSpec("The report was accepted.")},
        tag="agents",
    ),
)
