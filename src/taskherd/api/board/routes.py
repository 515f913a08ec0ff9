"""Routes that serve the board: documents, scripts and style sheets, which contain no secrets.

They need no token. A page loads its data from the API with a token that the user enters, and that is kept in the
session storage of the tab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from taskherd.api.board.files import board_files
from taskherd.api.http.errors import not_found
from taskherd.api.http.responses import BufferedResponse
from taskherd.api.http.route import Auth, ResponseSpec, Route

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.api.http.route import Handler

PAGES: Final = {
    "/": ("taskherd", "pages/home.js"),
    "/tasks": ("Tasks · taskherd", "pages/tasks.js"),
    "/deleted": ("Deleted tasks · taskherd", "pages/deleted.js"),
    "/tasks/{user}/{task}": ("Task · taskherd", "pages/task.js"),
    "/fleet": ("Fleet · taskherd", "pages/fleet.js"),
    "/new": ("New task · taskherd", "pages/new.js"),
}
"""Path of each page, its first title, and its module; ``static/router.js`` has the same paths."""


def _shell(title: str, module: str) -> Handler:
    """Return the handler of one page."""

    async def shell(request: RequestContext) -> BufferedResponse:
        return board_files().shell(title, module, request.headers)

    return shell


async def asset(request: RequestContext) -> BufferedResponse:
    """Return one of the files that the pages load."""
    found = board_files().asset(request.params["version"], request.params["file"], request.headers)
    if found is None:
        raise not_found()
    return found


async def redirect(request: RequestContext) -> BufferedResponse:
    """Redirect a link to a workspace, its builds or its apps, as Coder's clients make them, to the page of the task.

    The answer is the same whether the task exists or not; the page asks the API with the reader's token.
    """
    workspace = request.params["workspace"].partition(".")[0]  # an agent's name or a workspace's id may follow
    location = f"/tasks/{quote(request.params['owner'], safe='')}/{quote(workspace, safe='')}"
    return BufferedResponse(307, b"", {"Location": location, "Cache-Control": "no-cache"})


_PAGE_RESPONSE: Final = {200: ResponseSpec("A file of the page.")}

ROUTES: Final = (
    *(
        Route(
            method="GET",
            path=path,
            handler=_shell(title, module),
            summary="Get a page of the board",
            auth=Auth.NONE,
            responses=_PAGE_RESPONSE,
        )
        for path, (title, module) in PAGES.items()
    ),
    Route(
        method="GET",
        path="/assets/{version}/{file:path}",
        handler=asset,
        summary="Get a file of the board",
        auth=Auth.NONE,
        responses=_PAGE_RESPONSE,
    ),
    *(
        Route(
            method="GET",
            path=f"/@{{owner}}/{{workspace}}{rest}",
            handler=redirect,
            summary="Get the page of a workspace",
            auth=Auth.NONE,
            responses={307: ResponseSpec("The page of the workspace's task.")},
        )
        for rest in ("", "/{rest:path}")
    ),
)
"""Routes outside ``/api``, which the OpenAPI document omits."""
