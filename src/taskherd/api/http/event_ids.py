"""The event id after which the client of a stream resumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from taskherd.api.http.errors import invalid
from taskherd.api.http.query_parameters import MAX_POSITION, whole_number

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext

LAST_EVENT_ID: Final = "Last-Event-ID"
_NUMBER: Final = whole_number(0, MAX_POSITION, expected="Expected the id of an event.")


def last_event_id(request: RequestContext) -> int | None:
    """Return the id in the request's ``Last-Event-ID``, or None without one. Raise a 400 if it is not one."""
    text = request.headers.get(LAST_EVENT_ID.lower(), "")
    if not text:
        return None
    try:
        number: int = _NUMBER.read(text)
    except ValueError as error:
        raise invalid((LAST_EVENT_ID, str(error))) from None
    return number
