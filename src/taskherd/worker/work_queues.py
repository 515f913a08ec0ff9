"""The queues of work requests: declare one for each pool and runner, and delete those of runners long gone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import structlog

from taskherd import retry
from taskherd.broker import topology
from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.store import runners
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from collections.abc import Set as AbstractSet
    from datetime import datetime

    from taskherd.broker.connection import SupervisedConnection
    from taskherd.messages.claims import RunnerHello
    from taskherd.store.runners import WorkTargets
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.sender_pools import Pools

log = structlog.get_logger(__name__)

EVERY = 30.0
"""Seconds between two looks at the pools and runners in the database."""
MAX_RUNNERS = 1_000
"""Maximum number of runners that said hello: each costs the broker a quorum queue, a process with files of its own."""
MAX_RUNNERS_OF_SENDER = 500
"""Maximum number of them in the pools of one sender (``TASKHERD_REPORT_SENDERS``), so that it leaves some to others."""
MAX_POOLS = 100
"""Maximum number of pools that only hellos name; those of templates are the administrator's decision."""
RUNNER_RETENTION = timedelta(days=7)
"""Time after its last hello from which the queue of a runner without a consumer is deleted."""
NAME_KEPT_FOR = timedelta(minutes=5)
"""Time for which a runner that was heard keeps its name from the runners of other pools, as over a restart."""
MAX_FORGOTTEN = 20
"""Maximum number of runners that are forgotten in one round."""


class WorkQueues:
    """Declares the queues of all pools and runners, and those of runners that say hello."""

    def __init__(
        self,
        context: WorkerContext,
        checking: SupervisedConnection,
        declaring: SupervisedConnection,
        ensure_exchanges: Callable[[], Awaitable[None]],
    ) -> None:
        """Create the object; ``run`` starts the periodic part.

        The connections are as those of ``Topology``. ``ensure_exchanges`` declares the exchanges if they are missing,
        and raises as ``declare_missing_once`` does.
        """
        self._context = context
        self._checking = checking
        self._declaring = declaring
        self._ensure_exchanges = ensure_exchanges
        self._declared: set[str] = set()

    async def run(self) -> None:
        """Declare missing queues and delete idle ones, periodically, and sooner after a failure."""
        failures = 0
        while True:
            failed = False
            for once in (self.declare_missing_once, partial(self.forget_idle_once, self._context.now())):
                try:
                    await once()
                except (Unavailable, Retry, Misconfigured) as error:
                    failed = True
                    log.warning("cannot declare work queues, retrying", reason=str(error))
            failures = failures + 1 if failed else 0
            await asyncio.sleep(retry.delay(failures) if failures else EVERY)

    def reset(self) -> None:
        """Declare all queues again: after a reconnect the broker may be another one."""
        self._declared.clear()

    async def declare_missing_once(self) -> None:
        """Declare the queues of all pools and runners that were not declared yet.

        Raises:
            Unavailable: the database or the broker cannot be reached, or one of the queues hangs.
            Misconfigured: one of the queues exists with other arguments. The others were declared.
        """
        async with transaction(self._context.engine) as connection:
            targets = await runners.targets(connection)
        self._context.known_runners.replace(targets)
        missing = sorted((targets.pools | targets.runners) - self._declared)
        if missing:
            await self._ensure_exchanges()
        failed: Unavailable | Misconfigured | None = None
        for target in missing:
            try:
                await self._declare(target)
            except (Unavailable, Misconfigured) as error:
                failed = error
                if not self._declaring.is_up:
                    break
        if failed is not None:
            raise failed

    async def register(
        self, hellos: Sequence[RunnerHello], now: datetime, sender_pools: Sequence[Pools] = ()
    ) -> list[str | None]:
        """Record runners and declare their missing queues. Return for each hello why it was refused, or None.

        ``sender_pools`` are those of each hello's sender, if senders are checked.

        Raises:
            Unavailable: the database or the broker cannot be reached.
        """
        refusals: list[str | None] = []
        in_use = await self._names_in_use(hellos)
        async with transaction(self._context.engine) as connection:
            await runners.lock(connection)
            targets = await runners.targets(connection)
            said_hello, heard_at = dict(targets.said_hello), dict(targets.heard_at)
            accepted: dict[str, str] = {}
            for hello, pools in zip(hellos, sender_pools or [None] * len(hellos), strict=True):
                known = runners.WorkTargets(targets.directory_pools, targets.listed, said_hello, heard_at)
                refusal = hello_refusal(known, hello, now=now, in_use=in_use, sender_pools=pools)
                refusals.append(refusal)
                if refusal is None:
                    accepted[hello.runner] = said_hello[hello.runner] = hello.pool
                    heard_at[hello.runner] = now
            if accepted:
                await runners.record_hellos(connection, accepted, now)
            for name in in_use - accepted.keys():
                await runners.touch(connection, name, now)  # so that it keeps its name over its next restart
        self._context.known_runners.replace(replace(targets, said_hello=said_hello))
        for index, hello in enumerate(hellos):
            if refusals[index] is None:
                try:
                    await self._ensure(hello.pool)
                    await self._ensure(hello.runner)
                except Misconfigured as error:
                    refusals[index] = str(error)
        return refusals

    async def _names_in_use(self, hellos: Sequence[RunnerHello]) -> set[str]:
        """Return the names that a runner of another pool registered earlier and consumes under now.

        The runners are read first: other workers may have registered some, and one that has just started knows none.
        """
        known = self._context.known_runners
        async with transaction(self._context.engine) as connection:
            known.replace(await runners.targets(connection))
        names = {hello.runner for hello in hellos if known.is_of_another_pool(hello.runner, hello.pool)}
        in_use = set()
        for name in names:
            async with self._checking.temporary_channel() as channel:
                if await topology.has_consumer(channel, self._context.names.work_queue(name)):
                    in_use.add(name)
        return in_use

    async def forget_idle_once(self, now: datetime) -> None:
        """Delete the queues of some runners that said no hello for ``RUNNER_RETENTION`` and have no consumer."""
        before = now - RUNNER_RETENTION
        async with transaction(self._context.engine) as connection:
            names = await runners.idle(connection, before, MAX_FORGOTTEN)
        for name in names:
            if not await self._delete_idle(name):
                async with transaction(self._context.engine) as connection:
                    await runners.touch(connection, name, now)
                continue
            async with transaction(self._context.engine) as connection:
                await runners.lock(connection)
                pool = await runners.forget(connection, name, before)
                in_use = (await runners.targets(connection)).pools
            log.info("idle runner forgotten", runner=name, pool=pool)
            if pool is not None and pool not in in_use:
                await self._delete_idle(pool)

    async def _ensure(self, target: str) -> None:
        """Declare the queue of ``target`` if it is missing. A check waits for no hung node, as a declaration does."""
        async with self._checking.temporary_channel() as channel:
            if await topology.exist(channel, queues=[self._context.names.work_queue(target)]):
                return
        await self._declare(target)

    async def _declare(self, target: str) -> None:
        async with self._declaring.temporary_channel() as channel:
            await topology.declare_work_queue(channel, self._context.names, target)
        self._declared.add(target)

    async def _delete_idle(self, target: str) -> bool:
        """Delete a queue without a consumer. Return False if it has one; True if it is gone."""
        async with self._declaring.temporary_channel() as channel:
            deleted = await topology.delete_idle_work_queue(channel, self._context.names, target)
        if deleted:
            self._declared.discard(target)
        return deleted


def hello_refusal(
    targets: WorkTargets,
    hello: RunnerHello,
    *,
    now: datetime,
    in_use: AbstractSet[str] = frozenset(),
    sender_pools: Pools = None,
) -> str | None:
    """Return why a hello is refused, or None. Pools and runners share one namespace, that of their queues.

    ``in_use``: names of runners of other pools that consume. ``sender_pools``: those of the sender; None for all.
    """
    return _name_refusal(targets, hello, now, in_use) or _bound_refusal(targets, hello, sender_pools)


def _name_refusal(targets: WorkTargets, hello: RunnerHello, now: datetime, in_use: AbstractSet[str]) -> str | None:
    """Return why a runner or its pool may not have this name, or None."""
    if hello.runner == hello.pool or hello.runner in targets.pools:
        return f"{hello.runner} is the name of a pool; expected another name of the runner (TASKHERD_RUNNER_NAME)."
    if hello.pool in targets.runners:
        return f"{hello.pool} is the name of a runner; expected another name of the pool (TASKHERD_RUNNER_POOL)."
    listed = targets.listed.get(hello.runner)
    if listed is not None:
        return (
            f"The directory says that runner {hello.runner} belongs to pool {listed}, not {hello.pool}."
            if listed != hello.pool
            else None
        )
    pool = targets.said_hello.get(hello.runner, hello.pool)
    heard_at = targets.heard_at.get(hello.runner)
    was_heard = heard_at is not None and now - heard_at < NAME_KEPT_FOR
    if pool != hello.pool and (was_heard or hello.runner in in_use):
        return (
            f"A runner {hello.runner} of pool {pool} is there, or was within {NAME_KEPT_FOR.seconds // 60} minutes; "
            "expected another name of the runner (TASKHERD_RUNNER_NAME)."
        )
    return None


def _bound_refusal(targets: WorkTargets, hello: RunnerHello, sender_pools: Pools) -> str | None:
    """Return which bound a new runner or pool exceeds, or None."""
    if hello.runner not in targets.runners:
        if len(targets.said_hello) >= MAX_RUNNERS:
            return f"{MAX_RUNNERS} runners have said hello already; list the runner in the directory file."
        of_sender = sum(pool in (sender_pools or ()) for pool in targets.said_hello.values())
        if of_sender >= MAX_RUNNERS_OF_SENDER:
            return (
                f"{MAX_RUNNERS_OF_SENDER} runners have said hello already for the pools of this sender; "
                "list the runner in the directory file."
            )
    pools = {*targets.said_hello.values()} - targets.directory_pools - {*targets.listed.values()}
    if hello.pool not in targets.pools and len(pools) >= MAX_POOLS:
        return f"{MAX_POOLS} pools are in use that no template names; name pool {hello.pool} in a template first."
    return None
