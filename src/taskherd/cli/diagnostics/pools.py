"""Find tasks that wait for a runner that is not there, and pools that no runner serves."""

from __future__ import annotations

import shlex
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from taskherd.broker import diagnostics as broker
from taskherd.broker.topology import TopologyNames
from taskherd.cli.diagnostics.findings import Finding, counted, error, note, ok
from taskherd.errors import TaskherdError
from taskherd.runner.app import default_name
from taskherd.store import diagnostics as database
from taskherd.store.engine import dispose, open_engine, transaction
from taskherd.store.migrate import SchemaStatus
from taskherd.store.work_request_details import DEFAULT_POOL
from taskherd.worker.work_requests import POOL_FALLBACK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from datetime import datetime

    from taskherd.settings import Settings
    from taskherd.store.diagnostics import OpenRequests, PoolTemplates

MAX_TARGETS: Final = 100
"""Maximum number of pools, and of targets of work requests, that are checked."""
_WHAT: Final = "tasks and runners"


@dataclass(frozen=True, slots=True)
class _Demand:
    """What waits for runners at ``now``, the time of the database clock, and which pools templates name."""

    now: datetime
    requests: Sequence[OpenRequests]
    pools: Sequence[PoolTemplates]


async def check_pools(settings: Settings) -> AsyncIterator[Finding]:
    """Check that every task that waits, and every pool that a template names, has a runner that consumes."""
    names = TopologyNames(settings.amqp_prefix)
    try:
        demand = await _read_demand(settings)
        if demand is None:
            yield note(_WHAT, "not checked, because the database schema is not current", "upgrade the schema first")
            return
        targets = {each.pool for each in demand.pools} | {each.pool for each in demand.requests}
        targets |= {each.runner for each in demand.requests if each.runner}
        async with broker.connect(settings.amqp_url) as connection:
            queues = await broker.queue_infos(connection, sorted(map(names.work_queue, targets)))
    except TaskherdError as problem:
        yield note(_WHAT, f"not checked: {problem}", "correct the database or broker first")
        return
    consumers = {target: _consumers(queues, names.work_queue(target)) for target in targets}
    for finding in (*_senders(demand, settings), *_pools(demand, consumers, settings), *_runners(demand, consumers)):
        yield finding
    if max(len(demand.requests), len(demand.pools)) == MAX_TARGETS:
        yield note(_WHAT, f"only {MAX_TARGETS} pools and targets were checked", "start the missing runners and repeat")


async def check_own_queues(settings: Settings) -> AsyncIterator[Finding]:
    """Check the queues of this machine's runner and of its pool: one consumer has its name, and nothing waits."""
    names = TopologyNames(settings.amqp_prefix)
    name, pool = settings.runner_name or default_name(), settings.runner_pool
    try:
        async with broker.connect(settings.amqp_url) as connection:
            queues = await broker.queue_infos(connection, (names.work_queue(pool), names.work_queue(name)))
    except TaskherdError as problem:
        yield note(_WHAT, f"not checked: {problem}", "correct the broker first")
        return
    start = "start one: `taskherd runner`"
    for what, target in ((f"pool {pool}", pool), (f"runner {name}", name)):
        consumers = _consumers(queues, names.work_queue(target))
        queue = queues.get(names.work_queue(target))
        waiting = queue.messages if queue else 0
        if not consumers:
            found = f"no runner consumes; {waiting} work requests wait"
            yield error(what, found, start) if waiting else note(what, found, start)
        elif target == name and consumers > 1:
            yield error(what, f"{consumers} runners have this name", "set another TASKHERD_RUNNER_NAME on each machine")
        else:
            yield ok(what, counted(consumers, "consumer"))


async def _read_demand(settings: Settings) -> _Demand | None:
    """Return what waits, or None if the schema is not current."""
    engine = open_engine(settings.database_url, size=1, application_name="taskherd-doctor")
    try:
        async with transaction(engine) as conn:
            if (await database.schema_state(conn)).status is not SchemaStatus.CURRENT:
                return None
            return _Demand(
                (await database.server_info(conn)).now,
                await database.open_requests(conn, DEFAULT_POOL, POOL_FALLBACK, MAX_TARGETS),
                await database.template_pools(conn, DEFAULT_POOL, MAX_TARGETS),
            )
    finally:
        await dispose(engine)


def _consumers(queues: Mapping[str, broker.QueueInfo], queue: str) -> int:
    return queues[queue].consumers if queue in queues else 0


def _senders(demand: _Demand, settings: Settings) -> Iterable[Finding]:
    """Yield a finding about which runners may speak of the tasks of which pools, if there are several pools."""
    what = "senders of reports"
    if settings.sender_pools:
        yield ok(what, ", ".join(sorted(settings.sender_pools)))
    elif len(demand.pools) > 1:
        found = f"each runner may report on the tasks of all {len(demand.pools)} pools, and claim them"
        advice = "set TASKHERD_REPORT_SENDERS to the RabbitMQ user of each pool's runners, with its pool"
        yield note(what, found, advice)


def _pools(demand: _Demand, consumers: Mapping[str, int], settings: Settings) -> Iterable[Finding]:
    templates = {each.pool: each.templates for each in demand.pools}
    waiting = {each.pool: each for each in demand.requests if each.runner is None}
    late = timedelta(seconds=settings.runner_answer_timeout)
    for pool in sorted({*templates, *waiting}):
        what, request = f"pool {pool}", _merged(demand.requests, pool)
        start = f"start a runner: `TASKHERD_RUNNER_POOL={shlex.quote(pool)} taskherd runner`"
        if not consumers[pool]:
            if request:
                yield error(what, f"no runner consumes; {_waiting(request, demand.now)}", start)
            else:
                yield note(what, f"no runner consumes; used by the templates {', '.join(templates[pool])}", start)
        elif request and demand.now - request.since > late:
            found = f"{counted(consumers[pool], 'runner')}, but {_waiting(request, demand.now)}"
            yield note(what, found, "see the runners' logs, and `taskherd task explain` for a task")
        else:
            yield ok(what, counted(consumers[pool], "runner"))


def _merged(requests: Iterable[OpenRequests], pool: str) -> OpenRequests | None:
    """Return the requests that only the pool can take, as one; None if there are none."""
    of_pool = [each for each in requests if each.pool == pool and each.runner is None]
    if not of_pool:
        return None
    tasks = sum(each.tasks for each in of_pool)  # a task has one request to a pool at a time
    return database.OpenRequests(pool, None, may_use_pool=True, tasks=tasks, since=min(each.since for each in of_pool))


def _runners(demand: _Demand, consumers: Mapping[str, int]) -> Iterable[Finding]:
    """Yield a finding for each runner that tasks wait for and that does not consume."""
    by_runner: dict[str, list[OpenRequests]] = defaultdict(list)
    for each in demand.requests:
        if each.runner is not None and not consumers[each.runner]:
            by_runner[each.runner].append(each)
    for runner, requests in sorted(by_runner.items()):
        what = f"runner {runner}"
        stuck = [each for each in requests if not (each.may_use_pool and consumers[each.pool])]
        found = "it does not consume; " + "; ".join(_waiting(each, demand.now) for each in stuck or requests)
        if stuck:
            advice = f"start it again on its machine: `TASKHERD_RUNNER_NAME={shlex.quote(runner)} taskherd runner`"
            yield error(what, found, advice)
        else:
            advice = "its pool takes over after TASKHERD_RUNNER_ANSWER_TIMEOUT; start it again for its workspaces"
            yield note(what, found, advice)


def _waiting(request: OpenRequests, now: datetime) -> str:
    subject = "1 task waits" if request.tasks == 1 else f"{request.tasks} tasks wait"
    seconds = max((now - request.since).total_seconds(), 0)
    return f"{subject} since {request.since:%Y-%m-%d %H:%M:%S} UTC ({seconds:.0f} s)"
