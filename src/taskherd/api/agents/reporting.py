"""Publish what an agent sends with its own token as reports of its task and build."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.context import RequestContext
    from taskherd.domain.reports import Report


def common_fields(request: RequestContext) -> dict[str, Any]:
    """Return the fields that all reports of an agent have; the worker assigns ``seq``, see ``ReportPublisher``.

    ``observed_at`` is read from this process's clock, and tells two reports of an agent apart; the worker caps it at
    its own clock.
    """
    assert request.agent is not None
    task_id, build_number = request.agent
    return {"task_id": task_id, "build_number": build_number, "seq": 0, "observed_at": datetime.now(UTC)}


async def publish(request: RequestContext, reports: Sequence[Report]) -> None:
    """Publish reports of the agent that sent the request."""
    assert request.agent is not None
    task_id, build_number = request.agent
    request.log_fields = {"task_id": str(task_id), "build_number": build_number}
    await request.api.reports.publish(task_id, reports)
