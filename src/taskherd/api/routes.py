"""The route table: everything in it is served and documented in OpenAPI, nothing else is.

To add a route, write its handler in the package of its area and declare it in the package's ``routes.py``. The most
frequent routes come first, because the router tries them in this order.
"""

from __future__ import annotations

from typing import Final

from taskherd.api.actions.routes import ROUTES as ACTIONS
from taskherd.api.agent_requests.routes import ROUTES as AGENT_REQUESTS
from taskherd.api.agents.routes import ROUTES as AGENTS
from taskherd.api.dead_letters.routes import ROUTES as DEAD_LETTERS
from taskherd.api.directory.routes import ROUTES as DIRECTORY
from taskherd.api.fleet.routes import ROUTES as FLEET
from taskherd.api.http.route import Route
from taskherd.api.tasks.routes import ROUTES as TASKS
from taskherd.api.usage.routes import ROUTES as USAGE
from taskherd.api.workspaces.routes import ROUTES as WORKSPACES
from taskherd.api.workspaces.routes import SOCKETS

PREFIX: Final = "/api/v2"
EXPERIMENTAL: Final = "/api/experimental"

ROUTES: Final[tuple[Route, ...]] = (
    *TASKS,
    *AGENT_REQUESTS,
    *AGENTS,
    *WORKSPACES,
    *DIRECTORY,
    *ACTIONS,
    *USAGE,
    *FLEET,
    *DEAD_LETTERS,
)

__all__ = ["EXPERIMENTAL", "PREFIX", "ROUTES", "SOCKETS"]
