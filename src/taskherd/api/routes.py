"""The table of all routes: what is here is served and told of in the OpenAPI document, nothing else is.

To add a route, write its handler beside its kin, declare it in that module's ROUTES, and add a new module's here. Those
asked for most stand first, since the router looks at them in this order.
"""

from __future__ import annotations

from typing import Final

from taskherd.api.route import Route, SocketRoute
from taskherd.api.tasks.routes import ROUTES as TASKS

PREFIX: Final = "/api/v2"
EXPERIMENTAL: Final = "/api/experimental"

ROUTES: Final[tuple[Route, ...]] = (*TASKS,)
SOCKETS: Final[tuple[SocketRoute, ...]] = ()
