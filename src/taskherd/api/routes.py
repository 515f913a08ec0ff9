"""The table of all routes: what is here is served and told of in the OpenAPI document, nothing else is.

To add a route, write its handler beside its kin, declare it in that module's ROUTES, and add a new module's here. Those
asked for most stand first, since the router looks at them in this order.
"""

from __future__ import annotations

from typing import Final

from taskherd.api.agents.routes import ROUTES as AGENTS
from taskherd.api.directory.routes import ROUTES as DIRECTORY
from taskherd.api.http.route import Route, SocketRoute
from taskherd.api.tasks.explain import ROUTES as EXPLAINING
from taskherd.api.tasks.routes import ROUTES as TASKS
from taskherd.api.tasks.sse import ROUTES as WATCHING
from taskherd.api.workspaces.routes import ROUTES as WORKSPACES
from taskherd.api.workspaces.routes import SOCKETS as WORKSPACE_SOCKETS

PREFIX: Final = "/api/v2"
EXPERIMENTAL: Final = "/api/experimental"

ROUTES: Final[tuple[Route, ...]] = (*WATCHING, *TASKS, *EXPLAINING, *WORKSPACES, *AGENTS, *DIRECTORY)
SOCKETS: Final[tuple[SocketRoute, ...]] = (*WORKSPACE_SOCKETS,)
