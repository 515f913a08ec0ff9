"""The latest closed requests of an agent, as they were reported: that is said again after a late answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_CLOSED: Final = 20
"""Maximum number of closed requests that are kept, the latest."""
MAX_CLOSED_BYTES: Final = 64 * 1024
"""Maximum size of their reports together, as JSON; the latest is kept in any case."""


class ClosedRequests:
    """The reports of the latest closed requests of one agent."""

    def __init__(self, reports: Iterable[str]) -> None:
        self._reports = {UUID(orjson.loads(report)["request_id"]): report for report in reports}

    def checkpoint(self) -> list[str]:
        """Return what the next runner needs."""
        return list(self._reports.values())

    def add(self, request_id: UUID, report: str) -> None:
        """Keep the encoded report of a request that is closed, and drop the oldest ones."""
        self._reports[request_id] = report
        while len(self._reports) > 1 and (
            len(self._reports) > MAX_CLOSED or sum(map(_size, self._reports.values())) > MAX_CLOSED_BYTES
        ):
            del self._reports[next(iter(self._reports))]

    def report_of(self, request_id: UUID) -> str | None:
        """Return the encoded report that closed a request, None if that is not known."""
        return self._reports.get(request_id)


def _size(report: str) -> int:
    return len(report.encode())
