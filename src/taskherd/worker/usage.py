"""Load, save and count what agents used; a batch without reports of usage runs no statement here."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC
from typing import TYPE_CHECKING, Final

from taskherd.domain.usage import COUNTERS, NOTHING, TaskUsage, UsageAmounts, UsageLedger, total_of
from taskherd.domain.value import replace
from taskherd.store import usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.directory import TemplatePool
    from taskherd.domain.reports import AgentUsage
    from taskherd.domain.updates import TaskUpdate
    from taskherd.store import AsyncConnection
    from taskherd.worker.context import WorkerContext

TOKEN_TYPES: Final = tuple(name.removesuffix("_tokens") for name in COUNTERS)
"""The labels of tokens in metrics."""

USUAL_CURRENCY: Final = "USD"
"""The currency whose series exist from the start."""


async def load_ledgers(
    connection: AsyncConnection, updates: Mapping[UUID, TaskUpdate], reports: Sequence[AgentUsage]
) -> None:
    """Load for each task with reports of usage what is known of the builds that these are about.

    A report without a build number is about the latest build, now or later in the batch. If a task's state has no
    usage, all of its rows are read: a worker of an earlier release may have saved the state without it.
    """
    lowest: dict[UUID, int] = {}
    for report in reports:
        update = updates.get(report.task_id)
        if update is not None:
            state = update.existing_task.state
            number = (report.build_number or state.build_number) if state.usage is not None else 0
            lowest[report.task_id] = min(number, lowest.get(report.task_id, number))
    if not lowest:
        return
    for task_id, known in (await usage.load(connection, dict(sorted(lowest.items())))).items():
        update = updates[task_id]
        update.usage = UsageLedger(known)
        task = update.existing_task
        if known and task.state.usage is None:
            restored = replace(task.state, usage=TaskUsage(total_of(known.values())))
            update.task = replace(task, state=restored)


async def save_usage(connection: AsyncConnection, updates: Mapping[UUID, TaskUpdate], now: datetime) -> None:
    """Save what has grown, and book what is new on the day of ``now`` in UTC."""
    grown: list[usage.GrownUsage] = []
    booked: dict[usage.Account, UsageAmounts] = defaultdict(lambda: NOTHING)
    day = now.astimezone(UTC).date()
    for task_id, update in updates.items():
        ledger = update.usage
        if ledger is None or not ledger.new:
            continue
        task = update.existing_task
        grown += [usage.GrownUsage(task_id, key, ledger.known[key], growth) for key, growth in ledger.new.items()]
        for model, growth in ledger.new_by_model().items():
            account = usage.Account(day, task.organization_id, task.owner_id, task.template_id, model)
            booked[account] = booked[account].plus(growth)
    if grown:
        await usage.save(connection, grown, booked)


def count_usage(context: WorkerContext, new: Iterable[tuple[TemplatePool, UsageAmounts]]) -> None:
    """Count what is new, whose batch is committed."""
    metrics = context.metrics
    for template_pool, growth in new:
        label = context.directory_cache.metric_label(template_pool)
        for token_type, tokens in zip(TOKEN_TYPES, growth.tokens, strict=True):
            if tokens:
                metrics.usage_tokens.labels(token_type, *label).inc(tokens)
        for currency, amount in growth.cost.items():
            metrics.usage_cost.labels(currency, *label).inc(float(amount))
