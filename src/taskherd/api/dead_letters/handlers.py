"""Handlers of the dead letters, for who is an admin of every active organization."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import structlog
from pydantic import Field

from taskherd.api.dead_letters.queue import MAX_READ, BusyError
from taskherd.api.http.errors import HTTPError, invalid, not_found, unavailable
from taskherd.api.http.query_parameters import QueryModel, whole_number
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.broker.dead_letters import MayNotRead
from taskherd.dead_letters import Selection
from taskherd.errors import Unavailable
from taskherd.store import fleet_queries

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.api.dead_letters.schemas import ReplayBody

log = structlog.get_logger(__name__)

MAX_LIMIT: Final = 100
DEFAULT_LIMIT: Final = 50
MAX_LOGGED: Final = 100
"""Maximum number of ids in a log line."""


class DeadLettersQuery(QueryModel):
    """Query parameters of the dead letters."""

    reason: str = Field("", description="Only dead letters with this reason; empty: all.")
    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(
        DEFAULT_LIMIT, description=f"Maximum number of dead letters, 1 to {MAX_LIMIT}; by default {DEFAULT_LIMIT}."
    )


async def browse(request: RequestContext) -> BufferedResponse:
    """Return the oldest dead letters, which stay in the queue."""
    query = request.parameters(DeadLettersQuery)
    await _check_operator(request)
    with _explained():
        browsed = await request.api.dead_letters.browse(query.reason or None, query.limit)
    return json({"dead_letters": browsed.found, "read": browsed.read, "left": browsed.left})


async def replay(request: RequestContext) -> BufferedResponse:
    """Publish dead letters again to where they came from; what is confirmed is removed."""
    body: ReplayBody = request.body
    if (body.ids is None) == (body.reason is None):
        raise invalid(("ids", "Expected either ids or a reason."))
    await _check_operator(request)
    selection = Selection(frozenset(body.ids or ()), body.reason)
    with _explained():
        state, stopped = await request.api.dead_letters.replay(selection)
    log.info(
        "dead letters replayed",
        user=request.username,
        user_id=str(request.caller.user_id),
        replayed=len(state.replayed),
        ids=state.replayed[:MAX_LOGGED],
        reasons=dict(state.reasons),
        kept=len(state.kept),
    )
    why = f"it is not among the {MAX_READ:,} oldest; someone else may have replayed it, or may be reading it right now"
    missing = dict.fromkeys(sorted(state.missing), why if stopped is None else "it was not reached")
    kept = [{"id": letter_id, "why": text} for letter_id, text in {**state.kept, **missing}.items()]
    return json({"replayed": len(state.replayed), "kept": kept, "stopped": stopped})


async def _check_operator(request: RequestContext) -> None:
    """Raise a 404 unless the caller is an admin of every active organization: dead letters are of all tenants."""
    if not await fleet_queries.sees_all(request.api.reader, request.caller.user_id):
        raise not_found()


@contextmanager
def _explained() -> Iterator[None]:
    """Turn why the dead letters cannot be read into an answer."""
    try:
        yield
    except BusyError:
        raise unavailable("Another request reads or replays dead letters.") from None
    except MayNotRead as error:
        log.warning("the RabbitMQ user may not read the dead letters", reason=str(error))
        raise HTTPError(
            403,
            "The API's RabbitMQ user may not read the dead letters.",
            "Give it the rights of `taskherd-api` in deploy/rabbitmq/users.py, or use `taskherd dead`.",
        ) from None
    except Unavailable as error:
        log.warning("cannot read the dead letters", reason=str(error))
        raise unavailable("The broker is unavailable.") from None
