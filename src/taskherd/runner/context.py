"""The context that all tasks of a runner share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from taskherd.runner.activity import ProcessMonitor

if TYPE_CHECKING:
    from taskherd.observability.failpoints import Failpoint
    from taskherd.observability.metrics import Metrics
    from taskherd.runner.agents.log_budget import LogRates
    from taskherd.runner.claims import Claims
    from taskherd.runner.outbox import Budget, Outbox
    from taskherd.runner.workspaces.isolation import Isolation


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """The runner's name, settings and shared parts.

    ``schedule_outbox`` registers an outbox that has reports to send, ``drop_outbox`` removes one that is to be closed;
    ``failpoint`` kills or freezes the process if that failpoint is armed.
    """

    name: str
    root: Path
    api_url: str
    environ: Mapping[str, str]
    metrics: Metrics
    claims: Claims
    budget: Budget
    log_rates: LogRates
    now: Callable[[], datetime]
    schedule_outbox: Callable[[Outbox], None]
    drop_outbox: Callable[[Outbox], None]
    isolation: Isolation
    failpoint: Callable[[Failpoint], None]
    processes: ProcessMonitor = field(default_factory=ProcessMonitor)
