"""The routes of workspaces, builds and agents."""

from __future__ import annotations

from typing import Final

from taskherd.api.commands import KEY_HEADER
from taskherd.api.http.route import ResponseSpec, Route, SocketRoute
from taskherd.api.workspaces import create, lists, log_stream, logs, queries, watch
from taskherd.api.workspaces.schemas import (
    AgentLogOut,
    BuildLogOut,
    BuildOut,
    NewBuild,
    NewWorkspace,
    ParameterValueOut,
    WorkspaceOut,
    WorkspacesList,
)

ROUTES: Final = (
    Route(
        method="GET",
        path="/workspaces",
        handler=lists.list_workspaces,
        summary="List workspaces",
        query=lists.WorkspacesQuery,
        responses={200: ResponseSpec("The workspaces of the tasks that the caller may see.", WorkspacesList)},
        compressed=True,
        tag="workspaces",
    ),
    Route(
        method="GET",
        path="/workspaces/{id}",
        handler=queries.workspace,
        summary="Get a workspace by ID",
        responses={200: ResponseSpec("The workspace.", WorkspaceOut)},
        tag="workspaces",
    ),
    Route(
        method="GET",
        path="/workspaces/{id}/watch",
        handler=watch.events,
        summary="Watch a workspace by ID",
        responses={
            200: ResponseSpec(
                "Events `data`, each with the workspace, now and after each change, and events `ping`.",
                media="text/event-stream",
                events=("data", "ping"),
            )
        },
        tag="workspaces",
    ),
    Route(
        method="GET",
        path="/users/{user}/workspace/{workspace}",
        handler=queries.workspace_by_name,
        summary="Get a workspace by user and name",
        responses={200: ResponseSpec("The workspace.", WorkspaceOut)},
        tag="workspaces",
    ),
    *(
        Route(
            method="POST",
            path=path,
            handler=handler,
            summary=f"Create a workspace{where}",
            description="Creates a task and returns its workspace.",
            body=NewWorkspace,
            headers=(KEY_HEADER,),
            responses={
                201: ResponseSpec("The workspace.", WorkspaceOut),
                409: ResponseSpec("The user has a task of this name."),
            },
            tag="workspaces",
        )
        for path, handler, where in (
            ("/organizations/{organization}/members/{user}/workspaces", create.in_organization, " in an organization"),
            ("/users/{user}/workspaces", create.for_user, ""),
        )
    ),
    Route(
        method="GET",
        path="/workspaces/{id}/builds",
        handler=queries.list_builds,
        summary="Get workspace builds by workspace ID",
        query=queries.BuildsQuery,
        responses={200: ResponseSpec("The builds, the newest first.", list[BuildOut])},
        compressed=True,
        tag="workspaces",
    ),
    Route(
        method="POST",
        path="/workspaces/{id}/builds",
        handler=queries.request_build,
        summary="Create a workspace build",
        description="Pauses, resumes or deletes the workspace's task.",
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
        path="/workspacebuilds/{id}/parameters",
        handler=queries.build_parameters,
        summary="Get the parameters of a workspace build",
        responses={200: ResponseSpec("The prompt, and what the preset sets.", list[ParameterValueOut])},
        tag="workspaces",
    ),
    Route(
        method="GET",
        path="/workspacebuilds/{id}/logs",
        handler=logs.build_logs,
        summary="Get the logs of a workspace build",
        query=logs.LogQuery,
        responses={200: ResponseSpec("The log so far.", list[BuildLogOut])},
        compressed=True,
        tag="logs",
    ),
    Route(
        method="GET",
        path="/workspaceagents/{id}/logs",
        handler=logs.agent_logs,
        summary="Get the logs of a workspace agent",
        query=logs.LogQuery,
        responses={200: ResponseSpec("The log so far.", list[AgentLogOut])},
        compressed=True,
        tag="logs",
    ),
)
SOCKETS: Final = (
    SocketRoute(
        path="/workspaces/{id}/watch-ws",
        handler=watch.socket,
        summary="Watch a workspace by ID over a WebSocket",
        tag="workspaces",
    ),
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
