"""The usage route."""

from __future__ import annotations

from typing import Final

from taskherd.api.http.route import ResponseSpec, Route
from taskherd.api.usage import handlers
from taskherd.api.usage.schemas import UsageReportOut

ROUTES: Final = (
    Route(
        method="GET",
        path="/usage",
        handler=handlers.usage,
        summary="Get usage",
        description="Adds up the tokens and the cost that agents reported, by the day in UTC on which they were"
        " reported: of the caller's tasks, and of all tasks of the organizations that the caller is an admin of."
        " Deleted tasks count too. With `format=csv` each group is a line, with a further one for each further"
        " currency, so that each column of numbers can be added up.",
        query=handlers.UsageQuery,
        responses={200: ResponseSpec("The sums.", UsageReportOut, also=handlers.CSV)},
        compressed=True,
        tag="usage",
    ),
)
