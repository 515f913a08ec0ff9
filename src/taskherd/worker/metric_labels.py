"""The values of the labels of the worker's counters and gauges, and which templates and pools they name."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final, get_args

from taskherd.domain.claims import ClaimOutcome
from taskherd.domain.commands import Command
from taskherd.domain.directory import OTHER
from taskherd.domain.outcome import EXTERNAL_REASONS, DeadLetterReason, ReportOutcome
from taskherd.domain.reports import ExitReason, InterruptOutcome, Report
from taskherd.domain.view import Status
from taskherd.messages.claims import BUILD_CLAIM, RUNNER_HELLO, TASK_OWNED
from taskherd.messages.texts import CONTROL, CUT, URI
from taskherd.messages.work import REQUEST_TYPES
from taskherd.worker.agent_events import COUNTED
from taskherd.worker.maintenance import MaintenanceStep
from taskherd.worker.usage import TOKEN_TYPES, USUAL_CURRENCY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from taskherd.domain.directory import TemplatePool
    from taskherd.observability.metrics import Metrics

INVALID: Final = ("unknown", "invalid")
"""Type and outcome of a message that cannot be decoded."""

CLAIM_OUTCOMES: Final[Mapping[str, Sequence[str]]] = {
    BUILD_CLAIM: tuple(ClaimOutcome),
    TASK_OWNED: ("answered",),
    RUNNER_HELLO: ("accepted", "refused"),
}

LABEL_VALUES: Final[Mapping[str, Sequence[tuple[str, ...]]]] = {
    "reports": (
        *product(
            (report.type for report in get_args(Report)), dict.fromkeys(outcome.metric for outcome in ReportOutcome)
        ),
        INVALID,
    ),
    "commands": (
        *product((command.type for command in get_args(Command)), ("accepted", "refused", "repeated")),
        INVALID,
    ),
    "claims": (*((kind, outcome) for kind, outcomes in CLAIM_OUTCOMES.items() for outcome in outcomes), INVALID),
    "dead_lettered": tuple((reason.value,) for reason in DeadLetterReason if reason not in EXTERNAL_REASONS),
    "texts_cleaned": ((CONTROL,), (CUT,), (URI,)),
    "batch_failures": (("database",), ("broker",), ("bisected",)),
    "maintenance_failures": tuple((step.value,) for step in MaintenanceStep),
    "requests_sent": tuple((kind,) for kind in REQUEST_TYPES),
}
"""The counters with labels but template and pool, and all values of these labels."""

VALUES_PER_TEMPLATE: Final[Mapping[str, Sequence[str]]] = {
    "agent_events": tuple(COUNTED),
    "agent_exits": tuple(why.value for why in ExitReason),
    "requests_given_up": REQUEST_TYPES,
    "usage_tokens": TOKEN_TYPES,
    "usage_cost": (USUAL_CURRENCY,),
    "interrupts": tuple(outcome.value for outcome in InterruptOutcome),
}
"""The counters by template and pool, and all values of their first label; of currencies the usual one."""


def initialize(metrics: Metrics) -> None:
    """Set all counters to 0; those by template and pool for ``OTHER``, until the directory is read."""
    metrics.initialize(LABEL_VALUES)
    follow(metrics, frozenset(), frozenset({OTHER}))


def follow(metrics: Metrics, before: AbstractSet[TemplatePool], after: AbstractSet[TemplatePool]) -> None:
    """Set the series of templates and pools that are new to 0, and expose those that are gone no longer."""
    for template, pool in before - after - {OTHER}:
        metrics.forget(template, pool)
    for template_pool in after - before:
        metrics.initialize(
            {name: [(value, *template_pool) for value in values] for name, values in VALUES_PER_TEMPLATE.items()}
        )
        metrics.agents_stalled.labels(*template_pool)
        for status in Status:
            metrics.tasks.labels(status.value, *template_pool)
