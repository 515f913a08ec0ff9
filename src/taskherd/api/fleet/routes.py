"""The route of the fleet."""

from __future__ import annotations

from typing import Final

from taskherd.api.fleet import handlers
from taskherd.api.fleet.schemas import FleetOut
from taskherd.api.http.route import ResponseSpec, Route

ROUTES: Final = (
    Route(
        method="GET",
        path="/fleet",
        handler=handlers.fleet,
        summary="Get the state of the fleet",
        description=(
            "Returns the pools of the caller's templates, with their runners, agents and queues, the tasks that wait"
            " for them, and how many tasks were created, completed and failed in each of the last 24 hours. An admin of"
            " every active organization sees the whole installation, with its workers, queues and dead letters. A"
            " response may be two seconds old."
        ),
        responses={200: ResponseSpec("The fleet.", FleetOut)},
        compressed=True,
        tag="fleet",
    ),
)
