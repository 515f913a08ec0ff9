"""The page that shows one task live: HTML, a script and a style sheet, served as they are and knowing nothing secret.

The page is the same for everybody and needs no token; what it shows it asks the API for, with a token that the person
types in and that stays in the tab's session storage.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from taskherd.api.http.responses import BufferedResponse
from taskherd.api.http.route import Auth, ResponseSpec, Route

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext

_HERE: Final = files(__name__)
_HTML: Final = (_HERE / "task.html").read_text("utf-8")
_ASSETS: Final = {
    "task.js": ((_HERE / "task.js").read_bytes(), "text/javascript; charset=utf-8"),
    "task.css": ((_HERE / "task.css").read_bytes(), "text/css; charset=utf-8"),
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


async def page(request: RequestContext) -> BufferedResponse:
    """The page of the task that the address names."""
    title = f"{request.params['task']} · {request.params['user']}"
    html = _HTML.replace("{{title}}", escape(title)).replace("{{task}}", escape(request.params["task"]))
    return BufferedResponse(200, html.encode("utf-8", "replace"), _HEADERS, "text/html; charset=utf-8")


async def script(_ask: RequestContext) -> BufferedResponse:
    """What makes the page live."""
    return _asset("task.js")


async def style(_ask: RequestContext) -> BufferedResponse:
    """What makes the page readable."""
    return _asset("task.css")


def _asset(name: str) -> BufferedResponse:
    body, kind = _ASSETS[name]
    return BufferedResponse(200, body, _HEADERS, kind)


_PAGE_RESPONSE: Final = {200: ResponseSpec("A part of the page.")}

ROUTES: Final = (
    Route(
        method="GET",
        path="/tasks/{user}/{task}",
        handler=page,
        summary="A task's page",
        auth=Auth.NONE,
        responses=_PAGE_RESPONSE,
    ),
    Route(
        method="GET", path="/assets/task.js", handler=script, summary="Script", auth=Auth.NONE, responses=_PAGE_RESPONSE
    ),
    Route(
        method="GET", path="/assets/task.css", handler=style, summary="Style", auth=Auth.NONE, responses=_PAGE_RESPONSE
    ),
)
"""Outside /api, and not part of its document."""
