"""The response of the usage route."""

from __future__ import annotations

from datetime import date
from uuid import UUID

from pydantic import BaseModel, Field

from taskherd.messages.usage import AmountsOut


class UsageRowOut(AmountsOut):
    """Usage of one group; only the fields that the sums are grouped by are present."""

    day: date | None = None
    organization_id: UUID | None = None
    organization_name: str | None = None
    user_id: UUID | None = None
    user_name: str | None = None
    template_id: UUID | None = None
    template_name: str | None = None
    model: str | None = Field(None, description="Empty if the agent did not name its model.")


class UsageReportOut(BaseModel):
    """Usage of the days from ``from`` to the day before ``to``, in UTC, grouped, and in total."""

    since: date = Field(alias="from")
    until: date = Field(alias="to")
    by: list[str]
    rows: list[UsageRowOut]
    total: AmountsOut
