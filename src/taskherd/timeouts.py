"""The domain's timeouts from the settings, for the worker, which applies them, and the API, which explains them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.domain.liveness import Timeouts

if TYPE_CHECKING:
    from taskherd.settings import Settings


def timeouts_of(settings: Settings) -> Timeouts:
    """Return the timeouts after which a silent agent is lost or a build has failed."""
    return Timeouts(
        agent_lost_after=timedelta(seconds=settings.agent_lost_after),
        agent_connect_timeout=timedelta(seconds=settings.agent_connect_timeout),
        build_timeout=timedelta(seconds=settings.build_timeout),
        request_ttl=timedelta(seconds=settings.request_ttl),
        mass_silence_hold=timedelta(seconds=settings.mass_silence_hold),
        interrupt_timeout=timedelta(seconds=settings.interrupt_timeout),
    )
