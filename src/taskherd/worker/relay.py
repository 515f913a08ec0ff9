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
from taskherd.broker.publish import OutgoingMessage, PublishOutcome
from taskherd.errors import Retry, Unavailable
from taskherd.messages import document, events
from taskherd.observability.failpoints import Failpoint
from taskherd.store import outbox
from taskherd.store.engine import transaction
from taskherd.worker import work_requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.broker import FieldTable
    from taskherd.observability.tracing import Carrier
    from taskherd.worker.batch import CommittedChange
    from taskherd.worker.context import WorkerContext

MAX_BUFFER = 20_000
"""Changes held in memory to be told; beyond, they wait in the outbox alone."""

AT_ONCE = 1_000
"""Events told in one go."""

MAX_PUBLISHING = 4
"""Goes that wait for the broker's confirm at the same time; more events wait until one is confirmed."""

MARK_AFTER = 0.05
"""Seconds in which confirmed events gather before they are marked, so that few reports at a time cost fewer commits."""

STALE_AFTER = timedelta(seconds=3)
"""An event this old in the outbox was not told from memory, or not confirmed."""


class Relay:
    """Holds changes until they are told; ``run`` tells them."""

    def __init__(self, context: WorkerContext, every: float) -> None:
        """Look into the outbox ``every`` so many seconds."""
        self._context = context
        self._every = every
        self._changes: deque[tuple[CommittedChange, Carrier]] = deque()
        self._confirmed: list[events.ChangeEvent] = []
        self._slots = asyncio.Semaphore(MAX_PUBLISHING)
        self._changed, self._marking, self._due = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._failures = 0
        self._polled_at = monotonic()
        self._stopping = self._all_published = False

    def offer(self, changes: Sequence[CommittedChange], *, requested: bool) -> None:
        """Take committed changes to tell, and know that requests are due."""
        trace = self._context.tracing.current()
        self._changes.extend(zip(changes[: max(0, MAX_BUFFER - len(self._changes))], repeat(trace), strict=False))
        if changes:
            self._changed.set()
        if requested:
            self._due.set()

    async def run(self) -> None:
        """Tell until stopped, then what is in hand; an outage is waited out."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._poll_loop(), name="relay looks")
            loops.create_task(self._mark_loop(), name="relay marks")
            await self._publish_loop()

    def stop(self) -> None:
        """Have ``run`` tell what is in hand and end."""
        self._stopping = True
        for bell in (self._changed, self._due):
            bell.set()

    async def _publish_loop(self) -> None:
        async with asyncio.TaskGroup() as going:
            while self._changes or not self._stopping:
                await self._changed.wait()
                self._changed.clear()
                while self._changes:
                    taken = [self._changes.popleft() for _ in range(min(AT_ONCE, len(self._changes)))]
                    changes, traces = zip(*taken, strict=True)
                    try:
                        told = await _events(self._context, changes)
                    except (Unavailable, Retry) as error:
                        await self._on_error(error)
                        continue
                    await self._slots.acquire()
                    going.create_task(self._publish(told, traces), name="relay tells")
        self._all_published = True
        self._marking.set()

    async def _publish(self, told: Sequence[events.ChangeEvent], traces: Sequence[Carrier]) -> None:
        try:
            confirmed, failed = await publish(self._context, told, traces)
            self._confirmed += confirmed
            self._marking.set()
            if failed is None:
                self._failures = 0
            else:
                await self._on_error(failed)  # with the slot in hand, so that an outage slows down the next ones too
        finally:
            self._slots.release()

    async def _on_error(self, error: Unavailable | Retry) -> None:
        """What could not be told is in the outbox; wait a little before the next."""
        self._failures += 1
        self._context.on_error(str(error))
        await asyncio.sleep(retry.delay(self._failures))

    async def _mark_loop(self) -> None:
        while not self._all_published or self._confirmed:
            await self._marking.wait()
            if not self._stopping:
                await asyncio.sleep(MARK_AFTER)
            self._marking.clear()
            confirmed, self._confirmed = self._confirmed, []
            if not confirmed:
                continue
            with suppress(Unavailable, Retry):  # stopping, or it was tried often enough: they will be told again
                await self._context.until_stopped(partial(mark_published, self._context, confirmed), "database")

    async def _poll_loop(self) -> None:
        failures = 0
        while not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._due.wait()
            self._due.clear()
            try:
                await self._poll()
                failures = 0
            except (Unavailable, Retry) as error:
                failures += 1
                self._context.on_error(str(error))
                await asyncio.sleep(retry.delay(failures))

    async def _poll(self) -> None:
        while await work_requests.send_due(self._context, self._context.now()) == work_requests.AT_ONCE:
            continue
        if monotonic() - self._polled_at >= self._every:
            self._polled_at = monotonic()
            while await republish_stale(self._context, AT_ONCE) == AT_ONCE:
                continue


async def _events(context: WorkerContext, changes: Sequence[CommittedChange]) -> list[events.ChangeEvent]:
    names = await context.directory_cache.look_up(
        (change.task.owner_id, change.task.template_version_id) for change in changes
    )
    rendered = []
    for change in changes:
        task = change.task
        known = names[task.owner_id, task.template_version_id]
        rendered.append(
            events.ChangeEvent(
                task_id=task.id,
                version=task.version,
                kind=change.kind,
                occurred_at=task.updated_at,
                task=document.render_json(change.core_document, task.prompt, known, task.updated_at),
                changes=change.changes,
                cause=change.cause,
            )
        )
    return rendered


async def publish(
    context: WorkerContext, told: Sequence[events.ChangeEvent], traces: Sequence[Carrier] = ()
) -> tuple[list[events.ChangeEvent], Unavailable | None]:
    """Publish events, which come from ``traces``; those that the broker confirmed, and why it did not confirm all."""
    messages = events.pack_events(told)
    context.failpoint(Failpoint.RELAY_PUBLISH)
    with context.tracing.span("publish", links=traces, events=len(told)):
        headers: FieldTable = {**context.tracing.current()}
        outcomes = await context.publisher.publish_many(
            [
                OutgoingMessage(
                    context.names.events, message.routing_key, message.body, events.CONTENT_TYPE, headers or None
                )
                for message in messages
            ]
        )
    context.failpoint(Failpoint.RELAY_CONFIRM)
    confirmed = [
        event
        for message, outcome in zip(messages, outcomes, strict=True)
        if isinstance(outcome, PublishOutcome)
        for event in message.events
    ]
    now = context.now()
    for event in confirmed:
        context.metrics.publish_lag_seconds.observe((now - event.occurred_at).total_seconds())
    context.metrics.events_published.inc(len(confirmed))
    return confirmed, next((outcome for outcome in outcomes if isinstance(outcome, Unavailable)), None)


async def mark_published(context: WorkerContext, confirmed: Sequence[events.ChangeEvent]) -> None:
    """Take confirmed events out of the outbox. Raises Unavailable."""
    async with transaction(context.engine) as connection:
        await outbox.mark_published(connection, [(event.task_id, event.version) for event in confirmed])
        context.failpoint(Failpoint.RELAY_MARK)


async def republish_stale(context: WorkerContext, limit: int) -> int:
    """Tell up to ``limit`` events that have been in the outbox for a while; how many there were."""
    async with transaction(context.engine) as connection:
        rows = await outbox.due(connection, context.now() - STALE_AFTER, limit)
    context.failpoint(Failpoint.RELAY_SELECT)
    if not rows:
        return 0
    names = await context.directory_cache.look_up((row.owner_id, row.template_version_id) for row in rows)
    told = [
        events.ChangeEvent(
            task_id=row.task_id,
            version=row.version,
            kind=events.EventKind(row.kind),
            occurred_at=row.occurred_at,
            task=document.render_json(
                row.document, row.prompt, names[row.owner_id, row.template_version_id], row.occurred_at
            ),
            changes=row.changes,
            cause=row.cause,
        )
        for row in rows
    ]
    confirmed, failed = await publish(context, told)
    await mark_published(context, confirmed)
    if failed is not None:
        raise failed
    return len(rows)
