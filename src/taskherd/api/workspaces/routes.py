"""The routes of workspaces, builds and agents."""

from __future__ import annotations

from typing import Final

from taskherd.api.commands import KEY_HEADER
from taskherd.api.http.route import ResponseSpec, Route, SocketRoute
from taskherd.api.workspaces import log_stream, logs, queries
from taskherd.api.workspaces.schemas import AgentLogOut, BuildLogOut, BuildOut, NewBuild, WorkspaceOut

ROUTES: Final = (
    Route(
        method="GET",
        path="/workspaces/{id}",
        handler=queries.workspace,
        summary="Get a workspace by ID",
        responses={200: ResponseSpec("The workspace.", WorkspaceOut)},
        tag="workspaces",
    ),
    Route(
        method="POST",
        path="/workspaces/{id}/builds",
        handler=queries.request_build,
        summary="Create a workspace build",
        description="Pauses or resumes the workspace's task.",
        body=NewBuild,
        headers=(KEY_HEADER,),
        responses={
            201: ResponseSpec("The build that was requested.", BuildOut),
            409: ResponseSpec("The task's status does not allow the change; the message explains why."),
        },
        tag="workspaces",
    ),
    Route(
        method="GET",
        path="/workspacebuilds/{id}",
        handler=queries.build,
        summary="Get a workspace build",
        responses={200: ResponseSpec("The build.", BuildOut)},
        tag="workspaces",
    ),
    Route(
        method="GET",
        path="/workspacebuilds/{id}/logs",
        handler=logs.build_logs,
        summary="Get the logs of a workspace build",
        query=logs.LogQuery,
        responses={200: ResponseSpec("The log so far.", list[BuildLogOut])},
        tag="logs",
    ),
    Route(
        method="GET",
        path="/workspaceagents/{id}/logs",
        handler=logs.agent_logs,
        summary="Get the logs of a workspace agent",
        query=logs.LogQuery,
        responses={200: ResponseSpec("The log so far.", list[AgentLogOut])},
        tag="logs",
    ),
)
SOCKETS: Final = (
    SocketRoute(
        path="/workspacebuilds/{id}/logs",
        handler=log_stream.build,
        summary="Follow the logs of a workspace build",
        query=logs.LogQuery,
    ),
    SocketRoute(
        path="/workspaceagents/{id}/logs",
        handler=log_stream.agent,
        summary="Follow the logs of a workspace agent",
        query=logs.LogQuery,
    ),
)
