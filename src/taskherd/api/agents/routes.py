"""Routes for agents."""

from __future__ import annotations

from typing import Final

from taskherd.api.agents import handlers, logs, requests
from taskherd.api.agents.schemas import (
    AgentRequestReport,
    AppStatusPatch,
    LogReport,
    LogSnapshot,
    OwnRequest,
    ReportedRequest,
    UsageReport,
)
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
        handler=logs.log_snapshot,
        summary="Upload a snapshot of the task log",
        description="Stores the end of the conversation, so that it can be read while no agent is running. A user's"
        " message is an input only if the agent was given it, else output. It is left out if a runner has logged it.",
        auth=Auth.AGENT,
        body=LogSnapshot,
        max_body=MAX_SNAPSHOT_BYTES,
        query=logs.SnapshotQuery,
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
    Route(
        method="POST",
        path="/workspaceagents/me/logs",
        handler=logs.add_entries,
        summary="Add entries to the task log",
        description="Adds entries to the conversation, or replaces those that the agent itself has added in this"
        " build. An entry of the type `input` stays one only if the agent was given its text, and once for each time;"
        " else it becomes output. If the build is a runner's, which logs what it gives the agent, it is left out.",
        auth=Auth.AGENT,
        body=LogReport,
        responses={204: ResponseSpec("The entries were accepted.")},
        tag="agents",
    ),
    Route(
        method="POST",
        path="/workspaceagents/me/requests",
        handler=requests.report,
        summary="Ask people for an approval or an answer",
        description="Opens a request of the agent, as the report `agent.request` does, or withdraws it. The agent"
        " itself fetches the answer. The request stays open if the agent is interrupted, and ends with its build.",
        auth=Auth.AGENT,
        body=AgentRequestReport,
        responses={
            202: ResponseSpec("The request was accepted.", ReportedRequest),
            409: ResponseSpec("The task has 100 open requests, or its agent has opened 1,000 since its start."),
        },
        tag="agents",
    ),
    Route(
        method="GET",
        path="/workspaceagents/me/requests/{request}",
        handler=requests.get,
        summary="Get what became of a request",
        description="Returns a request of the agent and its build, with the answer. With `wait`, the response is sent"
        " once the request is no longer open, or on timeout. It may come into being during the wait.",
        auth=Auth.AGENT,
        query=requests.OwnRequestQuery,
        responses={
            200: ResponseSpec("The request.", OwnRequest),
            429: ResponseSpec("The agent, or all those of its owner, wait for too many requests at once."),
        },
        tag="agents",
    ),
)
