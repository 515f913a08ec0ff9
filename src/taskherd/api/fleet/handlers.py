"""The handler of the fleet: what the database and the broker say, as far as the caller may know it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from taskherd.api.dead_letters.documents import meaning_of
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.domain.reports import format_rfc3339
from taskherd.messages.listing import ListedHealth, runner_term
from taskherd.store import fleet_queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskherd.api.context import RequestContext
    from taskherd.api.fleet.queue_ages import QueueAges
    from taskherd.broker.diagnostics import QueueInfo
    from taskherd.store.read_pool import Row

HOURS: Final = 24
"""Number of hours whose rates are returned."""
MAX_QUEUES: Final = 150
"""Maximum number of queues that one response asks the broker about: first those of pools, then those of runners."""


async def fleet(request: RequestContext) -> BufferedResponse:
    """Return the fleet as the caller may know it."""
    caller = request.caller.user_id
    body = await request.api.fleet_snapshots.get(caller, lambda: _snapshot(request))
    return json(body)


async def _snapshot(request: RequestContext) -> dict[str, Any]:
    caller, reader, names = request.caller.user_id, request.reader, request.api.queue_depths.names
    all_ = await fleet_queries.sees_all(reader, caller)
    now = datetime.now(UTC)
    since = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=HOURS - 1)
    pools, agents, lost, waiting, by_target, rates = await asyncio.gather(
        fleet_queries.pools(reader, caller, all_=all_),
        fleet_queries.agents(reader, caller, all_=all_),
        fleet_queries.unwell(reader, caller, ListedHealth.LOST, runner_term("")),
        fleet_queries.waiting(reader, caller, all_=all_),
        fleet_queries.waiting_by_target(reader, caller, all_=all_),
        fleet_queries.rates(reader, caller, since, all_=all_),
    )
    runners = await fleet_queries.runners(reader, [row["pool"] for row in pools])
    ages = request.api.queue_ages
    shared = ages.queues if all_ else ()
    targets = [row["pool"] for row in pools] + [row["name"] for row in runners]
    wanted = [*shared, *((names.dead,) if all_ else ()), *map(names.work_queue, targets)]
    depths = await request.api.queue_depths.read(wanted[:MAX_QUEUES])
    known = depths or {}
    ages.note(depths, now)
    return {
        "sees_all": all_,
        "now": format_rfc3339(now),
        "broker": depths is not None,
        "pools": _pools_json(
            pools,
            [(row, lost.get(runner_term(row["name"]), 0)) for row in runners],
            agents,
            by_target,
            {target: _queue_json(known.get(names.work_queue(target)), all_=all_) for target in targets},
        ),
        "waiting": [_waiting_json(row) for row in waiting],
        "workers": [_worker_json(row) for row in await fleet_queries.workers(reader)] if all_ else None,
        "queues": [_shared_queue_json(known[name], ages) for name in shared if name in known] if all_ else None,
        "dead_letters": await _dead_letters_json(request, since, known.get(names.dead)) if all_ else None,
        "rates": _rates_json(rates, since),
    }


def _pools_json(
    pools: Sequence[Row],
    runners: Sequence[tuple[Row, int]],
    agents: Sequence[Row],
    by_target: Sequence[Row],
    queues: Mapping[str, dict[str, Any] | None],
) -> list[dict[str, Any]]:
    """Return the pools, each with its runners, which come with the numbers of their lost tasks.

    ``queues`` has the work queue of each target, if it is known.
    """
    agents_of = {row["runner"]: row for row in agents}
    since_of = {row["runner"]: row["since"] for row in by_target}
    runners_of: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row, lost in runners:
        since = since_of.get(row["name"])
        runners_of[row["pool"]].append(_runner_json(row, agents_of.get(row["name"]), lost, queues[row["name"]], since))
    waiting: defaultdict[str, list[Row]] = defaultdict(list)
    for row in by_target:
        waiting[row["pool"]].append(row)
    return [
        {
            "name": row["pool"],
            "templates": row["templates"],
            "agents": sum(runner["agents"] for runner in runners_of[row["pool"]]),
            "waiting": sum(each["tasks"] for each in waiting[row["pool"]]),
            "waiting_since": _time(min((each["since"] for each in waiting[row["pool"]]), default=None)),
            "queue": queues[row["pool"]],
            "runners": runners_of[row["pool"]],
        }
        for row in pools
    ]


def _runner_json(
    row: Row, agents: Row | None, lost: int, queue: dict[str, Any] | None, since: datetime | None
) -> dict[str, Any]:
    heard = [at for at in (row["hello_at"], agents and agents["heard_at"]) if at is not None]
    return {
        "name": row["name"],
        "listed": row["listed"],
        "agents": agents["agents"] if agents else 0,
        "lost": lost,
        "last_heard_at": _time(max(heard, default=None)),
        "waiting_since": _time(since),
        "queue": queue,
    }


def _waiting_json(row: Row) -> dict[str, Any]:
    names = ("id", "name", "display_name", "owner_name", "type", "pool", "runner", "attempt", "deleted")
    return {**{name: row[name] for name in names}, "since": format_rfc3339(row["created_at"])}


def _worker_json(row: Row) -> dict[str, Any]:
    times = ("started_at", "seen_at", "drained_since")
    return {"id": row["worker_id"], **{name: _time(row[name]) for name in times}}


async def _dead_letters_json(request: RequestContext, since: datetime, queue: QueueInfo | None) -> dict[str, Any]:
    rows = await fleet_queries.dead_letters(request.reader, since)
    reasons = [
        {"reason": row["reason"], "meaning": meaning_of(row["reason"]), "last_day": row["letters"]} for row in rows
    ]
    oldest = await request.api.dead_letters.oldest() if queue is not None and queue.messages else None
    return {"messages": None if queue is None else queue.messages, "oldest_at": _time(oldest), "reasons": reasons}


def _rates_json(rows: Sequence[Row], since: datetime) -> list[dict[str, Any]]:
    """Return one element for each hour since ``since``, also for those without a row."""
    by_hour = {row["hour"]: row for row in rows}
    hours = [since + timedelta(hours=number) for number in range(HOURS)]
    names = ("created", "completed", "failed")
    return [
        {"hour": format_rfc3339(hour), **{name: by_hour[hour][name] if hour in by_hour else 0 for name in names}}
        for hour in hours
    ]


def _queue_json(queue: QueueInfo | None, *, all_: bool) -> dict[str, Any] | None:
    """Return a queue. How much is in it tells of the tasks of all who share it, so that is for who sees ``all_``."""
    if queue is None:
        return None
    return {"name": queue.name, "messages": queue.messages if all_ else None, "consumers": queue.consumers}


def _shared_queue_json(queue: QueueInfo, ages: QueueAges) -> dict[str, Any]:
    return {**(_queue_json(queue, all_=True) or {}), "waiting_since": _time(ages.waiting_since(queue))}


def _time(at: datetime | None) -> str | None:
    return None if at is None else format_rfc3339(at)
