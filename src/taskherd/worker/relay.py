"""The relay: tells what was committed. Events go out at once from memory, and again from the outbox until confirmed.

Nothing here holds back an ack: an event is in the outbox before its report is acked, and leaves it after the broker has
confirmed it. What is dropped from memory is found in the outbox a moment later.

Three loops, so that no event waits for what others need: one publishes, one takes what was confirmed out of the outbox,
one looks for requests that are due and for events left behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import repeat
from time import monotonic
from typing import TYPE_CHECKING

from taskherd import retry
from taskherd.broker.publish import Outgoing, Published
from taskherd.errors import Retry, Unavailable
from taskherd.messages import document, events
from taskherd.observability.failpoints import Failpoint
from taskherd.store import outbox
from taskherd.store.engine import transaction
from taskherd.worker import work_requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pamqp.common import FieldTable

    from taskherd.observability.tracing import Carrier
    from taskherd.worker.batch import Change
    from taskherd.worker.context import Ground

BUFFER_MOST = 20_000
"""Changes held in memory to be told; beyond, they wait in the outbox alone."""

AT_ONCE = 1_000
"""Events told in one go."""

PUBLISHING_MOST = 4
"""Goes that wait for the broker's confirm at the same time; more events wait until one is confirmed."""

MARK_AFTER = 0.05
"""Seconds in which confirmed events gather before they are marked, so that few reports at a time cost fewer commits."""

LEFT_BEHIND = timedelta(seconds=3)
"""An event this old in the outbox was not told from memory, or not confirmed."""


class Relay:
    """Holds changes until they are told; ``run`` tells them."""

    def __init__(self, ground: Ground, every: float) -> None:
        """Look into the outbox ``every`` so many seconds."""
        self._ground = ground
        self._every = every
        self._changes: deque[tuple[Change, Carrier]] = deque()
        self._confirmed: list[events.Event] = []
        self._slots = asyncio.Semaphore(PUBLISHING_MOST)
        self._changed, self._marking, self._due = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._failures = 0
        self._looked_at = monotonic()
        self._stopping = self._all_told = False

    def offer(self, changes: Sequence[Change], *, requested: bool) -> None:
        """Take committed changes to tell, and know that requests are due."""
        trace = self._ground.tracing.current()
        self._changes.extend(zip(changes[: max(0, BUFFER_MOST - len(self._changes))], repeat(trace), strict=False))
        if changes:
            self._changed.set()
        if requested:
            self._due.set()

    async def run(self) -> None:
        """Tell until stopped, then what is in hand; an outage is waited out."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._keep_looking(), name="relay looks")
            loops.create_task(self._keep_marking(), name="relay marks")
            await self._keep_telling()

    def stop(self) -> None:
        """Have ``run`` tell what is in hand and end."""
        self._stopping = True
        for bell in (self._changed, self._due):
            bell.set()

    async def _keep_telling(self) -> None:
        async with asyncio.TaskGroup() as going:
            while self._changes or not self._stopping:
                await self._changed.wait()
                self._changed.clear()
                while self._changes:
                    taken = [self._changes.popleft() for _ in range(min(AT_ONCE, len(self._changes)))]
                    changes, traces = zip(*taken, strict=True)
                    try:
                        told = await _events(self._ground, changes)
                    except (Unavailable, Retry) as error:
                        await self._trouble(error)
                        continue
                    await self._slots.acquire()
                    going.create_task(self._tell(told, traces), name="relay tells")
        self._all_told = True
        self._marking.set()

    async def _tell(self, told: Sequence[events.Event], traces: Sequence[Carrier]) -> None:
        try:
            confirmed, failed = await publish(self._ground, told, traces)
            self._confirmed += confirmed
            self._marking.set()
            if failed is None:
                self._failures = 0
            else:
                await self._trouble(failed)  # with the slot in hand, so that an outage slows down the next ones too
        finally:
            self._slots.release()

    async def _trouble(self, error: Unavailable | Retry) -> None:
        """What could not be told is in the outbox; wait a little before the next."""
        self._failures += 1
        self._ground.trouble(str(error))
        await asyncio.sleep(retry.delay(self._failures))

    async def _keep_marking(self) -> None:
        while not self._all_told or self._confirmed:
            await self._marking.wait()
            if not self._stopping:
                await asyncio.sleep(MARK_AFTER)
            self._marking.clear()
            confirmed, self._confirmed = self._confirmed, []
            if not confirmed:
                continue
            with suppress(Unavailable, Retry):  # stopping, or it was tried often enough: they will be told again
                await self._ground.persist(partial(mark, self._ground, confirmed), "database")

    async def _keep_looking(self) -> None:
        failures = 0
        while not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._due.wait()
            self._due.clear()
            try:
                await self._look()
                failures = 0
            except (Unavailable, Retry) as error:
                failures += 1
                self._ground.trouble(str(error))
                await asyncio.sleep(retry.delay(failures))

    async def _look(self) -> None:
        while await work_requests.send_due(self._ground, self._ground.now()) == work_requests.AT_ONCE:
            continue
        if monotonic() - self._looked_at >= self._every:
            self._looked_at = monotonic()
            while await tell_left_behind(self._ground, AT_ONCE) == AT_ONCE:
                continue


async def _events(ground: Ground, changes: Sequence[Change]) -> list[events.Event]:
    names = await ground.book.look_up((change.task.owner_id, change.task.template_version_id) for change in changes)
    rendered = []
    for change in changes:
        task = change.task
        known = names[task.owner_id, task.template_version_id]
        rendered.append(
            events.Event(
                task_id=task.id,
                version=task.version,
                kind=change.kind,
                occurred_at=task.updated_at,
                task=document.spliced(change.own, task.prompt, known, task.updated_at),
                changes=change.changes,
                cause=change.cause,
            )
        )
    return rendered


async def publish(
    ground: Ground, told: Sequence[events.Event], traces: Sequence[Carrier] = ()
) -> tuple[list[events.Event], Unavailable | None]:
    """Publish events, which come from ``traces``; those that the broker confirmed, and why it did not confirm all."""
    messages = events.pack(told)
    ground.hit(Failpoint.RELAY_PUBLISH)
    with ground.tracing.span("publish", links=traces, events=len(told)):
        headers: FieldTable = {**ground.tracing.current()}
        outcomes = await ground.publisher.publish_many(
            [
                Outgoing(ground.names.events, message.routing_key, message.body, events.CONTENT_TYPE, headers or None)
                for message in messages
            ]
        )
    ground.hit(Failpoint.RELAY_CONFIRM)
    confirmed = [
        event
        for message, outcome in zip(messages, outcomes, strict=True)
        if isinstance(outcome, Published)
        for event in message.events
    ]
    now = ground.now()
    for event in confirmed:
        ground.metrics.publish_lag_seconds.observe((now - event.occurred_at).total_seconds())
    ground.metrics.events_published.inc(len(confirmed))
    return confirmed, next((outcome for outcome in outcomes if isinstance(outcome, Unavailable)), None)


async def mark(ground: Ground, confirmed: Sequence[events.Event]) -> None:
    """Take confirmed events out of the outbox. Raises Unavailable."""
    async with transaction(ground.engine) as connection:
        await outbox.published(connection, [(event.task_id, event.version) for event in confirmed])
        ground.hit(Failpoint.RELAY_MARK)


async def tell_left_behind(ground: Ground, limit: int) -> int:
    """Tell up to ``limit`` events that have been in the outbox for a while; how many there were."""
    async with transaction(ground.engine) as connection:
        rows = await outbox.due(connection, ground.now() - LEFT_BEHIND, limit)
    ground.hit(Failpoint.RELAY_SELECT)
    if not rows:
        return 0
    names = await ground.book.look_up((row.owner_id, row.template_version_id) for row in rows)
    told = [
        events.Event(
            task_id=row.task_id,
            version=row.version,
            kind=events.Kind(row.kind),
            occurred_at=row.occurred_at,
            task=document.spliced(
                row.document, row.prompt, names[row.owner_id, row.template_version_id], row.occurred_at
            ),
            changes=row.changes,
            cause=row.cause,
        )
        for row in rows
    ]
    confirmed, failed = await publish(ground, told)
    await mark(ground, confirmed)
    if failed is not None:
        raise failed
    return len(rows)
