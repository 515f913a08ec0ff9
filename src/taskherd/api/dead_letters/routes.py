"""The routes of the dead letters."""

from __future__ import annotations

from typing import Final

from taskherd.api.dead_letters import handlers
from taskherd.api.dead_letters.schemas import DeadLetters, ReplayBody, Replayed
from taskherd.api.http.route import ResponseSpec, Route

_REFUSED: Final = {
    403: ResponseSpec("The API's RabbitMQ user may not read the dead letters."),
    404: ResponseSpec("The caller is not an admin of every active organization."),
}

ROUTES: Final = (
    Route(
        method="GET",
        path="/dead-letters",
        handler=handlers.browse,
        summary="List dead letters",
        description=(
            "Returns the oldest messages that could not be processed, for an admin of every active organization. They"
            " stay in the queue, but are hidden from other readers until this request ends."
        ),
        query=handlers.DeadLettersQuery,
        responses={200: ResponseSpec("The dead letters, oldest first.", DeadLetters), **_REFUSED},
        compressed=True,
        tag="fleet",
    ),
    Route(
        method="POST",
        path="/dead-letters/replay",
        handler=handlers.replay,
        summary="Replay dead letters",
        description=(
            "Publishes dead letters again to the exchange that they came from, as the API's RabbitMQ user, and removes"
            " each one after the broker has confirmed it: a crash in between replays one twice, but loses none. Which"
            " were replayed, and by whom, is logged. For an admin of every active organization."
        ),
        body=ReplayBody,
        responses={200: ResponseSpec("How many were replayed, and why others were kept.", Replayed), **_REFUSED},
        tag="fleet",
    ),
)
